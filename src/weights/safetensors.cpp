#include "weights/safetensors.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "base/error.h"
#include "weights/file_kind.h"
#include "weights/text_checks.h"

namespace isobit {
namespace {

struct TensorType {
  std::string_view name;
  uint32_t bytes;
  std::optional<DType> dtype;  // none: cannot be run
};

constexpr TensorType kTensorTypes[] = {
    {"F32", 4, DType::kF32},
    {"F16", 2, DType::kF16},
    {"BF16", 2, DType::kBF16},
    {"F64", 8, {}},
    {"I64", 8, {}},
    {"I32", 4, {}},
    {"I16", 2, {}},
    {"I8", 1, {}},
    {"U64", 8, {}},
    {"U32", 4, {}},
    {"U16", 2, {}},
    {"U8", 1, {}},
    {"BOOL", 1, {}},
    {"F8_E4M3", 1, DType::kF8E4M3},
    {"F8_E5M2", 1, {}},
};

// A tensor as the header states it.
struct Entry {
  std::string name;
  std::string type;
  std::vector<uint64_t> shape, offsets;
  bool has_type = false, has_shape = false, has_offsets = false;
};

// Takes the header's JSON event by event, so that nothing is built that the format does not have: an object of objects,
// {"__metadata__": {text: text}, name: {"dtype": text, "shape": [numbers], "data_offsets": [numbers]}}.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Entry> entries;
  std::deque<std::string> strings;  // keys and values of __metadata__, in turn; addresses are stable
  std::string problem;              // why a call returned false

  bool null() override { return refuse("a null"); }
  bool boolean(bool /*value*/) override { return refuse("a bool"); }
  bool number_float(double /*value*/, const std::string& text) override { return refuse("the number " + text); }
  bool binary(nlohmann::json::binary_t& /*value*/) override { return refuse("binary data"); }
  bool number_integer(int64_t value) override { return refuse(fmt::format("the number {}", value)); }

  bool number_unsigned(uint64_t value) override {
    if (numbers_ == nullptr) return refuse(fmt::format("the number {}", value));
    if (numbers_->size() >= SafetensorsLimits::kMaxDimensions) {
      return refuse(fmt::format("more than {} numbers", SafetensorsLimits::kMaxDimensions));
    }
    numbers_->push_back(value);
    return true;
  }

  bool string(std::string& value) override {
    if (in_metadata_ && depth_ == 2) {
      strings.push_back(std::move(value));
      return true;
    }
    if (depth_ != 2 || field_ != "dtype" || entries.back().has_type) return refuse("the text " + in_quotes(value));
    entries.back().type = std::move(value);
    entries.back().has_type = true;
    return true;
  }

  bool start_object(size_t /*elements*/) override {
    if (numbers_ != nullptr || depth_ >= 2) return refuse("an object");
    ++depth_;
    return true;
  }
  bool end_object() override {
    --depth_;
    in_metadata_ = false;
    return true;
  }

  bool key(std::string& value) override {
    if (depth_ == 2) return inner_key(value);
    field_.clear();
    if (value.empty() || value.size() > SafetensorsLimits::kMaxNameBytes) {
      problem = fmt::format("the name {} has {} bytes; from 1 to {} are allowed", in_quotes(value), value.size(),
                            SafetensorsLimits::kMaxNameBytes);
      return false;
    }
    in_metadata_ = value == "__metadata__";
    if (in_metadata_ && std::exchange(seen_metadata_, true)) return refuse("a second object of that name");
    if (!in_metadata_) entries.emplace_back().name = std::move(value);
    return true;
  }

  bool start_array(size_t /*elements*/) override {
    if (numbers_ != nullptr || depth_ != 2 || in_metadata_) return refuse("an array");
    Entry& entry = entries.back();
    if (field_ == "shape" && !entry.has_shape) {
      entry.has_shape = true;
      numbers_ = &entry.shape;
      return true;
    }
    if (field_ == "data_offsets" && !entry.has_offsets) {
      entry.has_offsets = true;
      numbers_ = &entry.offsets;
      return true;
    }
    return refuse("an array");
  }
  bool end_array() override {
    numbers_ = nullptr;
    return true;
  }

  bool parse_error(size_t position, const std::string& /*token*/, const nlohmann::detail::exception& error) override {
    problem = fmt::format("its JSON is broken at byte {}: {}", position, error.what());
    return false;
  }

 private:
  bool inner_key(std::string& value) {
    if (in_metadata_) {
      strings.push_back(std::move(value));
    } else {
      field_ = value;
    }
    return true;
  }

  bool refuse(const std::string& found) {
    problem = in_metadata_      ? fmt::format("'__metadata__' holds {}; it may hold text alone", found)
              : entries.empty() ? fmt::format("it holds {} where a tensor's description should be", found)
                                : fmt::format("the description of tensor {} holds {} where it should not (field {})",
                                              in_quotes(entries.back().name), found, in_quotes(field_));
    return false;
  }

  int depth_ = 0;
  bool in_metadata_ = false, seen_metadata_ = false;
  std::string field_;
  std::vector<uint64_t>* numbers_ = nullptr;  // where an open array's numbers go
};

class SafetensorsParser {
 public:
  SafetensorsParser(std::span<const std::byte> file, std::string_view path) : file_(file), path_(path) {}

