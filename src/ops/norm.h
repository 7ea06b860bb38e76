#pragma once
#include "base/dtype.h"

namespace isobit {

// out[i, :] = round(rms_norm(x[row(i), :]) · weight), rule N8. row(i) = rows[i], or i where rows is null; a negative
// row is padding and gives 0. With add_to, for a norm after a sublayer (N20), add_to[i, :] = fadd(add_to[i, :], the
// unrounded value) instead; a negative row adds nothing.
struct RmsNormArgs {
  const float* x = nullptr;       // [*, n]
  const int32_t* rows = nullptr;  // [count] or null
  const float* weight = nullptr;  // [n]
  int64_t count = 0, n = 0;
  float eps = 1e-5f;
  DType out_type = DType::kBF16;  // kBF16 or kF16
  uint16_t* out = nullptr;        // [count, n]
  float* add_to = nullptr;        // [count, n], in place of out; or null

  void check() const;
};

}  // namespace isobit
