// The block-scaled FP8 GEMM, rule N16. Lanes are output columns; blocks of 16 columns × 128 of K of the weights are
// decoded into scratch once for all rows of x.
//
// dot32 in floats and int32: a product w·x of e4m3 has 8 bits, so it is exact in f32; times 2^(13 - emax), exact too,
// the conversion to int32 cuts it to the quantum. 32 products of at most 225·2^7 and c of 14 bits need 20 bits. The sum
// is exact as f32; clearing the low 10 bits of its mantissa cuts it to 14. Exponents stay far inside f32's range: a
// chain from +0 has only multiples of 2^-18 below 2^25.
#include "ops/cpu/gemm_fp8.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "numerics/activation.h"
#include "numerics/norm.h"
#include "numerics/quantize.h"
#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gemm_fp8.cpp"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Once for each target:
#include "ops/cpu/norm-inl.h"
#include "ops/cpu/simd-inl.h"

#ifndef ISOBIT_OPS_CPU_GEMM_FP8_ONCE_
#define ISOBIT_OPS_CPU_GEMM_FP8_ONCE_
namespace isobit::cpu {

constexpr int kFp8Lanes = 16, kFp8K = static_cast<int>(kFp8Block);
constexpr int kFp8Rows = 64;         // of x that share a decoded block of weights
constexpr int kFp8NoExponent = -64;  // of a zero: never the largest

// x's rows of one block of K, decoded.
struct Fp8Rows {
  alignas(64) float value[kFp8Rows][kFp8K];
  alignas(64) int32_t exponent[kFp8Rows][kFp8K];
  bool nan[kFp8Rows];
};

struct Fp8Scratch {
  alignas(64) float value[kFp8K][kFp8Lanes];
  alignas(64) int32_t exponent[kFp8K][kFp8Lanes];
  alignas(64) int32_t nan[kFp8Lanes];  // all ones where the block holds one
  alignas(64) float acc[kFp8Rows][kFp8Lanes];
  Fp8Rows x;
};

struct Fp8Value {
  float value;
  int32_t exponent;
};

}  // namespace isobit::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

// 16 columns × 128 of K: rows of w `stride` bytes apart from `w`; `columns` of them exist, the rest are zeros.
void DecodeWeights(const uint8_t* w, int64_t stride, int columns, Fp8Scratch& s) {
  const F32 d;
  const I32Of<F32> di;
  const auto lanes = static_cast<int>(hn::Lanes(d));
  for (int first = 0; first < kFp8Lanes; first += lanes) {
    auto nan = hn::Zero(di);
    for (int k = 0; k < kFp8K; k += 4) {
      HWY_ALIGN int32_t four[kFp8Lanes] = {};
      for (int i = 0; i < lanes && first + i < columns; i++) {
        std::memcpy(&four[i], w + (first + i) * stride + k, 4);
      }
      auto bytes = hn::Load(di, four);
      for (int j = 0; j < 4; j++) {
        const auto b = hn::And(bytes, hn::Set(di, 0xff));
        bytes = hn::BitCast(di, hn::ShiftRight<8>(hn::BitCast(U32Of<F32>(), bytes)));
        const auto magnitude = hn::And(b, hn::Set(di, 0x7f));
        const auto field = hn::ShiftRight<3>(magnitude);
        const auto is_nan = hn::Eq(magnitude, hn::Set(di, 0x7f));
        nan = hn::Or(nan, hn::VecFromMask(di, is_nan));
        const auto normal = hn::BitCast(d, hn::Add(hn::ShiftLeft<20>(magnitude), hn::Set(di, 120 << 23)));
        const auto tiny = hn::Mul(hn::ConvertTo(d, magnitude), hn::Set(d, 0x1p-9f));
        auto v = hn::IfThenElse(hn::RebindMask(d, hn::Eq(field, hn::Zero(di))), tiny, normal);
        v = hn::Or(v, hn::BitCast(d, hn::ShiftLeft<24>(hn::And(b, hn::Set(di, 0x80)))));
        v = hn::IfThenElse(hn::RebindMask(d, is_nan), hn::Zero(d), v);
        const auto e = hn::Sub(hn::Max(field, hn::Set(di, 1)), hn::Set(di, 7));
        hn::Store(v, d, &s.value[k + j][first]);
        hn::Store(hn::IfThenElse(hn::Eq(magnitude, hn::Zero(di)), hn::Set(di, kFp8NoExponent), e), di,
                  &s.exponent[k + j][first]);
      }
    }
    hn::Store(nan, di, &s.nan[first]);
  }
}

