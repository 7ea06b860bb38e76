#pragma once
// Passes over one row of logits by a cluster of CTAs, shared by sampling and log-probabilities. All that crosses
// threads is an integer: maxima of ordered keys, counts, masses; so neither the cluster's size nor any order shows.
#include <cstdint>

#include "numerics/philox.h"
#include "numerics/sampling.h"
#include "ops/cuda/device_math.h"
#include "ops/cuda/row_reduce.h"
#include "ops/cuda/sample_plan.h"
#include "ops/cuda/sampler_slots_cuda.h"

namespace isobit::cuda {

constexpr int kSampleWarps = kSampleThreads / 32;
static_assert(kSampleThreads == kRowThreads);

struct ClusterPart {
  int rank, size, first, stride;  // groups of four tokens: first, first + stride, …
};
__device__ inline ClusterPart cluster_part() {
  const int rank = static_cast<int>(hopper::cluster_rank()), size = static_cast<int>(hopper::cluster_size());
  return {rank, size, rank * kSampleThreads + static_cast<int>(threadIdx.x), size * kSampleThreads};
}

// numerics::mass(y, ymax) = floor(2^44·p), p = ex2(relative_log2(y, ymax)), in two halves of 22 bits: an addition that
// rounds toward zero leaves the half it is to cut in the sum's last bits.
struct MassHalves {
  uint32_t high, low;  // each below 2^22, but for p = 1: high = 2^22
};
__device__ inline MassHalves mass_halves(float p) {
  const float s = __fadd_rz(p, 2.0f);                     // 2 + floor(p·2^22)·2^-22
  const float rest = __fadd_rn(p, -__fadd_rn(s, -2.0f));  // exact
  const float t = __fadd_rz(rest, 0x1p-21f);              // 2^-21 + floor(rest·2^44)·2^-44
  return {numerics::bits(s) - 0x40000000u, numerics::bits(t) - 0x35000000u};
}
static_assert(numerics::kMassBits == 44);
__device__ inline uint64_t mass(float y, float ymax) {
  const MassHalves m = mass_halves(ex2(numerics::relative_log2(y, ymax)));
  return (static_cast<uint64_t>(m.high) << 22) + m.low;
}

// Rule N14. Keys have lost the sign of a zero; where it could show, in a row of one token, the rule gives +0.
__device__ __noinline__ inline float log_probability(float y, float ymax, uint64_t z) {
  return numerics::log_probability(numerics::fadd(y, 0.0f), ymax, z);
}

// A double as a key of the same order, -0 and +0 alike.
__device__ inline uint64_t order_key64(double x) {
  const uint64_t u = numerics::bits64(numerics::dadd(x, 0.0));
  return (u >> 63) != 0 ? ~u : u | 0x8000000000000000ull;
}

// A row's values: raw logits, or what rule N12 makes of them.
struct Row {
  const float* y;
  int vocab, groups;
  bool aligned, plain;  // plain: processed values are the raw ones
  float factor;         // inverse temperature
  const SlotSettings* slot;
  const uint32_t* touched;
  const uint32_t* allowed;  // a bit a token, or null; a token without it is -infinity
  // Drafted tokens that count as output for this row; their bits in `touched` are set.
  const int32_t* drafted = nullptr;
  int drafted_count = 0;
};

__device__ inline Row make_row(const float* logits, int64_t row, int64_t vocab, const SlotSettings* slot,
                               const uint32_t* allowed) {
  Row r;
  r.y = logits + row * vocab;
  r.vocab = static_cast<int>(vocab);
  r.groups = static_cast<int>((vocab + 3) / 4);
  r.aligned = vocab % 4 == 0;
  r.slot = slot;
  r.factor = slot != nullptr ? slot->inv_temperature : 1.0f;
  r.touched = slot != nullptr ? slot->touched : nullptr;
  r.allowed = allowed;
  r.plain = r.touched == nullptr && r.allowed == nullptr && r.factor == 1.0f;
  return r;
}

// Four neighbouring raw logits; -infinity past the row's end. The group is in the row.
// The asm says what the compiler cannot see, that the row lies in global memory; tokens looked at twice stay in L1.
__device__ inline float4 aligned_group(const Row& r, int group) {
  float4 v;
  asm volatile("ld.global.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "l"(reinterpret_cast<const float4*>(r.y) + group));
  return v;
}
__device__ __noinline__ inline float4 ragged_group(const float* y, int vocab, int group) {
  const float* p = y + static_cast<int64_t>(group) * 4;
  const int left = vocab - group * 4;
  return make_float4(__ldcg(p), left > 1 ? __ldcg(p + 1) : kMinusInfinity, left > 2 ? __ldcg(p + 2) : kMinusInfinity,
                     left > 3 ? __ldcg(p + 3) : kMinusInfinity);
}
__device__ inline float4 raw_group(const Row& r, int group) {
  return r.aligned ? aligned_group(r, group) : ragged_group(r.y, r.vocab, group);
}

__device__ inline float bias_of(const SlotSettings& s, int id) {
  int low = 0, high = s.bias_count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (s.bias_ids[middle] < id) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low < s.bias_count && s.bias_ids[low] == id ? s.bias_values[low] : 0.0f;
}

__device__ __noinline__ inline float touched_value(const Row& r, int id, float y) {
  const SlotSettings& s = *r.slot;
  bool in_context = ((s.context[id / 32] >> (id % 32)) & 1) != 0;
  int outputs = static_cast<int>(s.output_counts[id]);
  for (int i = 0; i < r.drafted_count; i++) {
    if (r.drafted[i] != id) continue;
    in_context = true;
    outputs++;
  }
  return numerics::process_logit(y, bias_of(s, id), s.penalties, in_context, outputs, s.inv_temperature);
}

// Rule N12 for a token of which nothing but temperature is to be taken. At temperature 1 the product is y itself.
__device__ inline float4 times(const float4& y, float factor) {
  using numerics::fmul;
  return make_float4(fmul(y.x, factor), fmul(y.y, factor), fmul(y.z, factor), fmul(y.w, factor));
}

__device__ inline float4 masked(const float4& z, uint32_t bits) {
  return make_float4((bits & 1) != 0 ? z.x : kMinusInfinity, (bits & 2) != 0 ? z.y : kMinusInfinity,
                     (bits & 4) != 0 ? z.z : kMinusInfinity, (bits & 8) != 0 ? z.w : kMinusInfinity);
}

__device__ inline uint32_t touched_bits(const uint32_t* touched, int group) {
  return (touched[static_cast<uint32_t>(group) / 8] >> (static_cast<uint32_t>(group) % 8 * 4)) & 15;
}

__device__ __noinline__ inline float4 touched_group(const Row& r, int group, uint32_t bits, float4 y, float4 z) {
  if ((bits & 1) != 0) z.x = touched_value(r, group * 4, y.x);
  if ((bits & 2) != 0) z.y = touched_value(r, group * 4 + 1, y.y);
  if ((bits & 4) != 0) z.z = touched_value(r, group * 4 + 2, y.z);
  if ((bits & 8) != 0) z.w = touched_value(r, group * 4 + 3, y.w);
  return z;
}

__device__ inline float4 process_group(const Row& r, int group, const float4& y) {
  const float4 z = times(y, r.factor);
  const uint32_t bits = r.touched != nullptr ? touched_bits(r.touched, group) : 0;
  const float4 v = bits == 0 ? z : touched_group(r, group, bits, y, z);
  return r.allowed != nullptr ? masked(v, touched_bits(r.allowed, group)) : v;
}

__device__ inline float4 group_values(const Row& r, int group, bool raw) {
  const float4 y = raw_group(r, group);
  return raw || r.plain ? y : process_group(r, group, y);
}

__device__ inline float value_at(const Row& r, uint32_t id, bool raw) {
  const float4 v = group_values(r, static_cast<int>(id / 4), raw);
  return id % 4 == 0 ? v.x : id % 4 == 1 ? v.y : id % 4 == 2 ? v.z : v.w;
}

constexpr int kAhead = 5;   // groups in flight a thread: at 16 CTAs a row of 151936 has no more
constexpr int kBlocks = 4;  // runs of groups of which a first pass keeps each thread's maximum

// How a row's values are had: loops over it are made for each kind of row, as small as that kind allows.
template <bool kAligned, bool kMarked>
struct RowReader {
  static constexpr bool kMarks = kMarked;  // tokens to look at one by one, or a mask
  const Row& row;
  float factor;

  // A group's raw logits; -infinity where the row has no such group.
  __device__ float4 load(int group) const {
    float4 y = make_float4(kMinusInfinity, kMinusInfinity, kMinusInfinity, kMinusInfinity);
    if (group >= row.groups) return y;
    if constexpr (kAligned) return aligned_group(row, group);
    const float* p = row.y + static_cast<int64_t>(group) * 4;
    const int left = row.vocab - group * 4;
    y.x = __ldcg(p);
    if (left > 1) y.y = __ldcg(p + 1);
    if (left > 2) y.z = __ldcg(p + 2);
    if (left > 3) y.w = __ldcg(p + 3);
    return y;
  }
  // What says how a group's tokens are to be had, on its way together with the logits; nothing where there are no
  // marks.
  struct Marks {
    uint32_t touched_word = 0, allowed_word = 0xffffffff;
    // A bit each of the tokens that are to be looked at one by one, and of those that may come.
    __device__ uint32_t touched(int group) const { return bits_of(touched_word, group); }
    __device__ uint32_t allowed(int group) const { return bits_of(allowed_word, group); }
    __device__ static uint32_t bits_of(uint32_t word, int group) {
      return (word >> (static_cast<uint32_t>(group) % 8 * 4)) & 15;
    }
  };
  __device__ Marks marks(int group) const {
    Marks m;
    if constexpr (kMarks) {
      const bool in = group < row.groups;
      m.touched_word = word_or(row.touched, group, in, m.touched_word);
      m.allowed_word = word_or(row.allowed, group, in, m.allowed_word);
    }
    return m;
  }
  // The asm keeps the loads of several groups together, without branches between them.
  __device__ static uint32_t word_or(const uint32_t* words, int group, bool in, uint32_t other) {
    uint32_t v;
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\nmov.u32 %0, %3;\n@p ld.global.u32 %0, [%1];\n}"
                 : "=r"(v)
                 : "l"(words + static_cast<uint32_t>(group) / 8), "r"(in && words != nullptr ? 1u : 0u), "r"(other));
    return v;
  }
};

