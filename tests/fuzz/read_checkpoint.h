#pragma once
// Reads everything of a Checkpoint that came from hostile bytes: every view must lie inside the file, and be readable.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <vector>

#include "base/error.h"
#include "numerics/dequantize.h"
#include "weights/checkpoint.h"

namespace isobit::fuzz {

template <typename F>
void ignore_errors(F&& action) {
  try {
    action();
  } catch (const Error&) {  // expected of a hostile file; anything else is a finding
  }
}

inline void read_entry(const Metadata& m, const MetadataEntry& entry) {
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

inline void read_tensor(const Checkpoint& checkpoint, const Tensor& tensor, const uint8_t* file, size_t size) {
  const auto* begin = reinterpret_cast<const uint8_t*>(tensor.data);
  if (tensor.bytes > 0 && (begin < file || tensor.bytes > size - static_cast<size_t>(begin - file))) std::abort();
  ignore_errors([&] {
    const Tensor& usable = checkpoint.tensor(tensor.name);
    if (&usable != &tensor) std::abort();
    if (tensor.elements() == 0) return;  // safetensors allows them
    std::vector<float> wide(static_cast<size_t>(tensor.columns()));
    std::vector<uint16_t> narrow(wide.size());
    const int64_t last = tensor.rows() - 1;
    for (const int64_t row : {int64_t{0}, last}) {
      const std::byte* at = tensor.data + static_cast<size_t>(row) * tensor.row_bytes();
      numerics::dequantize_row_f32(tensor.dtype, at, tensor.columns(), wide.data());
      numerics::dequantize_row_bf16(tensor.dtype, at, tensor.columns(), narrow.data());
    }
  });
}

inline void read_checkpoint(const Checkpoint& checkpoint, const uint8_t* file, size_t size) {
  for (const MetadataEntry& entry : checkpoint.metadata().entries()) read_entry(checkpoint.metadata(), entry);
  for (const Tensor& tensor : checkpoint.tensors()) read_tensor(checkpoint, tensor, file, size);
  checkpoint.digest();
  checkpoint.full_digest();
}

}  // namespace isobit::fuzz
