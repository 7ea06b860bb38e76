#pragma once
#include "ops/linear.h"

namespace isobit {

enum class Epilogue : uint8_t {
  kStoreF32,      // out f32 [m, n] = acc (+ bias)
  kStoreRounded,  // out bf16/f16 [m, n] = round(acc (+ bias))
  kAddResidual,   // out f32 [m, n] = fadd(out, acc (+ bias)): the residual stream, in place
  kSiluMul,       // gated weights: out bf16/f16 [m, n/2] = round(fmul(silu(gate), up))
  kGeluMul,       // the same with gelu_tanh
};

// y = x·Wᵀ by rule N7, then the epilogue. Bias, where given, is fadd(acc, bias[n]). A NaN result is 0x7fffffff.
struct GemmArgs {
  const uint16_t* x = nullptr;  // [m, k]
  int64_t m = 0;
  const Linear* w = nullptr;    // [n, k]
  const float* bias = nullptr;  // [n] or null
  Epilogue epilogue = Epilogue::kStoreF32;
  DType type = DType::kBF16;  // of x, of the weights and of rounded outputs: kBF16 or kF16
  void* out = nullptr;

  void check() const;
};

}  // namespace isobit