// f(reader) of the row's kind. raw: its logits as they are.
template <typename F>
__device__ auto with_reader(const Row& row, bool raw, F&& f) {
  const float factor = raw ? 1.0f : row.factor;
  if (raw || (row.touched == nullptr && row.allowed == nullptr)) {
    return row.aligned ? f(RowReader<true, false>{row, factor}) : f(RowReader<false, false>{row, factor});
  }
  return row.aligned ? f(RowReader<true, true>{row, factor}) : f(RowReader<false, true>{row, factor});
}

struct Noise {
  uint64_t seed;
  uint32_t position, purpose, choice;
};
__device__ inline numerics::PhiloxWords noise_words(const Noise& n, int group) {
  return numerics::philox4x32(n.seed, {{static_cast<uint32_t>(group), n.position, n.purpose, n.choice}});
}

// The same with the rounds' keys made beforehand.
struct NoiseStream {
  uint32_t key0[numerics::kPhiloxRounds], key1[numerics::kPhiloxRounds];
  uint32_t position, purpose, choice;
};
__device__ inline NoiseStream noise_stream(const Noise& n) {
  NoiseStream s;
  s.position = n.position;
  s.purpose = n.purpose;
  s.choice = n.choice;
#pragma unroll
  for (int i = 0; i < numerics::kPhiloxRounds; i++) {
    const uint32_t round = static_cast<uint32_t>(i);
    // The empty asm keeps the compiler from making the keys anew for every token.
    s.key0[i] = static_cast<uint32_t>(n.seed) + round * 0x9E3779B9u;
    s.key1[i] = static_cast<uint32_t>(n.seed >> 32) + round * 0xBB67AE85u;
    asm("" : "+r"(s.key0[i]), "+r"(s.key1[i]));
  }
  return s;
}
__device__ inline void multiply_wide(uint32_t a, uint32_t b, uint32_t& high, uint32_t& low) {
  uint64_t p;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(p) : "r"(a), "r"(b));
  asm("mov.b64 {%0, %1}, %2;" : "=r"(low), "=r"(high) : "l"(p));
}
__device__ inline numerics::PhiloxWords noise_words(const NoiseStream& n, int group) {
  uint32_t c[4] = {static_cast<uint32_t>(group), n.position, n.purpose, n.choice};
#pragma unroll
  for (int i = 0; i < numerics::kPhiloxRounds; i++) {
    uint32_t high0, low0, high1, low1;
    multiply_wide(0xD2511F53u, c[0], high0, low0);
    multiply_wide(0xCD9E8D57u, c[2], high1, low1);
    c[0] = high1 ^ c[1] ^ n.key0[i];
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ n.key1[i];
    c[3] = low0;
  }
  return {{c[0], c[1], c[2], c[3]}};
}

