#include "weights/safetensors_writer.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <system_error>

#include "base/error.h"

namespace isobit {
namespace {

std::string header_of(const std::vector<TensorToWrite>& tensors) {
  nlohmann::ordered_json header;
  header["__metadata__"] = {{"format", "pt"}};
  size_t at = 0;
  for (const TensorToWrite& t : tensors) {
    header[t.name] = {{"dtype", dtype_info(t.dtype).name}, {"shape", t.shape}, {"data_offsets", {at, at + t.bytes()}}};
    at += t.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // so the data begins at a multiple of 8
  return text;
}

// A file that is there under its name only when it is whole.
class NewFile {
 public:
  explicit NewFile(const std::string& path)
      : path_(path), partial_(path + ".part"), out_(partial_, std::ios::binary | std::ios::trunc) {
    check();
  }
  ~NewFile() {
    std::error_code ignored;
    if (!done_) std::filesystem::remove(partial_, ignored);
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  void write(const void* data, size_t bytes) {
    out_.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
    check();
  }
  void finish() {
    out_.close();
    check();
    std::error_code error;
    std::filesystem::rename(partial_, path_, error);
    if (error) throw fail(ErrorCode::kIo, "{}: cannot be put in place: {}", path_, error.message());
    done_ = true;
  }

 private:
  void check() const {
    if (!out_) throw fail(ErrorCode::kIo, "{}: cannot be written: {}", partial_, std::strerror(errno));
  }

  std::string path_, partial_;
  std::ofstream out_;
  bool done_ = false;
};

}  // namespace

size_t TensorToWrite::bytes() const {
  return dtype_bytes(
      dtype, static_cast<size_t>(std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>())));
}

void write_safetensors(const std::string& path, std::vector<TensorToWrite> tensors) {
  std::stable_sort(tensors.begin(), tensors.end(), [](const TensorToWrite& a, const TensorToWrite& b) {
    return dtype_info(a.dtype).block_bytes > dtype_info(b.dtype).block_bytes;
  });
  const std::string header = header_of(tensors);
  NewFile file(path);
  const uint64_t length = header.size();
  file.write(&length, sizeof length);
  file.write(header.data(), header.size());
  std::vector<std::byte> data;
  for (const TensorToWrite& t : tensors) {
    data.resize(t.bytes());
    t.make(data);
    file.write(data.data(), data.size());
  }
  file.finish();
}

}  // namespace isobit
