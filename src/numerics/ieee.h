#pragma once
// N1. IEEE operations by name. Every rule of the contract is written with these: round to nearest even, no contraction,
// no flush to zero. Results do not depend on compiler flags: a product is pinned in a register before anything can fuse
// with it. The same source serves host and device.
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>

#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "isobit: -ffast-math, -Ofast and -ffinite-math-only break the contract; remove them"
#endif
static_assert(FLT_EVAL_METHOD == 0 || FLT_EVAL_METHOD == 16,
              "isobit: float and double must be computed in their own precision (SSE2, not x87)");

#ifdef __CUDACC__
#define ISOBIT_HD __host__ __device__ inline
#else
#define ISOBIT_HD inline
#endif

namespace isobit::numerics {

template <typename T>
ISOBIT_HD T pin(T x) {
#if defined(__CUDA_ARCH__)
  return x;
#elif defined(__x86_64__)
  asm("" : "+x"(x));
  return x;
#elif defined(__aarch64__)
  asm("" : "+w"(x));
  return x;
#else
  volatile T y = x;
  return y;
#endif
}

ISOBIT_HD uint32_t bits(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  return std::bit_cast<uint32_t>(x);
#endif
}
ISOBIT_HD float from_bits(uint32_t u) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(u);
#else
  return std::bit_cast<float>(u);
#endif
}
ISOBIT_HD uint64_t bits64(double x) {
#ifdef __CUDA_ARCH__
  return static_cast<uint64_t>(__double_as_longlong(x));
#else
  return std::bit_cast<uint64_t>(x);
#endif
}
ISOBIT_HD double from_bits64(uint64_t u) {
#ifdef __CUDA_ARCH__
  return __longlong_as_double(static_cast<long long>(u));
#else
  return std::bit_cast<double>(u);
#endif
}

#ifdef __CUDA_ARCH__
ISOBIT_HD float fadd(float a, float b) { return __fadd_rn(a, b); }
ISOBIT_HD float fsub(float a, float b) { return __fsub_rn(a, b); }
ISOBIT_HD float fmul(float a, float b) { return __fmul_rn(a, b); }
ISOBIT_HD float fdiv(float a, float b) { return __fdiv_rn(a, b); }
ISOBIT_HD float fsqrt(float a) { return __fsqrt_rn(a); }
ISOBIT_HD float ffma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
ISOBIT_HD double dadd(double a, double b) { return __dadd_rn(a, b); }
ISOBIT_HD double dmul(double a, double b) { return __dmul_rn(a, b); }
ISOBIT_HD double ddiv(double a, double b) { return __ddiv_rn(a, b); }
ISOBIT_HD double dsqrt(double a) { return __dsqrt_rn(a); }
ISOBIT_HD double dfma(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
ISOBIT_HD float fadd(float a, float b) { return pin(a + b); }
ISOBIT_HD float fsub(float a, float b) { return pin(a - b); }
ISOBIT_HD float fmul(float a, float b) { return pin(a * b); }
ISOBIT_HD float fdiv(float a, float b) { return pin(a / b); }
ISOBIT_HD float fsqrt(float a) { return std::sqrt(a); }
ISOBIT_HD float ffma(float a, float b, float c) { return std::fma(a, b, c); }
ISOBIT_HD double dadd(double a, double b) { return pin(a + b); }
ISOBIT_HD double dmul(double a, double b) { return pin(a * b); }
ISOBIT_HD double ddiv(double a, double b) { return pin(a / b); }
ISOBIT_HD double dsqrt(double a) { return std::sqrt(a); }
ISOBIT_HD double dfma(double a, double b, double c) { return std::fma(a, b, c); }
#endif

constexpr uint32_t kNaN32 = 0x7fffffff;
constexpr uint16_t kNaN16 = 0x7fff;  // bf16 and f16
constexpr uint32_t kInf32 = 0x7f800000;

// Whether this thread rounds to nearest and keeps subnormals. False where a library linked with -ffast-math has set
// flush-to-zero behind our back.
ISOBIT_HD bool environment_is_ieee() {
  const float tiny = pin(from_bits(1)), one = pin(1.0f), half_ulp = pin(0x1p-24f);
  return bits(fadd(tiny, tiny)) == 2 && bits(fmul(from_bits(0x00800000), pin(0.5f))) == 0x00400000 &&
         fadd(one, half_ulp) == 1.0f && fadd(-one, -half_ulp) == -1.0f && fadd(one, fmul(pin(1.5f), half_ulp)) > 1.0f;
}

ISOBIT_HD bool is_nan(float x) { return (bits(x) & 0x7fffffff) > kInf32; }

// N1: a NaN that a rule stores is 0x7fffffff. The GPU's arithmetic gives that NaN by itself; a CPU passes payloads on.
ISOBIT_HD float canonical(float x) { return is_nan(x) ? from_bits(kNaN32) : x; }

// The larger; a NaN loses to a number (IEEE 754-2008 maxNum). Equal zeros of either sign: +0.
ISOBIT_HD float fmax(float a, float b) {
  if (is_nan(a)) return b;
  if (is_nan(b)) return a;
  if (a == b) return (bits(a) >> 31) != 0 ? b : a;
  return a > b ? a : b;
}

}  // namespace isobit::numerics
