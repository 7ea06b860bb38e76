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
__device__ __noinline__ inline int first_bin(SampleShared& s, int bins, CutGoal goal) {
  constexpr int kPerThread = 2;
  static_assert(kGuessBins % kPerThread == 0 && kDistanceBins <= kPerThread * kSampleThreads);
  const int first = static_cast<int>(threadIdx.x) * kPerThread;
  const bool has = first < bins;
  if (threadIdx.x == 0) s.threshold_bin = static_cast<uint32_t>(bins - 1);
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

// Guesses are made from a sample in wider bins: this many of the narrow ones.
constexpr int kGuessWidth = kDistanceBins / kGuessBins;
__device__ inline void count_guess(SampleShared& s, float largest, float z, uint32_t count) {
  atomicAdd(&s.distances[distance_bin(largest, z) / kGuessWidth], count);
}
__device__ inline void clear_guess(SampleShared& s) {
  static_assert(kGuessBins <= kSampleThreads);
  if (threadIdx.x < kGuessBins) s.distances[threadIdx.x] = 0;
  __syncthreads();
}
// Bin threadIdx.x over the cluster; 0 where there is none.
__device__ __noinline__ inline uint32_t total_guess(SampleShared& s) {
  const ClusterPart part = cluster_part();
  const int t = static_cast<int>(threadIdx.x);
  __syncthreads();
  for (int i = t; i < kGuessBins * part.size; i += kSampleThreads) {
    *peer(&s.guess_bins[part.rank][i % kGuessBins], i / kGuessBins) = s.distances[i % kGuessBins];
  }
  __syncthreads();
  publish();
  uint32_t total = 0;
  for (int r = 0; r < part.size && t < kGuessBins; r++) total += s.guess_bins[r][t];
  return total;
}
__device__ inline float guess_distance(int bin) {
  return numerics::from_bits(static_cast<uint32_t>(kFirstDistance + bin * kGuessWidth) << kDistanceShift);
}
// A value that the tokens of bins up to `bin` reach, or nearly.
__device__ inline float guess_floor(float largest, int bin) {
  return bin >= kGuessBins - 1 ? kMinusInfinity : numerics::fsub(largest, guess_distance(bin + 1));
}

// A value that probably that share (of 2^32) of all tokens reach: from each thread's first four tokens.
__device__ __noinline__ inline float floor_by_sample(SampleShared& s, float largest, uint64_t share) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  clear_guess(s);
  if (part.first < row.groups) {
    const float4 v = group_values(row, part.first, false);
    for (const float z : {v.x, v.y, v.z, v.w}) count_guess(s, largest, z, 1);
  }
  const uint32_t total = total_guess(s);
  if (threadIdx.x < kGuessBins) s.distance_totals[threadIdx.x] = total;
  return guess_floor(largest, first_bin(s, kGuessBins, {false, 0, share, 0}));
}

// A value that tokens of probably more than that share (of 2^32) of all masses reach: what is below it is about 0.6 of
// what may be left out. The few tokens that have most of the mass are among the threads' maxima; all others are thought
// to be as the others of each thread's first four. Counted by bins, from which the masses follow: a heavy token that
// would be in the sample is a maximum, and counts once.
__device__ __noinline__ inline float floor_by_mass(SampleShared& s, float thread_largest, float largest,
                                                   uint64_t share) {
  constexpr uint32_t kMaximum = 1u << 16;  // a bin's count of maxima, above its count of others
  static_assert(4 * kSampleThreads * kMaxSampleCluster < kMaximum);
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  clear_guess(s);
  if (part.first < row.groups) {
    count_guess(s, largest, thread_largest, kMaximum);
    const float4 v = group_values(row, part.first, false);
    for (const float z : {v.x, v.y, v.z, v.w}) {
      if (z != thread_largest) count_guess(s, largest, z, 1);
    }
  }
  const uint32_t counted = total_guess(s);
  if (threadIdx.x < kGuessBins) {
    const float each = fmaxf(1.0f, static_cast<float>(row.vocab) / static_cast<float>(4 * part.stride));
    const float tokens = static_cast<float>(counted / kMaximum) + static_cast<float>(counted % kMaximum) * each;
    const float mass = ex2(guess_distance(static_cast<int>(threadIdx.x)) * -numerics::kLog2E);
    s.distance_totals[threadIdx.x] = static_cast<uint64_t>(tokens * mass * 0x1p28f);
  }
  const uint64_t goal = share + ((uint64_t{1} << 32) - share) * 2 / 5;
  return guess_floor(largest, first_bin(s, kGuessBins, {false, 0, goal, 0}));
}

