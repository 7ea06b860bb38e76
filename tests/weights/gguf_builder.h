#pragma once
// Writes GGUF files for tests, good ones and hostile ones: every count, length, type and offset can be a lie.
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "weights/metadata.h"

namespace isobit::test {

// Bytes appended little-endian.
class Bytes {
 public:
  template <typename T>
  Bytes& number(T value) {
    static_assert(std::is_arithmetic_v<T>);
    return raw(&value, sizeof value);
  }
  Bytes& raw(const void* data, size_t count) {
    const auto* p = static_cast<const std::byte*>(data);
    data_.insert(data_.end(), p, p + count);
    return *this;
  }
  Bytes& text(std::string_view s) {  // length, then bytes
    number<uint64_t>(s.size());
    return raw(s.data(), s.size());
  }
  Bytes& append(const Bytes& other) { return raw(other.data_.data(), other.data_.size()); }
  Bytes& pad(size_t alignment) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    return *this;
  }
  size_t size() const { return data_.size(); }
  std::vector<std::byte>& data() { return data_; }
  const std::vector<std::byte>& data() const { return data_; }

 private:
  std::vector<std::byte> data_;
};

struct BuilderTensor {
  std::string name;
  uint32_t type = 0;
  std::vector<uint64_t> dimensions;  // file order: innermost first
  std::vector<std::byte> data;
  std::optional<uint64_t> offset;  // else the next aligned place
};

class GgufBuilder {
 public:
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> tensor_count, pair_count;  // else the true ones
  size_t alignment = 32;

  GgufBuilder& pair(std::string_view key, ValueType type, const Bytes& value) {
    pairs_.text(key).number(static_cast<uint32_t>(type)).append(value);
    ++pairs_written_;
    return *this;
  }
  template <typename T>
  GgufBuilder& number(std::string_view key, ValueType type, T value) {
    return pair(key, type, Bytes().number(value));
  }
  GgufBuilder& u32(std::string_view key, uint32_t value) { return number(key, ValueType::kU32, value); }
  GgufBuilder& text(std::string_view key, std::string_view value) {
    return pair(key, ValueType::kString, Bytes().text(value));
  }
  GgufBuilder& array(std::string_view key, ValueType element, uint64_t count, const Bytes& elements) {
    return pair(key, ValueType::kArray, Bytes().number(static_cast<uint32_t>(element)).number(count).append(elements));
  }
  GgufBuilder& tensor(BuilderTensor t) {
    tensors_.push_back(std::move(t));
    return *this;
  }
  GgufBuilder& f32(std::string name, std::vector<uint64_t> dimensions, const std::vector<float>& values) {
    return tensor(
        {std::move(name), 0, std::move(dimensions), Bytes().raw(values.data(), values.size() * 4).data(), {}});
  }

  std::vector<std::byte> build() const {
    Bytes out, data;
    out.raw(magic.data(), magic.size()).number(version);
    out.number(tensor_count.value_or(tensors_.size())).number(pair_count.value_or(pairs_written_)).append(pairs_);
    for (const BuilderTensor& t : tensors_) {
      out.text(t.name).number(static_cast<uint32_t>(t.dimensions.size()));
      for (const uint64_t d : t.dimensions) out.number(d);
      data.pad(alignment);
      out.number(t.type).number(t.offset.value_or(data.size()));
      data.raw(t.data.data(), t.data.size());
    }
    if (!tensors_.empty()) out.pad(alignment);
    return out.append(data).data();
  }

 private:
  Bytes pairs_;
  uint64_t pairs_written_ = 0;
  std::vector<BuilderTensor> tensors_;
};

// A folder that is gone at the end of the test.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "isobit-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed for " + name);
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::string write(std::string_view name, std::span<const std::byte> bytes) const {
    const std::filesystem::path file = path_ / name;
    std::ofstream(file, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
    return file.string();
  }
  std::string write(std::string_view name, std::string_view text) const {
    return write(name, std::as_bytes(std::span(text)));
  }

 private:
  std::filesystem::path path_;
};

}  // namespace isobit::test
