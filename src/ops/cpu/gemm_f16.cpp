// The exact tensor-core GEMM for f16, one lane an output: the chain of gemm_kernel.cpp (chain-inl.h).
//
// A product of two f16 has 22 bits and lies in [2^-48, 2^32): exact in f32, and so is its multiple by 2^(25-E), whose
// exponent stays in f32's normal range since E, over products and a sum that is a multiple of 2^-53, is at least -53.
// The exponent of a subnormal is -14, whatever its value: exponents are taken from the f16 bits. So what is finite is
// exact, but for sixteen products nearly full, whose sum with c could leave int32 (kFullMantissasF16). Such rows, and
// infinities and NaN, take the scalar rule.
#include <algorithm>
#include <cstring>
#include <vector>

#include "numerics/activation.h"
#include "numerics/gemm.h"
#include "ops/cpu/f16_linear.h"
#include "ops/cpu/gemm_kernel.h"
#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gemm_f16.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/chain-inl.h"
#include "ops/cpu/simd-inl.h"

#ifndef ISOBIT_OPS_CPU_GEMM_F16_ONCE
#define ISOBIT_OPS_CPU_GEMM_F16_ONCE
namespace isobit::cpu {
namespace {

// Where the mantissas (1024 to 2047) of a step's activations sum to this, with all weights' at 2047, the sum of
// products and c may reach 2^31 quanta: 31760 · 2047 · 2^5 + 2^26 > 2^31.
constexpr int kFullMantissasF16 = 31760;

// x as the chain takes it, [m][K filled to a multiple of 16].
struct F16Rows {
  int64_t padded = 0;
  std::vector<float> value;
  std::vector<uint8_t> below;    // exponent under 15, the largest; 255 for a zero
  std::vector<uint8_t> general;  // [m]: rows for the scalar rule
};

struct F16Job {
  const GemmArgs* args;
  const F16Linear* w;
  F16Rows* x;
};

// The exponent as f16 stores it, a subnormal's being 1; 0 for a zero.
uint32_t f16_exponent(uint16_t h) {
  const uint32_t magnitude = h & 0x7fff;
  return std::max(magnitude >> 10, std::min(magnitude, 1u));
}

void prepare_f16_row(const F16Job& job, int64_t row) {
  F16Rows& x = *job.x;
  const int64_t k = job.w->k();
  const uint16_t* from = job.args->x + row * k;
  float* value = x.value.data() + row * x.padded;
  uint8_t* below = x.below.data() + row * x.padded;
  bool general = false;
  for (int64_t step = 0; step < x.padded; step += 16) {
    uint32_t mantissas = 0;
    for (int64_t i = step; i < step + 16; i++) {
      const uint16_t h = i < k ? from[i] : uint16_t{0};
      const uint32_t exponent = f16_exponent(h);
      value[i] = numerics::f16_to_f32(h);
      below[i] = static_cast<uint8_t>(exponent == 0 ? 255 : 30 - std::min(exponent, 30u));
      mantissas += (h & 1023u) + (exponent > 0 ? 1024 : 0);
      general = general || exponent == 31;
    }
    general = general || mantissas >= kFullMantissasF16;
  }
  x.general[static_cast<size_t>(row)] = general ? 1 : 0;
}

// By the scalar rule: the sums of one row and panel.
void scalar_sums(const F16Job& job, const F16Linear::Panel& p, int64_t row, float* acc) {
  const int64_t k = job.w->k(), chunk = numerics::gemm_chunk_k(job.w->n(), k);
  std::vector<uint16_t> w(static_cast<size_t>(k));
  for (int r = 0; r < p.rows; r++) {
    job.w->row(p.row + r, w.data());
    acc[r] = numerics::gemm_dot<numerics::Operand::kF16>(job.args->x + row * k, w.data(), k, chunk);
  }
}

}  // namespace
}  // namespace isobit::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {
namespace {

// f16's exponents as f32 biases them, raised so that what an activation lies under 15 can be taken off: an exponent e
// (as stored) and one that lies b under 30 make a product with the f32 exponent e + 127 - b.
constexpr uint16_t kF16Lift = 127;

// Four k of sixteen outputs: values, and the exponents' bytes, [column][k % 4].
HWY_INLINE void UnpackF16(const uint16_t* words, float* w, uint8_t* exponent) {
  const hn::Rebind<uint16_t, U32> d16;
  const hn::Rebind<hwy::float16_t, F32> dh;
  for (size_t c = 0; c < kPanel; c += Width()) {
    VU bytes = hn::Zero(kU);
    for (size_t i = 0; i < 4; i++) {
      const auto h = hn::LoadU(d16, words + i * kPanel + c);
      hn::StoreU(hn::PromoteTo(kF, hn::BitCast(dh, h)), kF, w + i * kPanel + c);
      const VU magnitude = hn::And(hn::PromoteTo(kU, h), hn::Set(kU, 0x7fff));
      const VU e = hn::Max(hn::ShiftRight<10>(magnitude), hn::Min(magnitude, hn::Set(kU, 1)));
      const VU lifted = hn::IfThenZeroElse(hn::Eq(e, hn::Zero(kU)), hn::Add(e, hn::Set(kU, kF16Lift)));
      bytes = hn::Or(hn::ShiftRight<8>(bytes), hn::ShiftLeft<24>(lifted));
    }
    hn::StoreU(bytes, kU, reinterpret_cast<uint32_t*>(exponent + 4 * c));
  }
}

// `steps` steps from k on for those of the rows [begin, end) that the chain takes.
void RunF16Slice(const F16Job& job, const F16Linear::Panel& p, int64_t begin, int64_t end, int64_t k, int64_t steps,
                 GemmScratch& s, float* acc) {
  const F16Rows& x = *job.x;
  for (int64_t i = 0; i < 16 * steps; i += 4) {
    UnpackF16(p.words + (k + i) * kPanel, s.w + i * kPanel, s.exponent + i * kPanel);
  }
  const TowardZeroMode mode;
  RowPointers rows[kChainRows];
  int n = 0;
  for (int64_t r = begin; r < end; r++) {
    if (x.general[static_cast<size_t>(r)] != 0) continue;
    rows[n++] = {x.value.data() + r * x.padded + k, x.below.data() + r * x.padded + k, acc + (r - begin) * kPanel};
    if (n < kChainRows) continue;
    ChainPanel<kChainRows>(s.w, s.exponent, steps, rows);
    n = 0;
  }
  for (int r = 0; r < n; r++) ChainPanel<1>(s.w, s.exponent, steps, rows + r);
}

// acc[row - begin][kPanel] = the sums of rows [begin, end).
void RunF16Chains(const F16Job& job, const F16Linear::Panel& p, int64_t begin, int64_t end, GemmScratch& s,
                  float* acc) {
  const int64_t k = job.w->k(), chunk = numerics::gemm_chunk_k(job.w->n(), k);
  const size_t values = static_cast<size_t>((end - begin) * kPanel);
  for (int64_t start = 0; p.finite && start < k; start += chunk) {
    const int64_t stop = std::min(job.x->padded, start + chunk);
    float* sums = start == 0 ? acc : s.sum;
    std::fill_n(sums, values, 0.0f);
    for (int64_t at = start; at < stop; at += kSlice) {
      RunF16Slice(job, p, begin, end, at, (std::min<int64_t>(kSlice, stop - at) + 15) / 16, s, sums);
    }
    for (size_t i = 0; start > 0 && i < values; i++) acc[i] = numerics::canonical(numerics::fadd(acc[i], sums[i]));
  }
  for (int64_t r = begin; r < end; r++) {
    if (!p.finite || job.x->general[static_cast<size_t>(r)] != 0) scalar_sums(job, p, r, acc + (r - begin) * kPanel);
  }
}

// The sixteen outputs of one row that begin at column p.row.
void StoreF16Panel(const GemmArgs& a, int64_t outputs, const F16Linear::Panel& p, int64_t row, float* acc,
                   const float* up) {
  const int64_t at = row * outputs + p.row;
  for (int i = 0; a.bias != nullptr && up == nullptr && i < p.rows; i++) {
    acc[i] = numerics::canonical(numerics::fadd(acc[i], a.bias[p.row + i]));
  }
  for (size_t c = 0; up != nullptr && c < kPanel; c += Width()) {
    const V y = hn::LoadU(kF, acc + c);
    const V gate = a.epilogue == Epilogue::kSiluMul ? Silu(kF, y) : GeluTanh(kF, y);
    hn::StoreU(hn::Mul(gate, hn::LoadU(kF, up + c)), kF, acc + c);
  }
  for (int i = 0; i < p.rows; i++) {
    if (a.epilogue == Epilogue::kStoreF32) {
      static_cast<float*>(a.out)[at + i] = numerics::canonical(acc[i]);
    } else if (a.epilogue == Epilogue::kAddResidual) {
      float& r = static_cast<float*>(a.out)[at + i];
      r = numerics::canonical(numerics::fadd(r, acc[i]));
    } else {
      static_cast<uint16_t*>(a.out)[at + i] = numerics::f32_to_f16(acc[i]);
    }
  }
}

}  // namespace

