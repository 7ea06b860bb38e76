// Sampling, rules N12 to N17: one launch for any mixture of rows, a cluster of CTAs a row.
//
// Bytes: 4 a logit; one pass for greedy rows and rows without filters, parts of a second one (from L2) for the others.
// - First pass: the maximum, NaNs, and for a row without filters a cheap bound of each token's score with noise. Only
//   tokens whose bound reaches a score known to be had are evaluated in f64: usually one a CTA.
// - top-k: the k-th largest of the threads' maxima, found in bins of the distance to the row's maximum, is a threshold
//   that at least k tokens reach and few more do. They are listed in shared memory.
// - top-p alone: the threshold comes from the masses of a sample of the row; whether the list holds the whole nucleus
//   is then checked in exact masses. min-p alone gives its threshold itself.
// - A list of up to 512 is sorted by one CTA. A longer one is cut in the bin where the goal is passed; the whole row,
//   where no list was good (a flat row, ties, a large k), is cut digit by digit of (value, id), by counts or by masses.
// Which way a row takes changes no bit.
#include "ops/cuda/hopper/copy_async.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/sample_select.h"

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

// A token that may be the sample: bounds of its score in place of the score. Bounds are some 1e-4 apart, so that one
// token is nearly always left, and the two logarithms in f64 are not had.
__device__ Winner contender(float above, float below, uint32_t id) {
  return {static_cast<uint64_t>(numerics::order_key(above)) << 32 | numerics::order_key(below), id};
}
__device__ Winner contender_at(const SampleShared& s, uint32_t id) {
  const float z = value_at(s.row, id, false);
  const uint32_t r = noise_words(s.noise, static_cast<int>(id / 4)).w[id % 4];
  return contender(fine_score_above(z, r), fine_score_below(z, r), id);
}

// A thread's best token by its upper bound, and a bound of its others.
struct ThreadBest {
  float above = kMinusInfinity, below = kMinusInfinity, rest = kMinusInfinity;
  uint32_t id = 0xffffffff;
  __device__ void add(float z, uint32_t r, uint32_t token) {
    const float bound = fine_score_above(z, r);
    rest = fmaxf(rest, fminf(above, bound));
    if (!(bound > above)) return;
    above = bound;
    below = fine_score_below(z, r);
    id = token;
  }
};

// Whether at most one token of the CTA can win: s.lone, if there is one. Else those whose bound reaches `floor` can.
// The cluster or the CTA meets before the next call.
__device__ bool one_can_win(SampleShared& s, const ThreadBest& best, float& floor) {
  if (threadIdx.x == 0) {
    s.crowded = 0;
    s.lone = Winner{};
  }
  floor = score_floor(order_value(cta_max(s, 3, numerics::order_key(best.below))));
  const bool can = best.above > kMinusInfinity && best.above >= floor;
  if (can) s.lone = contender(best.above, best.below, best.id);
  if (best.rest > kMinusInfinity && best.rest >= floor) s.crowded = 1;
  return __syncthreads_count(can) <= 1 && s.crowded == 0;
}

__device__ bool can_reach(float z, uint32_t r, float floor) {
  return z > kMinusInfinity && fine_score_above(z, r) >= floor;
}

__device__ void consider_group(Winner& best, const float4& z, const numerics::PhiloxWords& w, int group, float floor) {
#pragma unroll 1
  for (int j = 0; j < 4; j++) {
    const float v = j == 0 ? z.x : j == 1 ? z.y : j == 2 ? z.z : z.w;
    const uint32_t r = j == 0 ? w.w[0] : j == 1 ? w.w[1] : j == 2 ? w.w[2] : w.w[3];
    if (can_reach(v, r, floor)) consider(best, v, r, static_cast<uint32_t>(group * 4 + j));
  }
}

// By exact scores, of the lanes' groups of four tokens.
__device__ __noinline__ uint32_t exact_winner(const float4 z, const numerics::PhiloxWords w, int group, float floor) {
  Winner best;
  consider_group(best, z, w, group, floor);
  return warp_best(best).id;
}

