#pragma once
// Decode and verify: few queries a request, so the time is that of reading K and V once. docs/operators.md has the
// arithmetic of the design.
//
// A unit is (request, KV head, tile of up to 16 rows, super-block); a row is one query of one head. Keys are the M side
// of mma.sync, queries its N side (8 or 16), so that a fragment of K or V is loaded once for all rows. A CTA takes keys
// in phases; in each
//   1. its keys, 16 at a time, are shared out to warps, which leave scores in shared memory;
//   2. every block's largest score is found;
//   3. every thread walks R over the blocks and turns its scores into probabilities, which take their place, rounded
//      and with the row sums' u;
//   4. P·V is shared out by columns, 16 a warp; each is one chain over the keys.
// A producer warp streams K, then V, then the next phase's K through a ring, so the memory never waits for 2 and 3. It
// starts before the kernels ahead on the stream have ended, with what earlier steps wrote.
// Many units: CTAs are persistent and take unit after unit, R, l and O staying in registers from phase to phase. Few
// units: the CTAs of a cluster share one, each with a run of its blocks as its only phase. Maxima of blocks go to all
// CTAs of later keys, and a CTA's chains of O and l are begun with what the CTA before it sends.
// A request of several super-blocks leaves partial results in the workspace; the CTA that comes last folds them in
// ascending order.
#include <algorithm>

#include "ops/cuda/attention_device.cuh"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/mma.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/hopper/tma.h"
#include "ops/cuda/launch.h"

namespace isobit::cuda {

struct DecodeParams {
  CUtensorMap k, v;
  AttentionArgs args;
  ScoreScale score;
  float* partial_o;    // [units, rows, head_dim]
  float* partial_rl;   // [units, rows, 2]
  uint32_t* counters;  // of finished super-blocks
  uint32_t* tickets;   // units taken, CTAs done
};

namespace decode {

constexpr int kSuper = numerics::kAttentionSuperBlock, kGroupKeys = 16;
constexpr int floor_power_of_two(int x) {
  int p = 1;
  while (p * 2 <= x) p *= 2;
  return p;
}

constexpr int kMaxRequests = 512;

// kClustered: the CTAs of a cluster share a unit. kE4m3: an FP8 cache, widened to bf16 on the way to the products
// (N21).
template <int kHeadDim, int kQueryTiles, bool kClustered, bool kE4m3>
struct Config {
  static constexpr int kDim = kHeadDim, kNt = kQueryTiles, kRows = 8 * kNt;
  static constexpr bool kShared = kClustered, kFp8 = kE4m3, kF16 = false;
  static constexpr int kElementBytes = kFp8 ? 1 : 2;
  static constexpr int kWarps = kShared ? 8 : 4, kConsumers = kWarps * 32;
  static constexpr int kRoundKeys = kWarps * kGroupKeys;  // of Q·K: a group a warp
  static constexpr int kThreads = kConsumers + 32;        // and the producer
  // Two CTAs fit on an SM: one streams while the other is between its phases, and a launch's first copies run beside
  // the last units of the launch before it.
  static constexpr int kMinCtas = 2;
  static constexpr int kSharedBytes = (228 / kMinCtas - 1) * 1024;
  // Keys of a phase: few, so that what is kept of them is small. The most that share_of gives one of four CTAs.
  static constexpr int kPhase = kShared                  ? (kSuper * 5 / 16 + 127) / 128 * 128
                                : kNt > 1 || kDim == 128 ? 256
                                : kDim < 128             ? 512
                                                         : 320;
  // A unit's phases are alike, where that is worth a division: blocks of 64 keys.
  static constexpr bool kEven = !kShared && kDim > 128;
  static constexpr int kBlock = numerics::attention_block(kDim), kBlocks = kPhase / kBlock;
  static constexpr int kUnitBlocks = kShared ? kSuper / kBlock : kBlocks;  // whose maxima are known at once
  static constexpr int kGroups = kPhase / kGroupKeys, kBlockGroups = kBlock / kGroupKeys;
  static constexpr int kStageBytes =
      ((kShared ? kDim < 128 || kNt > 1 : kDim <= 64) ? 8192 : 16384) * kElementBytes / 2;
  // A copy is a group: 16 rows of 128 bytes, swizzled, then those of the next columns.
  static constexpr int kChunk = 128 / kElementBytes, kChunkBytes = kGroupKeys * 128,
                       kGroupBytes = kGroupKeys * kDim * kElementBytes;
  static constexpr int kRowKeys = kChunk > kDim ? kChunk / kDim : 1, kChunks = kDim > kChunk ? kDim / kChunk : 1;
  static constexpr int kKeys = floor_power_of_two(kStageBytes / (kElementBytes * kDim));  // of a stage
  static constexpr int kTiles = kDim / 16, kWarpTiles = (kTiles + kWarps - 1) / kWarps;
  // A group's tile for 8 queries: its scores, 16 bytes a lane, until P (8 x 16, 256 bytes) and u (128 bytes) take their
  // place. (In registers they would need unrolled loops, whose code is fetched anew for every unit.)
  static constexpr int kTileBytes = 512;
  static constexpr int kHandedTiles = kShared ? kTiles : 1;  // of O, in the buffer for what the CTA before sends
  static_assert(kPhase % kRoundKeys == 0 && kKeys <= kRoundKeys);
};

// Byte offset, within a box of rows of 128 bytes, after the copy engine's swizzle.
__device__ inline uint32_t swizzled(uint32_t row, uint32_t inner_bytes) {
  return row * 128 + (inner_bytes ^ ((row & 7) << 4));
}

// The same of a group's key. Rows of the box hold several keys where those are short.
template <typename C>
__device__ inline uint32_t place_of(int key, int inner_bytes) {
  return swizzled(static_cast<uint32_t>(key / C::kRowKeys),
                  static_cast<uint32_t>(key % C::kRowKeys * C::kDim * C::kElementBytes + inner_bytes));
}

struct Unit {
  int index;                            // -1: there are no more
  int request, head, tile, super;       // super: absolute number of the super-block
  int query_start, added, kv_len;       // of the request
  int lo, end;                          // keys that some row of the tile may see
  int supers, first_super, first_unit;  // of the request; first_unit: of this head and tile
  int keys_begin, keys_end;             // of this super-block: begin a multiple of 16
};

// Keys that a CTA does at once.
struct Phase {
  int origin;      // a multiple of the block
  int begin, end;  // the unit's keys from there on; none: begin >= end
};

// Of n blocks those before the share of `rank`: a block each where they are few; else the later ranks have a little
// more, since they wait for the others' sums.
__device__ inline int blocks_before(int n, int rank, int ranks) {
  if (rank == ranks) return n;
  if (rank == 0) return 0;
  return max(min(rank, n), (n * (rank * ranks - 1) + ranks * ranks - 1) / (ranks * ranks));
}

// A rank's part of a unit that a cluster shares.
template <typename C>
__device__ inline Phase share_of(const Unit& unit, int rank, int ranks) {
  const int first = unit.keys_begin / C::kBlock, blocks = (unit.keys_end + C::kBlock - 1) / C::kBlock - first;
  const int origin = (first + blocks_before(blocks, rank, ranks)) * C::kBlock,
            past = (first + blocks_before(blocks, rank + 1, ranks)) * C::kBlock;
  return {origin, max(unit.keys_begin, origin), min(unit.keys_end, past)};
}

template <typename C>
__device__ inline Phase phase_at(const Unit& unit, int origin) {
  int keys = C::kPhase;
  if constexpr (C::kEven) {
    const int blocks = max((unit.keys_end - origin + C::kBlock - 1) / C::kBlock, 1);
    const int phases = (blocks + C::kBlocks - 1) / C::kBlocks;
    keys = (blocks + phases - 1) / phases * C::kBlock;
  }
  return {origin, max(unit.keys_begin, origin), min(unit.keys_end, origin + keys)};
}
template <typename C>
__device__ inline Phase first_phase(const Unit& unit, int rank, int ranks) {
  if constexpr (C::kShared) return share_of<C>(unit, rank, ranks);
  constexpr int kStep = C::kEven ? C::kBlock : C::kPhase;
  return phase_at<C>(unit, unit.keys_begin / kStep * kStep);
}
// The next one; has no keys if there is none.
template <typename C>
__device__ inline Phase phase_after(const Unit& unit, const Phase& phase) {
  if constexpr (C::kShared) return {phase.end, phase.end, phase.end};
  return phase_at<C>(unit, (phase.end + C::kBlock - 1) / C::kBlock * C::kBlock);
}
__device__ inline bool has_keys(const Phase& phase) { return phase.begin < phase.end; }

__device__ inline int tiles_of(int added, int group, int rows) { return (added * group + rows - 1) / rows; }

__device__ inline int first_key(const AttentionArgs& a, int position) {
  return a.window > 0 ? max(0, position - a.window + 1) : 0;
}

__device__ inline int supers_of(const AttentionArgs& a, int kv_len, int added) {
  if (kv_len <= 0) return 1;
  return (kv_len - 1) / kSuper - first_key(a, kv_len - added) / kSuper + 1;
}

// unit_start[b]: the units of the requests before b; requests of many rows have none. By one warp.
__device__ inline void count_units(const AttentionArgs& a, int group, int rows, int32_t* unit_start) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int before = 0;
  if (lane == 0) unit_start[0] = 0;
#pragma unroll 4
  for (int first = 0; first < a.requests; first += 32) {
    const int b = first + lane;
    int sum = 0;
    if (b < a.requests) {
      const int added = a.query_start[b + 1] - a.query_start[b], kv_len = a.kv_len[b];
      if (added * group <= kAttentionDecodeRows) {
        sum = tiles_of(added, group, rows) * a.cache.kv_heads * supers_of(a, kv_len, added);
      }
    }
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    if (b < a.requests) unit_start[b + 1] = before + sum;
    before += __shfl_sync(~0u, sum, 31);
  }
}

__device__ inline Unit find_unit(const AttentionArgs& a, int group, int rows, const int32_t* unit_start, int index) {
  int low = 0, high = a.requests;  // the last request that starts at or before index
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (unit_start[middle] <= index ? low : high) = middle;
  }
  Unit u;
  u.request = low;
  u.index = index;
  u.query_start = a.query_start[low];
  u.added = a.query_start[low + 1] - u.query_start;
  u.kv_len = a.kv_len[low];
  const int prefix = u.kv_len - u.added, tiles = tiles_of(u.added, group, rows), slice = tiles * a.cache.kv_heads;
  const int rest = index - unit_start[low];
  u.supers = supers_of(a, u.kv_len, u.added);
  u.first_super = u.kv_len <= 0 ? 0 : first_key(a, prefix) / kSuper;
  u.super = u.first_super + rest / slice;
  u.first_unit = unit_start[low] + rest % slice;
  u.tile = rest % slice % tiles;
  u.head = rest % slice / tiles;
  const int last_row = min(u.added * group, (u.tile + 1) * rows) - 1;
  u.lo = first_key(a, prefix + u.tile * rows / group);
  u.end = a.causal ? prefix + last_row / group + 1 : u.kv_len;
  u.keys_begin = max(u.super * kSuper, u.lo / kGroupKeys * kGroupKeys);
  u.keys_end = u.kv_len <= 0 ? u.keys_begin : min((u.super + 1) * kSuper, u.end);
  return u;
}