// Bounds of rule N15's score in cheap f32. With u = (r + ½)/2^32 the noise is -ln(-ln(1 - u)); u ≤ -ln(1 - u) ≤ u/(1 -
// u), and u is at least floor(r/2^9)·2^-23. kScoreMargin and the relative part cover lg2.approx's
// error (2^-22) and the roundings here; compare an upper bound with score_floor(lower bound).
__device__ inline float fast_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
constexpr float kLn2F = 0.69314718f;
__device__ inline float score_above(float z, uint32_t r) {
  const float u = __fadd_rn(numerics::from_bits(0x3f800000 | (r >> 9)), -1.0f);
  return __fmaf_rn(-kLn2F, fast_log2(u), z);
}
// The same from all 32 bits of r, for where the bounds of the best have to be near each other: u is known to 2^-22 of
// itself.
__device__ inline float fine_score_above(float z, uint32_t r) {
  const float u = __fmaf_rd(__uint2float_rd(r), 0x1p-32f, 0x1p-33f);
  return __fmaf_rn(-kLn2F, fast_log2(u), z);
}
__device__ inline float fine_score_below(float z, uint32_t r) {
  const float u = __fmaf_ru(__uint2float_ru(r), 0x1p-32f, 0x1p-33f);
  const float rest = fmaxf(__fadd_rd(1.0f, -u), 0.0f);  // where u is rounded past 1 the bound is -infinity
  return __fmaf_rn(-kLn2F, __fadd_rn(fast_log2(u), -fast_log2(rest)), z);
}
__device__ inline float score_floor(float below) { return below - 2e-4f - fabsf(below) * 0x1p-19f; }

