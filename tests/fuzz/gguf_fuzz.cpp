// Any bytes as a GGUF file: either an Error, or a Checkpoint whose every view lies inside the file and can be read.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "weights/dequantize.h"
#include "weights/gguf.h"

namespace {

using isobit::Checkpoint;
using isobit::Metadata;
using isobit::MetadataEntry;
using isobit::Tensor;

template <typename F>
void ignore_errors(F&& action) {
  try {
    action();
  } catch (const isobit::Error&) {  // expected of a hostile file; anything else is a finding
  }
}

void read_entry(const Metadata& m, const MetadataEntry& entry) {
  if (m.find(entry.key) != &entry.value) std::abort();
  entry.value.display();
  entry.value.type_name();
  ignore_errors([&] { m.get_u32(entry.key); });
  ignore_errors([&] { m.get_i64(entry.key); });
  ignore_errors([&] { m.get_f32(entry.key); });
  ignore_errors([&] { m.get_bool(entry.key); });
  ignore_errors([&] { m.get_string(entry.key); });
  ignore_errors([&] { m.get_strings(entry.key); });
  ignore_errors([&] { m.get_i64s(entry.key); });
  ignore_errors([&] { m.get_f32s(entry.key); });
  ignore_errors([&] { m.get_bools(entry.key); });
}

void read_tensor(const Checkpoint& checkpoint, const Tensor& tensor, const uint8_t* file, size_t size) {
  const auto* begin = reinterpret_cast<const uint8_t*>(tensor.data);
  if (tensor.bytes > 0 && (begin < file || tensor.bytes > size - static_cast<size_t>(begin - file))) std::abort();
  ignore_errors([&] {
    const Tensor& usable = checkpoint.tensor(tensor.name);
    if (&usable != &tensor || tensor.bytes == 0) std::abort();
    std::vector<float> wide(static_cast<size_t>(tensor.columns()));
    std::vector<uint16_t> narrow(wide.size());
    const int64_t last = tensor.rows() - 1;
    for (const int64_t row : {int64_t{0}, last}) {
      const std::byte* at = tensor.data + static_cast<size_t>(row) * tensor.row_bytes();
      isobit::dequantize_row_f32(tensor.dtype, at, tensor.columns(), wide.data());
      isobit::dequantize_row_bf16(tensor.dtype, at, tensor.columns(), narrow.data());
    }
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  ignore_errors([&] {
    const Checkpoint checkpoint = isobit::parse_gguf({reinterpret_cast<const std::byte*>(data), size}, "fuzz.gguf");
    for (const MetadataEntry& entry : checkpoint.metadata().entries()) read_entry(checkpoint.metadata(), entry);
    for (const Tensor& tensor : checkpoint.tensors()) read_tensor(checkpoint, tensor, data, size);
    checkpoint.digest();
    checkpoint.full_digest();
  });
  return 0;
}