// A row of the tile: the keys lo..hi it may see, and where its query lies. An absent row has token = -1.
struct Row {
  int lo, hi, token, head;
};

// What there is besides the ring.
constexpr int kMaxStages = 24;
template <typename C>
struct SharedState {
  uint8_t tiles[C::kGroups][C::kNt][C::kTileBytes];
  uint2 q[C::kDim / kGroupKeys][C::kNt][32];     // fragments, by lane
  float4 handed_o[C::kHandedTiles][C::kNt][32];  // what the CTA before sends, by lane
  float handed_l[C::kNt][32];
  float group_max[C::kGroups][C::kRows];
  float block_max[C::kUnitBlocks][C::kRows];
  float alpha[C::kBlocks][C::kRows];
  float l[C::kRows];
  Row row[C::kRows];
  Unit unit[2];                       // from the producer, in turns
  int32_t rows[kSuper / kGroupKeys];  // the producer's: rows of the cache where the groups of a super-block are
  uint64_t full[kMaxStages], empty[kMaxStages], unit_full[2], unit_empty[2];
  uint64_t maxima_in, l_in, o_in[C::kWarps];  // from CTAs of earlier keys
  int32_t last;
  int32_t unit_start[kMaxRequests + 1];
};

template <typename C>
struct Shared : SharedState<C> {
  static constexpr int kStateBytes = (sizeof(SharedState<C>) + 1023) / 1024 * 1024;
  static constexpr int kStages = std::min((C::kSharedBytes - kStateBytes) / C::kStageBytes, kMaxStages);
  static_assert(kStages >= 3);
  alignas(1024) uint8_t ring[kStages][C::kStageBytes];
};

struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  template <int kStages>
  __device__ void advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
  template <int kStages>
  __device__ void advance(int count) {
    for (stage += count; stage >= kStages; stage -= kStages) phase ^= 1;
  }
};

template <typename C>
class Producer {
 public:
  __device__ Producer(Shared<C>& shared, const DecodeParams& params, int group, int rank, int ranks)
      : s_(shared), params_(params), a_(params.args), group_(group), rank_(rank), ranks_(ranks) {}

  __device__ void run(int clusters, int first, int total) {
    for (int index = first; index < total; index = next_unit(index, clusters, total)) {
      const Unit& unit = hand_over(find_unit(a_, group_, C::kRows, s_.unit_start, index));
      const Phase phase = first_phase<C>(unit, rank_, ranks_);
      if (!has_keys(phase)) continue;
      find_rows(unit, phase.begin, C::kShared ? phase.end : unit.keys_end);
      if (!waited_) {
        const int ahead = load_ahead(unit, phase);
        wait_once();
        load(unit, phase, ahead);
      } else {
        load(unit, phase, 0);
      }
    }
    Unit none = {};
    none.index = -1;
    hand_over(none);
    if constexpr (!C::kShared) count_out();
  }

 private:
  // Boxes of one copy into a stage.
  struct Load {
    const CUtensorMap* map;
    int start;       // the stage's first key
    int begin, end;  // keys that are wanted
  };

  // Nothing of the step may be touched before.
  __device__ void wait_once() {
    if (!waited_) hopper::wait_for_predecessors();
    waited_ = true;
  }

  // CTAs take units as they come to them: those whose memory is far are slower. A cluster does one.
  __device__ int next_unit(int index, int clusters, int total) {
    if constexpr (C::kShared) return total;
    if (params_.tickets == nullptr) return index + clusters;
    wait_once();
    int taken = 0;
    if (lane_ == 0) taken = static_cast<int>(atomicAdd(params_.tickets, 1));
    return clusters + __shfl_sync(~0u, taken, 0);
  }

