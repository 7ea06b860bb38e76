#pragma once
// Selection from a row by all threads of its cluster: a threshold guessed from a sample of the row, lists of what lies
// above it, exact cuts of the lists. The order is the contract's: candidate_key descending. A guess
// decides which way a row takes, never a bit: whether a list holds all that it must is checked in exact numbers.
#include "ops/cuda/row_stream.h"

namespace isobit::cuda {

// Bins of the distance of keys, 32 to an octave; the nearer, the lower.
__device__ inline int log_bin(uint32_t distance) {
  if (distance < 32) return static_cast<int>(distance);
  const int e = 31 - __clz(static_cast<int>(distance));
  return (e - 4) * 32 + static_cast<int>((distance >> (e - 5)) & 31);
}
__device__ inline uint32_t log_bin_end(int bin) {  // the largest distance in it
  if (bin < 32) return static_cast<uint32_t>(bin);
  return static_cast<uint32_t>((uint64_t{33} + static_cast<uint64_t>(bin % 32)) << (bin / 32 - 1)) - 1;
}
__device__ inline uint32_t key_below(uint32_t largest, int bin) {  // the lowest key in that bin
  const uint32_t d = log_bin_end(bin);
  return d < largest ? largest - d : 0;
}

__device__ inline void clear_log_bins(RowShared& s) {
  for (int i = static_cast<int>(threadIdx.x); i < kLogBins; i += kRowThreads) s.log_bins[i] = 0;
  __syncthreads();
}

// The lowest bin with which the sum reaches `goal`; the last one where none does. `of(bin)`: a bin's weight.
template <typename F>
__device__ int find_log_bin(RowShared& s, uint64_t goal, F&& of) {
  static_assert(kLogBins % 2 == 0 && kLogBins <= 2 * kRowThreads);
  const int bin = static_cast<int>(threadIdx.x) * 2;
  if (threadIdx.x == 0) s.found_bin = kLogBins - 1;
  const uint64_t low = bin < kLogBins ? of(bin) : 0, high = bin < kLogBins ? of(bin + 1) : 0;
  const uint64_t before = cta_sum_before(s, low + high);
  if (before < goal && before + low + high >= goal) {
    s.found_bin = static_cast<uint32_t>(before + low >= goal ? bin : bin + 1);
  }
  __syncthreads();
  return static_cast<int>(s.found_bin);
}

// How many of its groups each CTA samples.
__device__ inline int sample_groups(const RowPart& part) { return kUnits / part.size; }

// A key that probably at least `count` of the row's `length` values reach and few more: from a sample of the row's
// groups. sampled(i): the largest key of the CTA's i-th one. The cluster waits for each other once.
template <typename F>
__device__ uint32_t sampled_threshold(RowShared& s, const RowPart& part, int length, int count, F&& sampled) {
  const int n = sample_groups(part), t = static_cast<int>(threadIdx.x);
#pragma unroll 4
  for (int i = t; i < n; i += kRowThreads) {
    const uint32_t key = sampled(i);
    for (int r = 0; r < part.size; r++) peer(s.units, r)[part.rank * n + i] = key;
  }
  clear_log_bins(s);
  row_cluster_sync();
  const int units = n * part.size;
  uint32_t largest = 0;
  for (int i = t; i < units; i += kRowThreads) largest = max(largest, s.units[i]);
  largest = cta_max(s, 2, largest);
  for (int i = t; i < units; i += kRowThreads) {
    if (s.units[i] != 0) atomicAdd(&s.log_bins[log_bin(largest - s.units[i])], 1u);
  }
  __syncthreads();
  const float share = fminf(1.0f, 4.0f * static_cast<float>(units) / static_cast<float>(length));
  const float expected = static_cast<float>(count) * share;
  const int rank = static_cast<int>(expected + 3.0f * sqrtf(expected) + 3.0f);
  if (rank > units * 9 / 10) return kMinusInfinityKey;
  const int bin = find_log_bin(s, static_cast<uint64_t>(rank), [&](int b) { return s.log_bins[b]; });
  return max(kMinusInfinityKey, min(kInfinityKey, key_below(largest, bin)));
}

// Puts a value on the CTA's list; the count may run past the list's end.
__device__ inline void list_value(RowShared& s, const RowPart& part, float v, int index) {
  const auto at = static_cast<int>(atomicAdd(&s.list_count, 1u));
  if (at < part.list) s.list[part.rank * part.list + at] = numerics::candidate_key(v, static_cast<uint32_t>(index));
}
// A group's values from `threshold` up, NaN too. Few are, but nearly always one of a warp's groups has some: so a short
// way for each value, in line.
__device__ inline void list_group(RowShared& s, const RowPart& part, const float4& y, int index, float threshold) {
  if (!(y.x < threshold)) list_value(s, part, y.x, index);
  if (!(y.y < threshold)) list_value(s, part, y.y, index + 1);
  if (!(y.z < threshold)) list_value(s, part, y.z, index + 2);
  if (!(y.w < threshold)) list_value(s, part, y.w, index + 3);
}

struct Cut {
  bool found;
  uint64_t key;  // the goal-th largest
};

// The goal-th largest key of the cluster's list, which holds `largest` down to `threshold`, at least as many: by bins
// of the key, then by a sort of the bin where it lies. Every CTA does it for itself. Not found where too many share the
// bin.
__device__ __noinline__ inline Cut cut_list(RowShared& s, const RowPart& part, uint32_t largest, uint32_t threshold,
                                            uint64_t goal) {
  const int t = static_cast<int>(threadIdx.x);
  const uint32_t span = largest - threshold;
  const uint32_t scale =
      span < kLinearBins ? 0 : static_cast<uint32_t>((uint64_t{kLinearBins} << 32) / (uint64_t{span} + 1));
  const auto bin_of = [&](uint64_t key) {
    const uint32_t d = largest - static_cast<uint32_t>(key >> 32);
    return scale == 0 ? min(d, static_cast<uint32_t>(kLinearBins - 1)) : __umulhi(d, scale);
  };
  s.numbers[t] = 0;
  if (t == 0) s.gathered = 0;
  __syncthreads();
  for_each_listed(s, part, [&](uint64_t key, int) { atomicAdd(&s.numbers[bin_of(key)], 1u); });
  __syncthreads();
  const uint64_t in_mine = s.numbers[t], sum = cta_sum_before(s, in_mine);
  if (sum < goal && sum + in_mine >= goal) {
    s.found_bin = static_cast<uint32_t>(t);
    s.found_before = sum;
  }
  __syncthreads();
  const uint32_t bin = s.found_bin, count = s.numbers[bin];
  const uint64_t before = s.found_before;
  if (count > kSortCapacity) return {false, 0};
  for_each_listed(s, part, [&](uint64_t key, int) {
    if (bin_of(key) == bin) s.pulled[atomicAdd(&s.gathered, 1u)] = key;
  });
  __syncthreads();
  if (t < static_cast<int>(count)) {
    const uint64_t key = s.pulled[t];
    uint64_t above = before;
    for (uint32_t j = 0; j < count; j++) above += s.pulled[j] > key ? 1 : 0;
    if (above + 1 == goal) s.found_key = key;
  }
  __syncthreads();
  return {true, s.found_key};
}

// The goal-th largest key of the whole row, however its values are: by digits of the key from the top, a histogram of
// each over the values that share the digits found before. each(f) calls f(key) for this thread's values, read anew
// each time. Uses the list's memory. The id's digits hold its 20 bits.
template <typename F>
__device__ uint64_t find_cut(RowShared& s, const RowPart& part, uint64_t goal, F&& each) {
  constexpr int kLevels = 5;
  constexpr int kShift[kLevels] = {53, 42, 32, 10, 0}, kBits[kLevels] = {11, 11, 10, 10, 10};
  constexpr int kBins = 2048, kPerThread = kBins / kRowThreads;
  uint32_t* bins = reinterpret_cast<uint32_t*>(s.list);
  uint64_t prefix = 0, before = 0;
  for (int level = 0; level < kLevels; level++) {
    const int shift = kShift[level], count = 1 << kBits[level], above = shift + kBits[level];
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kRowThreads) bins[i] = 0;
    __syncthreads();
    each([&](uint64_t key) {
      if (level > 0 && (key >> above) != (prefix >> above)) return;
      const uint32_t bin = static_cast<uint32_t>(key >> shift) & static_cast<uint32_t>(count - 1);
      const uint32_t same = __match_any_sync(__activemask(), bin);
      const bool leader = static_cast<int>(threadIdx.x) % 32 == __ffs(static_cast<int>(same)) - 1;
      if (leader) atomicAdd(&bins[bin], static_cast<uint32_t>(__popc(same)));
    });
    row_cluster_sync();
    uint64_t sums[kPerThread] = {}, mine = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; j++) {
      const int bin = count - 1 - (static_cast<int>(threadIdx.x) * kPerThread + j);
      if (bin < 0) continue;
      for (int r = 0; r < part.size; r++) sums[j] += *peer(&bins[bin], r);
      mine += sums[j];
    }
    uint64_t at = before + cta_sum_before(s, mine);
    for (int j = 0; j < kPerThread; j++) {
      const int bin = count - 1 - (static_cast<int>(threadIdx.x) * kPerThread + j);
      if (bin >= 0 && at < goal && at + sums[j] >= goal) {
        s.found_key = prefix | static_cast<uint64_t>(bin) << shift;
        s.found_before = at;
      }
      at += sums[j];
    }
    row_cluster_sync();
    prefix = s.found_key;
    before = s.found_before;
    if (shift == 32) prefix |= 0xfff00000;  // ids are below 2^20
  }
  return prefix;
}

}  // namespace isobit::cuda