// By exact scores, of the lanes' tokens.
__device__ __noinline__ uint32_t exact_winner(const SampleShared& s, bool can, uint32_t id) {
  Winner w;
  if (can) consider(w, value_at(s.row, id, false), noise_words(s.noise, static_cast<int>(id / 4)).w[id % 4], id);
  return warp_best(w).id;
}

// The cluster's winner of the CTAs' contenders, one a lane.
__device__ uint32_t winner_of_contenders(const SampleShared& s, const Winner& of_lane) {
  const auto above = static_cast<uint32_t>(of_lane.score >> 32), below = static_cast<uint32_t>(of_lane.score);
  const float floor = score_floor(order_value(__reduce_max_sync(kAllLanes, below)));
  const bool can = of_lane.score != 0 && order_value(above) >= floor;
  const uint32_t lanes = __ballot_sync(kAllLanes, can);
  if (__popc(lanes) != 1) return exact_winner(s, can, of_lane.id);
  return __shfl_sync(kAllLanes, of_lane.id, __ffs(static_cast<int>(lanes)) - 1);
}

// Out of line, as all that follows: the streaming loop shall have the registers for itself.
template <bool kNoise>
__device__ __noinline__ ThreadScan first_pass(SampleShared& s, bool raw) {
  const Row row = s.row;
  BlockMaxima* maxima = kNoise || raw ? nullptr : &s.maxima;
  return with_reader(row, raw, [&](const auto& reader) { return scan_row<kNoise>(s, reader, cluster_part(), maxima); });
}

// All tokens of the row whose bound reaches the floor, by exact scores: where the best groups do not decide, about
// never.
__device__ __noinline__ uint32_t winner_of_row(SampleShared& s, float floor) {
  const Row row = s.row;
  const Noise noise = s.noise;
  Winner best;
#pragma unroll 1
  for (int group = static_cast<int>(threadIdx.x); group < row.groups; group += kSampleThreads) {
    consider_group(best, group_values(row, group, false), noise_words(noise, group), group, floor);
  }
  return cta_best(s, best).id;
}

constexpr uint32_t kNoToken = 0xffffffff, kUnsure = 0xfffffffe;

// The winner among the groups of the letters, to the lanes of the first CTA's first warp, a group a lane; kUnsure where
// a token of another group may reach `floor`.
__device__ uint32_t winner_of_groups(const SampleShared& s, const ClusterPart& part, float& floor) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  static_assert(2 * kMaxSampleCluster <= 32);
  const BestGroups g = lane / 2 < part.size ? s.letters[lane / 2].best : BestGroups{};
  const int group = lane % 2 == 0 ? g.first_where : g.second_where;
  float4 z = make_float4(kMinusInfinity, kMinusInfinity, kMinusInfinity, kMinusInfinity);
  if ((lane % 2 == 0 ? g.first : g.second) > kMinusInfinityKey) z = group_values(s.row, group, false);
  const numerics::PhiloxWords w = noise_words(s.noise, group);
  const float below = largest_of(make_float4(fine_score_below(z.x, w.w[0]), fine_score_below(z.y, w.w[1]),
                                             fine_score_below(z.z, w.w[2]), fine_score_below(z.w, w.w[3])));
  floor = score_floor(order_value(__reduce_max_sync(kAllLanes, numerics::order_key(below))));
  const float rest = order_value(__reduce_max_sync(kAllLanes, g.rest));
  if (rest > kMinusInfinity && rest >= floor) return kUnsure;
  const uint32_t can = (can_reach(z.x, w.w[0], floor) ? 1u : 0u) | (can_reach(z.y, w.w[1], floor) ? 2u : 0u) |
                       (can_reach(z.z, w.w[2], floor) ? 4u : 0u) | (can_reach(z.w, w.w[3], floor) ? 8u : 0u);
  if (__reduce_add_sync(kAllLanes, static_cast<uint32_t>(__popc(can))) > 1) return exact_winner(z, w, group, floor);
  const auto id = static_cast<uint32_t>(group * 4 + __ffs(static_cast<int>(can)) - 1);
  return __reduce_min_sync(kAllLanes, can != 0 ? id : kNoToken);
}

