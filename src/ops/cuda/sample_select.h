#pragma once
// Selection from a row of logits: lists of its best tokens, and exact cuts by count or by mass. Every function is
// called by all threads of the row's cluster.
#include "ops/cuda/sample_device.h"

namespace isobit::cuda {

// Tokens to select from: this thread's part of the row, or of the CTA's list.
struct Source {
  bool list = false;
  int count = 0;  // of the list
  bool raw = false;
};

// f(key, value).
template <typename F>
__device__ void for_each_token(const SampleShared& s, const Row& row, const ClusterPart& part, const Source& source,
                               F&& f) {
  if (source.list) {
    for (int i = static_cast<int>(threadIdx.x); i < source.count; i += kSampleThreads) {
      f(s.list[i], key_value(s.list[i]));
    }
    return;
  }
  // One group at a time: this is the way of few rows, and unrolled code costs more in instruction fetches than it
  // gains.
  const bool process = !(source.raw || row.plain);
  float4 next = part.first < row.groups ? raw_group(row, part.first) : float4{};
#pragma unroll 1
  for (int group = part.first; group < row.groups; group += part.stride) {
    const float4 y = next;
    if (group + part.stride < row.groups) next = raw_group(row, group + part.stride);
    const float4 v = process ? process_group(row, group, y) : y;
    const float z[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int id = group * 4 + j;
      if (id < row.vocab) f(numerics::candidate_key(z[j], static_cast<uint32_t>(id)), z[j]);
    }
  }
}

// Bins of the distance to the maximum: 64 to an octave, 2^-5 to 2^7; the nearer, the lower.
constexpr int kDistanceShift = 17, kFirstDistance = (127 - 5) << 6;
__device__ inline int distance_bin(float largest, float z) {
  const int bin = static_cast<int>(numerics::bits(numerics::fsub(largest, z)) >> kDistanceShift) - kFirstDistance;
  return bin < 0 ? 0 : bin < kDistanceBins ? bin : kDistanceBins - 1;
}

// Where to cut: at the count-th largest key, or at the last key that top-p keeps.
struct CutGoal {
  bool by_mass;
  uint64_t count, top_p, mass;
  __device__ bool reached(uint64_t before) const {
    return by_mass ? !numerics::top_p_keeps(before, top_p, mass) : before >= count;
  }
  __device__ uint64_t weight(float z, float largest) const { return by_mass ? cuda::mass(z, largest) : 1; }
};

// The lowest bin with which the sum of s.distance_totals reaches the goal, else the last one; to all threads, with the
// sum before it in s.found_before. A goal by count with top_p != 0 is that share (of 2^32) of all.
__device__ __noinline__ inline int first_bin(SampleShared& s, CutGoal goal) {
  constexpr int kPerThread = 2;
  static_assert(kDistanceBins % kPerThread == 0 && kDistanceBins <= kPerThread * kSampleThreads);
  const int first = static_cast<int>(threadIdx.x) * kPerThread;
  const bool has = first < kDistanceBins;
  if (threadIdx.x == 0) s.threshold_bin = kDistanceBins - 1;
  __syncthreads();
  const uint64_t low = has ? s.distance_totals[first] : 0, high = has ? s.distance_totals[first + 1] : 0;
  if (!goal.by_mass && goal.top_p != 0) goal.count = __umul64hi(cta_sum(s, low + high) << 16, goal.top_p << 16);
  const uint64_t before = cta_sum_before(s, low + high);
  if (has && goal.reached(before + low + high) && (first == 0 || !goal.reached(before))) {
    const bool in_low = goal.reached(before + low);
    s.threshold_bin = static_cast<uint32_t>(first + (in_low ? 0 : 1));
    s.found_before = in_low ? before : before + low;
  }
  __syncthreads();
  return static_cast<int>(s.threshold_bin);
}

// The cluster's s.distances into s.distance_totals, for first_bin.
__device__ __noinline__ inline void add_distances(SampleShared& s) {
  const ClusterPart part = cluster_part();
  hopper::cluster_sync();
  for (int i = static_cast<int>(threadIdx.x); i < kDistanceBins; i += kSampleThreads) {
    uint64_t total = 0;
#pragma unroll
    for (int r = 0; r < kMaxSampleCluster; r++) {
      if (r < part.size) total += *peer(&s.distances[i], r);
    }
    s.distance_totals[i] = total;
  }
}
__device__ inline int find_bin(SampleShared& s, const CutGoal& goal) {
  add_distances(s);
  return first_bin(s, goal);
}

__device__ inline void clear_distances(SampleShared& s) {
  for (int i = static_cast<int>(threadIdx.x); i < kDistanceBins; i += kSampleThreads) s.distances[i] = 0;
  __syncthreads();
}

// A bin that at least `count` tokens reach, if as many threads have tokens.
__device__ __noinline__ inline int threshold_by_count(SampleShared& s, float thread_largest, float largest,
                                                      uint64_t count) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  clear_distances(s);
  if (part.first < row.groups) atomicAdd(&s.distances[distance_bin(largest, thread_largest)], 1u);
  return find_bin(s, {false, count, 0, 0});
}