struct Collected {
  bool fits;       // every CTA's list holds all that it should
  uint32_t total;  // over the cluster
  int mine;        // in this CTA's list
  uint64_t all, listed;
  bool gathered;  // the first CTA has all lists
};
// How many keys of each CTA the first one has place for.
__device__ inline int gathered_share(const ClusterPart& part) { return kSortCapacity / part.size; }

// Which tokens collect() lists: values from `floor` up with keys from `cutoff` up.
struct Wanted {
  float floor;
  uint64_t cutoff;
};

__device__ inline void list_key(SampleShared& s, uint64_t key, float z, const Wanted& wanted) {
  if (!(z >= wanted.floor) || key < wanted.cutoff) return;
  const uint32_t at = atomicAdd(&s.list_count, 1u);
  if (at < kListCapacity) s.list[at] = key;
}
// Lists the wanted ones of a group, by whatever lanes are there. Out of line, and without unrolled code, as all that
// the streaming loops seldom need: what does not fit the instruction cache costs more than it does.
__device__ __noinline__ inline void list_by_lane(SampleShared& s, const float4 z, int group, const Wanted wanted) {
#pragma unroll 1
  for (int j = 0; j < 4; j++) {
    const float v = j == 0 ? z.x : j == 1 ? z.y : j == 2 ? z.z : z.w;
    const int id = group * 4 + j;
    if (id < s.row.vocab) list_key(s, numerics::candidate_key(v, static_cast<uint32_t>(id)), v, wanted);
  }
}

__device__ inline float4 one_of(const float4 (&z)[kAhead], int u) {
  float4 v = z[0];
#pragma unroll
  for (int i = 1; i < kAhead; i++) {
    if (u == i) v = z[i];
  }
  return v;
}

// Touched tokens are `none` here, where s.touched has them.
template <typename Reader>
__device__ float4 row_values(const SampleShared& s, const Reader& reader, int group, const float4& y,
                             const typename Reader::Marks& marks, float none) {
  if constexpr (Reader::kMarks) {
    if (group >= reader.row.groups) return y;
    if (!touched_listed(s)) return process_group(reader.row, group, y);
    const uint32_t keep = ~marks.touched(group);
    const float4 z = times(masked(y, marks.allowed(group)), reader.factor);
    return make_float4((keep & 1) != 0 ? z.x : none, (keep & 2) != 0 ? z.y : none, (keep & 4) != 0 ? z.z : none,
                       (keep & 8) != 0 ? z.w : none);
  } else {
    return times(y, reader.factor);
  }
}
constexpr float kNoValue = __builtin_nanf("");  // reaches no floor, not even -infinity

// f(key, value) for this thread's of the listed touched tokens.
template <typename Reader, typename F>
__device__ void for_each_touched(const SampleShared& s, const Reader&, F&& f) {
  if constexpr (Reader::kMarks) {
    if (!touched_listed(s)) return;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < s.touched_count; i += kSampleThreads) f(s.touched[i], key_value(s.touched[i]));
  }
}

// Only what is wanted, of all groups.
template <typename Reader>
__device__ void list_wanted(SampleShared& s, const Reader& reader, const ClusterPart& part, const Wanted& wanted) {
  stream(reader, part, part.first, reader.row.groups, [&](int at, float4(&y)[kAhead], const auto& marks) {
    uint32_t some = 0;
#pragma unroll
    for (int u = 0; u < kAhead; u++) {
      y[u] = row_values(s, reader, at + u * part.stride, y[u], marks[u], kNoValue);
      some |= largest_of(y[u]) >= wanted.floor ? 1u << u : 0;
    }
#pragma unroll 1
    for (; some != 0; some &= some - 1) {
      const int u = __ffs(static_cast<int>(some)) - 1;
      list_by_lane(s, one_of(y, u), at + u * part.stride, wanted);
    }
  });
}

