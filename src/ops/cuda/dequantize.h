#pragma once
// Packed GGUF rows to 16-bit rows on the device: rule N19, the twin of weights/dequantize.h.
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace isobit::cuda {

struct DequantizeRows {
  DType from = DType::kBF16;
  const std::byte* packed = nullptr;  // device; `rows` rows of dtype_bytes(from, cols)
  int64_t rows = 0, cols = 0;
  DType to = DType::kBF16;  // kBF16 or kF16
  uint16_t* out = nullptr;  // the matrix's first element; elements stand as linear_cuda.h says
  int64_t out_rows = 0;     // stored rows of the matrix
  // Row r of these goes to row first + r, or, of a gated pair, to 16·⌊i/8⌋ + 8·part + i mod 8 with i = first + r.
  int64_t first = 0;
  bool gated = false;
  int part = 0;  // 0 gate, 1 up
};

bool can_dequantize(DType from);
void launch_dequantize(const DequantizeRows& rows, cudaStream_t stream);

}  // namespace isobit::cuda