// A bin that probably holds that share (of 2^32) of all tokens: from each thread's first four tokens.
__device__ __noinline__ inline int threshold_by_sample(SampleShared& s, float largest, uint64_t share) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  clear_distances(s);
  if (part.first < row.groups) {
    const float4 v = group_values(row, part.first, false);
    for (const float z : {v.x, v.y, v.z, v.w}) atomicAdd(&s.distances[distance_bin(largest, z)], 1u);
  }
  return find_bin(s, {false, 0, share, 0});
}

// A bin that probably holds a little more than that share (of 2^32) of all masses. The few tokens that have most of it
// are among the threads' maxima, so the sum comes from these; the tail that may be left out from each thread's first
// four tokens, scaled. A sample alone misleads: one heavy token in it weighs as much as all.
__device__ __noinline__ inline int threshold_by_tail(SampleShared& s, float thread_largest, float largest,
                                                     uint64_t share) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  clear_distances(s);
  uint64_t head = 0, sampled = 0;
  if (part.first < row.groups) {
    head = mass(thread_largest, largest) >> 24;
    const float4 v = group_values(row, part.first, false);
    for (const float z : {v.x, v.y, v.z, v.w}) {
      const uint32_t m = static_cast<uint32_t>(mass(z, largest) >> 24);  // 2^20 at most, 2048 of them
      sampled += m;
      if (m != 0) atomicAdd(&s.distances[distance_bin(largest, z)], m);
    }
  }
  head = cta_sum(s, head);
  sampled = cta_sum(s, sampled);
  if (static_cast<int>(threadIdx.x) < part.size) {
    *peer(&s.sums[2][0][part.rank], static_cast<int>(threadIdx.x)) = head;
    *peer(&s.sums[2][1][part.rank], static_cast<int>(threadIdx.x)) = sampled;
  }
  add_distances(s);
  const float part_of_row = fminf(1.0f, static_cast<float>(4 * part.stride) / static_cast<float>(row.vocab));
  const float heads = static_cast<float>(sum_over_ranks(s.sums[2][0], part));
  const float total = static_cast<float>(sum_over_ranks(s.sums[2][1], part));
  const float all = fmaxf(heads, total / part_of_row * 0.25f);
  const float tail = 0.75f * (1.0f - static_cast<float>(share) * 0x1p-32f) * all * part_of_row;
  const uint64_t goal = total > tail ? static_cast<uint64_t>(total - tail) : 1;
  return first_bin(s, {false, goal, 0, 0});
}

// The distance bins up to `bin` hold the values v of which fsub(v, largest) <= bin_floor(bin) is false.
__device__ inline float bin_floor(int bin) {
  if (bin < 0) return -kMinusInfinity;
  if (bin >= kDistanceBins - 1) return numerics::from_bits(numerics::kNaN32);
  return -numerics::from_bits(static_cast<uint32_t>(kFirstDistance + bin + 1) << kDistanceShift);
}