  Checkpoint::Parts parse() {
    const std::string_view header = read_header();
    data_ = file_.subspan(8 + header.size());
    HeaderReader reader;
    if (!nlohmann::json::sax_parse(header.begin(), header.end(), &reader)) {
      throw bad("the header of {} bytes is refused: {}", header.size(), reader.problem);
    }
    Checkpoint::Parts parts;
    parts.path = path_;
    parts.format = "safetensors";
    auto strings = std::make_shared<std::deque<std::string>>(std::move(reader.strings));
    parts.metadata = read_metadata(*strings);
    parts.keep_alive = std::move(strings);
    for (const Entry& entry : reader.entries) parts.tensors.push_back(place(entry));
    std::sort(parts.tensors.begin(), parts.tensors.end(),
              [](const Tensor& a, const Tensor& b) { return std::pair(a.data, a.bytes) < std::pair(b.data, b.bytes); });
    check_cover(parts.tensors);
    parts.files.push_back({"", file_, file_.first(8 + header.size()), nullptr});
    return parts;
  }

 private:
  template <typename... Args>
  [[nodiscard]] Error bad(fmt::format_string<Args...> format, Args&&... args) const {
    return {ErrorCode::kBadFile, fmt::format("{}: {}. The file is damaged; download it again", path_,
                                             fmt::format(format, std::forward<Args>(args)...))};
  }

  std::string_view read_header() const {
    const std::string_view text(reinterpret_cast<const char*>(file_.data()), file_.size());
    uint64_t length = 0;
    if (text.size() < 10) throw bad("it has {} bytes; a safetensors file has at least 10", text.size());
    std::memcpy(&length, text.data(), 8);
    if (text[8] != '{') {
      const std::string_view kind = describe_file_kind(file_);
      throw fail(ErrorCode::kBadFile, "{}: is not a safetensors file: its header begins with {} instead of '{{'. {}",
                 path_, in_quotes(text.substr(8, 1)), kind.empty() ? "Name a .safetensors file" : kind);
    }
    if (length > SafetensorsLimits::kMaxHeaderBytes) {
      throw bad("the header's length is {}; the limit is {}", length, SafetensorsLimits::kMaxHeaderBytes);
    }
    if (length > text.size() - 8) {
      throw bad("the header's length is {}, but only {} bytes follow: it is truncated", length, text.size() - 8);
    }
    return text.substr(8, static_cast<size_t>(length));
  }

  Metadata read_metadata(const std::deque<std::string>& strings) const {
    std::vector<MetadataEntry> entries;
    for (size_t i = 0; i + 1 < strings.size(); i += 2) {
      entries.push_back({strings[i], {ValueType::kString, std::string_view(strings[i + 1])}});
    }
    return {path_, std::move(entries)};
  }

  Tensor place(const Entry& entry) const {
    const std::string name = in_quotes(entry.name);
    if (!entry.has_type || !entry.has_shape || entry.offsets.size() != 2) {
      throw bad("tensor {}: 'dtype', 'shape' and two 'data_offsets' are needed", name);
    }
    const uint64_t begin = entry.offsets[0], end = entry.offsets[1];
    if (begin > end || end > data_.size()) {
      throw bad("tensor {}: data_offsets are {} to {}, but the data has {} bytes", name, begin, end, data_.size());
    }
    Tensor tensor;
    tensor.name = entry.name;
    const uint64_t elements = read_shape(entry, tensor);
    tensor.data = data_.data() + begin;
    tensor.bytes = static_cast<size_t>(end - begin);
    const auto* type = std::find_if(std::begin(kTensorTypes), std::end(kTensorTypes),
                                    [&](const TensorType& t) { return t.name == entry.type; });
    if (type == std::end(kTensorTypes)) {
      tensor.unsupported_type = fmt::format("unknown (safetensors {})", in_quotes(entry.type));
      return tensor;
    }
    if (tensor.bytes % type->bytes != 0 || tensor.bytes / type->bytes != elements) {
      throw bad("tensor {}: data_offsets give {} bytes, but {} elements of {} take {} each", name, tensor.bytes,
                elements, type->name, type->bytes);
    }
    if (type->dtype) {
      tensor.dtype = *type->dtype;
    } else {
      tensor.unsupported_type = fmt::format("{} (safetensors)", type->name);
    }
    return tensor;
  }

  // Fills the shape; returns the number of elements.
  uint64_t read_shape(const Entry& entry, Tensor& tensor) const {
    constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    uint64_t elements = 1;
    for (const uint64_t size : entry.shape) {
      if (size > kMax || (elements != 0 && size > kMax / elements)) {
        throw bad("tensor {}: dimension {} makes more than {} elements", in_quotes(entry.name), size, kMax);
      }
      elements *= size;
      tensor.shape.push_back(static_cast<int64_t>(size));
    }
    return elements;
  }

  // Tensors in the data's order.
  void check_cover(const std::vector<Tensor>& tensors) const {
    const std::byte* at = data_.data();
    for (const Tensor& t : tensors) {
      if (t.data != at) {
        throw bad("tensor {} begins at byte {} of the data, but the tensor before it ends at {}: there is {}",
                  in_quotes(t.name), t.data - data_.data(), at - data_.data(), t.data < at ? "an overlap" : "a hole");
      }
      at += t.bytes;
    }
    if (at != data_.data() + data_.size()) {
      throw bad("the last tensor ends at byte {} of the data, which has {} bytes", at - data_.data(), data_.size());
    }
  }

  std::span<const std::byte> file_;
  std::string path_;
  std::span<const std::byte> data_;
};

}  // namespace

Checkpoint load_safetensors(const std::string& path) {
  auto mapping = std::make_shared<const MappedFile>(path);
  Checkpoint::Parts parts = SafetensorsParser(mapping->bytes(), path).parse();
  parts.files.front().mapping = std::move(mapping);
  return Checkpoint(std::move(parts));
}

Checkpoint parse_safetensors(std::span<const std::byte> file, std::string_view name) {
  return Checkpoint(SafetensorsParser(file, name).parse());
}

}  // namespace isobit