// acc of one row += one block, by N16.
void FoldBlock(Fp8Scratch& s, int row, float x_scale, const float* w_scale) {
  const F32 d;
  const I32Of<F32> di;
  const float* x = s.x.value[row];
  const int32_t* xe = s.x.exponent[row];
  for (size_t lane = 0; lane < kFp8Lanes; lane += hn::Lanes(d)) {
    auto p = hn::Zero(d);
    for (int k0 = 0; k0 < kFp8K; k0 += 32) {
      const auto c_exponent =
          hn::Sub(hn::And(hn::ShiftRight<23>(hn::BitCast(di, p)), hn::Set(di, 0xff)), hn::Set(di, 127));
      auto emax = hn::Max(c_exponent, hn::Set(di, -32));  // where all is zero: any exponent serves
      auto emax1 = emax;
      for (int k = k0; k < k0 + 32; k += 2) {
        emax = hn::Max(emax, hn::Add(hn::Load(di, &s.exponent[k][lane]), hn::Set(di, xe[k])));
        emax1 = hn::Max(emax1, hn::Add(hn::Load(di, &s.exponent[k + 1][lane]), hn::Set(di, xe[k + 1])));
      }
      emax = hn::Max(emax, emax1);
      const auto to_quantum = hn::BitCast(d, hn::ShiftLeft<23>(hn::Sub(hn::Set(di, 127 + 13), emax)));
      const auto quantum = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(emax, hn::Set(di, 127 - 13))));
      auto sum = hn::ConvertTo(di, hn::Mul(p, to_quantum));
      auto sum1 = hn::Zero(di);
      for (int k = k0; k < k0 + 32; k += 2) {
        const auto a = hn::Mul(hn::Load(d, &s.value[k][lane]), hn::Set(d, x[k]));
        const auto b = hn::Mul(hn::Load(d, &s.value[k + 1][lane]), hn::Set(d, x[k + 1]));
        sum = hn::Add(sum, hn::ConvertTo(di, hn::Mul(a, to_quantum)));
        sum1 = hn::Add(sum1, hn::ConvertTo(di, hn::Mul(b, to_quantum)));
      }
      const auto total = hn::ConvertTo(d, hn::Add(sum, sum1));
      const auto cut = hn::BitCast(d, hn::And(hn::BitCast(di, total), hn::Set(di, ~0x3ff)));
      p = hn::Mul(cut, quantum);
    }
    const auto nan = hn::Or(hn::Load(di, &s.nan[lane]), hn::Set(di, s.x.nan[row] ? -1 : 0));
    p = hn::Or(p, hn::BitCast(d, nan));
    const auto scale = hn::Mul(hn::Set(d, x_scale), hn::Load(d, w_scale + lane));
    hn::Store(Fma(d, p, scale, hn::Load(d, &s.acc[row][lane])), d, &s.acc[row][lane]);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isobit::cpu {

HWY_EXPORT(DecodeWeights);
HWY_EXPORT(FoldBlock);
HWY_EXPORT(SumOfSquares);

namespace {

const std::array<Fp8Value, 256>& decoded() {
  static const std::array<Fp8Value, 256> table = [] {
    std::array<Fp8Value, 256> t = {};
    for (int b = 0; b < 256; b++) {
      const auto u = static_cast<uint8_t>(b);
      Fp8Value& v = t[static_cast<size_t>(b)];
      const bool zero = (b & 0x7f) == 0, nan = (b & 0x7f) == 0x7f;
      v.value = nan ? 0.0f : numerics::e4m3_to_f32(u);
      v.exponent = zero ? kFp8NoExponent : std::max((b >> 3) & 15, 1) - 7;
    }
    return t;
  }();
  return table;
}

void decode_row(const uint8_t* x, Fp8Rows& rows, int r) {
  const auto& table = decoded();
  bool nan = false;
  for (int k = 0; k < kFp8K; k++) {
    const Fp8Value& v = table[x[k]];
    rows.value[r][k] = v.value;
    rows.exponent[r][k] = v.exponent;
    nan = nan || (x[k] & 0x7f) == 0x7f;
  }
  rows.nan[r] = nan;
}

void store(const GemmFp8Args& a, int64_t row, int64_t column, float v) {
  const int64_t at = row * a.row_stride() + column;
  if (a.bias != nullptr) v = numerics::fadd(v, a.bias[column]);
  if (a.add) v = numerics::fadd(static_cast<const float*>(a.out)[at], v);
  if (a.out_type == DType::kF32) {
    static_cast<float*>(a.out)[at] = numerics::canonical(v);
  } else {
    static_cast<uint16_t*>(a.out)[at] = a.out_type == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v);
  }
}

}  // namespace