// The same by the last scan's maxima: only the blocks that reach the floor are read, a thread a group.
template <typename Reader>
__device__ void list_blocks(SampleShared& s, const Reader& reader, const ClusterPart& part, const Wanted& wanted) {
  static_assert(kBlocks * kSampleThreads <= 1 << 16);
  const Row& r = reader.row;
  const int each = block_groups(r, part), t = static_cast<int>(threadIdx.x), before = part.first - t;
  if (t == 0) s.block_count = 0;
  __syncthreads();
  for (int b = 0; b < kBlocks && part.first + b * each * part.stride < r.groups; b++) {
    if (!(s.maxima[b][t] >= wanted.floor)) continue;
    s.blocks[atomicAdd(&s.block_count, 1u)] = static_cast<uint16_t>(b * kSampleThreads + t);
  }
  __syncthreads();
  const int count = static_cast<int>(s.block_count) * each;
#pragma unroll 1
  for (int i = t; i < count; i += kSampleThreads) {
    const int from = s.blocks[i / each], b = from / kSampleThreads;
    const int group = before + from % kSampleThreads + (b * each + i % each) * part.stride;
    if (group >= r.groups) continue;
    const float4 z = row_values(s, reader, group, reader.load(group), reader.marks(group), kNoValue);
    if (largest_of(z) >= wanted.floor) list_by_lane(s, z, group, wanted);
  }
}

// A sum of masses: halves in 32 bits, of less than 1024 tokens between two calls of fold().
struct MassSum {
  uint64_t sum = 0;
  uint32_t high = 0, low = 0;
  __device__ void add(float p) {
    const MassHalves m = mass_halves(p);
    high += m.high;
    low += m.low;
  }
  __device__ void fold() {
    sum += (static_cast<uint64_t>(high) << 22) + low;
    high = low = 0;
  }
};

// Lists those from `floor` up of a warp's values.
__device__ inline void list_by_warp(SampleShared& s, const float4 (&z)[kAhead], int first, int stride, float floor) {
  static_assert(4 * kAhead <= 32);
  uint32_t marks = 0;  // bit 4u + j: of group first + u · stride, value j
#pragma unroll
  for (int u = 0; u < kAhead; u++) {
    uint32_t bit = 1u << (4 * u);
    for (const float v : {z[u].x, z[u].y, z[u].z, z[u].w}) {
      if (v >= floor) marks |= bit;
      bit *= 2;
    }
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto mine = static_cast<uint32_t>(__popc(marks));
  uint32_t end = mine;
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
    const uint32_t below = __shfl_up_sync(kAllLanes, end, h);
    if (lane >= h) end += below;
  }
  uint32_t at = lane == 31 ? atomicAdd(&s.list_count, end) : 0;
  at = __shfl_sync(kAllLanes, at, 31) + end - mine;
#pragma unroll 1
  for (; marks != 0; marks &= marks - 1, at++) {
    const int i = __ffs(static_cast<int>(marks)) - 1, j = i % 4;
    const float4 v = one_of(z, i / 4);
    if (at >= kListCapacity) break;
    s.list[at] = numerics::candidate_key(j == 0   ? v.x
                                         : j == 1 ? v.y
                                         : j == 2 ? v.z
                                                  : v.w,
                                         static_cast<uint32_t>((first + i / 4 * stride) * 4 + j));
  }
}

// This thread's part of all masses, and a list of the values from `floor` up, which is above -infinity. From the row's
// end, where the last scan has left what is still in the L2.
template <typename Reader>
__device__ uint64_t list_and_sum(SampleShared& s, const Reader& reader, const ClusterPart& part, float largest,
                                 float floor) {
  const Row& r = reader.row;
  const int all = (r.groups + part.stride - 1) / part.stride;
  MassSum sum;
  int folded = 0;
  const auto look = [&](int at, float4(&z)[kAhead], const auto& marks) {
    float most = kMinusInfinity;
#pragma unroll
    for (int u = 0; u < kAhead; u++) {
      z[u] = row_values(s, reader, at + u * part.stride, z[u], marks[u], kMinusInfinity);
      for (const float v : {z[u].x, z[u].y, z[u].z, z[u].w}) sum.add(ex2(numerics::relative_log2(v, largest)));
      most = fmaxf(most, largest_of(z[u]));
    }
    if (__any_sync(kAllLanes, most >= floor) != 0) list_by_warp(s, z, at, part.stride, floor);
    if (++folded % 32 == 0) sum.fold();
  };
#pragma unroll 1
  for (int i = (all - 1) / kAhead * kAhead; i >= 0; i -= kAhead) {
    stream(reader, part, part.first + i * part.stride, kAhead, look);
  }
  for_each_touched(s, reader, [&](uint64_t key, float z) {
    sum.add(ex2(numerics::relative_log2(z, largest)));
    list_key(s, key, z, {floor, 0});
  });
  sum.fold();
  return sum.sum;
}

