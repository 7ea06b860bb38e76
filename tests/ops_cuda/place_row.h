#pragma once
// A weight matrix's rows as CudaLinear has them.
#include <cstdint>
#include <vector>

#include "ops/cuda/linear_cuda.h"

namespace isobit {

// from[0..k) as a row of a matrix of `rows` stored rows.
inline void place_row(std::vector<uint16_t>& matrix, int64_t rows, int64_t row, const uint16_t* from, int64_t k) {
  for (int64_t c = 0; c < k; c++) matrix[static_cast<size_t>(cuda::CudaLinear::place(rows, row, c))] = from[c];
}

}  // namespace isobit
