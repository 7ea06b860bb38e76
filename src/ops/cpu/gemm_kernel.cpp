// The exact tensor-core GEMM on SIMD lanes, one lane an output.
//
// One step of dot16 for a lane: the largest exponent E over the sixteen products and c; every product and c cut toward
// zero to 2^(E-25); their sum; cut to f32. In vector form, with no branch:
//  - E from bytes: the weights' exponents less what each activation lies under 2^15 (saturating; a zero activation:
//  255),
//    4·lanes products an instruction; then the largest of the four bytes of a lane, against c's exponent byte.
//  - a product of two bf16 is exact in f32, and so is its multiple by 2^(25-E); the conversion to int32 cuts it.
//  - the sum of the products stays under 2^31 quanta; with c it does unless nearly all mantissas are full, which
//    PrepareRow excludes. Its conversion to f32 cuts because the rounding mode is toward zero there.
// Instructions for 8 products: mul, mul, convert, add = 4, and 22 for each step of 128: 5.4 in all. A single row
// unpacks on the way: of kTwelve panels with 7.7 (twelve-inl.h); of others (RunSingle) 6 for 8 weights of 4 bits, 2.5
// for E, 4 for the products, 20 a step: 13.7. It is exact where no intermediate leaves f32's normal range, so weights
// are 0 or in [2^-26, 2^30) and activations 0 or in [2^-51, 2^16). Then bytes saturate for zeros alone, E is at least
// 50 (biased) where a product is not zero, and c is a multiple of 2^-102, so 2^(25-E) is finite. Where all is zero, E
// is at most 15, the scales are finite nonsense and the sum 0; its sign is mended at the chain's end. Other rows and
// panels take simd-inl.h's Dot16, for any values.
#include "ops/cpu/gemm_kernel.h"

#include <algorithm>
#include <cstring>

#include "numerics/gemm.h"
#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/gemm_kernel.cpp"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/cpu/chain-inl.h"
#include "ops/cpu/simd-inl.h"
#include "ops/cpu/twelve-inl.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {
namespace {

// Added to the weights' exponents, so that what is taken off for an activation is never negative.
constexpr uint32_t kLift = kActivationExponentMax - 127;

HWY_INLINE VU LoadCodes(const std::byte* p) { return hn::LoadU(kU, reinterpret_cast<const uint32_t*>(p)); }

HWY_INLINE V LoadF32(const std::byte* p) { return hn::LoadU(kF, reinterpret_cast<const float*>(p)); }

// w rounded to bf16, from p = 2^16·w, by two operations: hi = p - fl(p - w), where the subtraction drops what is under
// bf16's last bit (to nearest, ties to even, since at a tie the last kept bit of p is 0). If p - w falls into the
// binade under p's, w's low bits are under 2^8 and vanish too.
HWY_INLINE V RoundScaled(V p) { return hn::Add(p, hn::Mul(p, hn::Set(kF, -65535.0f / 65536.0f))); }

// The weights D·code + M of one output a lane.
struct Scale {
  V d, m;  // 2^16 times the format's