void gemm_fp8(const Cpu& cpu, const GemmFp8Args& a) {
  if (a.m == 0) return;
  const auto decode = for_target(HWY_DISPATCH_TABLE(DecodeWeights), cpu.simd);
  const auto fold = for_target(HWY_DISPATCH_TABLE(FoldBlock), cpu.simd);
  const int64_t stride = fp8_row_bytes(a.k), blocks = fp8_blocks(a.k);
  const int64_t panels = (a.n + kFp8Lanes - 1) / kFp8Lanes, row_blocks = (a.m + kFp8Rows - 1) / kFp8Rows;
  cpu.pool.parallel_for(row_blocks * panels, [&](int, int64_t i) {
    static thread_local Fp8Scratch s;
    const int64_t row0 = i / panels * kFp8Rows, column0 = i % panels * kFp8Lanes;
    const auto rows = static_cast<int>(std::min<int64_t>(kFp8Rows, a.m - row0));
    const auto columns = static_cast<int>(std::min<int64_t>(kFp8Lanes, a.n - column0));
    for (int r = 0; r < rows; r++) std::fill_n(s.acc[r], kFp8Lanes, 0.0f);
    for (int64_t b = 0; b < blocks; b++) {
      decode(a.w + column0 * stride + b * kFp8K, stride, columns, s);
      alignas(64) float w_scale[kFp8Lanes];  // 16 divides 128: one block of w's scales
      std::fill_n(w_scale, kFp8Lanes, a.w_scale[column0 / kFp8Block * blocks + b]);
      for (int r = 0; r < rows; r++) {
        decode_row(a.x + (row0 + r) * stride + b * kFp8K, s.x, r);
        fold(s, r, a.x_scale[b * a.x_scale_stride + row0 + r], w_scale);
      }
    }
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < columns; c++) store(a, row0 + r, column0 + c, s.acc[r][c]);
    }
  });
}

