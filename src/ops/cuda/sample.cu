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
};

__device__ void consider(Winner& w, float z, uint32_t r, uint32_t id) {
  if (z == kMinusInfinity) return;
  const uint64_t score = order_key64(numerics::gumbel_score(z, r));
  if (score > w.score || (score == w.score && id < w.id)) w = {score, id};
}

__device__ float bound_floor(const SampleShared& s) {
  return s.bound == 0 ? kMinusInfinity : score_floor(order_value(s.bound));
}

// The CTA's winner among all tokens, from the bounds of the first pass.
__device__ Winner winner_of_all(SampleShared& s, const Row& row, const ClusterPart& part, const Noise& noise,
                                const ThreadScan& scan) {
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
  for_each_group(row, part, source.raw, [&](int group, const float4& v) {
    const float z[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const int id = group * 4 + j;
      if (id < row.vocab) f(numerics::candidate_key(z[j], static_cast<uint32_t>(id)), z[j]);
    }
  });
}

// Bins of the distance to the maximum: sixteen to an octave, 2^-10 to 2^14; the nearer, the lower.
__device__ int distance_bin(float largest, float z) {
  constexpr int kFirst = (127 - 10) << 4;
  const int bin = static_cast<int>(numerics::bits(numerics::fsub(largest, z)) >> 19) - kFirst;
  return bin < 0 ? 0 : bin < kDistanceBins ? bin : kDistanceBins - 1;
}

// The lowest bin up to which the cluster's s.distances hold `count`, or where count is 0 the given share of all; the
// last bin if they hold less.
__device__ int find_bin(SampleShared& s, const ClusterPart& part, uint64_t count, float share) {
  hopper::cluster_sync();
  for (int i = static_cast<int>(threadIdx.x); i < kDistanceBins; i += kSampleThreads) {
    uint64_t total = 0;
    for (int r = 0; r < part.size; r++) total += *peer(&s.distances[i], r);
    s.distance_totals[i] = total;
  }
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
    const uint64_t wanted = count != 0 ? count : static_cast<uint64_t>(static_cast<double>(all) * share);
    const uint32_t reached = __ballot_sync(kAllLanes, sum >= wanted);
    if (lane == (reached != 0 ? __ffs(static_cast<int>(reached)) - 1 : 31)) {
      uint64_t before = sum - mine;
      int bin = lane * kPerLane;
      for (; bin < lane * kPerLane + kPerLane - 1; bin++) {
        before += s.distance_totals[bin];
        if (before >= wanted) break;
      }
      s.threshold_bin = static_cast<uint32_t>(bin);
    }
  }
  __syncthreads();
  return static_cast<int>(s.threshold_bin);
}

__device__ void clear_distances(SampleShared& s) {
  for (int i = static_cast<int>(threadIdx.x); i < kDistanceBins; i += kSampleThreads) s.distances[i] = 0;
  __syncthreads();
}

// A bin that at least `count` tokens reach, if as many threads have tokens.
__device__ int threshold_by_count(SampleShared& s, const Row& row, const ClusterPart& part, float thread_largest,
                                  float largest, uint64_t count) {
  clear_distances(s);
  if (part.first < row.groups) atomicAdd(&s.distances[distance_bin(largest, thread_largest)], 1u);
  return find_bin(s, part, count, 0.0f);
}