  // The last CTA sets the counters back.
  __device__ void count_out() {
    if (lane_ != 0 || params_.tickets == nullptr) return;
    wait_once();
    if (atomicAdd(params_.tickets + 1, 1) != gridDim.x - 1) return;
    params_.tickets[0] = 0;
    params_.tickets[1] = 0;
  }

  // To the consumers; stays in shared memory until they have done it.
  __device__ const Unit& hand_over(const Unit& unit) {
    Unit& to = s_.unit[turn_.stage];
    hopper::mbarrier_wait(&s_.unit_empty[turn_.stage], turn_.phase ^ 1);
    if (lane_ == 0) {
      to = unit;
      hopper::mbarrier_arrive(&s_.unit_full[turn_.stage]);
    }
    __syncwarp();
    turn_.advance<2>();
    return to;
  }

  // The rows in the cache of the groups of keys begin to end, which lie in the unit's super-block.
  __device__ void find_rows(const Unit& unit, int begin, int end) {
    end_ = end;
    const int page_size = a_.cache.page_size, origin = unit.super * kSuper;
    const int32_t* table = a_.page_table + static_cast<int64_t>(unit.request) * a_.table_stride;
    __syncwarp();
#pragma unroll 4
    for (int group = (begin - origin) / kGroupKeys + lane_; origin + group * kGroupKeys < end; group += 32) {
      const int position = origin + group * kGroupKeys, page = position / page_size;
      s_.rows[group] =
          ((table[page] * a_.cache.kv_heads + unit.head) * page_size + position - page * page_size) / C::kRowKeys;
    }
    __syncwarp();
  }

  // Calls f(Load) for the stages of the unit's keys, in their order, until it returns false.
  template <typename F>
  __device__ void for_stages(const Unit& unit, Phase phase, const F& f) const {
    for (; has_keys(phase); phase = phase_after<C>(unit, phase)) {
#pragma unroll 1
      for (int kind = 0; kind < 2; kind++) {
        const CUtensorMap* map = kind == 0 ? &params_.k : &params_.v;
        int start = phase.origin + (phase.begin - phase.origin) / C::kKeys * C::kKeys;
        for (; start < phase.end; start += C::kKeys) {
          if (!f(Load{map, start, max(phase.begin, start), min(phase.end, start + C::kKeys)})) return;
        }
      }
    }
  }

  // With the first turn of the ring, what earlier steps wrote. Returns the number of stages looked at.
  __device__ int load_ahead(const Unit& unit, const Phase& phase) {
    const int old = unit.kv_len - unit.added;
    Ring ring = ring_;
    int looked = 0;
    for_stages(unit, phase, [&](const Load& load) {
      if (looked == Shared<C>::kStages) return false;
      if (load.end <= old) issue(unit, load, ring.stage);
      ring.template advance<Shared<C>::kStages>();
      looked++;
      return true;
    });
    return looked;
  }

  // All stages but those that load_ahead has seen to.
  __device__ void load(const Unit& unit, const Phase& phase, int ahead) {
    const int old = unit.kv_len - unit.added;
    int at = 0;
    for_stages(unit, phase, [&](const Load& load) {
      if (at++ >= ahead || load.end > old) {
        hopper::mbarrier_wait(&s_.empty[ring_.stage], ring_.phase ^ 1);
        issue(unit, load, ring_.stage);
      }
      ring_.template advance<Shared<C>::kStages>();
      return true;
    });
  }

  __device__ void issue(const Unit& unit, const Load& load, int stage) {
    const int origin = unit.super * kSuper, first = (load.start - origin) / kGroupKeys;
    const int begin = (load.begin - origin) / kGroupKeys, end = (load.end - origin + kGroupKeys - 1) / kGroupKeys;
    if (lane_ == 0) {
      hopper::mbarrier_arrive_expect(&s_.full[stage], static_cast<uint32_t>((end - begin) * C::kGroupBytes));
    }
    __syncwarp();
    const int group = begin + lane_;
    if (C::kShared && load.map == &params_.v) prefetch(unit, load.end + (Shared<C>::kStages - 1) * C::kKeys);
    if (group >= end) return;
    hopper::tma_load_3d(s_.ring[stage] + (group - first) * C::kGroupBytes, load.map, &s_.full[stage], 0, s_.rows[group],
                        0, policy_);
  }

  // V's next stage but those of the ring, to the L2: a CTA's V waits in the ring for the sums of those before it.
  __device__ void prefetch(const Unit& unit, int begin) {
    const int key = begin + lane_ * kGroupKeys;
    if (lane_ >= C::kKeys / kGroupKeys || key >= end_) return;
    hopper::tma_prefetch_3d(&params_.v, 0, s_.rows[(key - unit.super * kSuper) / kGroupKeys], 0);
  }

  Shared<C>& s_;
  const DecodeParams& params_;
  const AttentionArgs& a_;
  const int group_, rank_, ranks_;
  int end_ = 0;  // of the keys whose rows are known
  const int lane_ = static_cast<int>(threadIdx.x) % 32;
  const uint64_t policy_ = hopper::evict_first_policy();
  bool waited_ = false;
  Ring ring_, turn_;
};

template <typename C>
__device__ inline void consumers_sync() {
  hopper::named_barrier_sync(1, C::kConsumers);
}

// In a register, which the compiler would otherwise read from the hardware at each use, twenty cycles a time.
__device__ inline uint32_t kept_thread_index() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(r));
  return r;
}

__device__ inline bool allowed(const AttentionArgs& a, const Row& row, int key) {
  if (key < row.lo || key > row.hi) return false;
  return a.mask == nullptr ||
         ((a.mask[static_cast<int64_t>(row.token) * a.mask_stride + key / 64] >> (key % 64)) & 1) != 0;
}

// Two of four e4m3 as bf16: bytes 0 and 2, or 1 and 3. The exponent's field moves in place and its bias is made up for
// by 2^120, which subnormals take along: exact for all that a cache holds.
template <bool kOdd>
__device__ inline uint32_t widen_pair(uint32_t packed) {
  const uint32_t sign = kOdd ? packed : packed << 8, rest = kOdd ? packed >> 4 : packed << 4;
  const uint32_t bits = (sign & 0x80008000) | (rest & 0x07f007f0);
  uint32_t r;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(r) : "r"(bits), "r"(0x7b807b80u));
  return r;
}

// Rare, and long: kept out of the loops.
static __device__ __noinline__ float4 capped_scores(const ScoreScale& s, float4 c) {
  return make_float4(capped_score(s, c.x), capped_score(s, c.y), capped_score(s, c.z), capped_score(s, c.w));
}

template <typename C>
class Consumer {
 public:
  __device__ Consumer(Shared<C>& shared, const DecodeParams& params, int group, int rank, int ranks)
      : s_(shared), params_(params), a_(params.args), group_(group), rank_(rank), ranks_(ranks) {
    const int lane_row = lane_ / 16 * 8 + lane_ % 8, lane_column = lane_ / 8 % 2 * 8;
    p_lane_ = static_cast<uint32_t>(lane_ / 16 * C::kTileBytes) + p_offset(lane_ % 8, lane_ / 8 % 2);
#pragma unroll
    for (int t = 0; t < C::kWarpTiles; t++) {
      const int column = (warp_ + t * kWarps) * 16;
      const uint32_t chunk = static_cast<uint32_t>(column / C::kChunk * C::kChunkBytes);
      v_lane_[t] = chunk + (C::kFp8 ? place_of<C>(lane_ % 16, column % C::kChunk)
                                    : place_of<C>(lane_row, (column % C::kChunk + lane_column) * 2));
    }
  }

