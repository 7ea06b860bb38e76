#include "weights/gguf.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "weights/file_kind.h"
#include "weights/text_checks.h"

namespace isobit {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is read as it lies in memory: little-endian");

struct FileType {
  uint32_t number;
  std::string_view name;
  uint32_t block_elements, block_bytes;
  std::optional<DType> dtype;  // none: known by name and size, but cannot be run
};

constexpr FileType runnable(uint32_t number, DType dtype) {
  const DTypeInfo info = dtype_info(dtype);
  return {number, info.name, info.block_elements, info.block_bytes, dtype};
}

// ggml.h's enum ggml_type, with the block sizes of ggml-common.h. Missing numbers were removed or are never in files.
constexpr FileType kFileTypes[] = {
    runnable(0, DType::kF32),     runnable(1, DType::kF16),     runnable(2, DType::kQ4_0),
    runnable(3, DType::kQ4_1),    runnable(6, DType::kQ5_0),    runnable(7, DType::kQ5_1),
    runnable(8, DType::kQ8_0),    {10, "Q2_K", 256, 84, {}},    {11, "Q3_K", 256, 110, {}},
    runnable(12, DType::kQ4_K),   runnable(13, DType::kQ5_K),   runnable(14, DType::kQ6_K),
    {16, "IQ2_XXS", 256, 66, {}}, {17, "IQ2_XS", 256, 74, {}},  {18, "IQ3_XXS", 256, 98, {}},
    {19, "IQ1_S", 256, 50, {}},   {20, "IQ4_NL", 32, 18, {}},   {21, "IQ3_S", 256, 110, {}},
    {22, "IQ2_S", 256, 82, {}},   {23, "IQ4_XS", 256, 136, {}}, {24, "I8", 1, 1, {}},
    {25, "I16", 1, 2, {}},        {26, "I32", 1, 4, {}},        {27, "I64", 1, 8, {}},
    {28, "F64", 1, 8, {}},        {29, "IQ1_M", 256, 56, {}},   runnable(30, DType::kBF16),
    {34, "TQ1_0", 256, 54, {}},   {35, "TQ2_0", 256, 66, {}},   {39, "MXFP4", 32, 17, {}},
};

const FileType* find_type(uint32_t number) {
  const auto* at = std::find_if(std::begin(kFileTypes), std::end(kFileTypes),
                                [number](const FileType& t) { return t.number == number; });
  return at != std::end(kFileTypes) ? at : nullptr;
}

constexpr uint32_t kMaxValueType = static_cast<uint32_t>(ValueType::kF64);

// The fewest bytes that one value of a type can take in the file.
uint64_t min_value_bytes(ValueType type) {
  if (type == ValueType::kString) return 8;  // its length
  if (type == ValueType::kArray) return 12;  // its element type and count
  return value_type_bytes(type);
}

class GgufParser {
 public:
  GgufParser(std::span<const std::byte> file, std::string_view path) : file_(file), path_(path) {}

  Checkpoint::Parts parse() {
    read_header();
    Metadata metadata(path_, read_pairs());
    read_tensor_table();
    const size_t table_end = position_;
    place_tensors(alignment(metadata));
    Checkpoint::Parts parts;
    parts.path = path_;
    parts.format = fmt::format("GGUF v{}", version_);
    parts.metadata = std::move(metadata);
    parts.tensors = std::move(tensors_);
    parts.files.push_back({"", file_, file_.first(table_end), nullptr});
    return parts;
  }

 private:
  template <typename... Args>
  [[nodiscard]] Error bad(fmt::format_string<Args...> format, Args&&... args) const {
    return {ErrorCode::kBadFile, fmt::format("{}: {}", path_, fmt::format(format, std::forward<Args>(args)...))};
  }

  // Where the reader stands, for messages: built only when one is needed.
  std::string where() const {
    if (place_ == Place::kHeader) return "header";
    if (place_ == Place::kPair)
      return fmt::format("metadata pair {} of {} {}", index_ + 1, pair_count_, in_quotes(name_));
    return fmt::format("tensor {} of {} {}", index_ + 1, tensor_count_, in_quotes(name_));
  }

  uint64_t remaining() const { return file_.size() - position_; }

  const std::byte* take(uint64_t bytes, std::string_view what) {
    if (bytes > remaining()) {
      throw bad(
          "{}: {} needs {} bytes at offset {}, but the file ends at {}: it is truncated or damaged; download it "
          "again",
          where(), what, bytes, position_, file_.size());
    }
    const std::byte* at = file_.data() + position_;
    position_ += static_cast<size_t>(bytes);
    return at;
  }

