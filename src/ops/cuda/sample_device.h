#pragma once
// Passes over one row of logits by a cluster of CTAs, shared by sampling and log-probabilities. All that crosses
// threads is an integer: maxima of ordered keys, counts, masses; so neither the cluster's size nor any order shows.
#include <cstdint>

#include "numerics/philox.h"
#include "numerics/sampling.h"
#include "ops/cuda/device_math.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/sample_plan.h"
#include "ops/cuda/sampler_slots_cuda.h"

namespace isobit::cuda {

constexpr int kSampleWarps = kSampleThreads / 32;
constexpr uint32_t kAllLanes = 0xffffffff;
constexpr float kMinusInfinity = -__builtin_huge_valf();

// The same address in the shared memory of CTA `rank` of the cluster.
template <typename T>
__device__ T* peer(T* p, int rank) {
  T* q;
  asm("mapa.u64 %0, %1, %2;" : "=l"(q) : "l"(p), "r"(rank));
  return q;
}

struct ClusterPart {
  int rank, size, first, stride;  // groups of four tokens: first, first + stride, …
};
__device__ inline ClusterPart cluster_part() {
  const int rank = static_cast<int>(hopper::cluster_rank()), size = static_cast<int>(hopper::cluster_size());
  return {rank, size, rank * kSampleThreads + static_cast<int>(threadIdx.x), size * kSampleThreads};
}

// numerics::mass with the hardware's ex2.
__device__ inline uint64_t mass(float y, float ymax) {
  const uint32_t u = numerics::bits(ex2(numerics::relative_log2(y, ymax)));
  const int shift = static_cast<int>(u >> 23) - 127 - 23 + numerics::kMassBits;
  const uint64_t significand = (u & 0x7fffff) | 0x800000;
  if (u == 0 || shift <= -24) return 0;
  return shift >= 0 ? significand << shift : significand >> -shift;
}

// The value (with +0 for -0) and the id of a candidate_key.
__device__ inline float key_value(uint64_t key) {
  const uint32_t u = static_cast<uint32_t>(key >> 32);
  return numerics::from_bits((u >> 31) != 0 ? u & 0x7fffffff : ~u);
}
__device__ inline uint32_t key_id(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }
__device__ inline float order_value(uint32_t key) { return key_value(static_cast<uint64_t>(key) << 32); }

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
};

__device__ inline Row make_row(const float* logits, int64_t row, int64_t vocab, const SlotSettings* slot) {
  Row r;
  r.y = logits + row * vocab;
  r.vocab = static_cast<int>(vocab);
  r.groups = static_cast<int>((vocab + 3) / 4);
  r.aligned = vocab % 4 == 0;
  r.slot = slot;
  r.factor = slot != nullptr ? slot->inv_temperature : 1.0f;
  r.touched = slot != nullptr ? slot->touched : nullptr;
  r.plain = r.touched == nullptr && r.factor == 1.0f;
  return r;
}

// Four neighbouring raw logits; -infinity past the row's end.
__device__ inline float4 raw_group(const Row& r, int group) {
  const float* p = r.y + static_cast<int64_t>(group) * 4;
  if (r.aligned) return *reinterpret_cast<const float4*>(p);
  const int left = r.vocab - group * 4;
  return make_float4(p[0], left > 1 ? p[1] : kMinusInfinity, left > 2 ? p[2] : kMinusInfinity,
                     left > 3 ? p[3] : kMinusInfinity);
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

__device__ __noinline__ inline float touched_value(const SlotSettings& s, int id, float y) {
  const bool in_context = ((s.context[id / 32] >> (id % 32)) & 1) != 0;
  return numerics::process_logit(y, bias_of(s, id), s.penalties, in_context, static_cast<int>(s.output_counts[id]),
                                 s.inv_temperature);
}

__device__ inline float4 process_group(const Row& r, int group, const float4& y) {
  float z[4] = {y.x, y.y, y.z, y.w};
  const uint32_t touched = r.touched != nullptr ? (r.touched[group / 8] >> (group % 8 * 4)) & 15 : 0;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    if (((touched >> j) & 1) != 0) {
      z[j] = touched_value(*r.slot, group * 4 + j, z[j]);
    } else if (r.factor != 1.0f) {
      z[j] = numerics::fmul(z[j], r.factor);
    }
  }
  return make_float4(z[0], z[1], z[2], z[3]);
}