// The CTA's best groups, to its first warp.
__device__ BestGroups best_groups(SampleShared& s, const ThreadScan& scan) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  BestGroups mine;
  mine.first = numerics::order_key(scan.best);
  mine.first_where = scan.where;
  mine.rest = numerics::order_key(scan.rest);  // a thread's second group counts among the rest
  const BestGroups of_warp = warp_best(mine);
  if (lane == 0) s.warp_groups[threadIdx.x / 32] = of_warp;
  __syncthreads();
  if (threadIdx.x >= 32) return {};
  return warp_best(lane < kSampleWarps ? s.warp_groups[lane] : BestGroups{});
}

// From the CTA's first warp to the first CTA, by stores that its barrier counts.
__device__ void send_letter(SampleShared& s, const ClusterPart& part, const BestGroups& best) {
  if (threadIdx.x != 0) return;
  Letter letter;
  letter.best = best;
  letter.bad = s.bad;
  if (part.size == 1) {
    s.letters[0] = letter;
    return;
  }
  const auto* words = reinterpret_cast<const uint4*>(&letter);
  auto* to = reinterpret_cast<uint4*>(&s.letters[part.rank]);
  hopper::store_async_16(to, words[0], &s.letters_in, 0);
  hopper::store_async_16(to + 1, words[1], &s.letters_in, 0);
}

// The token that the letters of all CTAs give, to all threads of the first one; kNoToken for a row that has none.
__device__ uint32_t token_of_letters(SampleShared& s, const ClusterPart& part, bool greedy) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x < 32) {
    __syncwarp();
    if (part.size > 1) hopper::mbarrier_wait_cluster(&s.letters_in, 0);
    const Letter l = lane < part.size ? s.letters[lane] : Letter{};
    const bool bad = __any_sync(kAllLanes, l.bad != 0) != 0;
    const uint32_t most = __reduce_max_sync(kAllLanes, l.best.first);
    uint32_t token = kNoToken;
    float floor = kMinusInfinity;
    if (!bad && most > kMinusInfinityKey) {
      const bool is_best = lane < part.size && l.best.first == most;
      token = greedy ? __reduce_min_sync(kAllLanes, is_best ? static_cast<uint32_t>(l.best.first_where) : kNoToken)
                     : winner_of_groups(s, part, floor);
    }
    if (lane == 0) {
      s.token = token;
      s.score_floor = floor;
    }
  }
  __syncthreads();
  return s.token == kUnsure ? winner_of_row(s, s.score_floor) : s.token;
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
__device__ __noinline__ uint32_t winner_among(SampleShared& s, const Source& source, const Filter& filter) {
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
  ThreadBest best;
  each([&](float z, uint32_t r, uint32_t id) { best.add(z, r, id); });
  float floor;
  const bool clear = one_can_win(s, best, floor);
  Winner w = s.lone;
  if (!clear) {
    w = Winner{};
    if (best.above > kMinusInfinity && best.above >= floor) {
      each([&](float z, uint32_t r, uint32_t id) {
        if (fine_score_above(z, r) >= floor) consider(w, z, r, id);
      });
    }
    w = contender_at(s, cta_best(s, w).id);
  }
  return winner_of_contenders(s, exchange_scan(s, 1, part, w, 0, 0, false).of_lane);
}

// Filters and noise over a list that the first CTA has sorted.
__device__ __noinline__ uint32_t winner_of_sorted(SampleShared& s, const SlotSettings& slot, float largest, int total,
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
  in = in && z > kMinusInfinity && (!slot.has_min_p || numerics::min_p_keeps(z, largest, slot.min_p_log2));
  const uint32_t id = key_id(key), r = in ? noise_words(noise, static_cast<int>(id / 4)).w[id % 4] : 0;
  ThreadBest best;
  if (in) best.add(z, r, id);
  float floor;
  if (one_can_win(s, best, floor)) return s.lone.id;
  Winner w;
  if (in && best.above >= floor) consider(w, z, r, id);
  return cta_best(s, w).id;
}

// How many of a CTA's tokens at least the list of the row's k best shall hold.
__device__ int share_of(int k, const ClusterPart& part) { return (k + part.size - 1) / part.size; }
// So many that the threads' maxima would give too low a floor.
__device__ bool many(int k, const ClusterPart& part) { return k > part.stride / 2; }