// One panel (of a gated pair: panel and its partner) for rows [begin, end), at most kRowBlock of them.
void GemmF16Panel(const F16Job& job, int64_t begin, int64_t end, int64_t panel, GemmScratch& s) {
  const auto panels = job.w->panels();
  const auto at = static_cast<size_t>(panel);
  const bool gated = job.w->form() == LinearForm::kGated;
  RunF16Chains(job, panels[at], begin, end, s, s.acc[0]);
  if (gated) RunF16Chains(job, panels[at + panels.size() / 2], begin, end, s, s.acc[1]);
  for (int64_t r = begin; r < end; r++) {
    const int64_t first = (r - begin) * kPanel;
    StoreF16Panel(*job.args, job.w->outputs(), panels[at], r, s.acc[0] + first, gated ? s.acc[1] + first : nullptr);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isobit::cpu {
namespace {
HWY_EXPORT(GemmF16Panel);
}  // namespace

void gemm_f16(const Cpu& cpu, const GemmArgs& a) {
  if (a.m == 0) return;
  const auto& w = dynamic_cast<const F16Linear&>(*a.w);
  static thread_local F16Rows own_rows;  // kept: fresh pages for every GEMM would cost more than some do
  F16Rows& x = own_rows;                 // a lambda on another thread would see that thread's
  x.padded = w.padded();
  const auto size = static_cast<size_t>(a.m * x.padded);
  x.value.resize(std::max(x.value.size(), size));
  x.below.resize(std::max(x.below.size(), size));
  x.general.resize(std::max(x.general.size(), static_cast<size_t>(a.m)));
  const F16Job job{&a, &w, &x};
  cpu.pool.parallel_for((a.m + 7) / 8, [&](int, int64_t i) {
    for (int64_t r = 8 * i; r < std::min(a.m, 8 * i + 8); r++) prepare_f16_row(job, r);
  });
  const auto run = for_target(HWY_DISPATCH_TABLE(GemmF16Panel), cpu.simd);
  const int64_t panels = static_cast<int64_t>(w.panels().size()) / (w.form() == LinearForm::kGated ? 2 : 1);
  const int64_t blocks = (a.m + kRowBlock - 1) / kRowBlock;
  cpu.pool.parallel_for(blocks * panels, [&](int, int64_t i) {
    static thread_local GemmScratch scratch;
    const int64_t begin = i / panels * kRowBlock;
    run(job, begin, std::min(a.m, begin + kRowBlock), i % panels, scratch);
  });
}

}  // namespace isobit::cpu
#endif
