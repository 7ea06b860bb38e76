// Sampling, rules N12 to N17: one launch for any mixture of rows, a cluster of CTAs a row.
//
// Bytes: 4 a logit; one pass for greedy rows and rows without filters, parts of a second one (from L2) for the others.
// - First pass: the maximum, NaNs, and for a row without filters a cheap bound of each token's score with noise. Only
//   tokens whose bound reaches a score known to be had are evaluated in f64: usually one a CTA.
// - top-k: the k-th largest of the threads' maxima, found in bins of the distance to the row's maximum, is a threshold
//   that at least k tokens reach and few more do. They are listed in shared memory.
// - top-p alone: the threshold comes from the masses of a sample of the row; whether the list holds the whole nucleus
// is
//   then checked in exact masses.
// - A list of up to 512 is sorted by one CTA. A longer one, or the whole row where no list was good (a flat row, ties,
// a
//   large k), goes through an exact selection of the cut, digit by digit of (value, id), by counts or by masses.
// Which way a row takes changes no bit.
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/sample_device.h"

namespace isobit::cuda {
namespace {

struct SampleParams {
  SampleArgs a;
  const SlotSettings* settings;
  int slots;
  uint32_t* ticket;
  const uint32_t* counting;
};

__device__ __noinline__ uint64_t exact_score(float z, uint32_t r) { return order_key64(numerics::gumbel_score(z, r)); }

__device__ void consider(Winner& w, float z, uint32_t r, uint32_t id) {
  if (z == kMinusInfinity) return;
  const uint64_t score = exact_score(z, r);
  if (score > w.score || (score == w.score && id < w.id)) w = {score, id};
}

__device__ float bound_floor(const SampleShared& s) {
  return s.bound == 0 ? kMinusInfinity : score_floor(order_value(s.bound));
}

// Out of line, as all that follows: the streaming loop shall have the registers for itself.
template <bool kNoise>
__device__ __noinline__ ThreadScan first_pass(SampleShared& s, bool raw) {
  const Row row = s.row;
  const Noise noise = s.noise;
  return scan_row<kNoise>(row, cluster_part(), raw, noise);
}

// The CTA's winner among all tokens, from the bounds of the first pass.
__device__ __noinline__ Winner winner_of_all(SampleShared& s, const ThreadScan scan) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  const Noise noise = s.noise;
  const auto each = [&](int group, auto&& f) {
    const float4 z = group_values(row, group, false);
    const numerics::PhiloxWords w = noise_words(noise, group);
    f(z.x, w.w[0], 0), f(z.y, w.w[1], 1), f(z.z, w.w[2], 2), f(z.w, w.w[3], 3);
  };
  const uint32_t key = numerics::order_key(scan.best), top = cta_max(s, 0, key);
  const bool any = scan.best > kMinusInfinity;
  if (any && key == top) {
    float below = kMinusInfinity;
    each(scan.where, [&](float z, uint32_t r, int) { below = fmaxf(below, score_below(z, r)); });
    atomicMax(&s.bound, numerics::order_key(below));
  }
  __syncthreads();
  const float floor = bound_floor(s);
  Winner w;
  const auto evaluate = [&](int group) {
    each(group, [&](float z, uint32_t r, int j) {
      if (score_above(z, r) >= floor) consider(w, z, r, static_cast<uint32_t>(group * 4 + j));
    });
  };
  if (any && scan.second >= floor) {
    for (int g = part.first; g < row.groups; g += part.stride) evaluate(g);
  } else if (any && scan.best >= floor) {
    evaluate(scan.where);
  }
  return cta_best(s, w);
}

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

// Bins of the distance to the maximum: sixteen to an octave, 2^-10 to 2^14; the nearer, the lower.
constexpr int kFirstDistance = (127 - 10) << 4;
__device__ int distance_bin(float largest, float z) {
  const int bin = static_cast<int>(numerics::bits(numerics::fsub(largest, z)) >> 19) - kFirstDistance;
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
__device__ __noinline__ int first_bin(SampleShared& s, CutGoal goal) {
  __syncthreads();
  if (threadIdx.x < 32) {
    constexpr int kPerLane = kDistanceBins / 32;
    const int lane = static_cast<int>(threadIdx.x);
    uint64_t mine = 0;
    for (int i = 0; i < kPerLane; i++) mine += s.distance_totals[lane * kPerLane + i];
    uint64_t sum = mine;
#pragma unroll
    for (int h = 1; h < 32; h *= 2) {
      const uint64_t below = __shfl_up_sync(kAllLanes, sum, h);
      if (lane >= h) sum += below;
    }
    const uint64_t all = __shfl_sync(kAllLanes, sum, 31);
    if (!goal.by_mass && goal.top_p != 0) goal.count = __umul64hi(all << 16, goal.top_p << 16);
    const uint32_t reached = __ballot_sync(kAllLanes, goal.reached(sum));
    if (lane == (reached != 0 ? __ffs(static_cast<int>(reached)) - 1 : 31)) {
      uint64_t before = sum - mine;
      int bin = lane * kPerLane;
      for (; bin < lane * kPerLane + kPerLane - 1; bin++) {
        if (goal.reached(before + s.distance_totals[bin])) break;
        before += s.distance_totals[bin];
      }
      s.threshold_bin = static_cast<uint32_t>(bin);
      s.found_before = before;
    }
  }
  __syncthreads();
  return static_cast<int>(s.threshold_bin);
}

// The same of the cluster's s.distances.
__device__ __noinline__ int find_bin(SampleShared& s, const CutGoal& goal) {
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
  return first_bin(s, goal);
}

__device__ void clear_distances(SampleShared& s) {
  for (int i = static_cast<int>(threadIdx.x); i < kDistanceBins; i += kSampleThreads) s.distances[i] = 0;
  __syncthreads();
}

// A bin that at least `count` tokens reach, if as many threads have tokens.
__device__ __noinline__ int threshold_by_count(SampleShared& s, float thread_largest, float largest, uint64_t count) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  clear_distances(s);
  if (part.first < row.groups) atomicAdd(&s.distances[distance_bin(largest, thread_largest)], 1u);
  return find_bin(s, {false, count, 0, 0});
}

// A bin that probably holds that share (of 2^32) of all masses, or of all tokens: from each thread's first four tokens.
__device__ __noinline__ int threshold_by_sample(SampleShared& s, float largest, bool by_mass, uint64_t share) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  clear_distances(s);
  if (part.first < row.groups) {
    const float4 v = group_values(row, part.first, false);
    for (const float z : {v.x, v.y, v.z, v.w}) {
      const uint32_t m = by_mass ? static_cast<uint32_t>(mass(z, largest) >> 24) : 1;
      if (m != 0) atomicAdd(&s.distances[distance_bin(largest, z)], m);
    }
  }
  return find_bin(s, {false, 0, share, 0});
}