// What a thread learns in its first pass.
struct ThreadScan {
  float largest = kMinusInfinity;  // NaN if there is one
  float best = kMinusInfinity;     // with noise: of the upper bounds; without: of the values
  float rest = kMinusInfinity;     // with noise: the best of the other groups
  int where = 0;                   // the best one's group, of equal ones without noise the first
  __device__ bool bad() const { return largest != largest; }
};

__device__ inline float largest_of(const float4& z) { return fmaxf(fmaxf(z.x, z.y), fmaxf(z.z, z.w)); }

template <bool kNoise>
__device__ float scan_group(ThreadScan& s, int group, const float4& z, const NoiseStream& noise) {
  const float m = max_nan(max_nan(z.x, z.y), max_nan(z.z, z.w));
  s.largest = max_nan(s.largest, m);
  if constexpr (kNoise) {
    const numerics::PhiloxWords w = noise_words(noise, group);
    const float b = largest_of(make_float4(score_above(z.x, w.w[0]), score_above(z.y, w.w[1]), score_above(z.z, w.w[2]),
                                           score_above(z.w, w.w[3])));
    s.rest = fmaxf(s.rest, fminf(s.best, b));
    if (b > s.best) s.where = group;
    s.best = fmaxf(s.best, b);
  } else {
    if (m > s.best || (m == s.best && group < s.where)) s.where = group;
    s.best = fmaxf(s.best, m);
  }
  return m;
}

