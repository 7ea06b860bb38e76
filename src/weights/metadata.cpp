#include "weights/metadata.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "weights/text_checks.h"

namespace isobit {
namespace {

bool is_unsigned(ValueType type) {
  return type == ValueType::kU8 || type == ValueType::kU16 || type == ValueType::kU32 || type == ValueType::kU64;
}
bool is_signed(ValueType type) {
  return type == ValueType::kI8 || type == ValueType::kI16 || type == ValueType::kI32 || type == ValueType::kI64;
}
bool is_float(ValueType type) { return type == ValueType::kF32 || type == ValueType::kF64; }

template <typename T>
T load(std::span<const std::byte> raw, uint64_t index) {
  T value;
  std::memcpy(&value, raw.data() + index * sizeof(T), sizeof(T));
  return value;
}

int64_t signed_at(const MetadataArray& array, uint64_t i) {
  switch (array.element) {
    case ValueType::kI8:
      return load<int8_t>(array.raw, i);
    case ValueType::kI16:
      return load<int16_t>(array.raw, i);
    case ValueType::kI32:
      return load<int32_t>(array.raw, i);
    default:
      return load<int64_t>(array.raw, i);
  }
}

uint64_t unsigned_at(const MetadataArray& array, uint64_t i) {
  switch (array.element) {
    case ValueType::kU8:
    case ValueType::kBool:
      return load<uint8_t>(array.raw, i);
    case ValueType::kU16:
      return load<uint16_t>(array.raw, i);
    case ValueType::kU32:
      return load<uint32_t>(array.raw, i);
    default:
      return load<uint64_t>(array.raw, i);
  }
}

double float_at(const MetadataArray& array, uint64_t i) {
  return array.element == ValueType::kF32 ? load<float>(array.raw, i) : load<double>(array.raw, i);
}

std::string element_text(const MetadataArray& array, uint64_t i, size_t limit) {
  if (array.element == ValueType::kString) return in_quotes(array.strings[i], limit);
  if (array.element == ValueType::kBool) return unsigned_at(array, i) != 0 ? "true" : "false";
  if (is_float(array.element)) return fmt::format("{}", float_at(array, i));
  if (is_signed(array.element)) return fmt::format("{}", signed_at(array, i));
  if (is_unsigned(array.element)) return fmt::format("{}", unsigned_at(array, i));
  return "…";
}

std::string array_text(const MetadataArray& array, size_t limit) {
  std::string out = "[";
  for (uint64_t i = 0; i < array.count; ++i) {
    if (i > 0) out += ", ";
    if (out.size() >= limit || array.element == ValueType::kArray)
      return out + fmt::format("… {} in all]", array.count);
    out += element_text(array, i, limit);
  }
  return out + "]";
}

}  // namespace

std::string_view value_type_name(ValueType type) {
  constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
  return kNames[static_cast<size_t>(type)];
}

size_t value_type_bytes(ValueType type) {
  constexpr size_t kBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kBytes[static_cast<size_t>(type)];
}

std::string MetadataValue::type_name() const {
  if (type != ValueType::kArray) return std::string(value_type_name(type));
  return fmt::format("array of {}", value_type_name(std::get<MetadataArray>(value).element));
}

std::string MetadataValue::display(size_t limit) const {
  switch (type) {
    case ValueType::kBool:
      return std::get<bool>(value) ? "true" : "false";
    case ValueType::kString:
      return in_quotes(std::get<std::string_view>(value), limit);
    case ValueType::kArray:
      return array_text(std::get<MetadataArray>(value), limit);
    case ValueType::kF32:
      return fmt::format("{}", static_cast<float>(std::get<double>(value)));
    case ValueType::kF64:
      return fmt::format("{}", std::get<double>(value));
    default:
      return is_signed(type) ? fmt::format("{}", std::get<int64_t>(value))
                             : fmt::format("{}", std::get<uint64_t>(value));
  }
}

Metadata::Metadata(std::string origin, std::vector<MetadataEntry> entries)
    : origin_(std::move(origin)), entries_(std::move(entries)), by_key_(entries_.size()) {
  std::iota(by_key_.begin(), by_key_.end(), 0u);
  const auto key = [this](uint32_t i) { return entries_[i].key; };
  std::sort(by_key_.begin(), by_key_.end(), [&](uint32_t a, uint32_t b) { return key(a) < key(b); });
  const auto twice =
      std::adjacent_find(by_key_.begin(), by_key_.end(), [&](uint32_t a, uint32_t b) { return key(a) == key(b); });
  if (twice != by_key_.end()) {
    throw fail(ErrorCode::kBadFile, "{}: metadata key {} comes twice; the limit is once. The file is damaged", origin_,
               in_quotes(key(*twice)));
  }
}

const MetadataValue* Metadata::find(std::string_view key) const {
  const auto at = std::lower_bound(by_key_.begin(), by_key_.end(), key,
                                   [this](uint32_t i, std::string_view k) { return entries_[i].key < k; });
  return at != by_key_.end() && entries_[*at].key == key ? &entries_[*at].value : nullptr;
}

void Metadata::throw_missing(std::string_view key) const {
  throw fail(ErrorCode::kBadFile,
             "{}: metadata key {} is missing and the model needs it; was the file made for another architecture, or by "
             "an old converter? `isobit show` lists what it has",
             origin_, in_quotes(key));
}

void Metadata::throw_type(std::string_view key, const MetadataValue& found, std::string_view wanted) const {
  throw fail(ErrorCode::kBadFile, "{}: metadata key {} is {} = {}, but {} is wanted; the file must be converted again",
             origin_, in_quotes(key), found.type_name(), found.display(), wanted);
}

template <typename T>
std::optional<T> Metadata::find_integer(std::string_view key, std::string_view wanted) const {
  const MetadataValue* found = find(key);
  if (found == nullptr) return std::nullopt;
  const auto* u = std::get_if<uint64_t>(&found->value);
  const auto* i = std::get_if<int64_t>(&found->value);
  if (u == nullptr && i == nullptr) throw_type(key, *found, wanted);
  const bool fits = u != nullptr ? std::in_range<T>(*u) : std::in_range<T>(*i);
  if (!fits) {
    throw fail(ErrorCode::kBadFile, "{}: metadata key {} is {}, outside the range of {} ({} to {})", origin_,
               in_quotes(key), found->display(), wanted, std::numeric_limits<T>::min(), std::numeric_limits<T>::max());
  }
  return u != nullptr ? static_cast<T>(*u) : static_cast<T>(*i);
}

std::optional<uint32_t> Metadata::find_u32(std::string_view key) const { return find_integer<uint32_t>(key, "u32"); }
std::optional<int32_t> Metadata::find_i32(std::string_view key) const { return find_integer<int32_t>(key, "i32"); }
std::optional<uint64_t> Metadata::find_u64(std::string_view key) const { return find_integer<uint64_t>(key, "u64"); }
std::optional<int64_t> Metadata::find_i64(std::string_view key) const { return find_integer<int64_t>(key, "i64"); }

std::optional<double> Metadata::find_f64(std::string_view key) const {
  const MetadataValue* found = find(key);
  if (found == nullptr) return std::nullopt;
  if (!is_float(found->type)) throw_type(key, *found, "f32 or f64");
  return std::get<double>(found->value);
}

std::optional<float> Metadata::find_f32(std::string_view key) const {
  const std::optional<double> value = find_f64(key);
  return value ? std::optional<float>(static_cast<float>(*value)) : std::nullopt;
}

std::optional<bool> Metadata::find_bool(std::string_view key) const {
  const MetadataValue* found = find(key);
  if (found == nullptr) return std::nullopt;
  if (found->type != ValueType::kBool) throw_type(key, *found, "bool");
  return std::get<bool>(found->value);
}

std::optional<std::string_view> Metadata::find_string(std::string_view key) const {
  const MetadataValue* found = find(key);
  if (found == nullptr) return std::nullopt;
  if (found->type != ValueType::kString) throw_type(key, *found, "string");
  return std::get<std::string_view>(found->value);
}

const MetadataArray* Metadata::find_array(std::string_view key, std::string_view wanted) const {
  const MetadataValue* found = find(key);
  if (found == nullptr) return nullptr;
  if (found->type != ValueType::kArray) throw_type(key, *found, wanted);
  return &std::get<MetadataArray>(found->value);
}

std::optional<std::span<const std::string_view>> Metadata::find_strings(std::string_view key) const {
  const MetadataArray* array = find_array(key, "array of string");
  if (array == nullptr) return std::nullopt;
  if (array->element != ValueType::kString) throw_type(key, *find(key), "array of string");
  return array->strings;
}

std::optional<std::vector<int64_t>> Metadata::find_i64s(std::string_view key) const {
  constexpr std::string_view kWanted = "array of integers";
  const MetadataArray* array = find_array(key, kWanted);
  if (array == nullptr) return std::nullopt;
  if (!is_signed(array->element) && !is_unsigned(array->element)) throw_type(key, *find(key), kWanted);
  std::vector<int64_t> out(array->count);
  for (uint64_t i = 0; i < array->count; ++i) {
    if (is_signed(array->element)) {
      out[i] = signed_at(*array, i);
      continue;
    }
    const uint64_t value = unsigned_at(*array, i);
    if (!std::in_range<int64_t>(value)) {
      throw fail(ErrorCode::kBadFile, "{}: metadata key {}, element {} is {}, above the limit of i64 ({})", origin_,
                 in_quotes(key), i, value, std::numeric_limits<int64_t>::max());
    }
    out[i] = static_cast<int64_t>(value);
  }
  return out;
}

std::optional<std::vector<float>> Metadata::find_f32s(std::string_view key) const {
  constexpr std::string_view kWanted = "array of f32 or f64";
  const MetadataArray* array = find_array(key, kWanted);
  if (array == nullptr) return std::nullopt;
  if (!is_float(array->element)) throw_type(key, *find(key), kWanted);
  std::vector<float> out(array->count);
  for (uint64_t i = 0; i < array->count; ++i) out[i] = static_cast<float>(float_at(*array, i));
  return out;
}

std::optional<std::vector<bool>> Metadata::find_bools(std::string_view key) const {
  const MetadataArray* array = find_array(key, "array of bool");
  if (array == nullptr) return std::nullopt;
  if (array->element != ValueType::kBool) throw_type(key, *find(key), "array of bool");
  std::vector<bool> out(array->count);
  for (uint64_t i = 0; i < array->count; ++i) out[i] = unsigned_at(*array, i) != 0;
  return out;
}

}  // namespace isobit