// The value from which on tokens are listed: the row's filters probably keep no others. `reached` is one that
// top_k tokens reach, if not many.
__device__ float list_floor(SampleShared& s, const SlotSettings& slot, float thread_largest, float largest,
                            float reached) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  if (slot.top_k != 0 && !many(slot.top_k, part)) return reached;
  if (slot.top_k != 0) {
    const uint64_t k = static_cast<uint64_t>(slot.top_k), about = k + k / 4 + 256;
    const uint64_t share = (about << 32) / static_cast<uint64_t>(row.vocab);
    return floor_by_sample(s, largest, share < (uint64_t{1} << 32) ? share : 0xffffffff);
  }
  if (slot.top_p != 0) return floor_by_mass(s, thread_largest, largest, slot.top_p);
  // min-p keeps distances up to -min_log2·ln 2, and what rounding adds to them.
  return largest + slot.min_p_log2 * kLn2F * 1.001f - fabsf(largest) * 0x1p-20f;
}

// top-p over a list that holds its nucleus: the best score of all listed tokens is the sample if it lies in the
// nucleus, which the masses before it say; else all that are below it in order are out as well, and the best of the
// others is asked. One round in 1/p; false after kRounds.
__device__ __noinline__ bool winner_in_nucleus(SampleShared& s, const Source& source, Filter filter, uint64_t top_p,
                                               uint64_t all, uint32_t& winner) {
  constexpr int kRounds = 6;
  for (int i = 0; i < kRounds; i++) {
    winner = winner_among(s, source, filter);
    filter.cutoff = numerics::candidate_key(value_at(s.row, winner, false), winner) + 1;
    const uint64_t before = mass_from(s, source, filter.cutoff, filter.largest);
    if (numerics::top_p_keeps(before, top_p, all)) return true;
  }
  return false;
}

// The winner, to all threads of the first CTA at least.
__device__ __noinline__ uint32_t sample_filtered(SampleShared& s, const SlotSettings& slot, float thread_largest,
                                                 float largest, float reached) {
  const ClusterPart part = cluster_part();
  const bool has_k = slot.top_k != 0, has_p = slot.top_p != 0;
  const bool masses = has_p && !has_k;
  Wanted wanted{list_floor(s, slot, thread_largest, largest, reached), 0};
  Collected c = collect(s, 0, false, largest, wanted, masses ? Look::kMasses : Look::kList);
  int stage = 0;
  if (masses && c.fits && numerics::top_p_keeps(c.listed, slot.top_p, c.all)) {  // the guess was too high
    wanted.floor -= 0.25f + 0.25f * fabsf(largest - wanted.floor);
    stage = 2;
    c = collect(s, stage, false, largest, wanted, Look::kMasses);
  }
  uint64_t all = c.all;
  Source source;
  source.count = c.mine;
  source.list = c.fits && (has_k   ? c.total >= static_cast<uint32_t>(slot.top_k)
                           : has_p ? !numerics::top_p_keeps(c.listed, slot.top_p, all)
                                   : true);
  if (source.list && c.gathered) {
    if (part.rank != 0) return 0;
    sort_gathered(s, stage, static_cast<int>(c.total));
    return winner_of_sorted(s, slot, largest, static_cast<int>(c.total), all);
  }
  Filter filter;
  filter.has_min = slot.has_min_p;
  filter.min_log2 = slot.min_p_log2;
  filter.largest = largest;
  uint32_t w;
  if (masses && source.list && winner_in_nucleus(s, source, filter, slot.top_p, all, w)) return w;
  if (has_k) filter.cutoff = cut(s, source, largest, {false, static_cast<uint64_t>(slot.top_k), 0, 0});
  if (has_k && has_p) all = mass_from(s, source, filter.cutoff, largest);
  if (has_p) filter.cutoff = cut(s, source, largest, {true, 0, slot.top_p, all});
  return winner_among(s, source, filter);
}