  template <typename T>
  T number(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }

  std::string_view string(std::string_view what) {
    const auto length = number<uint64_t>(what);
    if (length > remaining()) {
      throw bad(
          "{}: the length of {} is {}, but only {} bytes of the file are left: it is truncated or damaged; "
          "download it again",
          where(), what, length, remaining());
    }
    return {reinterpret_cast<const char*>(take(length, what)), static_cast<size_t>(length)};
  }

  // A key or a tensor's name.
  std::string_view identifier(std::string_view what, uint64_t limit) {
    const std::string_view text = string(what);
    if (text.empty()) throw bad("{}: {} is empty; at least 1 byte is needed. The file is damaged", where(), what);
    if (text.size() > limit) {
      throw bad("{}: {} {} has {} bytes; the limit is {}. The file is damaged", where(), what, in_quotes(text),
                text.size(), limit);
    }
    if (!valid_utf8(text)) {
      throw bad("{}: {} {} is not UTF-8. The file is damaged", where(), what, in_quotes(text));
    }
    return text;
  }

  void read_header() {
    const std::string_view magic(reinterpret_cast<const char*>(file_.data()), std::min<size_t>(4, file_.size()));
    if (magic != "GGUF") {
      if (!magic.empty() && std::string_view("GGUF").starts_with(magic)) {
        throw bad("is truncated: it has {} bytes, a GGUF header has 24; download it again", file_.size());
      }
      const std::string_view kind = describe_file_kind(file_);
      throw bad("is not a GGUF file: it begins with {} instead of 'GGUF'. {}", in_quotes(magic),
                kind.empty() ? "Name a .gguf file, or fetch one with `isobit pull`" : kind);
    }
    take(4, "the magic");
    version_ = number<uint32_t>("the version");
    check_version();
    tensor_count_ = number<uint64_t>("the number of tensors");
    pair_count_ = number<uint64_t>("the number of metadata pairs");
    // A pair takes at least 8 + 1 bytes of key, 4 of type and 1 of value; a tensor 8 + 1, 4, 4 and 8.
    check_count("the number of tensors", tensor_count_, GgufLimits::kMaxTensors, 25);
    check_count("the number of metadata pairs", pair_count_, GgufLimits::kMaxPairs, 14);
  }

  void check_version() const {
    if (version_ == 2 || version_ == 3) return;
    if (version_ == 1) {
      throw fail(
          ErrorCode::kUnsupported,
          "{}: GGUF version 1 (August 2023) is not read; versions 2 and 3 are. Fetch a newer file of the model, or "
          "convert it with llama.cpp",
          path_);
    }
    if ((version_ & 0xffff) == 0 && version_ != 0) {
      throw fail(ErrorCode::kUnsupported,
                 "{}: is a big-endian GGUF (its version reads as {:#x}); only little-endian files are read. Convert it "
                 "with `gguf-convert-endian FILE little` of the gguf Python package",
                 path_, version_);
    }
    throw fail(ErrorCode::kUnsupported,
               "{}: GGUF version {} is not read; versions 2 and 3 are. The file is damaged, or newer than this build: "
               "update isobit",
               path_, version_);
  }

  void check_count(std::string_view what, uint64_t count, uint64_t limit, uint64_t bytes_each) const {
    if (count > limit) throw bad("{}: {} is {}; the limit is {}. The file is damaged", where(), what, count, limit);
    if (count > remaining() / bytes_each) {
      throw bad(
          "{}: {} is {}, which takes at least {} bytes each, but only {} bytes of the file are left: it is truncated "
          "or damaged; download it again",
          where(), what, count, bytes_each, remaining());
    }
  }

  std::vector<MetadataEntry> read_pairs() {
    std::vector<MetadataEntry> entries;
    entries.reserve(static_cast<size_t>(pair_count_));
    place_ = Place::kPair;
    for (index_ = 0; index_ < pair_count_; ++index_) {
      name_ = {};
      name_ = identifier("the key", GgufLimits::kMaxKeyBytes);
      entries.push_back({name_, read_value(value_type("the type"))});
    }
    return entries;
  }

  ValueType value_type(std::string_view what) {
    const auto type = number<uint32_t>(what);
    if (type > kMaxValueType) {
      throw bad("{}: {} is {}; the limit is {} (f64). The file is damaged", where(), what, type, kMaxValueType);
    }
    return static_cast<ValueType>(type);
  }

