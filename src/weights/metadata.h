#pragma once
// The typed key-value pairs of a model file. Text and arrays are views of the file's bytes: they live as long as the
// Checkpoint that the Metadata belongs to.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace isobit {

// The file's type of a value; the numbers are GGUF's.
enum class ValueType : uint8_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};
std::string_view value_type_name(ValueType type);  // "u32", "string", …
size_t value_type_bytes(ValueType type);           // 0 for strings and arrays

struct MetadataArray {
  ValueType element = ValueType::kU8;
  uint64_t count = 0;
  std::span<const std::byte> raw;         // numbers and bools: packed little-endian, not aligned
  std::vector<std::string_view> strings;  // strings
  // An array of arrays is counted, but its elements cannot be read: no known model needs one.
};

struct MetadataValue {
  ValueType type = ValueType::kU8;
  // u8…u64 as uint64_t, i8…i64 as int64_t, f32 and f64 as double
  std::variant<uint64_t, int64_t, double, bool, std::string_view, MetadataArray> value;

  std::string type_name() const;  // "u32", "array of string"
  // The value for people: text is quoted, escaped and cut to about `limit` characters, arrays show their first
  // elements.
  std::string display(size_t limit = 80) const;
};

struct MetadataEntry {
  std::string_view key;
  MetadataValue value;
};

// get_X: the value, or Error kBadFile naming the key and what is wrong: missing, another type (found and wanted are
// named), or a number that does not fit. find_X: the same, but nothing for a missing key. An integer may have been
// written in any width or signedness as long as its value fits; a float as f32 or f64; nothing else is converted.
class Metadata {
 public:
  Metadata() = default;
  // Takes the entries in file order. Throws Error kBadFile for a key that comes twice. `origin` (a path) opens
  // messages.
  Metadata(std::string origin, std::vector<MetadataEntry> entries);
  Metadata(const Metadata&) = delete;
  Metadata& operator=(const Metadata&) = delete;
  Metadata(Metadata&&) = default;
  Metadata& operator=(Metadata&&) = default;

  std::span<const MetadataEntry> entries() const { return entries_; }
  const MetadataValue* find(std::string_view key) const;
  bool has(std::string_view key) const { return find(key) != nullptr; }

  std::optional<uint32_t> find_u32(std::string_view key) const;
  std::optional<int32_t> find_i32(std::string_view key) const;
  std::optional<uint64_t> find_u64(std::string_view key) const;
  std::optional<int64_t> find_i64(std::string_view key) const;
  std::optional<float> find_f32(std::string_view key) const;
  std::optional<double> find_f64(std::string_view key) const;
  std::optional<bool> find_bool(std::string_view key) const;
  std::optional<std::string_view> find_string(std::string_view key) const;
  std::optional<std::span<const std::string_view>> find_strings(std::string_view key) const;
  std::optional<std::vector<int64_t>> find_i64s(std::string_view key) const;
  std::optional<std::vector<float>> find_f32s(std::string_view key) const;
  std::optional<std::vector<bool>> find_bools(std::string_view key) const;

  uint32_t get_u32(std::string_view key) const { return need(key, find_u32(key)); }
  int32_t get_i32(std::string_view key) const { return need(key, find_i32(key)); }
  uint64_t get_u64(std::string_view key) const { return need(key, find_u64(key)); }
  int64_t get_i64(std::string_view key) const { return need(key, find_i64(key)); }
  float get_f32(std::string_view key) const { return need(key, find_f32(key)); }
  double get_f64(std::string_view key) const { return need(key, find_f64(key)); }
  bool get_bool(std::string_view key) const { return need(key, find_bool(key)); }
  std::string_view get_string(std::string_view key) const { return need(key, find_string(key)); }
  std::span<const std::string_view> get_strings(std::string_view key) const { return need(key, find_strings(key)); }
  std::vector<int64_t> get_i64s(std::string_view key) const { return need(key, find_i64s(key)); }
  std::vector<float> get_f32s(std::string_view key) const { return need(key, find_f32s(key)); }
  std::vector<bool> get_bools(std::string_view key) const { return need(key, find_bools(key)); }

 private:
  template <typename T>
  T need(std::string_view key, std::optional<T> value) const {
    if (!value) throw_missing(key);
    return *std::move(value);
  }
  [[noreturn]] void throw_missing(std::string_view key) const;
  [[noreturn]] void throw_type(std::string_view key, const MetadataValue& found, std::string_view wanted) const;
  template <typename T>
  std::optional<T> find_integer(std::string_view key, std::string_view wanted) const;
  const MetadataArray* find_array(std::string_view key, std::string_view wanted) const;

  std::string origin_;
  std::vector<MetadataEntry> entries_;
  std::vector<uint32_t> by_key_;  // indices of entries_, sorted by key
};

}  // namespace isobit