// Rule N14 of the chosen token and the best ones. `scan` and `largest`: of the values asked for.
__device__ __noinline__ void write_logprobs(SampleShared& s, const SampleArgs& a, int64_t i, bool raw,
                                            const SlotSettings& slot, float reached, float largest, int token) {
  const Row row = s.row;
  const ClusterPart part = cluster_part();
  const int wanted = slot.top_logprobs < row.vocab ? slot.top_logprobs : row.vocab;
  const int top = a.top_ids != nullptr ? wanted : 0;
  Collected c = collect(s, 1, raw, largest, {top > 0 ? reached : -kMinusInfinity, 0}, Look::kMasses);
  int stage = 1;
  if (top > 0 && !c.gathered) {
    const uint64_t cutoff = find_cut(s, raw, largest, {false, static_cast<uint64_t>(top), 0, 0});
    c.total = collect(s, 2, raw, largest, {kMinusInfinity, cutoff}, Look::kListAll).total;
    stage = 2;
  }
  if (part.rank != 0) return;
  if (top > 0) sort_gathered(s, stage, static_cast<int>(c.total));
  const int t = static_cast<int>(threadIdx.x);
  if (t < kMaxTopLogprobs && a.top_ids != nullptr) {
    const uint64_t key = t < top ? s.sorted[t] : 0;
    a.top_ids[i * kMaxTopLogprobs + t] = t < top ? static_cast<int32_t>(key_id(key)) : -1;
    a.top_logprobs[i * kMaxTopLogprobs + t] =
        t < top ? log_probability(key_value(key), largest, c.all) : kMinusInfinity;
  }
  if (t == 32 && a.logprobs != nullptr) {
    a.logprobs[i] = log_probability(value_at(row, static_cast<uint32_t>(token), raw), largest, c.all);
  }
}

__device__ __noinline__ void write_no_logprobs(const SampleArgs& a, int64_t i) {
  const int t = static_cast<int>(threadIdx.x);
  if (t == 0 && a.logprobs != nullptr) a.logprobs[i] = numerics::from_bits(numerics::kNaN32);
  if (a.top_ids != nullptr && t < kMaxTopLogprobs) {
    a.top_ids[i * kMaxTopLogprobs + t] = -1;
    a.top_logprobs[i * kMaxTopLogprobs + t] = kMinusInfinity;
  }
}
__device__ __noinline__ void write_failure(const SampleArgs& a, int64_t i, SampleStatus status, bool wants_logprobs) {
  if (threadIdx.x == 0) {
    a.tokens[i] = -1;
    a.status[i] = status;
  }
  if (wants_logprobs) write_no_logprobs(a, i);
}

// Simple rows: nothing but the best token is wanted, with noise or without, and no token has more than a temperature.
// Their way is short and by itself, for its instructions are fetched anew in every launch.
__device__ bool is_simple(const Row& row) {
  const SlotSettings& slot = *row.slot;
  const bool filtered = slot.top_k != 0 || slot.top_p != 0 || slot.has_min_p;
  return (slot.greedy || !filtered) && slot.top_logprobs < 0 && row.touched == nullptr && row.allowed == nullptr &&
         row.aligned;
}

// f(group, values) for this thread's groups. kAhead of them are on their way at any time, through the thread's own
// places in shared memory: registers would be had for two beside the noise.
template <typename F>
__device__ void for_each_group(SampleShared& s, const Row& row, const ClusterPart& part, F&& f) {
  static_assert(sizeof(s.list) >= kAhead * kSampleThreads * sizeof(float4));
  float4* ring = reinterpret_cast<float4*>(s.list) + threadIdx.x;
  const auto* values = reinterpret_cast<const float4*>(row.y);
  const auto fetch = [&](int group, float4* to) {
    if (group < row.groups) hopper::copy_async_16(to, values + group);
    hopper::copy_async_commit();
  };
#pragma unroll
  for (int u = 0; u < kAhead; u++) fetch(part.first + u * part.stride, ring + u * kSampleThreads);
  float4* at = ring;
#pragma unroll 1
  for (int group = part.first; group < row.groups; group += part.stride) {
    hopper::copy_async_wait<kAhead - 1>();
    const float4 y = *at;
    f(group, y);
    fetch(group + kAhead * part.stride, at);
    at = at == ring + (kAhead - 1) * kSampleThreads ? ring : at + kSampleThreads;
  }
}