  __device__ void run() {
    for (Ring turn;; turn.advance<2>()) {
      hopper::mbarrier_wait(&s_.unit_full[turn.stage], turn.phase);
      const Unit& unit = s_.unit[turn.stage];
      if (unit.index < 0) break;
      Phase phase = first_phase<C>(unit, rank_, ranks_);
      place_in_cluster(unit, phase);
      begin(unit);
      for (bool again = false; has_keys(phase); phase = phase_after<C>(unit, phase), again = true) {
        // Scores go where slower warps may still read the last phase's probabilities.
        if (again) consumers_sync<C>();
        scores(phase);
        consumers_sync<C>();
        block_maxima(phase);
        probabilities(phase);
        consumers_sync<C>();
        row_sums(phase);
        values(phase);
      }
      if (last_) {
        total_sums();
        consumers_sync<C>();
        store(unit);
      }
      consumers_sync<C>();
      if (tid_ == 0) hopper::mbarrier_arrive(&s_.unit_empty[turn.stage]);
    }
  }

 private:
  static constexpr int kWarps = C::kWarps, kConsumers = C::kConsumers, kStages = Shared<C>::kStages;
  // Of a stage's kWarps arrivals, each warp's that works on V.
  static constexpr uint32_t kValueArrivals = C::kTiles < kWarps ? kWarps / C::kTiles : 1;

  // Which CTAs hold keys before and after this one's, and what will come from before.
  __device__ void place_in_cluster(const Unit& unit, const Phase& phase) {
    if constexpr (C::kShared) {
      const bool any = has_keys(phase);
      const int first = unit.keys_begin / C::kBlock, past = (unit.keys_end + C::kBlock - 1) / C::kBlock;
      used_ = min(ranks_, past - first);
      earlier_ = any ? phase.origin / C::kBlock - first : 0;
      last_ = any ? phase.end == unit.keys_end : rank_ == 0 && unit.keys_begin >= unit.keys_end;
      if (earlier_ == 0) return;
      if (tid_ == 0) {
        hopper::mbarrier_arrive_expect(&s_.maxima_in, static_cast<uint32_t>(earlier_ * C::kRows * 4));
        hopper::mbarrier_arrive_expect(&s_.l_in, sizeof(s_.handed_l));
      }
      const int tiles = warp_ < C::kTiles ? (C::kTiles - warp_ + kWarps - 1) / kWarps : 0;
      if (lane_ == 0) {
        hopper::mbarrier_arrive_expect(&s_.o_in[warp_], static_cast<uint32_t>(tiles * C::kNt * 512));
      }
    }
  }

  __device__ Row find_row(const Unit& unit, int q) const {
    const int row = unit.tile * C::kRows + q;
    if (row >= unit.added * group_) return {0, -1, -1, 0};
    const int position = unit.kv_len - unit.added + row / group_;
    return {first_key(a_, position), a_.causal ? position : unit.kv_len - 1, unit.query_start + row / group_,
            unit.head * group_ + row % group_};
  }
  __device__ bool present(int q) const { return s_.row[q].token >= 0; }

  // The warp's group of a round, counted in the phase.
  __device__ int group_of(int round) const { return round * kWarps + warp_; }

  // Rounds of Q·K that cover the phase's blocks; what else there is in them counts as not allowed.
  struct Rounds {
    int first, past;
  };
  __device__ Rounds rounds_of(const Phase& phase) const {
    const int first = (phase.begin - phase.origin) / C::kBlock * C::kBlock;
    const int past = (phase.end - phase.origin + C::kBlock - 1) / C::kBlock * C::kBlock;
    return {first / C::kRoundKeys, (past + C::kRoundKeys - 1) / C::kRoundKeys};
  }

