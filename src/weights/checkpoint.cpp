#include "weights/checkpoint.h"

#include <algorithm>
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

void Checkpoint::release_pages(const Tensor& tensor) const {
  if (parts_.mapping == nullptr || tensor.bytes == 0) return;
  const auto offset = static_cast<size_t>(tensor.data - parts_.file.data());
  parts_.mapping->advise(offset, tensor.bytes, MappedFile::Advice::kDontNeed);
}

void Checkpoint::release_header_pages() const {
  if (parts_.mapping == nullptr || parts_.header.empty()) return;
  const auto offset = static_cast<size_t>(parts_.header.data() - parts_.file.data());
  parts_.mapping->advise(offset, parts_.header.size(), MappedFile::Advice::kDontNeed);
}

void Checkpoint::prefetch() const {
  if (parts_.mapping != nullptr) parts_.mapping->advise(0, file_bytes(), MappedFile::Advice::kWillNeed);
}

const std::string& Checkpoint::digest() const {
  std::call_once(digest_->once, [this] {
    Digest digest;
    digest.add(parts_.header.data(), parts_.header.size());
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
  for (size_t begin = 0; begin < parts_.file.size(); begin += kStep) {
    const auto piece = parts_.file.subspan(begin, std::min(kStep, parts_.file.size() - begin));
    digest.add(piece.data(), piece.size());
    if (parts_.mapping != nullptr) parts_.mapping->advise(begin, piece.size(), MappedFile::Advice::kDontNeed);
  }
  return digest.hex();
}

}  // namespace isobit