// The CTA's largest value and the first id that has it, to its first warp.
__device__ BestGroups largest_of_row(SampleShared& s, const Row& row, const ClusterPart& part) {
  float largest = kMinusInfinity;
  int where = 0;
  for_each_group(s, row, part, [&](int group, const float4& y) {
    const float m = max_nan(y);
    if (m > largest) where = group;
    largest = max_nan(largest, m);
  });
  if (!(largest < -kMinusInfinity)) s.bad = 1;
  const uint32_t key = numerics::order_key(largest), top = __reduce_max_sync(kAllLanes, key);
  uint32_t id = kNoToken;
  if (key == top && largest > kMinusInfinity) {
    const float4 y = aligned_group(row, where);
    id = static_cast<uint32_t>(where * 4 + (y.x == largest ? 0 : y.y == largest ? 1 : y.z == largest ? 2 : 3));
  }
  id = __reduce_min_sync(kAllLanes, id);
  if (threadIdx.x % 32 == 0) s.warp_winners[threadIdx.x / 32] = {id != kNoToken ? top : kMinusInfinityKey, id};
  __syncthreads();
  if (threadIdx.x >= 32) return {};
  const Winner best = warp_best(s.warp_winners[threadIdx.x % kSampleWarps]);
  BestGroups g;
  g.first = static_cast<uint32_t>(best.score);
  g.first_where = static_cast<int>(best.id);
  return g;
}

__device__ BestGroups best_of_row(SampleShared& s, const Row& row, const ClusterPart& part, const Noise& noise) {
  const NoiseStream stream = noise_stream(noise);
  ThreadScan scan;
  for_each_group(s, row, part,
                 [&](int group, const float4& y) { scan_group<true>(scan, group, times(y, row.factor), stream); });
  if (!(scan.largest < -kMinusInfinity)) s.bad = 1;
  return best_groups(s, scan);
}

// Every CTA writes its best to the first one; the others are done then.
__device__ void sample_simple(SampleShared& s, const SampleArgs& a, int64_t i, const ClusterPart& part, const Row& row,
                              const Noise& noise) {
  const bool greedy = row.slot->greedy;
  send_letter(s, part, greedy ? largest_of_row(s, row, part) : best_of_row(s, row, part, noise));
  if (part.rank != 0) return;
  const uint32_t token = token_of_letters(s, part, greedy);
  if (threadIdx.x != 0) return;
  a.tokens[i] = static_cast<int32_t>(token);
  a.status[i] = token == kNoToken ? kNotFinite : kSampled;
}