  // The unit's rows, their queries to shared memory, and empty sums.
  __device__ void begin(const Unit& unit) {
    if (tid_ < C::kRows) s_.row[tid_] = find_row(unit, tid_);
    consumers_sync<C>();
    hopper::wait_for_predecessors();
    constexpr int kPieces = C::kDim / 16 * C::kNt, kOwn = (kPieces + kWarps - 1) / kWarps;
    uint2 w[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int piece = warp_ + i * kWarps, k = piece / C::kNt;
      const Row& row = s_.row[piece % C::kNt * 8 + g_];
      w[i] = make_uint2(0, 0);
      if (piece >= kPieces || row.token < 0) continue;
      const uint16_t* from = a_.q + (static_cast<int64_t>(row.token) * a_.q_heads + row.head) * C::kDim + k * 16;
      if constexpr (C::kFp8) {
        const uint2 four = *reinterpret_cast<const uint2*>(from + 4 * x_);
        w[i] = make_uint2(__byte_perm(four.x, four.y, 0x5410), __byte_perm(four.x, four.y, 0x7632));  // as load_keys
      } else {
        w[i].x = *reinterpret_cast<const uint32_t*>(from + 2 * x_);
        w[i].y = *reinterpret_cast<const uint32_t*>(from + 2 * x_ + 8);
      }
    }
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int piece = warp_ + i * kWarps;
      if (piece < kPieces) s_.q[piece / C::kNt][piece % C::kNt][lane_] = w[i];
    }
    if constexpr (C::kFp8) {
      const float k_scale = a_.cache.k_scale[unit.head];
      value_scale_ = a_.cache.v_scale[unit.head];
      score_ = score_scale(numerics::scale_of_cached(a_.scale, a_.soft_cap, k_scale, value_scale_));
    }
    seen_lo_ = 0, seen_hi_ = a_.mask != nullptr ? -1 : 1 << 30;
    l_ = 0.0f;
#pragma unroll
    for (int n = 0; n < C::kNt; n++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        r_[n][i] = minus_inf();
        const Row& row = s_.row[n * 8 + 2 * x_ + i];
        if (row.token >= 0) seen_lo_ = max(seen_lo_, row.lo), seen_hi_ = min(seen_hi_, row.hi);
      }
#pragma unroll
      for (int t = 0; t < C::kWarpTiles; t++) o_[t][n][0] = o_[t][n][1] = o_[t][n][2] = o_[t][n][3] = 0.0f;
    }
    consumers_sync<C>();
  }

  __device__ void scores(const Phase& phase) {
    constexpr int kStageGroups = C::kKeys / kGroupKeys, kStagesPerRound = kWarps / kStageGroups;
    const uint32_t own = static_cast<uint32_t>(warp_ % kStageGroups * C::kGroupBytes);  // the warp's keys in a stage
    const Rounds rounds = rounds_of(phase);
#pragma unroll 1
    for (int j = rounds.first; j < rounds.past; j++) {
      float c[C::kNt][4] = {};
#pragma unroll 1
      for (int sub = 0; sub < kStagesPerRound; sub++) {
        const int start = phase.origin + (j * kStagesPerRound + sub) * C::kKeys;
        if (start + C::kKeys <= phase.begin || start >= phase.end) continue;
        hopper::mbarrier_wait(&s_.full[ring_.stage], ring_.phase);
        if (sub == warp_ / kStageGroups) {
          const uint32_t base = hopper::shared_address(s_.ring[ring_.stage]) + own;
          constexpr int kBatch = C::kDim / 16 < 8 ? C::kDim / 16 : 8;
#pragma unroll
          for (int first = 0; first < C::kDim / 16; first += kBatch) {
            uint32_t a[kBatch][4];
            load_keys<kBatch>(base, first, a);
#pragma unroll
            for (int k = 0; k < kBatch; k++) {
#pragma unroll
              for (int n = 0; n < C::kNt; n++) {
                const uint2 q = s_.q[first + k][n][lane_];
                hopper::mma_m16n8k16<C::kF16>(c[n], a[k], q.x, q.y);
              }
            }
          }
        }
        release();
      }
      // Element i: key + 8·(i / 2), query 2x + i % 2.
      const int group_start = phase.origin + group_of(j) * kGroupKeys, key = group_start + g_;
      const bool all = group_start >= seen_lo_ && group_start + 15 <= seen_hi_;
#pragma unroll
      for (int n = 0; n < C::kNt; n++) {
        if (score().inner > 0.0f) {
          const float4 capped = capped_scores(score(), make_float4(c[n][0], c[n][1], c[n][2], c[n][3]));
          c[n][0] = capped.x, c[n][1] = capped.y, c[n][2] = capped.z, c[n][3] = capped.w;
        }
        if (!all) {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const Row row = s_.row[n * 8 + 2 * x_ + i];
            if (!allowed(a_, row, key)) c[n][i] = minus_inf();
            if (!allowed(a_, row, key + 8)) c[n][2 + i] = minus_inf();
          }
        }
        // Largest of the 16 keys: lanes trade queries once, then reduce.
        const float even = fmaxf(c[n][0], c[n][2]), odd = fmaxf(c[n][1], c[n][3]);
        float m = fmaxf(odd_g() ? odd : even, __shfl_xor_sync(~0u, odd_g() ? even : odd, 4));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 8));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 16));
        if (g_ < 2) s_.group_max[group_of(j)][n * 8 + 2 * x_ + g_] = m;
        reinterpret_cast<float4*>(s_.tiles[group_of(j)][n])[lane_] = make_float4(c[n][0], c[n][1], c[n][2], c[n][3]);
      }
    }
  }

  // Fragments of 16 keys from step `first` of 16 columns on. Of an FP8 cache a lane's four columns are 4x to 4x + 3,
  // the even ones first: the order within a step is free.
  template <int kBatch>
  __device__ void load_keys(uint32_t base, int first, uint32_t (&a)[kBatch][4]) const {
    constexpr int kLoadSteps = C::kFp8 ? 2 : 1;  // of one load, 32 bytes a key
    constexpr int kLoads = C::kChunk / 16 / kLoadSteps;
    const auto place = [&](int load) {
      return base + static_cast<uint32_t>(load / kLoads * C::kChunkBytes) +
             place_of<C>(lane_ % 16, load % kLoads * 32 + lane_ / 16 * 16);
    };
#pragma unroll
    for (int k = 0; k < kBatch; k += kLoadSteps) {
      if constexpr (C::kFp8) {
        uint32_t r[4];  // keys 0-7 and 8-15 of a step, then of the next
        hopper::ldmatrix_x4(r, place((first + k) / 2));
#pragma unroll
        for (int i = 0; i < 4; i++) {
          a[k + i / 2][i % 2] = widen_pair<false>(r[i]);
          a[k + i / 2][i % 2 + 2] = widen_pair<true>(r[i]);
        }
      } else {
        hopper::ldmatrix_x4(a[k], place(first + k));
      }
    }
  }

  // The largest score of each block, for this CTA and those of later keys.
  __device__ void block_maxima(const Phase& phase) {
    const int first = (phase.begin - phase.origin) / C::kBlock,
              past = (phase.end - phase.origin + C::kBlock - 1) / C::kBlock;
    for (int i = first * C::kRows + tid_; i < past * C::kRows; i += kConsumers) {
      const int block = i / C::kRows, row = i % C::kRows;
      float m = minus_inf();
#pragma unroll
      for (int g = 0; g < C::kBlockGroups; g++) m = fmaxf(m, s_.group_max[block * C::kBlockGroups + g][row]);
      float* to = &s_.block_max[earlier_ + block][row];
      *to = m;
      if constexpr (C::kShared) {
        for (int r = rank_ + 1; r < used_; r++) {
          hopper::store_async_f32(to, m, &s_.maxima_in, static_cast<uint32_t>(r));
        }
      }
    }
    consumers_sync<C>();
    if constexpr (C::kShared) {
      if (earlier_ > 0) hopper::mbarrier_wait(&s_.maxima_in, 0);
#pragma unroll 4
      for (int b = 0; b < earlier_; b++) grow(b);
    }
  }

  // R over block `b` of those whose maxima are known; returns what the sums are to be multiplied with.
  struct Growth {
    float a[C::kNt][2];
  };
  __device__ Growth grow(int b) {
    Growth g;
#pragma unroll
    for (int n = 0; n < C::kNt; n++) {
      const float2 m = *reinterpret_cast<const float2*>(&s_.block_max[b][n * 8 + 2 * x_]);
      g.a[n][0] = attention_grow(r_[n][0], m.x, score().factor);
      g.a[n][1] = attention_grow(r_[n][1], m.y, score().factor);
    }
    return g;
  }
  __device__ void grow_own(int block) {
    const Growth g = grow(earlier_ + block);
    if (tid_ >= 4) return;
#pragma unroll
    for (int n = 0; n < C::kNt; n++) {
      *reinterpret_cast<float2*>(&s_.alpha[block][n * 8 + 2 * x_]) = make_float2(g.a[n][0], g.a[n][1]);
    }
  }

  __device__ void probabilities(const Phase& phase) {
    // Blocks without keys leave everything as it is.
    int block = (phase.begin - phase.origin) / C::kBlock;
    const int past_block = (phase.end - phase.origin + C::kBlock - 1) / C::kBlock;
    const Rounds rounds = rounds_of(phase);
#pragma unroll 1
    for (int j = rounds.first; j < rounds.past; j++) {
#pragma unroll 1
      for (; block < past_block && block <= group_of(j) / C::kBlockGroups; block++) grow_own(block);
      const int start = phase.origin + group_of(j) * kGroupKeys;
      if (start + 15 < phase.begin || start >= phase.end) continue;
#pragma unroll
      for (int n = 0; n < C::kNt; n++) {
        uint8_t* tile = s_.tiles[group_of(j)][n];
        const float4 c = reinterpret_cast<const float4*>(tile)[lane_];
        float p[4] = {c.x, c.y, c.z, c.w};
        __syncwarp();  // P goes where the scores were
#pragma unroll
        for (int i = 0; i < 4; i++) p[i] = ex2(__fmaf_rn(p[i], score().factor, minus_r(n, i % 2)));
        // w = v[j] + v[j + 8] of queries 2x and 2x + 1; lanes trade, so that one adds w[2x'] + w[2x' + 1] of one query.
        const float even = __fadd_rn(p[0], p[2]), odd = __fadd_rn(p[1], p[3]);
        const float u = __fadd_rn(odd_g() ? odd : even, __shfl_xor_sync(~0u, odd_g() ? even : odd, 4));
        reinterpret_cast<float*>(tile + 256)[lane_] = u;
        // The same trade gives each lane two neighbouring keys of one query.
        const uint32_t top = round16x2<C::kF16>(p[0], p[1]), bottom = round16x2<C::kF16>(p[2], p[3]);
        const uint32_t other_top = __shfl_xor_sync(~0u, top, 4), other_bottom = __shfl_xor_sync(~0u, bottom, 4);
        const uint32_t first = odd_g() ? __byte_perm(other_top, top, 0x7632) : __byte_perm(top, other_top, 0x5410);
        const uint32_t second =
            odd_g() ? __byte_perm(other_bottom, bottom, 0x7632) : __byte_perm(bottom, other_bottom, 0x5410);
        const int query = 2 * x_ + (g_ & 1), pair = (g_ & ~1) * 2;
        *reinterpret_cast<uint32_t*>(tile + p_offset(query, 0) + pair) = first;
        *reinterpret_cast<uint32_t*>(tile + p_offset(query, 1) + pair) = second;
      }
    }
#pragma unroll 1
    for (; block < past_block; block++) grow_own(block);
  }

  __device__ float minus_r(int n, int i) const { return r_[n][i] == minus_inf() ? 0.0f : -r_[n][i]; }

  // Of a query's keys 8·half…: rows of 32 bytes, their halves swapped for queries 4 to 7, so that eight rows hit all
  // banks.
  static __device__ uint32_t p_offset(int query, int half) {
    return static_cast<uint32_t>(query * 32 + (half ^ (query / 4)) * 16);
  }

  // Rows' sums, by the last kNt warps; lane: query 2x + g % 2, sum g / 2.
  __device__ void row_sums(const Phase& phase) {
    const int n = kWarps - 1 - warp_;
    if (n >= C::kNt) return;
    if (earlier_ > 0) {
      hopper::mbarrier_wait(&s_.l_in, 0);
      l_ = s_.handed_l[n][lane_];
    }
    const int q = n * 8 + 2 * x_ + (g_ & 1);
    const int first = (phase.begin - phase.origin) / kGroupKeys, past = (phase.end - phase.origin + 15) / kGroupKeys;
    constexpr int kBlockGroups = C::kBlockGroups;
    for (int block = first / kBlockGroups; block * kBlockGroups < past; block++) {
      float u[kBlockGroups];
#pragma unroll
      for (int i = 0; i < kBlockGroups; i++)
        u[i] = reinterpret_cast<const float*>(s_.tiles[block * kBlockGroups + i][n] + 256)[lane_];
      float alpha = s_.alpha[block][q];
#pragma unroll
      for (int i = 0; i < kBlockGroups; i++) {
        const int group = block * kBlockGroups + i;
        if (group < first || group >= past) continue;
        l_ = __fmaf_rn(l_, alpha, u[i]);
        alpha = 1.0f;
      }
    }
    if constexpr (C::kShared) {
      if (!last_) hopper::store_async_f32(&s_.handed_l[n][lane_], l_, &s_.l_in, static_cast<uint32_t>(rank_) + 1);
    }
  }

  __device__ void total_sums() {
    const int n = kWarps - 1 - warp_;
    if (n >= C::kNt) return;
    const float pair = __fadd_rn(l_, __shfl_xor_sync(~0u, l_, 8));
    const float total = __fadd_rn(pair, __shfl_xor_sync(~0u, pair, 16));
    if (g_ < 2) s_.l[n * 8 + 2 * x_ + (g_ & 1)] = total;
  }

  // P·V of a stage, for a warp's columns. The next stage's fragments are loaded while this one's are multiplied, each
  // in the registers that a product has left.
  static constexpr int kStageGroups = C::kKeys / kGroupKeys;
  static constexpr int kValueWords = C::kFp8 ? 2 : 4;  // an FP8 cache's are widened as they are multiplied
  struct Fragments {
    uint32_t v[kStageGroups][C::kWarpTiles][kValueWords];
    uint32_t p[kStageGroups][C::kNt][2];
    float2 alpha[C::kNt];  // where a block begins
  };

  __device__ void values(const Phase& phase) {
    if (warp_ >= C::kTiles) {
      // The ring turns by what the others take; they must not be overtaken.
      const int first = (phase.begin - phase.origin) / C::kKeys,
                past = (phase.end - phase.origin + C::kKeys - 1) / C::kKeys;
      ring_.template advance<kStages>(past - first);
    } else {
      int key = (phase.begin - phase.origin) / C::kKeys * C::kKeys;  // from the phase's origin
      const int past = phase.end - phase.origin;
      Fragments f;
      Stage stage = wait_stage(key);
#pragma unroll
      for (int i = 0; i < kStageGroups; i++) load(stage, i, f);
      release_stage();
      receive_output();
#pragma unroll 1
      for (; key + C::kKeys < past; key += C::kKeys) {
        rescale(key, phase.begin - phase.origin, f);
        stage = wait_stage(key + C::kKeys);
        multiply(phase, key, f, [&](int i) { load(stage, i, f); });
        release_stage();
      }
      rescale(key, phase.begin - phase.origin, f);
      multiply(phase, key, f, [](int) {});
      hand_output_on();
    }
    if constexpr (C::kTiles < kWarps) consumers_sync<C>();
  }

  // Where a lane finds its parts of a stage: addresses for ldmatrix and the factors of the block.
  struct Stage {
    uint32_t v, p;
    const float* alpha;
  };
  __device__ Stage wait_stage(int key) {
    hopper::mbarrier_wait(&s_.full[ring_.stage], ring_.phase);
    // ldmatrix rows of P: two groups of one query tile, or one group of two.
    return {hopper::shared_address(s_.ring[ring_.stage]),
            hopper::shared_address(s_.tiles[key / kGroupKeys][0]) + p_lane_, &s_.alpha[key / C::kBlock][2 * x_]};
  }
  __device__ void release_stage() {
    if (lane_ == 0) hopper::mbarrier_arrive_count(&s_.empty[ring_.stage], kValueArrivals);
    ring_.template advance<kStages>();
  }

  __device__ void load(const Stage& stage, int i, Fragments& f) const {
#pragma unroll
    for (int t = 0; t < C::kWarpTiles; t++) {
      const uint32_t from = stage.v + v_lane_[t] + static_cast<uint32_t>(i * C::kGroupBytes);
      if constexpr (C::kFp8) {
        hopper::ldmatrix_x2_trans(f.v[i][t][0], f.v[i][t][1], from);
      } else {
        hopper::ldmatrix_x4_trans(f.v[i][t], from);
      }
    }
    const uint32_t p = stage.p + static_cast<uint32_t>(i * C::kNt * C::kTileBytes);
    if constexpr (C::kNt == 2) {
      uint32_t r[4];
      hopper::ldmatrix_x4(r, p);
      f.p[i][0][0] = r[0], f.p[i][0][1] = r[1], f.p[i][1][0] = r[2], f.p[i][1][1] = r[3];
    } else if (i % 2 == 1) {  // both groups of a pair, when neither is wanted any more
      uint32_t r[4];
      hopper::ldmatrix_x4(r, p - C::kTileBytes);
      f.p[i - 1][0][0] = r[0], f.p[i - 1][0][1] = r[1], f.p[i][0][0] = r[2], f.p[i][0][1] = r[3];
    }
    if (i != 0) return;
#pragma unroll
    for (int n = 0; n < C::kNt; n++) f.alpha[n] = *reinterpret_cast<const float2*>(stage.alpha + n * 8);
  }

  // Once a block: at its first stage, or the first that there is of it.
  __device__ void rescale(int key, int begin, const Fragments& f) {
    if (key % C::kBlock != 0 && key > begin) return;
#pragma unroll
    for (int n = 0; n < C::kNt; n++) {
#pragma unroll
      for (int t = 0; t < C::kWarpTiles; t++) {
        o_[t][n][0] = __fmul_rn(o_[t][n][0], f.alpha[n].x), o_[t][n][1] = __fmul_rn(o_[t][n][1], f.alpha[n].y);
        o_[t][n][2] = __fmul_rn(o_[t][n][2], f.alpha[n].x), o_[t][n][3] = __fmul_rn(o_[t][n][3], f.alpha[n].y);
      }
    }
  }

  // Of the stage that begins at `key` from the phase's origin; calls then(i) when group i is done.
  template <typename F>
  __device__ void multiply(const Phase& phase, int key, Fragments& f, const F& then) {
    const int at = phase.origin + key;
    if (at >= phase.begin && at + C::kKeys <= phase.end) {
#pragma unroll
      for (int i = 0; i < kStageGroups; i++) {
        multiply_group(f, i);
        then(i);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kStageGroups; i++) {
      const int group = at + i * kGroupKeys;
      if (group >= phase.begin && group < phase.end) {
        if (group + kGroupKeys > phase.end) {
#pragma unroll
          for (int t = 0; t < C::kWarpTiles; t++) clear_absent(f.v[i][t], phase.end - group);
        }
        multiply_group(f, i);
      }
      then(i);
    }
  }

  __device__ void multiply_group(const Fragments& f, int i) {
#pragma unroll
    for (int t = 0; t < C::kWarpTiles; t++) {
      const auto times = [&](const uint32_t(&v)[4]) {
#pragma unroll
        for (int n = 0; n < C::kNt; n++) hopper::mma_m16n8k16<C::kF16>(o_[t][n], v, f.p[i][n][0], f.p[i][n][1]);
      };
      if constexpr (C::kFp8) {
        // A word is columns 2g and 2g + 1 of two keys; the even columns are the product's first eight rows.
        const uint32_t(&w)[kValueWords] = f.v[i][t];
        const uint32_t v[4] = {widen_pair<false>(w[0]), widen_pair<true>(w[0]), widen_pair<false>(w[1]),
                               widen_pair<true>(w[1])};
        times(v);
      } else {
        times(f.v[i][t]);
      }
    }
  }

  // The chains of O, from the CTA before and to the next one.
  __device__ void receive_output() {
    if (earlier_ == 0) return;
    hopper::mbarrier_wait(&s_.o_in[warp_], 0);
    for_tiles([&](int tile, int t, int n) {
      const float4 o = s_.handed_o[tile][n][lane_];
      o_[t][n][0] = o.x, o_[t][n][1] = o.y, o_[t][n][2] = o.z, o_[t][n][3] = o.w;
    });
  }
  __device__ void hand_output_on() {
    if constexpr (C::kShared) {
      if (last_) return;
      for_tiles([&](int tile, int t, int n) {
        const float* o = o_[t][n];
        const uint4 bits =
            make_uint4(__float_as_uint(o[0]), __float_as_uint(o[1]), __float_as_uint(o[2]), __float_as_uint(o[3]));
        hopper::store_async_16(&s_.handed_o[tile][n][lane_], bits, &s_.o_in[warp_], static_cast<uint32_t>(rank_) + 1);
      });
    }
  }
  template <typename F>
  __device__ void for_tiles(const F& f) {
#pragma unroll
    for (int t = 0; t < C::kWarpTiles; t++) {
      if (warp_ + t * kWarps >= C::kTiles) continue;
#pragma unroll
      for (int n = 0; n < C::kNt; n++) f(warp_ + t * kWarps, t, n);
    }
  }

  // Keys from `past` on of a group hold anything, NaN too.
  __device__ void clear_absent(uint32_t (&v)[kValueWords], int past) const {
#pragma unroll
    for (int i = 0; i < kValueWords; i++) {
      const int key = 2 * x_ + i * 4 / kValueWords / 2 * 8;
      if (key >= past) v[i] = 0;
      if (key + 1 >= past) v[i] &= 0xffff;
    }
  }

  // 1/l with the sink; 0 for a row that saw nothing.
  __device__ float inverse(int q, float l, float r) const {
    if (r == minus_inf()) return 0.0f;
    if (a_.sinks != nullptr) l = attention_sink(l, a_.sinks[s_.row[q].head], r);
    return __fdiv_rn(C::kFp8 ? value_scale_ : 1.0f, l);
  }
  __device__ uint16_t* out(int q) const {
    return a_.out + (static_cast<int64_t>(s_.row[q].token) * a_.q_heads + s_.row[q].head) * C::kDim;
  }
  static __device__ float output(float o, float inv) { return __fadd_rn(__fmul_rn(o, inv), 0.0f); }

  __device__ void store(const Unit& unit) {
    const bool whole = unit.supers == 1;
#pragma unroll
    for (int n = 0; n < C::kNt; n++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int q = n * 8 + 2 * x_ + i, first_column = warp_ * 16 + (C::kFp8 ? 2 * g_ : g_);
        if (!present(q)) continue;
        const float r = r_[n][i], l = r == minus_inf() ? 0.0f : s_.l[q];
        const int64_t row = static_cast<int64_t>(unit.index) * C::kRows + q;
        if (whole) {
          const float inv = inverse(q, l, r);
          uint16_t* to = out(q) + first_column;
          for_columns(n, i, [&](int column, float o) { to[column] = round16<C::kF16>(output(o, inv)); });
        } else {
          if (g_ == 0 && warp_ == 0) *reinterpret_cast<float2*>(params_.partial_rl + row * 2) = make_float2(r, l);
          float* to = params_.partial_o + row * C::kDim + first_column;
          for_columns(n, i, [&](int column, float o) { to[column] = o; });
        }
      }
    }
    if (!whole) fold_if_last(unit);
  }

  // Calls with this thread's columns of a row, counted from its first, and O there.
  template <typename F>
  __device__ void for_columns(int n, int i, const F& f) {
#pragma unroll
    for (int t = 0; t < C::kWarpTiles; t++) {
      if (warp_ + t * kWarps >= C::kTiles) continue;
      f(t * kWarps * 16, o_[t][n][i]);
      f(t * kWarps * 16 + (C::kFp8 ? 1 : 8), o_[t][n][2 + i]);
    }
  }

  // The CTA that finishes a request's tile last folds its super-blocks, four columns a thread.
  __device__ void fold_if_last(const Unit& unit) {
    uint32_t* counter = params_.counters + unit.first_unit;
    consumers_sync<C>();
    if (tid_ == 0) {
      s_.last = hopper::add_acq_rel(counter, 1) == static_cast<uint32_t>(unit.supers - 1);
      if (s_.last) *counter = 0;
    }
    consumers_sync<C>();
    if (!s_.last) return;
    const int slice = tiles_of(unit.added, group_, C::kRows) * a_.cache.kv_heads;
    for (int i = tid_; i < C::kRows * (C::kDim / 4); i += kConsumers) {
      const int q = i / (C::kDim / 4), column = i % (C::kDim / 4) * 4;
      if (present(q)) fold(unit, slice, q, column);
    }
  }

  __device__ void fold(const Unit& unit, int slice, int q, int column) {
    float r = minus_inf(), l = 0.0f, o[4] = {};
    constexpr int kBatchSupers = 8;  // loads in flight
    for (int first = 0; first < unit.supers; first += kBatchSupers) {
      float2 rl[kBatchSupers];
      float4 part[kBatchSupers];
#pragma unroll
      for (int s = 0; s < kBatchSupers; s++) {
        if (first + s >= unit.supers) continue;
        const int64_t row =
            (static_cast<int64_t>(unit.first_unit) + static_cast<int64_t>(first + s) * slice) * C::kRows + q;
        rl[s] = __ldcg(reinterpret_cast<const float2*>(params_.partial_rl + row * 2));
        part[s] = __ldcg(reinterpret_cast<const float4*>(params_.partial_o + row * C::kDim + column));
      }
#pragma unroll
      for (int s = 0; s < kBatchSupers; s++) {
        if (first + s >= unit.supers || rl[s].x == minus_inf()) continue;
        const FoldFactors f = attention_fold(r, rl[s].x);
        const bool copy = r == minus_inf();
        const float later[4] = {part[s].x, part[s].y, part[s].z, part[s].w};
        l = copy ? rl[s].y : attention_fold_value(l, rl[s].y, f);
#pragma unroll
        for (int e = 0; e < 4; e++) o[e] = copy ? later[e] : attention_fold_value(o[e], later[e], f);
        r = f.r;
      }
    }
    const float inv = inverse(q, l, r);
    *reinterpret_cast<uint2*>(out(q) + column) = make_uint2(round16x2<C::kF16>(output(o[0], inv), output(o[1], inv)),
                                                            round16x2<C::kF16>(output(o[2], inv), output(o[3], inv)));
  }

  __device__ void release() {
    if (lane_ == 0) hopper::mbarrier_arrive(&s_.empty[ring_.stage]);
    ring_.template advance<kStages>();
  }
  __device__ bool odd_g() const { return (g_ & 1) != 0; }
  __device__ const ScoreScale& score() const { return C::kFp8 ? score_ : params_.score; }

  Shared<C>& s_;
  const DecodeParams& params_;
  const AttentionArgs& a_;
  const int group_, rank_, ranks_;
  const uint32_t id_ = kept_thread_index();
  const int tid_ = static_cast<int>(id_), warp_ = static_cast<int>(id_ / 32), lane_ = static_cast<int>(id_ % 32),
            g_ = static_cast<int>(id_ % 32 / 4), x_ = static_cast<int>(id_ % 4);
  Ring ring_;
  int earlier_ = 0;                 // blocks of the unit that CTAs before this one have
  int used_ = 1;                    // CTAs that have keys of it
  bool last_ = true;                // its keys are the unit's last
  int seen_lo_, seen_hi_;           // keys that all the thread's rows see; none with a mask
  uint32_t v_lane_[C::kWarpTiles];  // the lane's offset in a group of V
  uint32_t p_lane_;                 // and in P's tiles
  float l_;                         // row_sums
  ScoreScale score_;                // of the unit's head, with an FP8 cache
  float value_scale_;
  float r_[C::kNt][2];
  float o_[C::kWarpTiles][C::kNt][4];
};