  MetadataValue read_value(ValueType type) {
    constexpr std::string_view kWhat = "the value";
    switch (type) {
      case ValueType::kU8:
        return {type, uint64_t{number<uint8_t>(kWhat)}};
      case ValueType::kI8:
        return {type, int64_t{number<int8_t>(kWhat)}};
      case ValueType::kU16:
        return {type, uint64_t{number<uint16_t>(kWhat)}};
      case ValueType::kI16:
        return {type, int64_t{number<int16_t>(kWhat)}};
      case ValueType::kU32:
        return {type, uint64_t{number<uint32_t>(kWhat)}};
      case ValueType::kI32:
        return {type, int64_t{number<int32_t>(kWhat)}};
      case ValueType::kU64:
        return {type, number<uint64_t>(kWhat)};
      case ValueType::kI64:
        return {type, number<int64_t>(kWhat)};
      case ValueType::kF32:
        return {type, double{number<float>(kWhat)}};
      case ValueType::kF64:
        return {type, number<double>(kWhat)};
      case ValueType::kBool:
        return {type, read_bool(number<uint8_t>(kWhat))};
      case ValueType::kString:
        return {type, string(kWhat)};
      case ValueType::kArray:
        return {type, read_array(1)};
    }
    throw fail(ErrorCode::kInternal, "{}: value type {} passed its check", path_, static_cast<int>(type));
  }

  bool read_bool(uint8_t byte) const {
    if (byte > 1) throw bad("{}: a bool is {}; the limit is 1 (0 false, 1 true). The file is damaged", where(), byte);
    return byte == 1;
  }

  MetadataArray read_array(int depth) {
    MetadataArray array;
    array.element = value_type("the element type");
    array.count = number<uint64_t>("the number of elements");
    if (array.count > remaining() / min_value_bytes(array.element)) {
      throw bad(
          "{}: the number of elements is {}, which takes at least {} bytes each, but only {} bytes of the file are "
          "left: it is truncated or damaged; download it again",
          where(), array.count, min_value_bytes(array.element), remaining());
    }
    if (array.element == ValueType::kString) {
      array.strings.reserve(static_cast<size_t>(array.count));
      for (uint64_t i = 0; i < array.count; ++i) array.strings.push_back(string("a string of the array"));
    } else if (array.element == ValueType::kArray) {
      if (depth >= GgufLimits::kMaxArrayDepth) {
        throw bad("{}: arrays are nested {} deep; the limit is {}. The file is damaged", where(), depth + 1,
                  GgufLimits::kMaxArrayDepth);
      }
      for (uint64_t i = 0; i < array.count; ++i) read_array(depth + 1);  // checked, not kept
    } else {
      const uint64_t bytes = array.count * value_type_bytes(array.element);
      array.raw = {take(bytes, "the array"), static_cast<size_t>(bytes)};
      if (array.element == ValueType::kBool) {
        for (const std::byte b : array.raw) read_bool(std::to_integer<uint8_t>(b));
      }
    }
    return array;
  }

  void read_tensor_table() {
    tensors_.resize(static_cast<size_t>(tensor_count_));
    entries_.resize(tensors_.size());
    place_ = Place::kTensor;
    for (index_ = 0; index_ < tensor_count_; ++index_) {
      name_ = {};
      name_ = identifier("the name", GgufLimits::kMaxNameBytes);
      tensors_[index_].name = name_;
      tensors_[index_].shape = read_shape();
      entries_[index_].type = number<uint32_t>("the type");
      entries_[index_].offset = number<uint64_t>("the offset");
    }
  }

  // The file has the innermost dimension first.
  std::vector<int64_t> read_shape() {
    constexpr auto kMaxElements = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
    const auto count = number<uint32_t>("the number of dimensions");
    if (count > GgufLimits::kMaxDimensions) {
      throw bad("{}: the number of dimensions is {}; the limit is {}. The file is damaged", where(), count,
                GgufLimits::kMaxDimensions);
    }
    std::vector<int64_t> shape(count);
    uint64_t elements = 1;
    for (uint32_t i = 0; i < count; ++i) {
      const auto size = number<uint64_t>("a dimension");
      if (size == 0) throw bad("{}: dimension {} is 0; at least 1 is needed. The file is damaged", where(), i);
      if (size > kMaxElements / elements) {
        throw bad("{}: dimension {} is {}, which makes more than {} elements in all. The file is damaged", where(), i,
                  size, kMaxElements);
      }
      elements *= size;
      shape[count - 1 - i] = static_cast<int64_t>(size);
    }
    return shape;
  }

