#pragma once
// A weight matrix on the GPU: 16-bit, K padded with zeros to a multiple of 64, slice after slice: 64 of K of every row,
// then the next 64. CTAs that have some rows each and walk K side by side so read memory in order, and whatever rows a
// tile has, a slice of it is one stretch.
// kStacked keeps the rows' order. kGated interleaves eight gate rows with eight up rows, so that one thread of the GEMM
// holds a gate and its up: row 16b + i is gate 8b + i, row 16b + 8 + i is up 8b + i (i < 8; rows past the end are
// zeros).
#include "ops/buffer.h"
#include "ops/linear.h"

namespace isobit::cuda {

class CudaLinear final : public Linear {
 public:
  CudaLinear(int64_t n, int64_t k, LinearForm form, DType type, Buffer storage);

  static constexpr int64_t kSlice = 64;  // of K: 128 bytes, a row of the copy engine's swizzle

  static int64_t padded_k(int64_t k) { return (k + kSlice - 1) / kSlice * kSlice; }
  // Where element k of a row stands in a matrix of `rows` stored rows; those to the end of its slice follow it.
  static constexpr int64_t place(int64_t rows, int64_t row, int64_t k) {
    return (k / kSlice * rows + row) * kSlice + k % kSlice;
  }
  // Rows as stored: n, or for a gated pair whole groups of sixteen.
  static int64_t stored_rows(int64_t n, LinearForm form) {
    return form == LinearForm::kGated ? (n / 2 + 7) / 8 * 16 : n;
  }

  DType type() const { return type_; }
  int64_t row_elements() const { return padded_k(k()); }
  int64_t stored_rows() const { return stored_rows(n(), form()); }
  const uint16_t* data() const { return storage_.data<uint16_t>(); }
  size_t bytes() const override { return storage_.bytes(); }

 private:
  DType type_;
  Buffer storage_;
};

// The matrix of an operator's arguments; throws Error(kInvalidArgument) where another backend made it.
const CudaLinear& as_cuda(const Linear* linear, const char* op);

}  // namespace isobit::cuda