  HWY_INLINE Scale(V scale, V min) {
    const V up = hn::Set(kF, 65536.0f);
    d = hn::Mul(scale, up);
    m = hn::Mul(min, up);
  }
  HWY_INLINE V Weight(VU code) const {
    const V q = hn::ConvertTo(kF, hn::BitCast(kI, code));
    return RoundScaled(hn::MulAdd(d, q, m));  // the product is exact: one rounding or two are the same
  }
};

// Unpacks the four weights of a lane of k, k+1, k+2, k+3 from codes and stores their values and exponents.
HWY_INLINE void StoreFour(V w0, V w1, V w2, V w3, float* w, uint8_t* exponent) {
  hn::StoreU(w0, kF, w);
  hn::StoreU(w1, kF, w + kPanel);
  hn::StoreU(w2, kF, w + 2 * kPanel);
  hn::StoreU(w3, kF, w + 3 * kPanel);
  const VU e0 = hn::ShiftRight<24>(hn::ShiftLeft<1>(hn::BitCast(kU, w0)));
  const VU e1 = hn::And(hn::ShiftRight<15>(hn::BitCast(kU, w1)), hn::Set(kU, 0xff00));
  const VU e2 = hn::And(hn::ShiftRight<7>(hn::BitCast(kU, w2)), hn::Set(kU, 0xff0000));
  const VU e3 = hn::And(hn::ShiftLeft<1>(hn::BitCast(kU, w3)), hn::Set(kU, 0xff000000));
  const VU e = hn::Or(hn::Or(e0, e1), hn::Or(e2, e3));
  hn::StoreU(hn::Add(e, hn::Set(kU, 0x01010101u * kLift)), kU, reinterpret_cast<uint32_t*>(exponent));
}

HWY_INLINE void UnpackNibbles(const Scale& s, const std::byte* codes, float* w, uint8_t* exponent) {
  const VU mask = hn::Set(kU, 15);
  for (int j = 0; j < 4; j++) {  // eight k
    VU x = LoadCodes(codes + j * kPanel * 4);
    for (int h = 0; h < 2; h++) {
      const V w0 = s.Weight(hn::And(x, mask)), w1 = s.Weight(hn::And(hn::ShiftRight<4>(x), mask));
      const V w2 = s.Weight(hn::And(hn::ShiftRight<8>(x), mask)), w3 = s.Weight(hn::And(hn::ShiftRight<12>(x), mask));
      StoreFour(w0, w1, w2, w3, w, exponent);
      x = hn::ShiftRight<16>(x);
      w += 4 * kPanel;
      exponent += 4 * kPanel;
    }
  }
}

// `words` fours of k.
HWY_INLINE void UnpackBytes(const Scale& s, const std::byte* codes, int words, float* w, uint8_t* exponent) {
  const VU mask = hn::Set(kU, 255);
  for (int j = 0; j < words; j++) {
    const VU x = LoadCodes(codes + j * kPanel * 4);
    const V w0 = s.Weight(hn::And(x, mask)), w1 = s.Weight(hn::And(hn::ShiftRight<8>(x), mask));
    const V w2 = s.Weight(hn::And(hn::ShiftRight<16>(x), mask)), w3 = s.Weight(hn::ShiftRight<24>(x));
    StoreFour(w0, w1, w2, w3, w + j * 4 * kPanel, exponent + j * 4 * kPanel);
  }
}

HWY_INLINE void UnpackPlain(const std::byte* pairs, float* w, uint8_t* exponent) {
  const VU high = hn::Set(kU, 0xffff0000);
  for (int j = 0; j < kGroup / 4; j++) {
    const VU x = LoadCodes(pairs + 2 * j * kPanel * 4), y = LoadCodes(pairs + (2 * j + 1) * kPanel * 4);
    StoreFour(hn::BitCast(kF, hn::ShiftLeft<16>(x)), hn::BitCast(kF, hn::And(x, high)),
              hn::BitCast(kF, hn::ShiftLeft<16>(y)), hn::BitCast(kF, hn::And(y, high)), w + j * 4 * kPanel,
              exponent + j * 4 * kPanel);
  }
}

// The scales of one group (or half of one), as the format keeps them.
HWY_INLINE Scale LoadScale(PanelFormat f, const std::byte* g, size_t c, int half) {
  if (f == PanelFormat::kNibble || f == PanelFormat::kByteA) return {LoadF16(g + 2 * c), LoadF16(g + 2 * (kPanel + c))};
  if (f == PanelFormat::kByte) {
    const V d = LoadF16(g + 2 * c);
    return {d, hn::Mul(d, hn::Set(kF, -128.0f))};
  }
  if (f == PanelFormat::kByteF) g += 2 * half * kPanel * 4;
  return {LoadF32(g + 4 * c), LoadF32(g + 4 * (kPanel + c))};
}

// One group of 32 k, the lanes from column c on.
HWY_INLINE void UnpackGroup(PanelFormat f, const std::byte* g, size_t c, float* w, uint8_t* exponent) {
  w += c;
  exponent += 4 * c;
  if (f == PanelFormat::kBF16) return UnpackPlain(g + 4 * c, w, exponent);
  const Scale scale = LoadScale(f, g, c, 0);
  if (f == PanelFormat::kNibble || f == PanelFormat::kNibbleF) {
    return UnpackNibbles(scale, g + group_bytes(f) - kPanel * 16 + 4 * c, w, exponent);
  }
  const std::byte* codes = g + group_bytes(f) - kPanel * 32 + 4 * c;
  UnpackBytes(scale, codes, 4, w, exponent);
  UnpackBytes(LoadScale(f, g, c, 1), codes + kPanel * 16, 4, w + 16 * kPanel, exponent + 16 * kPanel);
}

// The words of one group of a kTwelve panel: [k][output].
void GroupWords(const PackedLinear::Panel& p, int64_t group, uint16_t* words) {
  const auto* at = reinterpret_cast<const uint8_t*>(p.data) + group * int64_t{group_bytes(PanelFormat::kTwelve)};
  if (p.bases[group] != kSpilled) return TwelveWords(at, p.bases[group], words);
  uint32_t number;
  std::memcpy(&number, at, 4);
  std::copy_n(p.spill + size_t{number} * kSpill, kSpill, words);
}

void UnpackTwelve(const PackedLinear::Panel& p, int64_t group, float* w, uint8_t* exponent) {
  const hn::Rebind<uint16_t, U32> d16;
  HWY_ALIGN uint16_t words[kSpill];
  GroupWords(p, group, words);
  for (size_t k = 0; k < kGroup; k += 4) {
    for (size_t c = 0; c < kPanel; c += Width()) {
      const auto value = [&](size_t i) HWY_ATTR {
        return hn::BitCast(kF, hn::ShiftLeft<16>(hn::PromoteTo(kU, hn::LoadU(d16, words + (k + i) * kPanel + c))));
      };
      StoreFour(value(0), value(1), value(2), value(3), w + k * kPanel + c, exponent + k * kPanel + 4 * c);
    }
  }
}

void UnpackSlice(const PackedLinear::Panel& p, int64_t group, int64_t groups, float* w, uint8_t* exponent) {
  const size_t bytes = group_bytes(p.format);
  if (p.format == PanelFormat::kTwelve) {
    for (int64_t i = 0; i < groups; i++) {
      UnpackTwelve(p, group + i, w + i * kGroup * kPanel, exponent + i * kGroup * kPanel);
    }
    return;
  }
  for (int64_t i = 0; i < groups; i++) {
    const std::byte* g = p.data + static_cast<size_t>(group + i) * bytes;
    for (size_t c = 0; c < kPanel; c += Width()) {
      UnpackGroup(p.format, g, c, w + i * kGroup * kPanel, exponent + i * kGroup * kPanel);
    }
  }
}

void ChainGeneral(const GemmJob& job, const uint16_t* words, int64_t row, int64_t k, int64_t steps, float* acc) {
  const int64_t cols = job.w->k();
  for (int64_t i = 0; i < steps; i++) {
    DotRow a;
    const int64_t at = k + 16 * i;
    if (at >= cols) return;  // filling
    set_row(a, job.args->x + row * cols + at, static_cast<int>(std::min<int64_t>(16, cols - at)));
    for (size_t c = 0; c < kPanel; c += Width()) {
      hn::StoreU(Dot16(kF, hn::LoadU(kF, acc + c), a, words + i * 16 * kPanel + c, kPanel), kF, acc + c);
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
// One row, the weights used as they are unpacked: 16 products of a step wait in memory for the scale they will get.
// kBits: 4 or 8 of a code, or 16: plain bf16.
template <int kBits>
struct Single {
  static constexpr int kCodes = 32 / kBits;  // in a word

  V scale[kCodes], min;  // of the group, as Scale's; scale[i] for codes i places up their word
  V product[16];
  VU largest;  // 16-bit words: exponent and mantissa of |w|, less what the activation lies under kActivationExponentMax

  HWY_INLINE Single() {}  // not the implicit one, which would be compiled for the baseline

  HWY_INLINE void SetScale(const Scale& s) {
    min = s.m;
    for (int i = 0; i < kCodes; i++) {
      const bool shifted = i == 0 || i == kCodes - 1;
      scale[i] = shifted ? s.d : hn::Mul(s.d, hn::Set(kF, 1.0f / static_cast<float>(1u << (kBits * i))));
    }
  }

  // Weight i of a word. Codes are masked out and not shifted down: scale[i] makes up for it.
  HWY_INLINE V Weight(VU words, int i) const {
    if constexpr (kBits == 16) {
      return hn::BitCast(kF, i == 0 ? hn::ShiftLeft<16>(words) : hn::And(words, hn::Set(kU, 0xffff0000)));
    } else {
      constexpr uint32_t kMask = (1u << kBits) - 1;
      const VU code =
          i == kCodes - 1 ? hn::ShiftRight<32 - kBits>(words) : hn::And(words, hn::Set(kU, kMask << (kBits * i)));
      return RoundScaled(hn::MulAdd(scale[i], hn::ConvertTo(kF, hn::BitCast(kI, code)), min));
    }
  }

  HWY_INLINE void Pair(V w0, V w1, int k, const float* value, const uint32_t* below) {
    const hn::Repartition<uint16_t, F32> d16;
    // Without the signs; the bit that w0's leaves at the upper word's end is under its mantissa.
    const VU words = hn::Or(hn::ShiftRight<15>(hn::BitCast(kU, w0)), hn::Add(hn::BitCast(kU, w1), hn::BitCast(kU, w1)));
    const auto e = hn::SaturatedSub(hn::BitCast(d16, words), hn::BitCast(d16, hn::Set(kU, below[k / 2])));
    largest = hn::BitCast(kU, hn::Max(hn::BitCast(d16, largest), e));
    product[k] = hn::Mul(w0, hn::Set(kF, value[k]));
    product[k + 1] = hn::Mul(w1, hn::Set(kF, value[k + 1]));
  }

  // The 16 products of a step, whose words are at `codes`.
  HWY_INLINE void Multiply(const std::byte* codes, const float* value, const uint32_t* below) {
    largest = hn::Zero(kU);
    ISOBIT_UNROLL(8)
    for (int k = 0; k < 16; k += kCodes) {
      const VU words = LoadCodes(codes + k / kCodes * kPanel * 4);
      ISOBIT_UNROLL(4)
      for (int i = 0; i < kCodes; i += 2) Pair(Weight(words, i), Weight(words, i + 1), k + i, value, below);
    }
  }

  HWY_INLINE V Step(V acc) {
    const hn::Repartition<uint16_t, F32> d16;
    const auto both = hn::Max(hn::BitCast(d16, largest), hn::BitCast(d16, hn::ShiftLeft<16>(largest)));
    const V up = ScaleUp(hn::Add(hn::BitCast(kU, both), hn::Set(kU, kLift << 24)), acc);
    VI s0 = Truncate(kF, hn::Mul(acc, up)), s1 = hn::Zero(kI);
    ISOBIT_UNROLL(8)
    for (int i = 0; i < 16; i += 2) {
      s0 = Settle(hn::Add(s0, Truncate(kF, hn::Mul(product[i], up))));
      s1 = Settle(hn::Add(s1, Truncate(kF, hn::Mul(product[i + 1], up))));
    }
    return hn::Mul(TowardZero(kF, hn::Add(s0, s1)), ScaleDown(up));
  }
};

// kPanel chains of one row over `steps` steps; two vectors of lanes at a time hide each other's latency.
template <int kBits>
HWY_NOINLINE void SingleChains(PanelFormat f, const std::byte* groups, int64_t steps, const float* value,
                               const uint32_t* below, float* acc) {
  const size_t other = Width() < kPanel ? Width() : 0, bytes = group_bytes(f);
  const size_t codes_at = bytes - kPanel * 4 * kBits;
  for (size_t c = 0; c < kPanel; c += 2 * Width()) {
    Single<kBits> a, b;
    V x = hn::LoadU(kF, acc + c), y = hn::LoadU(kF, acc + c + other);
    for (int64_t s = 0; s < steps; s++) {
      const std::byte* g = groups + static_cast<size_t>(s / 2) * bytes;
      const int half = static_cast<int>(s % 2);
      if (kBits < 16 && (half == 0 || f == PanelFormat::kByteF)) {
        a.SetScale(LoadScale(f, g, c, half));
        if (other != 0) b.SetScale(LoadScale(f, g, c + other, half));
      }
      const std::byte* codes = g + codes_at + static_cast<size_t>(half * 2 * kBits * kPanel) + 4 * c;
      a.Multiply(codes, value + 16 * s, below + 8 * s);
      if (other != 0) b.Multiply(codes + 4 * other, value + 16 * s, below + 8 * s);
      x = a.Step(x);
      if (other != 0) y = b.Step(y);
    }
    hn::StoreU(hn::Add(x, hn::Zero(kF)), kF, acc + c);
    if (other != 0) hn::StoreU(hn::Add(y, hn::Zero(kF)), kF, acc + c + other);
  }
}

HWY_INLINE void RunSingle(const GemmJob& job, const PackedLinear::Panel& p, int64_t k, int64_t steps, float* acc) {
  const std::byte* g = p.data + static_cast<size_t>(k / kGroup) * group_bytes(p.format);
  const float* value = job.x.value + k;
  const uint32_t* below = job.x.below_pairs + k / 2;
  if (p.format == PanelFormat::kBF16) return SingleChains<16>(p.format, g, steps, value, below, acc);
  const bool nibbles = p.format == PanelFormat::kNibble || p.format == PanelFormat::kNibbleF;
  if (nibbles) return SingleChains<4>(p.format, g, steps, value, below, acc);
  SingleChains<8>(p.format, g, steps, value, below, acc);
}

// Not inlined: no arithmetic may move in or out, where the rounding mode is another.
HWY_NOINLINE uint32_t RunTwelve(const TwelveStream& stream) {
  uint32_t exact = ~uint32_t{0};
  for (int block = 0; block < kPanel; block += static_cast<int>(hn::Lanes(W16()))) exact &= stream.Run(block);
  return exact;
}

// Groups [from, to) of a kTwelve panel.
TwelveRun Groups(const GemmJob& job, const PackedLinear::Panel& p, int64_t from, int64_t to, float* acc) {
  const auto* data = reinterpret_cast<const uint8_t*>(p.data) + from * int64_t{group_bytes(PanelFormat::kTwelve)};
  return {
      data, p.bases + from, (to - from) * (kGroup / 16), job.x.value + from * kGroup, job.x.below_words + from * kGroup,
      acc};
}

// Groups [from, to) of a kTwelve panel by the general step, spilled or not.
void GeneralGroups(const GemmJob& job, const PackedLinear::Panel& p, int64_t row, int64_t from, int64_t to,
                   GemmScratch& s, float* acc) {
  for (int64_t g = from; g < to; g++) {
    GroupWords(p, g, s.w16);
    ChainGeneral(job, s.w16, row, g * kGroup, kGroup / 16, acc);
  }
}

// Groups [from, to) of a kTwelve panel for the one row there is.
void RunSingleTwelve(const GemmJob& job, const PackedLinear::Panel& p, int64_t row, int64_t from, int64_t to,
                     GemmScratch& s, float* acc) {
  while (from < to) {
    const int64_t end = p.spill == nullptr ? to : std::find(p.bases + from, p.bases + to, kSpilled) - p.bases;
    if (end > from) {
      float before[kPanel];
      std::copy_n(acc, kPanel, before);
      const TwelveRun run = Groups(job, p, from, end, acc);
      bool exact;
      {
        const TowardZeroMode mode;
        exact = (RunTwelve({&run, 1}) & 1) != 0;
      }
      if (!exact) {
        std::copy_n(before, kPanel, acc);
        GeneralGroups(job, p, row, from, end, s, acc);
      }
    }
    if (end == to) return;
    const int64_t next = std::find_if(p.bases + end, p.bases + to, [](uint8_t b) { return b != kSpilled; }) - p.bases;
    GeneralGroups(job, p, row, end, next, s, acc);
    from = next;
  }
}
#endif

// The general step for those rows of a slice that need it.
void RunGeneral(const GemmJob& job, const PackedLinear::Panel& p, int64_t begin, int64_t end, int64_t k, int64_t steps,
                const float* w, uint16_t* words, float* acc) {
  bool narrow = false;
  for (int64_t r = begin; r < end; r++) {
    if (!p.general && (job.x.general[r] & kGeneralRow) == 0) continue;
    if (!narrow) {
      for (int64_t i = 0; i < steps * 16 * kPanel; i++) words[i] = static_cast<uint16_t>(numerics::bits(w[i]) >> 16);
      narrow = true;
    }
    ChainGeneral(job, words, r, k, steps, acc + (r - begin) * kPanel);
  }
}

// One or two panels, their slices and their sums, kPanel a row.
struct PanelPair {
  const PackedLinear::Panel* panel[kMostPanels];
  Slice slice[kMostPanels];
  float* acc[kMostPanels];
  int count;
};

template <int kPanels>
void RunFast(const GemmJob& job, const PanelPair& p, int first, int64_t begin, int64_t end, int64_t k, int64_t steps) {
  const PreparedRows& x = job.x;
  const TowardZeroMode mode;
  RowChains<kPanels> chains(p.slice + first, steps);
  for (int64_t r = begin; r < end; r++) {
    if ((x.general[r] & kGeneralRow) != 0) continue;
    RowPointers row{x.value + r * x.padded + k, x.below + r * x.padded + k, {}};
    for (int i = 0; i < kPanels; i++) row.acc[i] = p.acc[first + i] + (r - begin) * kPanel;
    chains.add(row);
  }
  chains.finish();
}

// A slice of K for rows [begin, end).
void RunSlice(const GemmJob& job, PanelPair& p, int64_t begin, int64_t end, int64_t k, int64_t steps, GemmScratch& s) {
  bool fast = true;
  for (int i = 0; i < p.count; i++) {
    const size_t at = static_cast<size_t>(i) * (kSlice / kMostPanels * kPanel);
    UnpackSlice(*p.panel[i], k / kGroup, (steps + 1) / 2, s.w + at, s.exponent + at);
    p.slice[i] = {s.w + at, s.exponent + at};
    RunGeneral(job, *p.panel[i], begin, end, k, steps, s.w + at, s.w16, p.acc[i]);
    fast = fast && !p.panel[i]->general;
  }
  if (fast && p.count == 2) return RunFast<2>(job, p, 0, begin, end, k, steps);
  for (int i = 0; i < p.count; i++) {
    if (!p.panel[i]->general) RunFast<1>(job, p, i, begin, end, k, steps);
  }
}

#if HWY_TARGET != HWY_SCALAR
// The one row there is, k from start to stop. False: this panel or row is none for it, nothing is done.
bool RunSingleForm(const GemmJob& job, const PackedLinear::Panel& p, int64_t row, int64_t start, int64_t stop,
                   GemmScratch& s, float* acc) {
  if (job.x.below_words == nullptr) return false;
  if (p.format == PanelFormat::kTwelve) {
    if ((job.x.general[row] & kGeneralTwelve) != 0) return false;
    RunSingleTwelve(job, p, row, start / kGroup, (stop + kGroup - 1) / kGroup, s, acc);
    return true;
  }
  if (p.general || (job.x.general[row] & kGeneralRow) != 0) return false;
  RunSingle(job, p, start, (stop - start + 15) / 16, acc);
  return true;
}
#endif

// k from start to stop, a multiple of kGroup or the end.
void RunPart(const GemmJob& job, const PanelPair& panels, int64_t begin, int64_t end, int64_t start, int64_t stop,
             GemmScratch& s) {
  PanelPair p{{}, {}, {}, 0};
  for (int i = 0; i < panels.count; i++) {
    std::fill_n(panels.acc[i], (end - begin) * kPanel, 0.0f);
#if HWY_TARGET != HWY_SCALAR
    if (end - begin == 1 && RunSingleForm(job, *panels.panel[i], begin, start, stop, s, panels.acc[i])) continue;
#endif
    p.panel[p.count] = panels.panel[i];
    p.acc[p.count++] = panels.acc[i];
  }
  constexpr int64_t kPart = kSlice / kMostPanels;
  for (int64_t at = start; p.count > 0 && at < stop; at += kPart) {
    RunSlice(job, p, begin, end, at, (std::min(kPart, stop - at) + 15) / 16, s);
  }
}

// s.acc[i] = the sums of rows [begin, end) in panel i.
void RunChains(const GemmJob& job, PanelPair& p, int64_t begin, int64_t end, GemmScratch& s) {
  const int64_t k = job.x.padded, cut = numerics::gemm_chunk_k(job.w->n(), job.w->k());
  const int64_t chunk = cut < job.w->k() ? cut : k;
  const auto values = static_cast<size_t>((end - begin) * kPanel);
  for (int64_t start = 0; start < k; start += chunk) {
    for (int i = 0; i < p.count; i++) p.acc[i] = start == 0 ? s.acc[i] : s.sum[i];
    RunPart(job, p, begin, end, start, std::min(k, start + chunk), s);
    for (int i = 0; start > 0 && i < p.count; i++) {
      for (size_t j = 0; j < values; j++) {
        s.acc[i][j] = numerics::canonical(numerics::fadd(s.acc[i][j], s.sum[i][j]));
      }
    }
  }
}

// Up to kPanel values. The usual number is a size that the compiler knows: no call for 64 bytes.
template <typename T>
HWY_INLINE void CopyOutputs(const T* from, int count, T* to) {
  if (HWY_LIKELY(count == kPanel)) {
    std::copy_n(from, kPanel, to);
  } else {
    std::copy_n(from, count, to);
  }
}

// Sixteen outputs of one row; `count` of them are the matrix's.
void Finish(const GemmArgs& a, int64_t outputs, int64_t row, int64_t column, int count, float* acc, const float* up) {
  HWY_ALIGN float other[kPanel];
  HWY_ALIGN uint16_t rounded[kPanel];
  const int64_t at = row * outputs + column;
  if (a.bias != nullptr && up == nullptr) {
    for (int i = 0; i < count; i++) acc[i] = numerics::canonical(numerics::fadd(acc[i], a.bias[column + i]));
  }
  switch (a.epilogue) {
    case Epilogue::kStoreF32:
      CopyOutputs(acc, count, static_cast<float*>(a.out) + at);
      return;
    case Epilogue::kAddResidual: {
      float* out = static_cast<float*>(a.out) + at;
      CopyOutputs(out, count, other);
      for (size_t c = 0; c < kPanel; c += Width()) {
        hn::StoreU(Canonical(kF, hn::Add(hn::LoadU(kF, other + c), hn::LoadU(kF, acc + c))), kF, other + c);
      }
      CopyOutputs(other, count, out);
      return;
    }
    case Epilogue::kStoreRounded:
    case Epilogue::kSiluMul:
    case Epilogue::kGeluMul:
      for (size_t c = 0; c < kPanel; c += Width()) {
        V y = hn::LoadU(kF, acc + c);
        if (a.epilogue != Epilogue::kStoreRounded) {
          const V gate = a.epilogue == Epilogue::kSiluMul ? Silu(kF, y) : GeluTanh(kF, y);
          y = hn::Mul(gate, hn::LoadU(kF, up + c));
        }
        StoreBF16(kF, y, rounded + c);
      }
      CopyOutputs(rounded, count, static_cast<uint16_t*>(a.out) + at);
  }
}

}  // namespace

#if HWY_TARGET == HWY_SCALAR
using Words = hn::CappedTag<uint16_t, 1>;
#else
using Words = hn::FixedTag<uint16_t, 8>;
#endif

void PrepareRow(const GemmJob& job, int64_t row) {
  const Words d16;
  const hn::Rebind<uint8_t, Words> d8;
  const hn::Rebind<uint16_t, U32> narrow;
  const hn::RebindToSigned<Words> di16;
  const size_t lanes = hn::Lanes(d16);
  const PreparedRows& x = job.x;
  const int64_t cols = job.w->k();
  const uint16_t* from = job.args->x + row * cols;
  float* value = x.value + row * x.padded;
  uint8_t* below = x.below + row * x.padded;
  auto high = hn::Zero(d16), low = hn::Set(d16, 0x7fff);
  uint16_t mantissas = 0;  // the largest sum of a step's
  for (int64_t k = 0; k < x.padded; k += 16) {
    HWY_ALIGN uint16_t filled[16] = {};
    const uint16_t* b = from + k;
    if (cols - k < 16) {
      std::copy_n(b, std::max<int64_t>(cols - k, 0), filled);
      b = filled;
    }
    auto sum = hn::Zero(d16);
    for (size_t i = 0; i < 16; i += lanes) {
      const size_t at = static_cast<size_t>(k) + i;
      const auto word = hn::LoadU(d16, b + i);
      const auto magnitude = hn::And(word, hn::Set(d16, 0x7fff)), exponent = hn::ShiftRight<7>(magnitude);
      high = hn::Max(high, magnitude);
      low = hn::Min(low, hn::IfThenElse(hn::Eq(magnitude, hn::Zero(d16)), hn::Set(d16, 0x7fff), magnitude));
      sum = hn::Add(sum, hn::Add(hn::And(magnitude, hn::Set(d16, 127)), hn::Set(d16, 128)));
      const auto distance = hn::And(hn::Sub(hn::Set(d16, kActivationExponentMax), exponent), hn::Set(d16, 255));
      const auto under = hn::IfThenElse(hn::Eq(exponent, hn::Zero(d16)), hn::Set(d16, 255), distance);
      hn::StoreU(hn::DemoteTo(d8, hn::BitCast(di16, under)), d8, below + at);
      if (x.below_words != nullptr) {
        hn::StoreU(hn::ShiftLeft<8>(under), d16, reinterpret_cast<uint16_t*>(x.below_pairs) + at);
      }
    }
    for (size_t i = 0; i < 16; i += Width()) {
      const size_t at = static_cast<size_t>(k) + i;
      const VU upper = hn::ShiftLeft<16>(hn::PromoteTo(kU, hn::LoadU(narrow, b + i)));
      hn::StoreU(hn::BitCast(kF, upper), kF, value + at);
      if (x.below_words == nullptr) continue;
      const auto* words = reinterpret_cast<const uint16_t*>(x.below_pairs) + at;
      const VU word = hn::PromoteTo(kU, hn::LoadU(narrow, words));
      hn::StoreU(hn::Or(word, hn::ShiftLeft<16>(word)), kU, x.below_words + at);
    }
    mantissas = std::max(mantissas, hn::GetLane(hn::SumOfLanes(d16, sum)));
  }
  const int largest = hn::GetLane(hn::MaxOfLanes(d16, high)), smallest = hn::GetLane(hn::MinOfLanes(d16, low));
  const bool large = (largest >> 7) > kActivationExponentMax || mantissas >= kFullMantissas;
  const bool small = (smallest >> 7) < kActivationExponentMin;
  x.general[row] = static_cast<uint8_t>((small || large ? kGeneralRow : 0) | (large ? kGeneralTwelve : 0));
}

void PackTwelve(PanelFormat from, const std::byte* compact, int64_t groups, std::byte* to, uint8_t* bases,
                std::vector<uint16_t>& spill) {
  HWY_ALIGN float w[kSpill];
  HWY_ALIGN uint8_t exponent[kSpill];
  HWY_ALIGN uint16_t words[kSpill];
  for (int64_t g = 0; g < groups; g++) {
    for (size_t c = 0; c < kPanel; c += Width()) UnpackGroup(from, compact, c, w, exponent);
    for (int i = 0; i < kSpill; i++) words[i] = static_cast<uint16_t>(numerics::bits(w[i]) >> 16);
    if (!PackTwelveGroup(words, reinterpret_cast<uint8_t*>(to), bases + g)) {
      bases[g] = kSpilled;
      const auto number = static_cast<uint32_t>(spill.size() / kSpill);
      std::memcpy(to, &number, 4);
      spill.insert(spill.end(), words, words + kSpill);
    }
    compact += group_bytes(from);
    to += group_bytes(PanelFormat::kTwelve);
  }
}

void GemmPanel(const GemmJob& job, int64_t begin, int64_t end, int64_t panel, int64_t count, GemmScratch& s) {
  const auto panels = job.w->panels();
  const bool gated = job.w->form() == LinearForm::kGated;
  PanelPair p{{}, {}, {}, gated ? 2 : static_cast<int>(count)};
  p.panel[0] = &panels[static_cast<size_t>(panel)];
  if (p.count == 2) p.panel[1] = p.panel[0] + (gated ? panels.size() / 2 : 1);
  // The next descriptions, for a single row: its panel is done in a microsecond, a miss takes a tenth of one.
  for (int i = 0; i < p.count; i++) hwy::Prefetch(p.panel[i] + 1);
  RunChains(job, p, begin, end, s);
  for (int64_t i = 0; i < count; i++) {
    const PackedLinear::Panel& of = *p.panel[i];
    for (int64_t r = begin; r < end; r++) {
      const int64_t at = (r - begin) * kPanel;
      Finish(*job.args, job.w->outputs(), r, of.row, of.rows, s.acc[i] + at, gated ? s.acc[1] + at : nullptr);
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
namespace {

// Whether the row's panels can be a stream: kTwelve, and no sum is cut into chunks.
bool Streams(const GemmJob& job, const PackedLinear::Panel& p) {
  return p.format == PanelFormat::kTwelve && job.x.below_words != nullptr && (job.x.general[0] & kGeneralTwelve) == 0 &&
         numerics::gemm_chunk_k(job.w->n(), job.w->k()) >= job.w->k();
}

// The sums of up to 2 kSinglePanels panels: those without spilled groups as one stream, the others one by one.
void RunStream(const GemmJob& job, const PackedLinear::Panel* const* panels, float* const* acc, int count,
               GemmScratch& s) {
  TwelveRun runs[2 * kSinglePanels];
  int of_run[2 * kSinglePanels], n = 0;
  for (int i = 0; i < count; i++) {
    std::fill_n(acc[i], kPanel, 0.0f);
    if (HWY_UNLIKELY(panels[i]->spill != nullptr)) {
      RunSingleTwelve(job, *panels[i], 0, 0, job.w->groups(), s, acc[i]);
      continue;
    }
    of_run[n] = i;
    runs[n++] = Groups(job, *panels[i], 0, job.w->groups(), acc[i]);
  }
  if (n == 0) return;
  uint32_t exact;
  {
    const TowardZeroMode mode;
    exact = RunTwelve({runs, n});
  }
  for (int i = 0; i < n; i++) {
    if (HWY_LIKELY((exact >> i & 1) != 0)) continue;
    std::fill_n(runs[i].acc, kPanel, 0.0f);
    GeneralGroups(job, *panels[of_run[i]], 0, 0, job.w->groups(), s, runs[i].acc);
  }
}

// False: these panels are no stream, nothing is done.
bool SingleStream(const GemmJob& job, int64_t first, int64_t count, GemmScratch& s) {
  const auto all = job.w->panels();
  const bool gated = job.w->form() == LinearForm::kGated;
  const PackedLinear::Panel* panels[2 * kSinglePanels];
  float* acc[2 * kSinglePanels];
  int n = 0;
  for (size_t half = 0; half < (gated ? 2 : 1); half++) {
    for (int64_t i = 0; i < count; i++, n++) {
      panels[n] = &all[static_cast<size_t>(first + i) + half * all.size() / 2];
      acc[n] = s.acc[half] + i * kPanel;
      if (!Streams(job, *panels[n])) return false;
    }
  }
  RunStream(job, panels, acc, n, s);
  for (int64_t i = 0; i < count; i++) {
    const PackedLinear::Panel& p = *panels[i];
    Finish(*job.args, job.w->outputs(), 0, p.row, p.rows, acc[i], gated ? acc[count + i] : nullptr);
  }
  return true;
}

}  // namespace
#endif

void GemmSingle(const GemmJob& job, int64_t first, int64_t count, GemmScratch& s) {
#if HWY_TARGET != HWY_SCALAR
  if (SingleStream(job, first, count, s)) return;
#endif
  for (int64_t i = 0; i < count; i++) GemmPanel(job, 0, 1, first + i, 1, s);
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isobit::cpu {

HWY_EXPORT(PrepareRow);
HWY_EXPORT(GemmPanel);
HWY_EXPORT(GemmSingle);
HWY_EXPORT(PackTwelve);

PrepareFn prepare_row_for(int64_t simd) { return for_target(HWY_DISPATCH_TABLE(PrepareRow), simd); }
PanelFn gemm_panel_for(int64_t simd) { return for_target(HWY_DISPATCH_TABLE(GemmPanel), simd); }
SingleFn gemm_single_for(int64_t simd) { return for_target(HWY_DISPATCH_TABLE(GemmSingle), simd); }
PackTwelveFn pack_twelve_for(int64_t simd) { return for_target(HWY_DISPATCH_TABLE(PackTwelve), simd); }

}  // namespace isobit::cpu
#endif