// A block is this many of a thread's groups, one after the other.
__device__ inline int block_groups(const Row& r, const ClusterPart& part) {
  const int all = (r.groups + part.stride - 1) / part.stride;
  return ((all + kBlocks - 1) / kBlocks + kAhead - 1) / kAhead * kAhead;
}

using BlockMaxima = float[kBlocks][kSampleThreads];

// f(group, values, marks) for `count` of this thread's groups from `first` on, kAhead at a time: of `group` and those
// after it; -infinity past the row's end. A warp's lanes take part together.
template <typename Reader, typename F>
__device__ void stream(const Reader& reader, const ClusterPart& part, int first, int count, F&& f) {
  const int end = reader.row.groups + static_cast<int>(threadIdx.x) % 32;
#pragma unroll 1
  for (int i = 0; i < count; i += kAhead) {
    const int at = first + i * part.stride;
    if (at >= end) break;
    float4 y[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; u++) y[u] = reader.load(at + u * part.stride);
    typename Reader::Marks marks[kAhead];
#pragma unroll
    for (int u = 0; u < kAhead; u++) marks[u] = reader.marks(at + u * part.stride);
    f(at, y, marks);
  }
}

// The best of a CTA or a cluster: larger score first, then lower id.
struct Winner {
  uint64_t score = 0;  // an ordered key; 0: none
  uint32_t id = 0xffffffff;
};

struct Exchange {  // from one CTA to every other
  Winner winner;
  uint32_t largest, reached, bad;
};

constexpr int kHistogramBins = 2048;  // of a level of the exact selection
constexpr int kDistanceBins = 768, kGuessBins = kDistanceBins / 2;
constexpr int kListCapacity = 5568;  // candidates a CTA keeps
constexpr int kSortCapacity = kSampleThreads;
constexpr int kStages = 4, kMassStage = 3;
constexpr uint32_t kTouchedCapacity = 1024;

// The two groups of the largest bounds, and the largest bound of the others; ordered keys.
struct BestGroups {
  uint32_t first = kMinusInfinityKey, second = kMinusInfinityKey, rest = kMinusInfinityKey;
  int first_where = 0, second_where = 0;
};

// What a CTA tells the first one of its cluster: of a row with noise its best groups, of a greedy one its largest value
// and that one's id as the first of them.
struct alignas(16) Letter {
  BestGroups best;
  uint32_t bad = 0;
  uint32_t unused[2] = {};
};
static_assert(sizeof(Letter) == 32);

