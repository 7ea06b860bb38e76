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
#include "hwy/cache_control.h"
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
  // Of a single row: the same as `below`, kSingleZero for a zero, where f16 has its exponent, in both halves.
  std::vector<uint32_t> below_words;
};
constexpr uint32_t kSingleZero = 63;

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

// Also for a single row's chain.
void prepare_f16_single(const F16Job& job) {
  prepare_f16_row(job, 0);
  for (int64_t i = 0; i < job.x->padded; i++) {
    job.x->below_words[static_cast<size_t>(i)] =
        std::min<uint32_t>(job.x->below[static_cast<size_t>(i)], kSingleZero) * (1u << 10 | 1u << 26);
  }
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
  const Slice slice{s.w, s.exponent};
  const TowardZeroMode mode;
  RowChains<1> chains(&slice, steps);
  for (int64_t r = begin; r < end; r++) {
    if (x.general[static_cast<size_t>(r)] != 0) continue;
    chains.add({x.value.data() + r * x.padded + k, x.below.data() + r * x.padded + k, {acc + (r - begin) * kPanel}});
  }
  chains.finish();
}

#if HWY_TARGET != HWY_SCALAR
// A panel's outputs for one k, or half of them where vectors are short.
using H16 = hn::CappedTag<uint16_t, kPanel>;
using HF = hn::Repartition<float, H16>;
using HU = hn::Repartition<uint32_t, H16>;

// The chain of one row, the weights used as they are converted. Exponents are found in f16's own words, where one
// instruction serves twice the lanes: of 8 products 5 instructions make and add them, 4 find E, 2 end a step: 11, and
// E of the next step does not wait for this one's sum.
struct SingleF16 {
  static constexpr uint16_t kLift = 30;             // so that exponents less `below` stay positive
  static constexpr uint32_t kBias = 127 - 15 - 15;  // f32's exponent of a product from the sum of both as stored
  static constexpr size_t kAhead = 4096;            // bytes: what two memory accesses take

  // In its top six bits, for each lane, the largest sum of exponents of a step's products; 0 where all are zero. E is
  // then kBias, whose quantum is under the least product's last bit: c stays what it is.
  HWY_INLINE static hn::Vec<H16> Exponents(const uint16_t* words, const uint32_t* below) {
    const H16 d;
    auto largest = hn::Zero(d);
    ISOBIT_UNROLL(16)
    for (int i = 0; i < 16; i++) {
      const auto magnitude = hn::And(hn::LoadU(d, words + i * kPanel), hn::Set(d, 0x7fff));
      const auto lifted = hn::Add(hn::Max(magnitude, hn::Set(d, 1 << 10)), hn::Set(d, kLift << 10));
      const auto nonzero = hn::IfThenZeroElse(hn::Eq(magnitude, hn::Zero(d)), lifted);
      largest = hn::Max(largest, hn::SaturatedSub(nonzero, hn::BitCast(d, hn::Set(HU(), below[i]))));
    }
    return largest;
  }

  // 2^(25-E).
  HWY_INLINE static hn::Vec<HF> Up(hn::Vec<HU> sum, hn::Vec<HF> c) {
    const HU du;
    const auto of_products = hn::ShiftLeft<23>(hn::Add(hn::ShiftRight<10>(sum), hn::Set(du, kBias)));
    const auto of_c = hn::And(hn::BitCast(du, c), hn::Set(du, 0x7f800000));
    return hn::BitCast(HF(), hn::Sub(hn::Set(du, 279u << 23), hn::Max(of_products, of_c)));
  }
  HWY_INLINE static hn::Vec<HF> Down(hn::Vec<HF> up) {
    return hn::BitCast(HF(), hn::Sub(hn::Set(HU(), 254u << 23), hn::BitCast(HU(), up)));
  }
  HWY_INLINE static hn::Vec<HF> Load(const uint16_t* words) {
    const hn::Rebind<hwy::float16_t, HF> d;
    return hn::PromoteTo(HF(), hn::BitCast(d, hn::LoadU(hn::Rebind<uint16_t, HF>(), words)));
  }