template <typename C>
__global__ void __launch_bounds__(C::kThreads, C::kMinCtas)
    attention_decode(const __grid_constant__ DecodeParams params) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared<C>& s = *reinterpret_cast<Shared<C>*>(raw);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const AttentionArgs& a = params.args;
  const int group = a.q_heads / a.cache.kv_heads;
  hopper::launch_dependents();
  if (warp == C::kWarps && lane == 0) {
    hopper::prefetch_tensor_map(&params.k);
    hopper::prefetch_tensor_map(&params.v);
    for (int i = 0; i < Shared<C>::kStages; i++) {
      hopper::mbarrier_init(&s.full[i], 1);
      hopper::mbarrier_init(&s.empty[i], C::kWarps);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      hopper::mbarrier_init(&s.unit_full[i], 1);
      hopper::mbarrier_init(&s.unit_empty[i], 1);
    }
    hopper::mbarrier_init(&s.maxima_in, 1);
    hopper::mbarrier_init(&s.l_in, 1);
    for (int i = 0; i < C::kWarps; i++) hopper::mbarrier_init(&s.o_in[i], 1);
    hopper::mbarrier_init_fence();
  }
  if (warp == 0) count_units(a, group, C::kRows, s.unit_start);
  int rank = 0, ranks = 1;
  if constexpr (C::kShared) {
    rank = static_cast<int>(hopper::cluster_rank()), ranks = static_cast<int>(hopper::cluster_size());
    hopper::cluster_arrive();  // its barriers are there for the others
  }
  __syncthreads();
  if (warp == C::kWarps) {
    const int clusters = static_cast<int>(gridDim.x) / ranks, first = static_cast<int>(blockIdx.x) / ranks;
    Producer<C> producer(s, params, group, rank, ranks);
    producer.run(clusters, first, s.unit_start[a.requests]);
    if constexpr (C::kShared) hopper::cluster_wait();
  } else {
    Consumer<C> consumer(s, params, group, rank, ranks);
    if constexpr (C::kShared) hopper::cluster_wait();
    consumer.run();
  }
  // Nothing is sent to a CTA that does not wait for it, so each may end by itself.
}