struct SampleShared {
  Letter letters[kMaxSampleCluster];
  uint64_t letters_in;  // a barrier, once a launch
  Row row;              // of this cluster; the functions off the hot path read it here
  // A copy: what is read of it between two barriers would else come from the L2 each time, behind the logits.
  SlotSettings slot;
  int32_t drafted[kMaxDraftDepth];
  Noise noise;
  Exchange from[kStages][kMaxSampleCluster];
  uint64_t sums[kStages][2][kMaxSampleCluster];
  uint32_t counts[kStages][kMaxSampleCluster];
  uint64_t warp_sums[kSampleWarps];
  uint32_t warp_keys[4][kSampleWarps];
  union {
    Winner warp_winners[kSampleWarps];
    BestGroups warp_groups[kSampleWarps];
  };
  uint64_t found_key, found_before;
  Winner lone;  // its score: the bounds of a contender
  float score_floor;
  uint32_t token;
  uint32_t bad, crowded, last, list_count, threshold_bin, touched_count, block_count;
  uint32_t distances[kDistanceBins];
  uint64_t gathered[kSortCapacity];  // keys from every CTA
  union {
    struct {
      alignas(16) uint64_t unsorted[kSortCapacity];
      uint64_t sorted[kSortCapacity];
    };
    uint16_t blocks[kBlocks * kSampleThreads];  // that reach a floor: block · kSampleThreads + thread
    uint64_t distance_totals[kDistanceBins];
  };
  union {
    BlockMaxima maxima;  // of the last scan of processed values without noise
    uint32_t limbs[3][kDistanceBins];
  };
  union {
    alignas(16) uint64_t list[kListCapacity];
    uint32_t guess_bins[kMaxSampleCluster][kGuessBins];  // from every CTA
    uint64_t masses[kHistogramBins];                     // of a level of the exact selection from the whole row
    uint32_t numbers[kHistogramBins];
  };
  // Of this CTA's tokens those that have more than a temperature: ids, from the end of a scan on their candidate keys.
  // If there are more than the capacity, or their marks may change meanwhile, all are looked at one by one in every
  // pass.
  uint64_t touched[kTouchedCapacity];
};

// Two CTAs on an SM leave 92 KB of its memory to the L1, through which 80 KB of logits are on their way at a time.
static_assert(sizeof(SampleShared) <= 164 * 1024 / 2 - 1024);

__device__ inline bool touched_listed(const SampleShared& s) { return s.touched_count <= kTouchedCapacity; }

// Bit 4u + j of `found`: a touched token, value j of group first + u · stride.
__device__ __noinline__ inline void note_touched(SampleShared& s, int first, int stride, uint32_t found) {
  for (; found != 0; found &= found - 1) {
    const int i = __ffs(static_cast<int>(found)) - 1;
    const uint32_t at = atomicAdd(&s.touched_count, 1u);
    if (at < kTouchedCapacity) s.touched[at] = static_cast<uint64_t>((first + i / 4 * stride) * 4 + i % 4);
  }
}

// The touched tokens' part of a scan, a thread one of them at a time.
template <bool kNoise>
__device__ __noinline__ ThreadScan scan_touched(SampleShared& s, ThreadScan scan) {
  const Row row = s.row;
  const NoiseStream noise = noise_stream(s.noise);
  __syncthreads();
  const uint32_t count = s.touched_count;
  const auto masked_group = [&](int group, const float4& z) {
    return row.allowed != nullptr ? masked(z, touched_bits(row.allowed, group)) : z;
  };
  if (count > kTouchedCapacity) {
    const ClusterPart part = cluster_part();
#pragma unroll 1
    for (int group = part.first; group < row.groups; group += part.stride) {
      const uint32_t bits = touched_bits(row.touched, group);
      const float4 none = make_float4(kMinusInfinity, kMinusInfinity, kMinusInfinity, kMinusInfinity);
      if (bits == 0) continue;
      scan_group<kNoise>(scan, group, masked_group(group, touched_group(row, group, bits, raw_group(row, group), none)),
                         noise);
    }
    return scan;
  }
#pragma unroll 1
  for (uint32_t i = threadIdx.x; i < count; i += kSampleThreads) {
    const auto id = static_cast<uint32_t>(s.touched[i]);
    const int group = static_cast<int>(id / 4);
    const float v = touched_value(row, static_cast<int>(id), __ldcg(row.y + id));
    const float4 z = masked_group(group, masked(make_float4(v, v, v, v), 1u << (id % 4)));
    s.touched[i] = numerics::candidate_key(scan_group<kNoise>(scan, group, z, noise), id);
  }
  return scan;
}