// A bin that probably holds the top-p nucleus, from the masses of each thread's first four tokens.
__device__ int threshold_by_mass(SampleShared& s, const Row& row, const ClusterPart& part, float largest,
                                 uint64_t top_p) {
  clear_distances(s);
  if (part.first < row.groups) {
    const float4 v = group_values(row, part.first, false);
    for (const float z : {v.x, v.y, v.z, v.w}) {
      const uint32_t m = static_cast<uint32_t>(mass(z, largest) >> 24);
      if (m != 0) atomicAdd(&s.distances[distance_bin(largest, z)], m);
    }
  }
  const float p = static_cast<float>(top_p) * 0x1p-32f;
  return find_bin(s, part, 0, p + 0.5f * (1.0f - p));
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

__device__ Collected collect(SampleShared& s, int stage, const Row& row, const ClusterPart& part, bool raw,
                             float thread_largest, float largest, const Wanted& wanted) {
  if (threadIdx.x == 0) s.list_count = 0;
  __syncthreads();
  uint64_t all = 0, listed = 0;
  if (wanted.masses || distance_bin(largest, thread_largest) <= wanted.bin) {
    Source source;
    source.raw = raw;
    for_each_token(s, row, part, source, [&](uint64_t key, float z) {
      const uint64_t m = wanted.masses ? mass(z, largest) : 0;
      all += m;
      if (distance_bin(largest, z) > wanted.bin || key < wanted.cutoff) return;
      listed += m;
      const uint32_t at = atomicAdd(&s.list_count, 1u);
      if (at < kListCapacity) s.list[at] = key;
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
__device__ void sort_lists(SampleShared& s, int stage, const ClusterPart& part, int total) {
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

// Where to cut: at the count-th largest key, or at the last key that top-p keeps.
struct CutGoal {
  bool by_mass;
  uint64_t count, top_p, mass;
  __device__ bool reached(uint64_t before) const {
    return by_mass ? !numerics::top_p_keeps(before, top_p, mass) : before >= count;
  }
};

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
__device__ uint64_t find_cut(SampleShared& s, const Row& row, const ClusterPart& part, const Source& source,
                             float largest, const CutGoal& goal) {
  constexpr int kLevels = 5;
  constexpr int kShift[kLevels] = {53, 42, 32, 9, 0}, kBits[kLevels] = {11, 11, 10, 10, 9};
  uint64_t prefix = 0, before = 0;
  for (int level = 0; level < kLevels; level++) {
    const int shift = kShift[level], bins = 1 << kBits[level], above = shift + kBits[level];
    for (int i = static_cast<int>(threadIdx.x); i < kHistogramBins; i += kSampleThreads) s.histogram.masses[i] = 0;
    __syncthreads();
    for_each_token(s, row, part, source, [&](uint64_t key, float z) {
      if (level > 0 && (key >> above) != (prefix >> above)) return;
      const uint64_t m = goal.by_mass ? mass(z, largest) : 0;
      if (goal.by_mass && m == 0) return;
      add_to_bin(s, goal.by_mass, static_cast<uint32_t>(key >> shift) & static_cast<uint32_t>(bins - 1), m);
    });
    hopper::cluster_sync();
    constexpr int kPerThread = kHistogramBins / kSampleThreads;
    uint64_t sums[kPerThread] = {}, mine = 0;
    for (int j = 0; j < kPerThread; j++) {
      const int bin = bins - 1 - (static_cast<int>(threadIdx.x) * kPerThread + j);
      for (int r = 0; r < part.size && bin >= 0; r++) {
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

struct Filter {
  uint64_t cutoff = 0;
  bool has_min = false;
  float min_log2 = 0.0f, largest = 0.0f;
  __device__ bool keeps(uint64_t key, float z) const {
    return key >= cutoff && (!has_min || numerics::min_p_keeps(z, largest, min_log2)) && z > kMinusInfinity;
  }
};

// The cluster's winner among the tokens that a filter keeps.
__device__ Winner winner_among(SampleShared& s, const Row& row, const ClusterPart& part, const Source& source,
                               const Filter& filter, const Noise& noise) {
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
__device__ Winner winner_of_sorted(SampleShared& s, const SlotSettings& slot, const Noise& noise, float largest,
                                   int total, uint64_t all) {
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

// The winner, to all threads of the first CTA at least.
__device__ Winner sample_filtered(SampleShared& s, const Row& row, const ClusterPart& part, const SlotSettings& slot,
                                  const Noise& noise, float thread_largest, float largest) {
  Filter filter;
  filter.has_min = slot.has_min_p;
  filter.min_log2 = slot.min_p_log2;
  filter.largest = largest;
  Source source;
  const bool by_count = slot.top_k != 0;
  uint64_t all = 0;
  if (by_count || slot.top_p != 0) {
    // Half of the threads at most: beyond, the threads' maxima give too low a threshold.
    const bool worth_listing = !by_count || slot.top_k <= part.stride / 2;
    Collected c = {};
    if (worth_listing) {
      const int bin = by_count
                          ? threshold_by_count(s, row, part, thread_largest, largest, static_cast<uint64_t>(slot.top_k))
                          : threshold_by_mass(s, row, part, largest, slot.top_p);
      c = collect(s, 0, row, part, false, thread_largest, largest, {bin, 0, !by_count});
      all = c.all;
      source.list = c.fits && (by_count ? c.total >= static_cast<uint32_t>(slot.top_k)
                                        : !numerics::top_p_keeps(c.listed, slot.top_p, c.all));
      source.count = c.mine;
    }
    if (source.list && c.total <= kSortCapacity) {
      sort_lists(s, 0, part, static_cast<int>(c.total));
      Winner w;
      if (part.rank == 0) w = winner_of_sorted(s, slot, noise, largest, static_cast<int>(c.total), all);
      hopper::cluster_wait();
      return w;
    }
    if (by_count) {
      filter.cutoff = find_cut(s, row, part, source, largest, {false, static_cast<uint64_t>(slot.top_k), 0, 0});
    }
    if (slot.top_p != 0) {
      if (by_count || !worth_listing) {
        uint64_t kept = 0;
        for_each_token(s, row, part, source, [&](uint64_t key, float z) {
          if (key >= filter.cutoff) kept += mass(z, largest);
        });
        kept = cta_sum(s, kept);
        if (static_cast<int>(threadIdx.x) < part.size) {
          *peer(&s.sums[1][0][part.rank], static_cast<int>(threadIdx.x)) = kept;
        }
        hopper::cluster_sync();
        all = sum_over_ranks(s.sums[1][0], part);
      }
      filter.cutoff = find_cut(s, row, part, source, largest, {true, 0, slot.top_p, all});
    }
  }
  return winner_among(s, row, part, source, filter, noise);
}

// Rule N14 of the chosen token and the best ones. `scan` and `largest`: of the values asked for.
__device__ void write_logprobs(SampleShared& s, const SampleArgs& a, int64_t i, const Row& row, const ClusterPart& part,
                               bool raw, const SlotSettings& slot, float thread_largest, float largest, int token) {
  const int wanted = slot.top_logprobs < row.vocab ? slot.top_logprobs : row.vocab;
  const int top = a.top_ids != nullptr ? wanted : 0;
  const int bin = top > 0 ? threshold_by_count(s, row, part, thread_largest, largest, static_cast<uint64_t>(top)) : -1;
  Collected c = collect(s, 1, row, part, raw, thread_largest, largest, {bin, 0, true});
  int stage = 1;
  if (top > 0 && c.total > kSortCapacity) {
    Source source;
    source.raw = raw;
    const uint64_t cutoff = find_cut(s, row, part, source, largest, {false, static_cast<uint64_t>(top), 0, 0});
    c.total = collect(s, 2, row, part, raw, thread_largest, largest, {kDistanceBins, cutoff, false}).total;
    stage = 2;
  }
  if (top > 0) sort_lists(s, stage, part, static_cast<int>(c.total));
  const int t = static_cast<int>(threadIdx.x);
  if (part.rank == 0 && t < kMaxTopLogprobs && a.top_ids != nullptr) {
    const uint64_t key = t < top ? s.sorted[t] : 0;
    a.top_ids[i * kMaxTopLogprobs + t] = t < top ? static_cast<int32_t>(key_id(key)) : -1;
    a.top_logprobs[i * kMaxTopLogprobs + t] =
        t < top ? numerics::log_probability(key_value(key), largest, c.all) : kMinusInfinity;
  }
  if (part.rank == 0 && t == 32 && a.logprobs != nullptr) {
    const float4 v = group_values(row, token / 4, raw);
    const float y = token % 4 == 0 ? v.x : token % 4 == 1 ? v.y : token % 4 == 2 ? v.z : v.w;
    a.logprobs[i] = numerics::log_probability(y, largest, c.all);
  }
  if (top > 0) hopper::cluster_wait();
}

__device__ void write_failure(const SampleArgs& a, int64_t i, bool wants_logprobs) {
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

__device__ void sample_row(SampleShared& s, const SampleArgs& a, int64_t i, const ClusterPart& part,
                           const SlotSettings& slot) {
  const Row row = make_row(a.logits, i, a.vocab, &slot);
  const Noise noise{slot.seed, static_cast<uint32_t>(a.positions[i]), slot.choice};
  const bool filtered = !slot.greedy && (slot.top_k != 0 || slot.top_p != 0 || slot.has_min_p);
  const bool wants_logprobs = slot.top_logprobs >= 0;
  const bool noisy = !slot.greedy && !filtered;
  ThreadScan scan = noisy ? scan_row<true>(row, part, false, noise) : scan_row<false>(row, part, false, noise);
  const bool bad = __syncthreads_or(scan.bad) != 0;
  Winner w;
  if (slot.greedy) w = cta_best(s, {numerics::order_key(scan.best), static_cast<uint32_t>(scan.where)});
  if (noisy) w = winner_of_all(s, row, part, noise, scan);
  ClusterScan c = exchange_scan(s, 0, part, w, cta_max(s, 1, numerics::order_key(scan.largest)), bad);
  if (!c.ok) {
    if (part.rank == 0) write_failure(a, i, wants_logprobs);
    return;
  }
  w = filtered ? sample_filtered(s, row, part, slot, noise, scan.largest, c.largest) : c.winner;
  if (part.rank == 0 && threadIdx.x == 0) {
    a.tokens[i] = static_cast<int32_t>(w.id);
    a.status[i] = kSampled;
  }
  if (!wants_logprobs || (a.logprobs == nullptr && a.top_ids == nullptr)) return;
  const bool raw = !slot.processed_logprobs && !row.plain;
  if (raw) {
    scan = scan_row<false>(row, part, true, noise);
    c = exchange_scan(s, 2, part, Winner{}, cta_max(s, 2, numerics::order_key(scan.largest)), false);
  }
  write_logprobs(s, a, i, row, part, raw, slot, scan.largest, c.largest, static_cast<int>(w.id));
}

// Counts are written once all rows have read them: rows of one slot see the same ones.
__device__ void count_outputs(SampleShared& s, const SampleParams& p) {
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

__global__ __launch_bounds__(kSampleThreads, 2) void sample_kernel(SampleParams p) {
  extern __shared__ __align__(16) uint8_t shared[];
  SampleShared& s = *reinterpret_cast<SampleShared*>(shared);
  const ClusterPart part = cluster_part();
  const int64_t row = blockIdx.x / static_cast<unsigned>(part.size);
  if (threadIdx.x == 0) s.bound = 0;
  hopper::cluster_arrive();
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  prefetch_row(p.a.logits, row, p.a.vocab, part);
  const int slot = p.a.slots[row];
  hopper::cluster_wait();
  if (slot >= 0 && slot < p.slots && p.settings[slot].active) {
    sample_row(s, p.a, row, part, p.settings[slot]);
  } else if (slot >= 0 && part.rank == 0) {
    write_failure(p.a, row, false);
  }
  if (part.rank == 0 && p.a.count_output) {
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
         SampleParams{args, pool->settings(), pool->slots(), pool->ticket()});
}

}  // namespace isobit::cuda
