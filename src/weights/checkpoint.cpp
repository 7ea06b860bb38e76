#include "weights/checkpoint.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <utility>

#include "base/digest.h"
#include "base/error.h"
#include "numerics/dequantize.h"
#include "weights/text_checks.h"

namespace isobit {
namespace {

constexpr size_t kSampleBytes = 512;
constexpr size_t kSamples = 8;

void add_samples(Digest& digest, std::span<const std::byte> data) {
  if (data.size() <= kSamples * kSampleBytes) return digest.add(data.data(), data.size());
  const size_t step = (data.size() - kSampleBytes) / (kSamples - 1);
  for (size_t i = 0; i + 1 < kSamples; ++i) digest.add(data.data() + i * step, kSampleBytes);
  digest.add(data.data() + data.size() - kSampleBytes, kSampleBytes);
}

void release(const Checkpoint::File& file, std::span<const std::byte> piece) {
  if (file.mapping == nullptr || piece.empty()) return;
  file.mapping->advise(static_cast<size_t>(piece.data() - file.bytes.data()), piece.size(),
                       MappedFile::Advice::kDontNeed);
}

}  // namespace

std::string supported_type_names() {
  std::string names;
  for (const DType type : numerics::dequantizable_types()) {
    if (!names.empty()) names += ", ";
    names += dtype_info(type).name;
  }
  return names;
}

int64_t Tensor::elements() const {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, [](int64_t a, int64_t b) { return a * b; });
}

Checkpoint::Checkpoint(Parts parts)
    : parts_(std::move(parts)), by_name_(parts_.tensors.size()), digest_(std::make_unique<LazyDigest>()) {
  std::iota(by_name_.begin(), by_name_.end(), 0u);
  const auto name = [this](uint32_t i) -> std::string_view { return parts_.tensors[i].name; };
  std::sort(by_name_.begin(), by_name_.end(), [&](uint32_t a, uint32_t b) { return name(a) < name(b); });
  const auto twice =
      std::adjacent_find(by_name_.begin(), by_name_.end(), [&](uint32_t a, uint32_t b) { return name(a) == name(b); });
  if (twice != by_name_.end()) {
    throw fail(ErrorCode::kBadFile, "{}: tensor name {} comes twice; the limit is once. The file is damaged", path(),
               in_quotes(name(*twice)));
  }
  find_scales();
}

// Matrices whose scales are not as they should be cannot be run, but can be listed.
void Checkpoint::find_scales() {
  constexpr int64_t kBlock = 128;
  const auto blocks = [](int64_t n) { return (n + kBlock - 1) / kBlock; };
  for (Tensor& t : parts_.tensors) {
    if (!t.supported() || t.dtype != DType::kF8E4M3) continue;
    const Tensor* s = lookup(t.name + std::string(kScaleSuffix));
    if (s != nullptr && s->dtype == DType::kF32 && s->rows() == blocks(t.rows()) &&
        s->columns() == blocks(t.columns())) {
      t.scale = s->data;
    } else {
      t.unsupported_type = fmt::format("F8_E4M3 without {} × {} scales in F32 ({}{})", blocks(t.rows()),
                                       blocks(t.columns()), t.name, kScaleSuffix);
    }
  }
}

const Tensor* Checkpoint::lookup(std::string_view name) const {
  const auto at = std::lower_bound(by_name_.begin(), by_name_.end(), name,
                                   [this](uint32_t i, std::string_view n) { return parts_.tensors[i].name < n; });
  return at != by_name_.end() && parts_.tensors[*at].name == name ? &parts_.tensors[*at] : nullptr;
}

const Tensor* Checkpoint::find(std::string_view name) const {
  const Tensor* found = lookup(name);
  if (found == nullptr || found->supported()) return found;
  throw fail(ErrorCode::kUnsupported,
             "{}: tensor {} has type {}, which cannot be run. Supported: {}. Fetch the model in one of these", path(),
             in_quotes(name), found->unsupported_type, supported_type_names());
}

const Tensor& Checkpoint::tensor(std::string_view name) const {
  const Tensor* found = find(name);
  if (found != nullptr) return *found;
  const MetadataValue* split = metadata().find("split.count");
  const auto* parts = split != nullptr ? std::get_if<uint64_t>(&split->value) : nullptr;
  if (parts != nullptr && *parts > 1) {
    throw fail(ErrorCode::kUnsupported,
               "{}: tensor {} is not in this file, which is one of {} parts of a model; join them first with "
               "llama.cpp's `llama-gguf-split --merge`",
               path(), in_quotes(name), *parts);
  }
  throw fail(ErrorCode::kBadFile,
             "{}: tensor {} is missing (the file has {} tensors); it is incomplete or of another architecture. `isobit "
             "show` lists what it has",
             path(), in_quotes(name), parts_.tensors.size());
}

size_t Checkpoint::file_bytes() const {
  size_t bytes = 0;
  for (const File& f : parts_.files) bytes += f.bytes.size();
  return bytes;
}

std::optional<std::string_view> Checkpoint::document(std::string_view name) const {
  const auto found = std::ranges::find(parts_.files, name, &File::name);
  if (name.empty() || found == parts_.files.end()) return std::nullopt;
  return std::string_view(reinterpret_cast<const char*>(found->bytes.data()), found->bytes.size());
}

void Checkpoint::release_pages(const Tensor& tensor) const {
  if (tensor.bytes == 0) return;
  for (const File& f : parts_.files) {
    if (std::less<>()(tensor.data, f.bytes.data()) || !std::less<>()(tensor.data, f.bytes.data() + f.bytes.size())) {
      continue;
    }
    release(f, {tensor.data, tensor.bytes});
    return;
  }
}

void Checkpoint::release_header_pages() const {
  for (const File& f : parts_.files) release(f, f.header);
}

void Checkpoint::release_all_pages() const {
  for (const File& f : parts_.files) release(f, f.bytes);
}

void Checkpoint::prefetch() const {
  for (const File& f : parts_.files) {
    if (f.mapping != nullptr) f.mapping->advise(0, f.bytes.size(), MappedFile::Advice::kWillNeed);
  }
}

const std::string& Checkpoint::digest() const {
  std::call_once(digest_->once, [this] {
    Digest digest;
    for (const File& f : parts_.files) {
      digest.add(f.header.data(), f.header.size());
      release(f, f.header);
    }
    for (const Tensor& t : parts_.tensors) {
      add_samples(digest, {t.data, t.bytes});
      release_pages(t);  // the kernel maps pages around each sample: without this the whole file would become resident
    }
    digest_->hex = digest.hex();
  });
  return digest_->hex;
}

std::string Checkpoint::full_digest() const {
  constexpr size_t kStep = size_t{8} << 20;
  Digest digest;
  for (const File& f : parts_.files) {
    for (size_t begin = 0; begin < f.bytes.size(); begin += kStep) {
      const auto piece = f.bytes.subspan(begin, std::min(kStep, f.bytes.size() - begin));
      digest.add(piece.data(), piece.size());
      release(f, piece);
    }
  }
  return digest.hex();
}

}  // namespace isobit