// A first pass over the row. Tokens that have more than a temperature are left out of the streaming loop and looked at
// behind it. Maxima of blocks, of the others, are kept where `maxima` is not null.
template <bool kNoise, typename Reader>
__device__ ThreadScan scan_row(SampleShared& s, const Reader& reader, const ClusterPart& part, BlockMaxima* maxima) {
  const NoiseStream noise = noise_stream(s.noise);
  const Row& r = reader.row;
  const int each = block_groups(r, part);
  ThreadScan scan;
  int block = 0;
#pragma unroll 1
  for (int first = part.first; first < r.groups; first += each * part.stride) {
    float most = kMinusInfinity;
    stream(reader, part, first, each, [&](int at, const float4(&y)[kAhead], const auto& marks) {
      uint32_t found = 0;
#pragma unroll
      for (int u = 0; u < kAhead; u++) {
        const int group = at + u * part.stride;
        float4 z = times(y[u], reader.factor);
        if constexpr (Reader::kMarks) {
          const uint32_t touched = marks[u].touched(group);
          found |= touched << (4 * u);
          z = masked(z, marks[u].allowed(group) & ~touched);
        }
        most = fmaxf(most, scan_group<kNoise>(scan, group, z, noise));
      }
      if (found != 0) note_touched(s, at, part.stride, found);
    });
    if (maxima != nullptr) (*maxima)[block++][threadIdx.x] = most;
  }
  if constexpr (Reader::kMarks) {
    if (r.touched != nullptr) scan = scan_touched<kNoise>(s, scan);
  }
  return scan;
}

// A key that at least `count` of the CTA's threads have or exceed, and few more than that; 0 where there are fewer.
// `largest` is the largest one.
__device__ __noinline__ inline uint32_t cta_reached(uint32_t key, uint32_t largest, int count) {
  const int enough = count + count / 4 + 4;
  uint32_t low = largest, high = largest;        // fewer than `count` are above `high`
  for (uint32_t step = 1u << 20;; step <<= 2) {  // the last step is 0
    low = step != 0 && largest > step ? largest - step : 0;
    const int n = __syncthreads_count(key >= low);
    if (low == 0 || (n >= count && n <= enough)) return low;
    if (n >= count) break;
    high = low - 1;
  }
  while (low < high) {
    const uint32_t middle = low + (high - low + 1) / 2;
    const int n = __syncthreads_count(key >= middle);
    if (n < count) {
      high = middle - 1;
      continue;
    }
    low = middle;
    if (n <= enough) break;
  }
  return low;
}

// The sum over the CTA, to all threads.
__device__ inline uint64_t cta_sum(SampleShared& s, uint64_t v) {
#pragma unroll
  for (int h = 16; h > 0; h /= 2) v += __shfl_xor_sync(kAllLanes, v, h);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_sums[threadIdx.x / 32] = v;
  __syncthreads();
  uint64_t sum = s.warp_sums[threadIdx.x % kSampleWarps];
#pragma unroll
  for (int h = kSampleWarps / 2; h > 0; h /= 2) sum += __shfl_xor_sync(kAllLanes, sum, h);
  return sum;
}

__device__ inline Winner warp_best(const Winner& w) {
  const uint32_t high = static_cast<uint32_t>(w.score >> 32), best_high = __reduce_max_sync(kAllLanes, high);
  const uint32_t low = high == best_high ? static_cast<uint32_t>(w.score) : 0;
  const uint32_t best_low = __reduce_max_sync(kAllLanes, low);
  const bool equal = high == best_high && static_cast<uint32_t>(w.score) == best_low;
  return {static_cast<uint64_t>(best_high) << 32 | best_low, __reduce_min_sync(kAllLanes, equal ? w.id : 0xffffffff)};
}