void grouped_gemm_fp8(const Cpu& cpu, const GroupedGemmFp8Args& a) {
  const int64_t row_bytes = fp8_row_bytes(a.k), blocks = fp8_blocks(a.k);
  const auto element = static_cast<int64_t>(dtype_info(a.out_type).block_bytes);
  for (int64_t e = 0; e < a.experts; e++) {
    const bool masked = a.capacity > 0;
    const int64_t first = masked ? e * a.capacity : std::clamp<int64_t>(a.rows[e], 0, a.m);
    const int64_t count =
        masked ? std::clamp<int64_t>(a.rows[e], 0, a.capacity) : std::clamp<int64_t>(a.rows[e + 1], 0, a.m) - first;
    GemmFp8Args g;
    g.x = a.x + first * row_bytes;
    g.x_scale = a.x_scale + first;
    g.m = std::max<int64_t>(count, 0);
    g.x_scale_stride = a.x_scale_stride;
    g.w = a.w + e * fp8_stored_rows(a.n) * row_bytes;
    g.w_scale = a.w_scale + e * fp8_blocks(a.n) * blocks;
    g.n = a.n;
    g.k = a.k;
    g.out_type = a.out_type;
    g.out = static_cast<std::byte*>(a.out) + first * a.n * element;
    gemm_fp8(cpu, g);
  }
}

namespace {

float widen(const void* x, DType t, int64_t at) {
  if (t == DType::kF32) return static_cast<const float*>(x)[at];
  const uint16_t h = static_cast<const uint16_t*>(x)[at];
  return t == DType::kBF16 ? numerics::bf16_to_f32(h) : numerics::f16_to_f32(h);
}

uint16_t narrow(DType t, float v) { return t == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v); }

float gated_product(GatedKind kind, float gate, float up) {
  return numerics::fmul(kind == GatedKind::kSilu ? numerics::silu(gate) : numerics::gelu_tanh(gate), up);
}

}  // namespace

void gate(const Cpu& cpu, const GateArgs& a) {
  cpu.pool.parallel_for(a.count, [&](int, int64_t row) {
    const float* x = a.x + row * 2 * a.n;
    for (int64_t j = 0; j < a.n; j++)
      a.out[row * a.n + j] = narrow(a.out_type, gated_product(a.kind, x[j], x[a.n + j]));
  });
}

void quantize_fp8(const Cpu& cpu, const QuantizeFp8Args& a) {
  const auto sum_of_squares = for_target(HWY_DISPATCH_TABLE(SumOfSquares), cpu.simd);
  const int64_t blocks = fp8_blocks(a.n), stride = fp8_row_bytes(a.n);
  cpu.pool.parallel_for(a.count, [&](int, int64_t row) {
    float norm = 0.0f;
    if (a.weight != nullptr) {
      const float* x = static_cast<const float*>(a.x) + row * a.n;
      norm = numerics::rms_scale(sum_of_squares(x, static_cast<size_t>(a.n)), a.n, a.eps);
    }
    const auto round = [&](float v) {
      const uint16_t h = narrow(a.round_type, v);
      return a.round_type == DType::kBF16 ? numerics::bf16_to_f32(h) : numerics::f16_to_f32(h);
    };
    const auto value = [&](int64_t j) {
      if (a.gated != GatedKind::kNone) {
        const int64_t at = row * 2 * a.n + j;
        return round(gated_product(a.gated, widen(a.x, a.x_type, at), widen(a.x, a.x_type, at + a.n)));
      }
      const float v = widen(a.x, a.x_type, row * a.n + j);
      return a.weight != nullptr ? round(numerics::rms_value(v, norm, a.weight[j])) : v;
    };
    for (int64_t b = 0; b < blocks; b++) {
      const int64_t begin = b * kFp8Block, count = std::min(kFp8Block, a.n - begin);
      float v[kFp8Block];
      float amax = 0.0f;
      for (int64_t j = 0; j < count; j++) {
        v[j] = value(begin + j);
        amax = numerics::fmax(amax, std::fabs(v[j]));
      }
      const float scale = numerics::e4m3_scale(amax);
      uint8_t* out = a.out + row * stride + begin;
      for (int64_t j = 0; j < count; j++) out[j] = numerics::e4m3_value(v[j], scale);
      std::fill_n(out + count, kFp8Block - count, uint8_t{0});
      a.scale[b * a.scale_stride + row] = scale;
    }
  });
}

}  // namespace isobit::cpu
#endif