struct Wanted {  // what collect() lists: values in bins up to `bin`, with keys of at least `cutoff`
  int bin;
  uint64_t cutoff;
  bool masses;  // of all tokens and of the listed ones
};
struct Collected {
  bool fits;       // every CTA's list holds all that it should
  uint32_t total;  // over the cluster
  int mine;        // in this CTA's list
  uint64_t all, listed;
};

// Lists what is wanted of a group and returns its mass.
__device__ __noinline__ inline uint64_t list_group(SampleShared& s, int group, float4 v, float largest, float floor,
                                                   uint64_t cutoff) {
  uint64_t listed = 0;
#pragma unroll 1
  for (int j = 0; j < 4; j++) {
    const float z = v.x;
    v = make_float4(v.y, v.z, v.w, v.x);
    const int id = group * 4 + j;
    if (numerics::fsub(z, largest) <= floor || id >= s.row.vocab) continue;
    const uint64_t key = numerics::candidate_key(z, static_cast<uint32_t>(id));
    if (key < cutoff) continue;
    listed += mass(z, largest);
    const uint32_t at = atomicAdd(&s.list_count, 1u);
    if (at < kListCapacity) s.list[at] = key;
  }
  return listed;
}

__device__ __noinline__ inline Collected collect(SampleShared& s, int stage, bool raw, float thread_largest,
                                                 float largest, const Wanted& wanted) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  if (threadIdx.x == 0) s.list_count = 0;
  __syncthreads();
  uint64_t all = 0, listed = 0;
  if (wanted.masses || distance_bin(largest, thread_largest) <= wanted.bin) {
    const float floor = bin_floor(wanted.bin);
    if (wanted.masses) {
      for_each_group(row, part, raw, [&](int group, const float4& v) {
        all += mass(v.x, largest) + mass(v.y, largest) + mass(v.z, largest) + mass(v.w, largest);
        if (!(numerics::fsub(largest_of(v), largest) <= floor))
          listed += list_group(s, group, v, largest, floor, wanted.cutoff);
      });
    } else {
#pragma unroll 1
      for (int group = part.first; group < row.groups; group += part.stride) {
        list_group(s, group, group_values(row, group, raw), largest, floor, wanted.cutoff);
      }
    }
  }
  __syncthreads();
  const uint32_t count = s.list_count;
  if (wanted.masses) {
    all = cta_sum(s, all);
    listed = cta_sum(s, listed);
  }
  if (static_cast<int>(threadIdx.x) < part.size) {
    const int to = static_cast<int>(threadIdx.x);
    *peer(&s.counts[stage][part.rank], to) = count;
    *peer(&s.sums[stage][0][part.rank], to) = all;
    *peer(&s.sums[stage][1][part.rank], to) = listed;
  }
  hopper::cluster_sync();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t counted = lane < part.size ? s.counts[stage][lane] : 0;
  Collected c;
  c.fits = __reduce_max_sync(kAllLanes, counted) <= kListCapacity;
  c.total = __reduce_add_sync(kAllLanes, counted);
  c.mine = static_cast<int>(count);
  c.all = sum_over_ranks(s.sums[stage][0], part);
  c.listed = sum_over_ranks(s.sums[stage][1], part);
  return c;
}

// The first CTA gets all lists, at most kSortCapacity keys, into s.sorted, descending. Every CTA calls
// hopper::cluster_wait() before it ends or lists again.
__device__ __noinline__ inline void sort_lists(SampleShared& s, int stage, int total) {
  const ClusterPart part = cluster_part();
  if (part.rank != 0) {
    hopper::cluster_arrive();
    return;
  }
  const int i = static_cast<int>(threadIdx.x);
  uint64_t key = 0;
  if (i < total) {
    int rank = 0, at = i;
    for (; at >= static_cast<int>(s.counts[stage][rank]); rank++) at -= static_cast<int>(s.counts[stage][rank]);
    key = peer(s.list, rank)[at];
    s.unsorted[i] = key;
  }
  hopper::cluster_arrive();
  __syncthreads();
  if (i < total) {
    int above = 0;
    for (int j = 0; j < total; j++) above += s.unsorted[j] > key ? 1 : 0;
    s.sorted[above] = key;
  }
  __syncthreads();
}