// The best of the lanes' groups.
__device__ inline BestGroups warp_best(const BestGroups& g) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  BestGroups best;
  best.first = __reduce_max_sync(kAllLanes, g.first);
  const int from = __ffs(static_cast<int>(__ballot_sync(kAllLanes, g.first == best.first))) - 1;
  best.first_where = __shfl_sync(kAllLanes, g.first_where, from);
  const uint32_t next = lane == from ? g.second : g.first;
  best.second = __reduce_max_sync(kAllLanes, next);
  const int from2 = __ffs(static_cast<int>(__ballot_sync(kAllLanes, next == best.second))) - 1;
  best.second_where = __shfl_sync(kAllLanes, lane == from ? g.second_where : g.first_where, from2);
  const int taken = (lane == from ? 1 : 0) + (lane == from2 ? 1 : 0);
  best.rest = __reduce_max_sync(kAllLanes, taken == 0 ? g.first : taken == 1 ? max(g.second, g.rest) : g.rest);
  return best;
}

// The id of the group's first value that equals `z`.
__device__ __noinline__ inline uint32_t first_equal(const SampleShared& s, int group, float z, bool raw) {
  const float4 v = group_values(s.row, group, raw);
  return static_cast<uint32_t>(group * 4 + (v.x == z ? 0 : v.y == z ? 1 : v.z == z ? 2 : 3));
}

// The first of the largest values that a thread has seen without noise.
__device__ inline Winner largest_token(const SampleShared& s, const ThreadScan& scan, bool raw) {
  if (!(scan.largest > kMinusInfinity)) return {};
  return {numerics::order_key(scan.best), first_equal(s, scan.where, scan.best, raw)};
}

// The best of the threads' winners, to all threads.
__device__ inline Winner cta_best(SampleShared& s, const Winner& w) {
  const Winner mine = warp_best(w);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.warp_winners[threadIdx.x / 32] = mine;
  __syncthreads();
  return warp_best(s.warp_winners[threadIdx.x % kSampleWarps]);
}

// What the whole cluster found. Every CTA gets every CTA's part.
struct ClusterScan {
  Winner of_lane;  // the winner of the CTA whose rank the lane is
  float largest;
  float reached;  // the least of the CTAs' `reached`
  bool ok;        // no NaN, no +infinity, a finite value
};
__device__ inline ClusterScan exchange_scan(SampleShared& s, int stage, const ClusterPart& part, const Winner& winner,
                                            uint32_t largest, uint32_t reached, bool bad) {
  if (static_cast<int>(threadIdx.x) < part.size) {
    *peer(&s.from[stage][part.rank], static_cast<int>(threadIdx.x)) = {winner, largest, reached, bad ? 1u : 0u};
  }
  publish();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool has = lane < part.size;
  const Exchange e = s.from[stage][has ? lane : 0];
  ClusterScan c;
  c.of_lane = has ? e.winner : Winner{};
  c.largest = order_value(__reduce_max_sync(kAllLanes, has ? e.largest : 0));
  c.reached = order_value(max(kMinusInfinityKey, __reduce_min_sync(kAllLanes, has ? e.reached : 0xffffffff)));
  const bool any_bad = __any_sync(kAllLanes, has && e.bad != 0) != 0;
  c.ok = !any_bad && c.largest > kMinusInfinity && c.largest < -kMinusInfinity;
  return c;
}

// The sum of what every CTA of the cluster pushed into `from`, to all threads.
__device__ inline uint64_t sum_over_ranks(const uint64_t* from, const ClusterPart& part) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  uint64_t v = lane < part.size ? from[lane] : 0;
#pragma unroll
  for (int h = 16; h > 0; h /= 2) v += __shfl_xor_sync(kAllLanes, v, h);
  return v;
}

}  // namespace isobit::cuda