  uint32_t alignment(const Metadata& metadata) const {
    const uint32_t value = metadata.find_u32("general.alignment").value_or(32);
    if (!std::has_single_bit(value) || value < GgufLimits::kMinAlignment || value > GgufLimits::kMaxAlignment) {
      throw bad("metadata key 'general.alignment' is {}; it must be a power of two from {} to {}. The file is damaged",
                value, GgufLimits::kMinAlignment, GgufLimits::kMaxAlignment);
    }
    return value;
  }

  void place_tensors(uint32_t alignment) {
    const uint64_t begin = (uint64_t{position_} + alignment - 1) / alignment * alignment;
    const uint64_t size = begin < file_.size() ? file_.size() - begin : 0;
    for (index_ = 0; index_ < tensor_count_; ++index_) {
      name_ = tensors_[index_].name;
      place_tensor(alignment, begin, size);
    }
    check_overlaps();
  }

  void place_tensor(uint32_t alignment, uint64_t begin, uint64_t size) {
    Tensor& tensor = tensors_[index_];
    const uint64_t offset = entries_[index_].offset;
    if (offset % alignment != 0) {
      throw bad("{}: the offset is {}; it must be a multiple of the alignment {}. The file is damaged", where(), offset,
                alignment);
    }
    if (offset > size) throw bad_extent(offset, 0, begin, size);
    const FileType* type = find_type(entries_[index_].type);
    if (type == nullptr) {
      tensor.unsupported_type = fmt::format("unknown (GGUF type {})", entries_[index_].type);
      return;
    }
    if (type->dtype) {
      tensor.dtype = *type->dtype;
    } else {
      tensor.unsupported_type = fmt::format("{} (GGUF type {})", type->name, type->number);
    }
    if (tensor.columns() % type->block_elements != 0) {
      throw bad("{}: a row has {} elements; type {} needs a multiple of {}. The file is damaged", where(),
                tensor.columns(), type->name, type->block_elements);
    }
    const uint64_t blocks = static_cast<uint64_t>(tensor.elements()) / type->block_elements;
    if (blocks > (size - offset) / type->block_bytes) {
      const uint64_t most = std::numeric_limits<uint64_t>::max();
      throw bad_extent(offset, blocks > most / type->block_bytes ? most : blocks * type->block_bytes, begin, size);
    }
    tensor.data = file_.data() + begin + offset;
    tensor.bytes = static_cast<size_t>(blocks * type->block_bytes);
  }

  Error bad_extent(uint64_t offset, uint64_t bytes, uint64_t begin, uint64_t size) const {
    return bad(
        "{}: offset {} and {} bytes reach past the end of the tensor data, which begins at {} and has {} bytes in "
        "this file of {}: it is truncated or damaged; download it again",
        where(), offset, bytes, begin, size, file_.size());
  }

  void check_overlaps() const {
    std::vector<const Tensor*> order;
    for (const Tensor& t : tensors_) {
      if (t.bytes > 0) order.push_back(&t);
    }
    std::sort(order.begin(), order.end(), [](const Tensor* a, const Tensor* b) { return a->data < b->data; });
    for (size_t i = 1; i < order.size(); ++i) {
      const Tensor &a = *order[i - 1], &b = *order[i];
      if (a.data + a.bytes > b.data) {
        throw bad(
            "tensor {} overlaps tensor {}: the first ends at byte {} of the file, the second begins at {}. The file "
            "is damaged",
            in_quotes(a.name), in_quotes(b.name), a.data + a.bytes - file_.data(), b.data - file_.data());
      }
    }
  }

  enum class Place { kHeader, kPair, kTensor };
  struct TableEntry {
    uint32_t type = 0;
    uint64_t offset = 0;
  };

  std::span<const std::byte> file_;
  std::string path_;
  size_t position_ = 0;
  Place place_ = Place::kHeader;
  uint64_t index_ = 0;
  std::string_view name_;
  uint32_t version_ = 0;
  uint64_t tensor_count_ = 0, pair_count_ = 0;
  std::vector<Tensor> tensors_;
  std::vector<TableEntry> entries_;  // beside tensors_
};

}  // namespace

Checkpoint load_gguf(const std::string& path) {
  auto mapping = std::make_shared<const MappedFile>(path);
  Checkpoint::Parts parts = GgufParser(mapping->bytes(), path).parse();
  parts.files.front().mapping = std::move(mapping);
  return Checkpoint(std::move(parts));
}

Checkpoint parse_gguf(std::span<const std::byte> file, std::string_view name) {
  return Checkpoint(GgufParser(file, name).parse());
}

}  // namespace isobit