__device__ inline float4 group_values(const Row& r, int group, bool raw) {
  const float4 y = raw_group(r, group);
  return raw || r.plain ? y : process_group(r, group, y);
}

// f(group, four values) for this thread's groups, ascending.
template <typename F>
__device__ void for_each_group(const Row& r, const ClusterPart& part, bool raw, F&& f) {
  constexpr int kUnroll = 4;
  const bool process = !(raw || r.plain);
  for (int g = part.first; g < r.groups; g += kUnroll * part.stride) {
    float4 y[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      if (g + u * part.stride < r.groups) y[u] = raw_group(r, g + u * part.stride);
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const int group = g + u * part.stride;
      if (group < r.groups) f(group, process ? process_group(r, group, y[u]) : y[u]);
    }
  }
}

// Asks for the first values while the settings are still on their way.
__device__ inline void prefetch_row(const float* logits, int64_t row, int64_t vocab, const ClusterPart& part) {
  const float* y = logits + row * vocab;
  for (int i = 0; i < 4; i++) {
    const int64_t at = (static_cast<int64_t>(part.first) + i * part.stride) * 4;
    if (at < vocab && threadIdx.x % 8 == 0) asm volatile("prefetch.global.L2 [%0];" ::"l"(y + at));
  }
}

struct Noise {
  uint64_t seed;
  uint32_t position, choice;
};
__device__ inline numerics::PhiloxWords noise_words(const Noise& n, int group) {
  return numerics::philox4x32(n.seed, {{static_cast<uint32_t>(group), n.position,
                                        static_cast<uint32_t>(numerics::NoisePurpose::kSample), n.choice}});
}