// The mass of this thread's share of the CTA's list.
__device__ inline uint64_t list_mass(const SampleShared& s, float largest) {
  uint64_t sum = 0;
  const int count = min(static_cast<int>(s.list_count), kListCapacity);
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSampleThreads)
    sum += mass(key_value(s.list[i]), largest);
  return sum;
}

enum class Look { kList, kListAll, kMasses };  // by blocks' maxima; without them; with all masses

__device__ __noinline__ inline Collected collect(SampleShared& s, int stage, bool raw, float largest,
                                                 const Wanted& wanted, Look look) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  if (threadIdx.x == 0) s.list_count = 0;
  __syncthreads();
  uint64_t all = 0, listed = 0;
  with_reader(row, raw, [&](const auto& reader) {
    const bool lists = wanted.floor > kMinusInfinity;  // else all that there is, at -infinity too
    if (look == Look::kMasses) {
      all = list_and_sum(s, reader, part, largest, lists ? wanted.floor : -kMinusInfinity);
      if (lists) return;
    }
    if (look == Look::kList && touched_listed(s)) {  // else the maxima lack the touched tokens
      list_blocks(s, reader, part, wanted);
    } else {
      list_wanted(s, reader, part, wanted);
    }
    for_each_touched(s, reader, [&](uint64_t key, float z) { list_key(s, key, z, wanted); });
  });
  __syncthreads();
  const uint32_t count = s.list_count;
  const int t = static_cast<int>(threadIdx.x), share = gathered_share(part);
  if (t < share && t < static_cast<int>(count)) peer(s.gathered, 0)[part.rank * share + t] = s.list[t];
  __syncthreads();
  if (look == Look::kMasses) {
    listed = cta_sum(s, list_mass(s, largest));
    all = cta_sum(s, all);
  }
  if (static_cast<int>(threadIdx.x) < part.size) {
    const int to = static_cast<int>(threadIdx.x);
    *peer(&s.counts[stage][part.rank], to) = count;
    *peer(&s.sums[stage][0][part.rank], to) = all;
    *peer(&s.sums[stage][1][part.rank], to) = listed;
  }
  publish();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint32_t counted = lane < part.size ? s.counts[stage][lane] : 0;
  Collected c;
  const uint32_t longest = __reduce_max_sync(kAllLanes, counted);
  c.fits = longest <= kListCapacity;
  c.gathered = longest <= static_cast<uint32_t>(share);
  c.total = __reduce_add_sync(kAllLanes, counted);
  c.mine = static_cast<int>(count);
  c.all = sum_over_ranks(s.sums[stage][0], part);
  c.listed = sum_over_ranks(s.sums[stage][1], part);
  return c;
}

static_assert(kSortCapacity <= kDistanceBins);
// For the first CTA alone: what it has been given, descending, in s.sorted. A key's place is how many are above it; the
// threads share the comparisons of each key.
__device__ __noinline__ inline void sort_gathered(SampleShared& s, int stage, int total) {
  const ClusterPart part = cluster_part();
  const int t = static_cast<int>(threadIdx.x), share = gathered_share(part), rank = t / share;
  int at = t % share;
  const bool has = rank < part.size && at < static_cast<int>(s.counts[stage][rank]);
#pragma unroll 4
  for (int r = 0; r < rank; r++) at += static_cast<int>(s.counts[stage][r]);
  if (has) s.unsorted[at] = s.gathered[t];
  if (t == 0 && total < kSortCapacity) s.unsorted[total] = 0;
  s.distances[t] = 0;
  __syncthreads();
  const int keys = (max(total, 1) + 31) / 32 * 32, i = t % keys, first = t / keys, step = kSampleThreads / keys;
  if (i < total && first < step) {
    const uint64_t key = s.unsorted[i];
    const auto* pairs = reinterpret_cast<const ulonglong2*>(s.unsorted);
    uint32_t above = 0;
#pragma unroll 4
    for (int j = first; j < (total + 1) / 2; j += step) {
      const ulonglong2 p = pairs[j];
      above += (p.x > key ? 1 : 0) + (p.y > key ? 1 : 0);
    }
    atomicAdd(&s.distances[i], above);
  }
  __syncthreads();
  if (t < total) s.sorted[s.distances[t]] = s.unsorted[t];
  __syncthreads();
}