__device__ void sample_row(SampleShared& s, const SampleArgs& a, int64_t i, const ClusterPart& part, const Row& row,
                           const Noise& noise) {
  const SlotSettings& slot = *row.slot;
  const bool filtered = !slot.greedy && (slot.top_k != 0 || slot.top_p != 0 || slot.has_min_p);
  const bool wants_logprobs = slot.top_logprobs >= 0;
  const bool noisy = !slot.greedy && !filtered;
  ThreadScan scan = noisy ? first_pass<true>(s, false) : first_pass<false>(s, false);
  const bool bad = __syncthreads_or(scan.bad()) != 0;
  if (bad && threadIdx.x == 0) s.bad = 1;
  Winner w;
  if (slot.greedy) w = cta_best(s, largest_token(s, scan, false));
  if (noisy) send_letter(s, part, best_groups(s, scan));
  // How many of the best tokens are to be listed: by the filters, else by the log-probabilities of the same values.
  const bool want_top = wants_logprobs && a.top_ids != nullptr && slot.top_logprobs > 0;
  const bool raw = wants_logprobs && !slot.processed_logprobs && !row.plain;
  const int best = !filtered ? (want_top && !raw ? slot.top_logprobs : 0) : many(slot.top_k, part) ? 0 : slot.top_k;
  const uint32_t key = numerics::order_key(scan.largest), largest = cta_max(s, 1, key);
  const uint32_t reached = best != 0 ? cta_reached(key, largest, share_of(best, part)) : 0;
  ClusterScan c = exchange_scan(s, 0, part, w, largest, reached, bad);
  // Before the row may be given up: letters are still on their way.
  uint32_t token = noisy && part.rank == 0 ? token_of_letters(s, part, false) : kNoToken;
  if (!c.ok) {
    if (part.rank == 0) write_failure(a, i, kNotFinite, wants_logprobs);
    return;
  }
  if (slot.greedy) token = warp_best(c.of_lane).id;
  if (filtered) token = sample_filtered(s, slot, scan.largest, c.largest, c.reached);
  if (part.rank == 0 && threadIdx.x == 0) {
    a.tokens[i] = static_cast<int32_t>(token);
    a.status[i] = kSampled;
  }
  if (!wants_logprobs || (a.logprobs == nullptr && a.top_ids == nullptr)) return;
  if (raw || (filtered && want_top)) {
    if (raw) scan.largest = first_pass<false>(s, true).largest;
    const bool raw_bad = __syncthreads_or(scan.largest != scan.largest) != 0;
    const uint32_t mine = numerics::order_key(scan.largest), most = cta_max(s, 2, mine);
    const uint32_t top = want_top ? cta_reached(mine, most, share_of(slot.top_logprobs, part)) : 0;
    c = exchange_scan(s, 2, part, Winner{}, most, top, raw_bad);
    if (!c.ok) {
      if (part.rank == 0) write_no_logprobs(a, i);
      return;
    }
  }
  write_logprobs(s, a, i, raw, slot, c.reached, c.largest, static_cast<int>(token));
}

// The drafted tokens from the root to the row into s.drafted; to all threads how many, or -1 where they are no path.
// The touched bits that they get stay, whatever becomes of the drafts: such a bit says that a token is to be looked at.
__device__ __noinline__ int find_drafted(SampleShared& s, const SampleArgs& a, int64_t row, const SlotSettings& slot) {
  if (threadIdx.x == 0) {
    int count = 0;
    int at = static_cast<int>(row);
    for (int parent = a.drafts.parents[at]; parent != -1; at = parent, parent = a.drafts.parents[at]) {
      const int token = a.drafts.tokens[at];
      if (parent < 0 || parent >= at || token < 0 || token >= a.vocab || count == kMaxDraftDepth) {
        count = -1;
        break;
      }
      s.drafted[count++] = token;
      atomicOr(&slot.touched[token / 32], 1u << (token % 32));
    }
    s.row.drafted = s.drafted;
    s.row.drafted_count = count;
    s.touched_count = kTouchedCapacity + 1;  // other rows of the slot set bits while this one is looked at
  }
  hopper::cluster_sync();  // other CTAs of the cluster read the bits
  return s.row.drafted_count;
}

__device__ void count_output(const SampleParams& p, int64_t row, int token) {
  const int id = p.a.slots[row];
  if (id < 0 || id >= p.slots || !p.settings[id].counts) return;
  const SlotSettings& slot = p.settings[id];
  atomicOr(&slot.touched[token / 32], 1u << (token % 32));
  atomicOr(&slot.context[token / 32], 1u << (token % 32));
  atomicAdd(&slot.output_counts[token], 1u);
}

// -1 where there is none.
__device__ int sampled_token(const SampleArgs& a, int64_t row) {
  return __ldcg(a.status + row) == kSampled ? __ldcg(a.tokens + row) : -1;
}

// Request i's way from its root along the drafts that were sampled, by a warp.
__device__ void walk_path(const SampleParams& p, int64_t i, bool counts) {
  const SampleArgs& a = p.a;
  const DraftTrees& d = a.drafts;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int first = d.first_row[i], last = d.first_row[i + 1];
  int at = first, token = -1, length = 0;
  const auto step_to = [&](int row, int sampled) {
    at = row;
    token = sampled;
    if (lane == 0) {
      d.path[first + length] = row;
      if (counts && token >= 0) count_output(p, row, token);
    }
    length++;
  };
  for (int row = first + lane; row < last; row += 32) d.path[row] = -1;
  __syncwarp();
  for (int begin = first; begin < last; begin += 32) {
    const int row = begin + lane;
    const bool in = row < last;
    const int parent = in ? d.parents[row] : -1, drafted = in ? d.tokens[row] : -1;
    const int sampled = in ? sampled_token(a, row) : -1;
    if (begin == first) step_to(first, __shfl_sync(kAllLanes, sampled, 0));
    while (true) {
      const bool follows = in && row > at && parent == at && token >= 0 && drafted == token;
      const int next = __ffs(static_cast<int>(__ballot_sync(kAllLanes, follows))) - 1;
      if (next < 0) break;
      step_to(begin + next, __shfl_sync(kAllLanes, sampled, next));
    }
  }
  if (lane == 0) {
    d.accepted[i] = length - 1;
    d.bonus[i] = token;
  }
}

