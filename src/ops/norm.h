#pragma once
#include "base/dtype.h"

namespace isobit {

// out[i, :] = round(rms_norm(x[row(i), :]) · weight), rule N8. row(i) = rows[i], or i where rows is null; a negative
// row is padding and gives 0.
struct RmsNormArgs {
  const float* x = nullptr;       // [*, n]
  const int32_t* rows = nullptr;  // [count] or null
  const float* weight = nullptr;  // [n]
  int64_t count = 0, n = 0;
  float eps = 1e-5f;
  DType out_type = DType::kBF16;  // kBF16 or kF16
  uint16_t* out = nullptr;        // [count, n]

  void check() const;
};

}  // namespace isobit