__device__ inline void add_to_bin(SampleShared& s, bool by_mass, uint32_t bin, uint64_t m) {
  const uint32_t active = __activemask();
  const uint32_t same = __match_any_sync(active, bin);
  const bool leader = static_cast<int>(threadIdx.x) % 32 == __ffs(static_cast<int>(same)) - 1;
  if (!by_mass) {
    if (leader) atomicAdd(&s.histogram.numbers[bin], static_cast<uint32_t>(__popc(same)));
    return;
  }
  const uint64_t low = __reduce_add_sync(same, static_cast<uint32_t>(m) & 0x3fffff);
  const uint64_t high = __reduce_add_sync(same, static_cast<uint32_t>(m >> 22));
  if (leader) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&s.histogram.masses[bin]),
              static_cast<unsigned long long>(low + (high << 22)));
  }
}

// The key of the last token before the goal is passed, in the order of keys descending. Digits of the key from the top:
// a histogram of each, over the cluster, of the tokens that share the digits found before.
__device__ __noinline__ inline uint64_t find_cut(SampleShared& s, const Source& source, float largest,
                                                 const CutGoal& goal) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  constexpr int kLevels = 5;
  constexpr int kShift[kLevels] = {53, 42, 32, 9, 0}, kBits[kLevels] = {11, 11, 10, 10, 9};
  uint64_t prefix = 0, before = 0;
  for (int level = 0; level < kLevels; level++) {
    const int shift = kShift[level], bins = 1 << kBits[level], above = shift + kBits[level];
    for (int i = static_cast<int>(threadIdx.x); i < kHistogramBins; i += kSampleThreads) s.histogram.masses[i] = 0;
    __syncthreads();
    for_each_token(s, row, part, source, [&](uint64_t key, float z) {
      if (level > 0 && (key >> above) != (prefix >> above)) return;
      const uint64_t m = goal.weight(z, largest);
      if (m == 0) return;
      add_to_bin(s, goal.by_mass, static_cast<uint32_t>(key >> shift) & static_cast<uint32_t>(bins - 1), m);
    });
    hopper::cluster_sync();
    constexpr int kPerThread = kHistogramBins / kSampleThreads;
    uint64_t sums[kPerThread] = {}, mine = 0;
#pragma unroll
    for (int j = 0; j < kPerThread; j++) {
      const int bin = bins - 1 - (static_cast<int>(threadIdx.x) * kPerThread + j);
      if (bin < 0) continue;
#pragma unroll 8
      for (int r = 0; r < part.size; r++) {
        sums[j] += goal.by_mass ? *peer(&s.histogram.masses[bin], r) : *peer(&s.histogram.numbers[bin], r);
      }
      mine += sums[j];
    }
    uint64_t at = before + cta_sum_before(s, mine);
    for (int j = 0; j < kPerThread; j++) {
      const int bin = bins - 1 - (static_cast<int>(threadIdx.x) * kPerThread + j);
      if (bin >= 0 && !goal.reached(at) && goal.reached(at + sums[j])) {
        s.found_key = prefix | static_cast<uint64_t>(bin) << shift;
        s.found_before = at;
      }
      at += sums[j];
    }
    hopper::cluster_sync();
    prefix = s.found_key;
    before = s.found_before;
    if (shift == 32) prefix |= 0xfff80000;  // ids are below 2^19
  }
  return prefix;
}

struct Cut {
  bool found;
  uint64_t key;
};