// Of the device's pointers and the plan's numbers, what the kernel needs.
template <typename C>
void launch_config(const AttentionArgs& args, int units, int cluster, const KernelContext& context) {
  const KvCacheView& cache = args.cache;
  DecodeParams params = {};
  params.args = args;
  params.score = score_scale(args);
  params.counters = context.counters;
  params.tickets = context.counters == nullptr ? nullptr : context.counters + kCounters - kAttentionTickets;
  params.partial_o = static_cast<float*>(context.workspace);
  params.partial_rl = params.partial_o + static_cast<int64_t>(units) * C::kRows * C::kDim;
  const auto map = [&](const void* base) {
    const uint64_t keys = static_cast<uint64_t>(cache.pages) * cache.kv_heads * cache.page_size;
    const uint64_t dims[3] = {C::kChunk, keys / C::kRowKeys, C::kChunks};
    const uint64_t strides[2] = {C::kRowKeys * C::kDim * C::kElementBytes, 128};
    const uint32_t box[3] = {C::kChunk, kGroupKeys / C::kRowKeys, C::kChunks};
    return tensor_map(C::kFp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, base, dims,
                      strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
  };
  params.k = map(cache.k);
  params.v = map(cache.v);
  // Of the CTAs that fit each does unit after unit; a cluster does one.
  const int ctas = C::kShared ? units * cluster : std::min(units, context.sm_count * C::kMinCtas);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(ctas));
  shape.block = C::kThreads;
  shape.cluster = dim3(static_cast<unsigned>(cluster));
  shape.shared_bytes = sizeof(Shared<C>);
  allow_shared_memory("attention_decode", attention_decode<C>, shape.shared_bytes);
  launch("attention_decode", attention_decode<C>, shape, context.stream, params);
}

template <int kHeadDim, bool kFp8>
void launch_dim(const AttentionArgs& args, const AttentionPlan& plan, const KernelContext& context) {
  const int units = static_cast<int>(plan.units);
  if constexpr (attention_decode_clusters(kHeadDim, kFp8)) {
    if (plan.cluster > 1 && plan.query_tiles == 1) {
      return launch_config<Config<kHeadDim, 1, true, kFp8>>(args, units, plan.cluster, context);
    }
    if (plan.cluster > 1) return launch_config<Config<kHeadDim, 2, true, kFp8>>(args, units, plan.cluster, context);
  }
  if (plan.query_tiles == 1) return launch_config<Config<kHeadDim, 1, false, kFp8>>(args, units, 1, context);
  launch_config<Config<kHeadDim, 2, false, kFp8>>(args, units, 1, context);
}

}  // namespace decode
}  // namespace isobit::cuda