  // The outputs from `block` on. The rounding mode must be toward zero.
  HWY_INLINE static void Run(const uint16_t* words, int64_t steps, const float* x, const uint32_t* below, float* acc) {
    const HF d;
    const size_t half = hn::Lanes(d);
    auto c0 = hn::LoadU(d, acc), c1 = hn::LoadU(d, acc + half);
    auto largest = Exponents(words, below);
    for (int64_t s = 0; s < steps; s++) {
      const auto* ahead = reinterpret_cast<const std::byte*>(words) + kAhead;
      for (size_t at = 0; at < 16 * kPanel * sizeof(uint16_t); at += 64) hwy::Prefetch(ahead + at);
      const hn::Half<H16> dh;
      const auto up0 = Up(hn::PromoteTo(HU(), hn::LowerHalf(dh, largest)), c0);
      const auto up1 = Up(hn::PromoteTo(HU(), hn::UpperHalf(dh, largest)), c1);
      auto s0 = Truncate(d, hn::Mul(c0, up0)), s1 = Truncate(d, hn::Mul(c1, up1));
      const int64_t next = s + 1 < steps ? 16 : 0;
      largest = Exponents(words + next * kPanel, below + next);
      ISOBIT_UNROLL(16)
      for (int i = 0; i < 16; i++) {
        const auto a = hn::Set(d, x[i]);
        const auto w0 = Load(words + i * kPanel), w1 = Load(words + i * kPanel + half);
        s0 = Settle(hn::Add(s0, Truncate(d, hn::Mul(hn::Mul(w0, a), up0))));
        s1 = Settle(hn::Add(s1, Truncate(d, hn::Mul(hn::Mul(w1, a), up1))));
      }
      c0 = hn::Mul(CutToFloat(d, s0), Down(up0));
      c1 = hn::Mul(CutToFloat(d, s1), Down(up1));
      words += 16 * kPanel;
      x += 16;
      below += 16;
    }
    hn::StoreU(c0, d, acc);
    hn::StoreU(c1, d, acc + half);
  }
};

// Not inlined: no arithmetic may move in or out, where the rounding mode is another.
HWY_NOINLINE void RunF16Single(const uint16_t* words, int64_t steps, const float* x, const uint32_t* below,
                               float* acc) {
  for (size_t block = 0; block < kPanel; block += hn::Lanes(H16())) {
    SingleF16::Run(words + block, steps, x, below, acc + block);
  }
}
#endif

// `steps` steps from k on: all in one go for a single row.
void RunF16Steps(const F16Job& job, const F16Linear::Panel& p, int64_t begin, int64_t end, int64_t k, int64_t steps,
                 GemmScratch& s, float* acc) {
#if HWY_TARGET != HWY_SCALAR
  if (job.args->m == 1) {
    if (job.x->general[0] != 0) return;
    const TowardZeroMode mode;
    return RunF16Single(p.words + k * kPanel, steps, job.x->value.data() + k, job.x->below_words.data() + k, acc);
  }
#endif
  for (int64_t at = 0; at < steps; at += kSlice / 16) {
    RunF16Slice(job, p, begin, end, k + 16 * at, std::min<int64_t>(kSlice / 16, steps - at), s, acc);
  }
}

// acc[row - begin][kPanel] = the sums of rows [begin, end).
void RunF16Chains(const F16Job& job, const F16Linear::Panel& p, int64_t begin, int64_t end, GemmScratch& s,
                  float* acc) {
  const int64_t k = job.w->k(), chunk = numerics::gemm_chunk_k(job.w->n(), k);
  const size_t values = static_cast<size_t>((end - begin) * kPanel);
  for (int64_t start = 0; p.finite && start < k; start += chunk) {
    const int64_t stop = std::min(job.x->padded, start + chunk);
    float* sums = start == 0 ? acc : s.sum[0];
    std::fill_n(sums, values, 0.0f);
    RunF16Steps(job, p, begin, end, start, (stop - start + 15) / 16, s, sums);
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
  if (a.m == 1) {
    x.below_words.resize(std::max(x.below_words.size(), size));
    prepare_f16_single(job);
  } else {
    cpu.pool.parallel_for((a.m + 7) / 8, [&](int, int64_t i) {
      for (int64_t r = 8 * i; r < std::min(a.m, 8 * i + 8); r++) prepare_f16_row(job, r);
    });
  }
  const auto run = for_target(HWY_DISPATCH_TABLE(GemmF16Panel), cpu.simd);
  const int64_t panels = static_cast<int64_t>(w.panels().size()) / (w.form() == LinearForm::kGated ? 2 : 1);
  const int64_t blocks = (a.m + kRowBlock - 1) / kRowBlock;
  // A single row's panels lie in memory one after the other, and so a thread takes some at once.
  const int64_t at_once = a.m == 1 ? kSinglePanels : 1, tasks = (panels + at_once - 1) / at_once;
  cpu.pool.parallel_for(blocks * tasks, [&](int, int64_t i) {
    static thread_local GemmScratch scratch;
    const int64_t begin = i / tasks * kRowBlock, first = i % tasks * at_once;
    for (int64_t p = first; p < std::min(panels, first + at_once); p++) {
      run(job, begin, std::min(a.m, begin + kRowBlock), p, scratch);
    }
  });
}

}  // namespace isobit::cpu
#endif