// find_cut() over lists: by bins of the distance, then a sort of the tokens in the bin where the goal is passed, which
// every CTA does for itself. Not found where too many tokens share the bin.
__device__ __noinline__ inline Cut find_cut_in_lists(SampleShared& s, int count, float largest, const CutGoal& goal) {
  const ClusterPart part = cluster_part();
  const int t = static_cast<int>(threadIdx.x);
  constexpr int kLimb = 15;  // a bin's sum of limbs over a list stays below 2^32
  constexpr uint32_t kMask = (1u << kLimb) - 1;
  for (int i = t; i < 3 * kDistanceBins; i += kSampleThreads)
    s.histogram.limbs[i / kDistanceBins][i % kDistanceBins] = 0;
  if (t == 0) s.threshold_bin = 0;
  __syncthreads();
#pragma unroll 1
  for (int i = t; i < count; i += kSampleThreads) {
    const float z = key_value(s.list[i]);
    const uint64_t w = goal.weight(z, largest);
    const int bin = distance_bin(largest, z);
    atomicAdd(&s.histogram.limbs[0][bin], static_cast<uint32_t>(w) & kMask);
    if (!goal.by_mass) continue;
    atomicAdd(&s.histogram.limbs[1][bin], static_cast<uint32_t>(w >> kLimb) & kMask);
    atomicAdd(&s.histogram.limbs[2][bin], static_cast<uint32_t>(w >> 2 * kLimb));
  }
  hopper::cluster_sync();
  for (int i = t; i < kDistanceBins; i += kSampleThreads) {
    uint64_t total = 0;
#pragma unroll 4
    for (int r = 0; r < part.size; r++) {
      total += *peer(&s.histogram.limbs[0][i], r);
      total += static_cast<uint64_t>(*peer(&s.histogram.limbs[1][i], r)) << kLimb;
      total += static_cast<uint64_t>(*peer(&s.histogram.limbs[2][i], r)) << 2 * kLimb;
    }
    s.distance_totals[i] = total;
  }
  if (t == 0) s.list_count = 0;
  const int bin = first_bin(s, goal);
  const uint64_t before = s.found_before;
#pragma unroll 1
  for (int i = t; i < count; i += kSampleThreads) {
    if (distance_bin(largest, key_value(s.list[i])) != bin) continue;
    const uint32_t at = atomicAdd(&s.list_count, 1u);
    if (at < kSortCapacity) s.unsorted[at] = s.list[i];
  }
  __syncthreads();
  if (t < part.size) *peer(&s.counts[1][part.rank], t) = s.list_count;
  hopper::cluster_sync();
  int total = 0, rank = 0, at = t;
  for (int r = 0; r < part.size; r++) {
    const int n = static_cast<int>(s.counts[1][r]);
    if (at >= n && rank == r) at -= n, rank++;
    total += n;
  }
  const bool fits = total <= kSortCapacity;
  uint64_t key = 0;
  if (fits && t < total) s.pulled[t] = key = peer(s.unsorted, rank)[at];
  hopper::cluster_sync();
  if (!fits) return {false, 0};
  if (t < total) {
    int above = 0;
    for (int j = 0; j < total; j++) above += s.pulled[j] > key ? 1 : 0;
    s.sorted[above] = key;
  }
  __syncthreads();
  const float z = t < total ? key_value(s.sorted[t]) : 0.0f;
  const uint64_t mine = before + cta_sum_before(s, t < total ? goal.weight(z, largest) : 0);
  const int kept = __syncthreads_count(t < total && !goal.reached(mine));
  return {true, s.sorted[kept - 1]};
}

// The cut of a goal over the row, or over lists that hold it.
__device__ inline uint64_t cut(SampleShared& s, const Source& source, float largest, const CutGoal& goal) {
  const ClusterPart part = cluster_part();
  if (source.list) {
    const Cut c = find_cut_in_lists(s, source.count, largest, goal);
    if (c.found) return c.key;
  }
  return find_cut(s, source, largest, goal);
}

// The mass of the tokens from the cutoff up, over the cluster.
__device__ __noinline__ inline uint64_t mass_from(SampleShared& s, const Source& source, uint64_t cutoff,
                                                  float largest) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  uint64_t sum = 0;
  for_each_token(s, row, part, source, [&](uint64_t key, float z) {
    if (key >= cutoff) sum += mass(z, largest);
  });
  sum = cta_sum(s, sum);
  if (static_cast<int>(threadIdx.x) < part.size) {
    *peer(&s.sums[1][0][part.rank], static_cast<int>(threadIdx.x)) = sum;
  }
  hopper::cluster_sync();
  return sum_over_ranks(s.sums[1][0], part);
}

}  // namespace isobit::cuda