// What needs all rows' tokens, by the CTA that ends last: paths through draft trees, and counts, so that rows of one
// slot see the same ones.
__device__ __noinline__ void finish_step(SampleShared& s, const SampleParams& p, bool counts) {
  const SampleArgs& a = p.a;
  if (threadIdx.x == 0) {
    bool last = a.rows == 1;
    if (!last) {
      __threadfence();
      last = atomicInc(p.ticket, static_cast<uint32_t>(a.rows - 1)) == a.rows - 1;
      __threadfence();
    }
    s.last = last ? 1 : 0;
  }
  __syncthreads();
  if (s.last == 0) return;
  for (int64_t i = threadIdx.x / 32; i < a.drafts.requests; i += kSampleWarps) walk_path(p, i, counts);
  if (a.drafts.requests != 0) return;
  for (int64_t i = threadIdx.x; i < a.rows; i += kSampleThreads) {
    const int token = a.slots[i] >= 0 ? sampled_token(a, i) : -1;
    if (token >= 0) count_output(p, i, token);
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
  const SlotSettings* settings = p.settings + (known ? id : 0);
  static_assert(sizeof(SlotSettings) % 4 == 0 && alignof(SlotSettings) >= 4);
  if (threadIdx.x < sizeof(SlotSettings) / 4) {
    reinterpret_cast<uint32_t*>(&s.slot)[threadIdx.x] = reinterpret_cast<const uint32_t*>(settings)[threadIdx.x];
  }
  __syncthreads();
  const SlotSettings& slot = s.slot;
  const bool active = known && slot.active;
  const Row r = make_row(p.a.logits, row, p.a.vocab, &slot,
                         p.a.allowed != nullptr ? p.a.allowed + row * p.a.allowed_stride : nullptr);
  const auto purpose = p.a.draft_noise ? numerics::NoisePurpose::kDraft : numerics::NoisePurpose::kSample;
  const Noise noise{slot.seed, static_cast<uint32_t>(p.a.positions[row]), static_cast<uint32_t>(purpose), slot.choice};
  const bool simple = is_simple(r);
  const bool counts = p.a.count_output && *p.counting != 0;
  const bool drafts = p.a.drafts.requests != 0;
  if (threadIdx.x == 0) {
    s.row = r;
    s.noise = noise;
    s.bad = 0;
    s.touched_count = 0;
    hopper::mbarrier_init(&s.letters_in, 1);
    hopper::mbarrier_init_fence();
    hopper::mbarrier_arrive_expect(&s.letters_in, static_cast<uint32_t>(part.size) * sizeof(Letter));
  }
  // Every CTA of the cluster runs: from here on they may write to each other. Nothing has been written yet but the
  // barrier, which has its own fence.
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  hopper::cluster_wait();
  __syncthreads();
  hopper::wait_for_predecessors();
  if (active && drafts && slot.counts && find_drafted(s, p.a, row, slot) < 0) {
    if (part.rank == 0) write_failure(p.a, row, kBadDraft, slot.top_logprobs >= 0);
  } else if (active && simple) {
    sample_simple(s, p.a, row, part, r, noise);
  } else if (active) {
    sample_row(s, p.a, row, part, r, noise);
  } else if (id >= 0 && part.rank == 0) {
    write_failure(p.a, row, kNotFinite, false);
  }
  if (part.rank == 0 && (counts || drafts)) {
    __syncthreads();
    finish_step(s, p, counts);
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