__device__ inline void add_to_bin(SampleShared& s, bool by_mass, uint32_t bin, uint64_t m) {
  const uint32_t active = __activemask();
  const uint32_t same = __match_any_sync(active, bin);
  const bool leader = static_cast<int>(threadIdx.x) % 32 == __ffs(static_cast<int>(same)) - 1;
  if (!by_mass) {
    if (leader) atomicAdd(&s.numbers[bin], static_cast<uint32_t>(__popc(same)));
    return;
  }
  const uint64_t low = __reduce_add_sync(same, static_cast<uint32_t>(m) & 0x3fffff);
  const uint64_t high = __reduce_add_sync(same, static_cast<uint32_t>(m >> 22));
  if (leader) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&s.masses[bin]),
              static_cast<unsigned long long>(low + (high << 22)));
  }
}

// The key of the last token before the goal is passed, in the order of keys descending. Digits of the key from the top:
// a histogram of each, over the cluster, of the tokens that share the digits found before.
__device__ __noinline__ inline uint64_t find_cut(SampleShared& s, bool raw, float largest, const CutGoal& goal) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  const Source source{false, 0, raw};
  constexpr int kLevels = 5;
  constexpr int kShift[kLevels] = {53, 42, 32, 9, 0}, kBits[kLevels] = {11, 11, 10, 10, 9};
  uint64_t prefix = 0, before = 0;
  for (int level = 0; level < kLevels; level++) {
    const int shift = kShift[level], bins = 1 << kBits[level], above = shift + kBits[level];
    for (int i = static_cast<int>(threadIdx.x); i < kHistogramBins; i += kSampleThreads) s.masses[i] = 0;
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
        sums[j] += goal.by_mass ? *peer(&s.masses[bin], r) : *peer(&s.numbers[bin], r);
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
  for (int i = t; i < 3 * kDistanceBins; i += kSampleThreads) s.limbs[i / kDistanceBins][i % kDistanceBins] = 0;
  if (t == 0) s.threshold_bin = 0;
  __syncthreads();
#pragma unroll 1
  for (int i = t; i < count; i += kSampleThreads) {
    const float z = key_value(s.list[i]);
    const uint64_t w = goal.weight(z, largest);
    const int bin = distance_bin(largest, z);
    atomicAdd(&s.limbs[0][bin], static_cast<uint32_t>(w) & kMask);
    if (!goal.by_mass) continue;
    atomicAdd(&s.limbs[1][bin], static_cast<uint32_t>(w >> kLimb) & kMask);
    atomicAdd(&s.limbs[2][bin], static_cast<uint32_t>(w >> 2 * kLimb));
  }
  hopper::cluster_sync();
  for (int i = t; i < kDistanceBins; i += kSampleThreads) {
    uint64_t total = 0;
#pragma unroll 4
    for (int r = 0; r < part.size; r++) {
      total += *peer(&s.limbs[0][i], r);
      total += static_cast<uint64_t>(*peer(&s.limbs[1][i], r)) << kLimb;
      total += static_cast<uint64_t>(*peer(&s.limbs[2][i], r)) << 2 * kLimb;
    }
    s.distance_totals[i] = total;
  }
  if (t == 0) s.list_count = 0;
  const int bin = first_bin(s, kDistanceBins, goal);
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
  if (fits && t < total) s.gathered[t] = key = peer(s.unsorted, rank)[at];
  hopper::cluster_sync();
  if (!fits) return {false, 0};
  if (t < total) {
    int above = 0;
    for (int j = 0; j < total; j++) above += s.gathered[j] > key ? 1 : 0;
    s.sorted[above] = key;
  }
  __syncthreads();
  const float z = t < total ? key_value(s.sorted[t]) : 0.0f;
  const uint64_t mine = before + cta_sum_before(s, t < total ? goal.weight(z, largest) : 0);
  const int kept = __syncthreads_count(t < total && !goal.reached(mine));
  return {true, s.sorted[kept - 1]};
}

// The cut of a goal over lists that hold it, or over the row; then the lists are lost.
__device__ inline uint64_t cut(SampleShared& s, Source& source, float largest, const CutGoal& goal) {
  if (source.list) {
    const Cut c = find_cut_in_lists(s, source.count, largest, goal);
    if (c.found) return c.key;
    source.list = false;
  }
  return find_cut(s, source.raw, largest, goal);
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
    *peer(&s.sums[kMassStage][0][part.rank], static_cast<int>(threadIdx.x)) = sum;
  }
  publish();
  return sum_over_ranks(s.sums[kMassStage][0], part);
}

}  // namespace isobit::cuda