// The distance bins up to `bin` hold the values v of which fsub(v, largest) <= bin_floor(bin) is false.
__device__ float bin_floor(int bin) {
  if (bin < 0) return -kMinusInfinity;
  if (bin >= kDistanceBins - 1) return numerics::from_bits(numerics::kNaN32);
  return -numerics::from_bits(static_cast<uint32_t>(kFirstDistance + bin + 1) << 19);
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

__device__ __noinline__ Collected collect(SampleShared& s, int stage, bool raw, float thread_largest, float largest,
                                          const Wanted& wanted) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  if (threadIdx.x == 0) s.list_count = 0;
  __syncthreads();
  uint64_t all = 0, listed = 0;
  if (wanted.masses || distance_bin(largest, thread_largest) <= wanted.bin) {
    const float floor = bin_floor(wanted.bin);
    for_each_group(row, part, raw, [&](int group, const float4& v) {
      const float z[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float distance = numerics::fsub(z[j], largest);
        MassHalves m = {};
        if (wanted.masses) {
          m = mass_halves(ex2(numerics::fmul(distance, numerics::kLog2E)));
          all += (static_cast<uint64_t>(m.high) << 22) + m.low;
        }
        const int id = group * 4 + j;
        if (distance <= floor || id >= row.vocab) continue;
        const uint64_t key = numerics::candidate_key(z[j], static_cast<uint32_t>(id));
        if (key < wanted.cutoff) continue;
        listed += (static_cast<uint64_t>(m.high) << 22) + m.low;
        const uint32_t at = atomicAdd(&s.list_count, 1u);
        if (at < kListCapacity) s.list[at] = key;
      }
    });
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
__device__ __noinline__ void sort_lists(SampleShared& s, int stage, int total) {
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

__device__ void add_to_bin(SampleShared& s, bool by_mass, uint32_t bin, uint64_t m) {
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
__device__ __noinline__ uint64_t find_cut(SampleShared& s, const Source& source, float largest, const CutGoal& goal) {
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
__device__ __noinline__ Cut find_cut_in_lists(SampleShared& s, int count, float largest, const CutGoal& goal) {
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

struct Filter {
  uint64_t cutoff = 0;
  bool has_min = false;
  float min_log2 = 0.0f, largest = 0.0f;
  __device__ bool keeps(uint64_t key, float z) const {
    return key >= cutoff && (!has_min || numerics::min_p_keeps(z, largest, min_log2)) && z > kMinusInfinity;
  }
};

// The cluster's winner among the tokens that a filter keeps.
__device__ __noinline__ Winner winner_among(SampleShared& s, const Source& source, const Filter& filter) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  const Noise noise = s.noise;
  const auto each = [&](auto&& f) {
    for_each_token(s, row, part, source, [&](uint64_t key, float z) {
      if (!filter.keeps(key, z)) return;
      const uint32_t id = key_id(key);
      f(z, noise_words(noise, static_cast<int>(id / 4)).w[id % 4], id);
    });
  };
  float best = kMinusInfinity, below = kMinusInfinity;
  each([&](float z, uint32_t r, uint32_t) {
    const float b = score_above(z, r);
    if (b > best) best = b, below = score_below(z, r);
  });
  const uint32_t key = numerics::order_key(best), top = cta_max(s, 0, key);
  if (best > kMinusInfinity && key == top) atomicMax(&s.bound, numerics::order_key(below));
  __syncthreads();
  const float floor = bound_floor(s);
  Winner w;
  if (best > kMinusInfinity && best >= floor) {
    each([&](float z, uint32_t r, uint32_t id) {
      if (score_above(z, r) >= floor) consider(w, z, r, id);
    });
  }
  w = cta_best(s, w);
  return exchange_scan(s, 1, part, w, 0, false).winner;
}

// Filters and noise over a list that the first CTA has sorted.
__device__ __noinline__ Winner winner_of_sorted(SampleShared& s, const SlotSettings& slot, float largest, int total,
                                                uint64_t all) {
  const Noise noise = s.noise;
  const int i = static_cast<int>(threadIdx.x);
  const uint64_t key = i < total ? s.sorted[i] : 0;
  const float z = key_value(key);
  bool in = i < total && (slot.top_k == 0 || i < slot.top_k);
  if (slot.top_p != 0) {
    const uint64_t m = in ? mass(z, largest) : 0;
    const uint64_t before = cta_sum_before(s, m), sum = slot.top_k != 0 ? cta_sum(s, m) : all;
    in = in && numerics::top_p_keeps(before, slot.top_p, sum);
  }
  Winner w;
  if (in && (!slot.has_min_p || numerics::min_p_keeps(z, largest, slot.min_p_log2))) {
    const uint32_t id = key_id(key);
    consider(w, z, noise_words(noise, static_cast<int>(id / 4)).w[id % 4], id);
  }
  return cta_best(s, w);
}

// How the tokens that a row's filters can keep are listed.
__device__ int list_bin(SampleShared& s, const SlotSettings& slot, float thread_largest, float largest) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  const uint64_t k = static_cast<uint64_t>(slot.top_k);
  if (slot.top_k > part.stride / 2) {  // the threads' maxima would give too low a threshold
    const uint64_t about = k + k / 4 + 256;
    const uint64_t share = (about << 32) / static_cast<uint64_t>(row.vocab);
    return threshold_by_sample(s, largest, false, share < (uint64_t{1} << 32) ? share : 0xffffffff);
  }
  if (slot.top_k != 0) return threshold_by_count(s, thread_largest, largest, k);
  if (slot.top_p != 0) {
    const uint64_t share = slot.top_p + ((uint64_t{1} << 32) - slot.top_p) / 2;
    return threshold_by_sample(s, largest, true, share < (uint64_t{1} << 32) ? share : 0xffffffff);
  }
  // min-p keeps distances up to -min_log2·ln 2: in the next bin at the latest.
  return distance_bin(0.0f, slot.min_p_log2 * kLn2F) + 1;
}

// The cut of a goal over the row, or over lists that hold it.
__device__ uint64_t cut(SampleShared& s, const Source& source, float largest, const CutGoal& goal) {
  const ClusterPart part = cluster_part();
  if (source.list) {
    const Cut c = find_cut_in_lists(s, source.count, largest, goal);
    if (c.found) return c.key;
  }
  return find_cut(s, source, largest, goal);
}

// The mass of the tokens from the cutoff up, over the cluster.
__device__ __noinline__ uint64_t mass_from(SampleShared& s, const Source& source, uint64_t cutoff, float largest) {
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

// The winner, to all threads of the first CTA at least.
__device__ __noinline__ Winner sample_filtered(SampleShared& s, const SlotSettings& slot, float thread_largest,
                                               float largest) {
  const ClusterPart part = cluster_part();

  const bool has_k = slot.top_k != 0, has_p = slot.top_p != 0;
  const bool masses = has_p && !has_k;
  const int bin = list_bin(s, slot, thread_largest, largest);
  const Collected c = collect(s, 0, false, thread_largest, largest, {bin, 0, masses});
  uint64_t all = c.all;
  Source source;
  source.count = c.mine;
  source.list = c.fits && (has_k   ? c.total >= static_cast<uint32_t>(slot.top_k)
                           : has_p ? !numerics::top_p_keeps(c.listed, slot.top_p, all)
                                   : true);
  if (source.list && c.total <= kSortCapacity) {
    sort_lists(s, 0, static_cast<int>(c.total));
    Winner w;
    if (part.rank == 0) w = winner_of_sorted(s, slot, largest, static_cast<int>(c.total), all);
    hopper::cluster_wait();
    return w;
  }
  Filter filter;
  filter.has_min = slot.has_min_p;
  filter.min_log2 = slot.min_p_log2;
  filter.largest = largest;
  if (has_k) filter.cutoff = cut(s, source, largest, {false, static_cast<uint64_t>(slot.top_k), 0, 0});
  if (has_k && has_p) all = mass_from(s, source, filter.cutoff, largest);
  if (has_p) filter.cutoff = cut(s, source, largest, {true, 0, slot.top_p, all});
  return winner_among(s, source, filter);
}

// Rule N14 of the chosen token and the best ones. `scan` and `largest`: of the values asked for.
__device__ __noinline__ void write_logprobs(SampleShared& s, const SampleArgs& a, int64_t i, bool raw,
                                            const SlotSettings& slot, float thread_largest, float largest, int token) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  const int wanted = slot.top_logprobs < row.vocab ? slot.top_logprobs : row.vocab;
  const int top = a.top_ids != nullptr ? wanted : 0;
  const int bin = top > 0 ? threshold_by_count(s, thread_largest, largest, static_cast<uint64_t>(top)) : -1;
  Collected c = collect(s, 1, raw, thread_largest, largest, {bin, 0, true});
  int stage = 1;
  if (top > 0 && c.total > kSortCapacity) {
    Source source;
    source.raw = raw;
    const uint64_t cutoff = find_cut(s, source, largest, {false, static_cast<uint64_t>(top), 0, 0});
    c.total = collect(s, 2, raw, thread_largest, largest, {kDistanceBins, cutoff, false}).total;
    stage = 2;
  }
  if (top > 0) sort_lists(s, stage, static_cast<int>(c.total));
  const int t = static_cast<int>(threadIdx.x);
  if (part.rank == 0 && t < kMaxTopLogprobs && a.top_ids != nullptr) {
    const uint64_t key = t < top ? s.sorted[t] : 0;
    a.top_ids[i * kMaxTopLogprobs + t] = t < top ? static_cast<int32_t>(key_id(key)) : -1;
    a.top_logprobs[i * kMaxTopLogprobs + t] =
        t < top ? log_probability(key_value(key), largest, c.all) : kMinusInfinity;
  }
  if (part.rank == 0 && t == 32 && a.logprobs != nullptr) {
    const float4 v = group_values(row, token / 4, raw);
    const float y = token % 4 == 0 ? v.x : token % 4 == 1 ? v.y : token % 4 == 2 ? v.z : v.w;
    a.logprobs[i] = log_probability(y, largest, c.all);
  }
  if (top > 0) hopper::cluster_wait();
}

__device__ __noinline__ void write_failure(const SampleArgs& a, int64_t i, bool wants_logprobs) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0) {
    a.tokens[i] = -1;
    a.status[i] = kNotFinite;
    if (wants_logprobs && a.logprobs != nullptr) a.logprobs[i] = numerics::from_bits(numerics::kNaN32);
  }
  if (wants_logprobs && a.top_ids != nullptr && t < kMaxTopLogprobs) {
    a.top_ids[i * kMaxTopLogprobs + t] = -1;
    a.top_logprobs[i * kMaxTopLogprobs + t] = kMinusInfinity;
  }
}

__device__ void sample_row(SampleShared& s, const SampleArgs& a, int64_t i, const ClusterPart& part, const Row& row,
                           const Noise& noise) {
  const SlotSettings& slot = *row.slot;
  const bool filtered = !slot.greedy && (slot.top_k != 0 || slot.top_p != 0 || slot.has_min_p);
  const bool wants_logprobs = slot.top_logprobs >= 0;
  const bool noisy = !slot.greedy && !filtered;
  ThreadScan scan = noisy ? first_pass<true>(s, false) : first_pass<false>(s, false);
  const bool bad = __syncthreads_or(scan.bad()) != 0;
  Winner w;
  if (slot.greedy) w = cta_best(s, {numerics::order_key(scan.best), static_cast<uint32_t>(scan.where)});
  if (noisy) w = winner_of_all(s, scan);
  ClusterScan c = exchange_scan(s, 0, part, w, cta_max(s, 1, numerics::order_key(scan.largest)), bad);
  if (!c.ok) {
    if (part.rank == 0) write_failure(a, i, wants_logprobs);
    return;
  }
  w = filtered ? sample_filtered(s, slot, scan.largest, c.largest) : c.winner;
  if (part.rank == 0 && threadIdx.x == 0) {
    a.tokens[i] = static_cast<int32_t>(w.id);
    a.status[i] = kSampled;
  }
  if (!wants_logprobs || (a.logprobs == nullptr && a.top_ids == nullptr)) return;
  const bool raw = !slot.processed_logprobs && !row.plain;
  if (raw) {
    scan.largest = first_pass<false>(s, true).largest;
    c = exchange_scan(s, 2, part, Winner{}, cta_max(s, 2, numerics::order_key(scan.largest)), false);
  }
  write_logprobs(s, a, i, raw, slot, scan.largest, c.largest, static_cast<int>(w.id));
}

// Counts are written once all rows have read them: rows of one slot see the same ones.
__device__ __noinline__ void count_outputs(SampleShared& s, const SampleParams& p) {
  const SampleArgs& a = p.a;
  if (threadIdx.x == 0) {
    bool last = a.rows == 1;
    if (!last) {
      __threadfence();
      last = atomicInc(p.ticket, static_cast<uint32_t>(a.rows - 1)) == a.rows - 1;
      __threadfence();
    }
    s.bound = last ? 1 : 0;
  }
  __syncthreads();
  if (s.bound == 0) return;
  for (int64_t i = threadIdx.x; i < a.rows; i += kSampleThreads) {
    const int id = a.slots[i];
    if (id < 0 || id >= p.slots || !p.settings[id].counts || __ldcg(a.status + i) != kSampled) continue;
    const SlotSettings& slot = p.settings[id];
    const int token = __ldcg(a.tokens + i);
    atomicOr(&slot.touched[token / 32], 1u << (token % 32));
    atomicOr(&slot.context[token / 32], 1u << (token % 32));
    atomicAdd(&slot.output_counts[token], 1u);
  }
}

__global__ __launch_bounds__(kSampleThreads, 2) void sample_kernel(const __grid_constant__ SampleParams p) {
  extern __shared__ __align__(16) uint8_t shared[];
  SampleShared& s = *reinterpret_cast<SampleShared*>(shared);
  const ClusterPart part = cluster_part();
  const int64_t row = blockIdx.x / static_cast<unsigned>(part.size);
  hopper::launch_dependents();
  // Slots, positions and settings come from the host between steps; no kernel of a step writes them.
  const int id = p.a.slots[row];
  const bool known = id >= 0 && id < p.slots;
  const SlotSettings& slot = p.settings[known ? id : 0];
  const bool active = known && slot.active;
  const Row r = make_row(p.a.logits, row, p.a.vocab, &slot);
  const Noise noise{slot.seed, static_cast<uint32_t>(p.a.positions[row]), slot.choice};
  const bool counts = p.a.count_output && *p.counting != 0;
  if (threadIdx.x == 0) {
    s.bound = 0;
    s.row = r;
    s.noise = noise;
  }
  hopper::cluster_sync();  // every CTA of the cluster runs: from here on they may write to each other
  hopper::wait_for_predecessors();
  if (active) {
    sample_row(s, p.a, row, part, r, noise);
  } else if (id >= 0 && part.rank == 0) {
    write_failure(p.a, row, false);
  }
  if (part.rank == 0 && counts) {
    __syncthreads();
    count_outputs(s, p);
  }
}

}  // namespace

void launch_sample(SamplerSlots& slots, const SampleArgs& args, const KernelContext& context) {
  auto* pool = dynamic_cast<CudaSamplerSlots*>(&slots);
  if (pool == nullptr) throw_invalid("sample: the slots were made by another backend; make them with this one");
  if (pool->vocab() != args.vocab) {
    throw_invalid("sample: logits of " + std::to_string(args.vocab) + " tokens; the sampler was made for " +
                  std::to_string(pool->vocab()));
  }
  if (args.rows == 0) return;
  const int cluster = sample_cluster(args.rows, args.vocab, context.sm_count);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(args.rows * cluster));
  shape.block = dim3(kSampleThreads);
  shape.cluster = dim3(static_cast<unsigned>(cluster));
  shape.shared_bytes = sizeof(SampleShared);
  allow_shared_memory("sample", sample_kernel, shape.shared_bytes);
  allow_large_clusters("sample", sample_kernel);
  launch("sample", sample_kernel, shape, context.stream,
         SampleParams{args, pool->settings(), pool->slots(), pool->ticket(), pool->counting()});
}

}  // namespace isobit::cuda