// Bounds of rule N15's score in cheap f32. With u = (r + ½)/2^32 the noise is -ln(-ln(1 - u)); u ≤ -ln(1 - u) ≤ u/(1 -
// u), and u lies between floor(r/2^9)·2^-23 and that plus 2^-23. kScoreMargin and the relative part cover lg2.approx's
// error (2^-22) and the roundings here; compare an upper bound with score_floor(lower bound).
__device__ inline float fast_log2(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
constexpr float kLn2F = 0.69314718f;
__device__ inline float score_above(float z, uint32_t r) {
  const float u = __fadd_rn(numerics::from_bits(0x3f800000 | (r >> 9)), -1.0f);
  return __fmaf_rn(-kLn2F, fast_log2(u), z);
}
__device__ inline float score_below(float z, uint32_t r) {
  const float v = __fadd_rn(numerics::from_bits(0x3f800000 | (r >> 9)), -1.0f);
  const float u = __fadd_rn(v, 0x1p-23f);
  return __fmaf_rn(-kLn2F, __fadd_rn(fast_log2(u), -fast_log2(__fadd_rn(1.0f, -u))), z);
}
__device__ inline float score_floor(float below) { return below - 2e-4f - fabsf(below) * 0x1p-19f; }

// What a thread learns in its first pass.
struct ThreadScan {
  float largest = kMinusInfinity;
  float best = kMinusInfinity;    // with noise: of the upper bounds
  float second = kMinusInfinity;  // of the groups other than the best one
  int where = 0;                  // with noise: the best bound's group; without: the largest value's id
  bool bad = false;               // a NaN
};

__device__ inline float largest_of(const float4& z) { return fmaxf(fmaxf(z.x, z.y), fmaxf(z.z, z.w)); }
__device__ inline bool any_nan(const float4& z) { return z.x != z.x || z.y != z.y || z.z != z.z || z.w != z.w; }

template <bool kNoise>
__device__ ThreadScan scan_row(const Row& r, const ClusterPart& part, bool raw, const Noise& noise) {
  ThreadScan s;
  for_each_group(r, part, raw, [&](int group, const float4& z) {
    const float m = largest_of(z);
    s.bad = s.bad || any_nan(z);
    if constexpr (kNoise) {
      s.largest = fmaxf(s.largest, m);
      const numerics::PhiloxWords w = noise_words(noise, group);
      const float b = largest_of(make_float4(score_above(z.x, w.w[0]), score_above(z.y, w.w[1]),
                                             score_above(z.z, w.w[2]), score_above(z.w, w.w[3])));
      s.second = fmaxf(s.second, fminf(s.best, b));
      if (b > s.best) {
        s.best = b;
        s.where = group;
      }
    } else if (m > s.best) {
      s.best = m;
      s.where = group * 4 + (z.x == m ? 0 : z.y == m ? 1 : z.z == m ? 2 : 3);
    }
  });
  if constexpr (!kNoise) s.largest = s.best;
  return s;
}

// The best of a CTA or a cluster: larger score first, then lower id.
struct Winner {
  uint64_t score = 0;  // an ordered key; 0: none
  uint32_t id = 0xffffffff;
};

struct Exchange {  // from one CTA to every other
  Winner winner;
  uint32_t largest, bad;
};

constexpr int kHistogramBins = 2048;  // of a level of the exact selection
constexpr int kDistanceBins = 384;
constexpr int kListCapacity = 4096;  // candidates a CTA keeps
constexpr int kSortCapacity = kSampleThreads;
constexpr int kStages = 3;

struct SampleShared {
  Exchange from[kStages][kMaxSampleCluster];
  uint64_t sums[kStages][2][kMaxSampleCluster];
  uint32_t counts[kStages][kMaxSampleCluster];
  uint64_t warp_sums[kSampleWarps];
  uint32_t warp_keys[4][kSampleWarps];
  Winner warp_winners[kSampleWarps];
  uint64_t found_key, found_before;
  uint32_t bound, list_count, threshold_bin;
  uint32_t distances[kDistanceBins];
  uint64_t distance_totals[kDistanceBins];
  uint64_t unsorted[kSortCapacity], sorted[kSortCapacity];
  union {
    uint64_t masses[kHistogramBins];
    uint32_t numbers[kHistogramBins];
  } histogram;
  uint64_t list[kListCapacity];
};

// The largest key of the CTA, to all threads. Calls between which no other barrier lies need different places.
__device__ inline uint32_t cta_max(SampleShared& s, int place, uint32_t key) {
  const uint32_t m = __reduce_max_sync(kAllLanes, key);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) s.warp_keys[place][threadIdx.x / 32] = m;
  __syncthreads();
  return __reduce_max_sync(kAllLanes, s.warp_keys[place][lane % kSampleWarps]);
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

// The sum of the values of the threads before this one.
__device__ inline uint64_t cta_sum_before(SampleShared& s, uint64_t v) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  uint64_t sum = v;
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
    const uint64_t below = __shfl_up_sync(kAllLanes, sum, h);
    if (lane >= h) sum += below;
  }
  __syncthreads();
  if (lane == 31) s.warp_sums[warp] = sum;
  __syncthreads();
  for (int w = 0; w < warp; w++) sum += s.warp_sums[w];
  return sum - v;
}

__device__ inline Winner warp_best(const Winner& w) {
  const uint32_t high = static_cast<uint32_t>(w.score >> 32), best_high = __reduce_max_sync(kAllLanes, high);
  const uint32_t low = high == best_high ? static_cast<uint32_t>(w.score) : 0;
  const uint32_t best_low = __reduce_max_sync(kAllLanes, low);
  const bool equal = high == best_high && static_cast<uint32_t>(w.score) == best_low;
  return {static_cast<uint64_t>(best_high) << 32 | best_low, __reduce_min_sync(kAllLanes, equal ? w.id : 0xffffffff)};
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
  Winner winner;
  float largest;
  bool ok;  // no NaN, no +infinity, a finite value
};
__device__ inline ClusterScan exchange_scan(SampleShared& s, int stage, const ClusterPart& part, const Winner& winner,
                                            uint32_t largest, bool bad) {
  if (static_cast<int>(threadIdx.x) < part.size) {
    *peer(&s.from[stage][part.rank], static_cast<int>(threadIdx.x)) = {winner, largest, bad ? 1u : 0u};
  }
  hopper::cluster_sync();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool has = lane < part.size;
  const Exchange e = s.from[stage][has ? lane : 0];
  ClusterScan c;
  c.winner = warp_best(has ? e.winner : Winner{});
  c.largest = order_value(__reduce_max_sync(kAllLanes, has ? e.largest : 0));
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
