#pragma once
// Decode and verify: few queries a request, so the time is that of reading K and V once. docs/operators.md has the
// arithmetic of the design.
//
// A unit is (request, KV head, tile of up to 16 rows, super-block); a row is one query of one head. A cluster of
// kCluster CTAs does a unit; CTAs are persistent and take unit after unit. Keys are the M side of mma.sync, queries its
// N side (8 or 16), so that a fragment of K or V is loaded once for all rows. A unit's keys go in phases; in each
//   1. its keys are shared out to the CTAs and, 16 at a time, to warps, which leave scores in shared memory;
//   2. every block's largest score goes to all CTAs;
//   3. every thread walks R over the blocks and turns its scores into probabilities; rounded, with the row sums' u,
//   they
//      go to all CTAs;
//   4. P·V is shared out by columns: CTA, then 16 columns a warp; each is one chain over the super-block's keys.
// A producer warp streams K, then V, then the next phase's K through a ring, so the memory never waits for 2 and 3. It
// starts before the kernels ahead on the stream have ended, with what earlier steps wrote.
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
  int box_rows;  // keys of a copy: 1 << box_shift
  int box_shift;
  float* partial_o;    // [units, rows, head_dim]
  float* partial_rl;   // [units, rows, 2]
  uint32_t* counters;  // of finished super-blocks
  uint32_t* tickets;   // units taken, CTAs done
};

namespace decode {

constexpr int kSuper = numerics::kAttentionSuperBlock, kGroupKeys = 16;
constexpr int kWarps = 4, kConsumers = kWarps * 32;
constexpr int kRoundKeys = kWarps * kGroupKeys;  // of Q·K: a group a warp
constexpr int kThreads = kConsumers + 32;        // and the producer

constexpr int floor_power_of_two(int x) {
  int p = 1;
  while (p * 2 <= x) p *= 2;
  return p;
}

constexpr int kMaxRequests = 512;

template <int kHeadDim, int kQueryTiles, int kClusterSize, bool kHalf>
struct Config {
  static constexpr int kDim = kHeadDim, kNt = kQueryTiles, kCluster = kClusterSize, kRows = 8 * kNt;
  static constexpr bool kF16 = kHalf;
  // Two CTAs fit on an SM: one streams while the other is between its phases, and a launch's first copies run beside
  // the last units of the launch before it.
  static constexpr int kMinCtas = 2;
  static constexpr int kSharedBytes = (228 / kMinCtas - 1) * 1024;
  // Keys of a phase: few, so that what is kept of them is small. In a cluster a phase costs two exchanges between SMs.
  static constexpr int kPhase = kCluster > 1 ? 1024 : kDim > 128 && kNt == 1 ? 512 : 256;
  static constexpr int kBlock = numerics::attention_block(kDim), kBlocks = kPhase / kBlock;
  static constexpr int kBlockRounds = kBlock / kRoundKeys;
  static constexpr int kGroups = kPhase / kGroupKeys;
  static constexpr int kStageBytes = kCluster == 1 && kDim > 64 ? 16384 : 8192;
  static constexpr int kKChunk = kDim % 64 == 0 ? 64 : 32;  // columns of a swizzled row of K
  static constexpr int kKeys = floor_power_of_two(kStageBytes / (2 * kDim));
  static constexpr int kColumns = kDim / kCluster;  // of V, for this CTA
  static constexpr int kVChunk = kColumns % 64 == 0 ? 64 : kColumns % 32 == 0 ? 32 : 16;
  static constexpr int kValues = floor_power_of_two(kStageBytes / (2 * kColumns));
  static constexpr int kTiles = kColumns / 16, kWarpTiles = (kTiles + kWarps - 1) / kWarps;
  static constexpr int kKeysPerCta = kPhase / kCluster, kWarpGroups = kKeysPerCta / kGroupKeys / kWarps;
  // A group's tile for 8 queries: its scores, 16 bytes a lane, until P (8 x 16, 256 bytes) and u (128 bytes) take their
  // place. (In registers they would need unrolled loops, whose code is fetched anew for every unit.)
  static constexpr int kTileBytes = 512;
  static_assert(kColumns % 16 == 0 && kWarpGroups >= 1 && kBlockRounds >= 1 && kKeys <= kRoundKeys);
};

// Byte offset, within a box of `chunk_columns`-wide rows, after the copy engine's swizzle.
template <int kChunk>
__device__ inline uint32_t swizzled(uint32_t row, uint32_t inner_bytes) {
  if constexpr (kChunk == 64) return row * 128 + (inner_bytes ^ ((row & 7) << 4));
  if constexpr (kChunk == 32) return row * 64 + (inner_bytes ^ (((row >> 1) & 3) << 4));
  return row * 32 + (inner_bytes ^ (((row >> 2) & 1) << 4));
}

struct Unit {
  int index;                            // -1: there are no more
  int request, head, tile, super;       // super: absolute number of the super-block
  int query_start, added, kv_len;       // of the request
  int lo, end;                          // keys that some row of the tile may see
  int supers, first_super, first_unit;  // of the request; first_unit: of this head and tile
  int keys_begin, keys_end;             // of this super-block: begin a multiple of 16
};

// A unit's keys in one phase.
struct Phase {
  int origin;      // the phase's place, a multiple of C::kPhase
  int begin, end;  // the unit's keys there
};
template <typename C>
__device__ inline int first_phase(const Unit& unit) {
  return unit.keys_begin / C::kPhase * C::kPhase;
}
template <typename C>
__device__ inline Phase phase_at(const Unit& unit, int origin) {
  return {origin, max(unit.keys_begin, origin), min(unit.keys_end, origin + C::kPhase)};
}

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
constexpr int kMaxStages = 24, kMaxBoxes = kSuper / 16;
template <typename C>
struct SharedState {
  uint8_t tiles[C::kGroups][C::kNt][C::kTileBytes];
  uint2 q[C::kDim / kGroupKeys][C::kNt][32];  // fragments, by lane
  float warp_max[kWarps][C::kWarpGroups][C::kRows];
  float block_max[C::kBlocks][C::kRows];
  float alpha[C::kBlocks][C::kRows];
  float l[C::kRows];
  Row row[C::kRows];
  Unit unit[2];             // from the producer, in turns
  int32_t rows[kMaxBoxes];  // the producer's: rows of the cache where the boxes of a super-block are
  uint64_t full[kMaxStages], empty[kMaxStages], unit_full[2], unit_empty[2], exchange[2];
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
  __device__ Producer(Shared<C>& shared, const DecodeParams& params, int group, int rank)
      : s_(shared), params_(params), a_(params.args), group_(group), rank_(rank) {}

  __device__ void run(int clusters, int first, int total) {
    for (int index = first; index < total; index = next_unit(index, clusters)) {
      const Unit unit = find_unit(a_, group_, C::kRows, s_.unit_start, index);
      hand_over(unit);
      if (unit.keys_begin >= unit.keys_end) continue;
      find_rows(unit);
      for (int origin = first_phase<C>(unit); origin < unit.keys_end; origin += C::kPhase) {
        const Phase phase = phase_at<C>(unit, origin);
        const int mine = origin + rank_ * C::kKeysPerCta;
        for (int start = mine; start < mine + C::kKeysPerCta; start += C::kKeys) {
          load_stage(unit, phase, &params_.k, start, C::kKeys, C::kDim * 2, 0);
        }
        for (int start = origin; start < origin + C::kPhase; start += C::kValues) {
          load_stage(unit, phase, &params_.v, start, C::kValues, C::kColumns * 2, rank_ * (C::kColumns / C::kVChunk));
        }
      }
    }
    Unit none = {};
    none.index = -1;
    hand_over(none);
    if constexpr (C::kCluster == 1) count_out();
  }

 private:
  // Nothing of the step may be touched before.
  __device__ void wait_once() {
    if (!waited_) hopper::wait_for_predecessors();
    waited_ = true;
  }

  // CTAs take units as they come to them: those whose memory is far are slower. In a cluster there is one for each.
  __device__ int next_unit(int index, int clusters) {
    if (C::kCluster > 1 || params_.tickets == nullptr) return index + clusters;
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

  __device__ void hand_over(const Unit& unit) {
    hopper::mbarrier_wait(&s_.unit_empty[turn_.stage], turn_.phase ^ 1);
    if (lane_ == 0) {
      s_.unit[turn_.stage] = unit;
      hopper::mbarrier_arrive(&s_.unit_full[turn_.stage]);
    }
    turn_.advance<2>();
  }

  // The rows in the cache of the super-block's boxes.
  __device__ void find_rows(const Unit& unit) {
    const int page_size = a_.cache.page_size, origin = unit.super * kSuper;
    const int begin = (unit.keys_begin - origin) >> params_.box_shift;
    const int32_t* table = a_.page_table + static_cast<int64_t>(unit.request) * a_.table_stride;
    __syncwarp();
#pragma unroll 4
    for (int box = begin + lane_; origin + (box << params_.box_shift) < unit.keys_end; box += 32) {
      const int position = origin + (box << params_.box_shift);
      s_.rows[box] = (table[position / page_size] * a_.cache.kv_heads + unit.head) * page_size + position % page_size;
    }
    __syncwarp();
  }

  // Boxes of the keys from `start` that meet the phase's.
  __device__ void load_stage(const Unit& unit, const Phase& phase, const CUtensorMap* map, int start, int keys,
                             int row_bytes, int z) {
    if (start + keys <= phase.begin || start >= phase.end) return;
    const int origin = unit.super * kSuper, box_shift = params_.box_shift;
    const int low = max(phase.begin, start) - origin, high = min(phase.end, start + keys) - origin;
    const int begin = low >> box_shift, end = (high + params_.box_rows - 1) >> box_shift;
    if (origin + high > unit.kv_len - unit.added) wait_once();  // keys of this step
    hopper::mbarrier_wait(&s_.empty[ring_.stage], ring_.phase ^ 1);
    if (lane_ == 0) {
      hopper::mbarrier_arrive_expect(&s_.full[ring_.stage],
                                     static_cast<uint32_t>(((end - begin) << box_shift) * row_bytes));
    }
    __syncwarp();
    for (int box = begin + lane_; box < end; box += 32) {
      const int offset = ((box << box_shift) - (start - origin)) * row_bytes;
      hopper::tma_load_3d(s_.ring[ring_.stage] + offset, map, &s_.full[ring_.stage], 0, s_.rows[box], z, policy_);
    }
    ring_.advance<Shared<C>::kStages>();
  }

  Shared<C>& s_;
  const DecodeParams& params_;
  const AttentionArgs& a_;
  const int group_, rank_;
  const int lane_ = static_cast<int>(threadIdx.x) % 32;
  const uint64_t policy_ = hopper::evict_first_policy();
  bool waited_ = false;
  Ring ring_, turn_;
};

__device__ inline void consumers_sync() { hopper::named_barrier_sync(1, kConsumers); }

__device__ inline bool allowed(const AttentionArgs& a, const Row& row, int key) {
  if (key < row.lo || key > row.hi) return false;
  return a.mask == nullptr ||
         ((a.mask[static_cast<int64_t>(row.token) * a.mask_stride + key / 64] >> (key % 64)) & 1) != 0;
}

// Rare, and long: kept out of the loops.
static __device__ __noinline__ float4 capped_scores(const ScoreScale& s, float4 c) {
  return make_float4(capped_score(s, c.x), capped_score(s, c.y), capped_score(s, c.z), capped_score(s, c.w));
}

template <typename C>
class Consumer {
 public:
  __device__ Consumer(Shared<C>& shared, const DecodeParams& params, int group, int rank)
      : s_(shared), params_(params), a_(params.args), group_(group), rank_(rank) {
    const int lane_row = lane_ / 16 * 8 + lane_ % 8, lane_column = lane_ / 8 % 2 * 8;
#pragma unroll
    for (int t = 0; t < C::kWarpTiles; t++) {
      const int column = (warp_ + t * kWarps) * 16;
      v_lane_[t] = static_cast<uint32_t>(column / C::kVChunk * params.box_rows * C::kVChunk * 2) +
                   swizzled<C::kVChunk>(static_cast<uint32_t>(lane_row),
                                        static_cast<uint32_t>((column % C::kVChunk + lane_column) * 2));
    }
  }

  __device__ void run() {
    for (Ring turn;; turn.advance<2>()) {
      hopper::mbarrier_wait(&s_.unit_full[turn.stage], turn.phase);
      const Unit& unit = s_.unit[turn.stage];
      if (unit.index < 0) break;
      begin(unit);
      for (int origin = first_phase<C>(unit); origin < unit.keys_end; origin += C::kPhase) {
        const Phase phase = phase_at<C>(unit, origin);
        scores(phase);
        consumers_sync();
        block_maxima();
        probabilities(phase);
        exchange_probabilities();
        parity_ ^= 1;
        row_sums(phase);
        values(phase);
      }
      total_sums();
      consumers_sync();
      store(unit);
      consumers_sync();
      if (tid_ == 0) hopper::mbarrier_arrive(&s_.unit_empty[turn.stage]);
    }
  }

 private:
  static constexpr int kStages = Shared<C>::kStages;
  // Of a stage's kWarps arrivals, each warp's that works on V.
  static constexpr uint32_t kValueArrivals = C::kTiles < kWarps ? kWarps / C::kTiles : 1;

  __device__ Row find_row(const Unit& unit, int q) const {
    const int row = unit.tile * C::kRows + q;
    if (row >= unit.added * group_) return {0, -1, -1, 0};
    const int position = unit.kv_len - unit.added + row / group_;
    return {first_key(a_, position), a_.causal ? position : unit.kv_len - 1, unit.query_start + row / group_,
            unit.head * group_ + row % group_};
  }
  __device__ bool present(int q) const { return s_.row[q].token >= 0; }

  // The warp's group of a round, counted in the phase.
  __device__ int group_of(int round) const { return rank_ * (C::kKeysPerCta / kGroupKeys) + round * kWarps + warp_; }

  // Rounds of this CTA's share whose blocks hold keys of the phase; the others are not touched.
  struct Rounds {
    int first, past;
  };
  __device__ Rounds rounds_of(const Phase& phase) const {
    const int mine = phase.origin + rank_ * C::kKeysPerCta;
    const int first = max(0, phase.begin - mine) / C::kBlock,
              past = (max(0, phase.end - mine) + C::kBlock - 1) / C::kBlock;
    return {first * C::kBlockRounds, min(past * C::kBlockRounds, C::kWarpGroups)};
  }

  // The unit's rows, their queries to shared memory, and empty sums.
  __device__ void begin(const Unit& unit) {
    if (tid_ < C::kRows) s_.row[tid_] = find_row(unit, tid_);
    consumers_sync();
    hopper::wait_for_predecessors();
    constexpr int kPieces = C::kDim / 16 * C::kNt, kOwn = (kPieces + kWarps - 1) / kWarps;
    uint2 w[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int piece = warp_ + i * kWarps, k = piece / C::kNt;
      const Row& row = s_.row[piece % C::kNt * 8 + g_];
      w[i] = make_uint2(0, 0);
      if (piece >= kPieces || row.token < 0) continue;
      const uint16_t* from = a_.q + (static_cast<int64_t>(row.token) * a_.q_heads + row.head) * C::kDim;
      w[i].x = *reinterpret_cast<const uint32_t*>(from + k * 16 + 2 * x_);
      w[i].y = *reinterpret_cast<const uint32_t*>(from + k * 16 + 2 * x_ + 8);
    }
#pragma unroll
    for (int i = 0; i < kOwn; i++) {
      const int piece = warp_ + i * kWarps;
      if (piece < kPieces) s_.q[piece / C::kNt][piece % C::kNt][lane_] = w[i];
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
    consumers_sync();
  }

  __device__ void scores(const Phase& phase) {
    constexpr int kStageGroups = C::kKeys / kGroupKeys, kStagesPerRound = kWarps / kStageGroups;
    const int mine = phase.origin + rank_ * C::kKeysPerCta;
    const uint32_t box_bytes = static_cast<uint32_t>(params_.box_rows * C::kDim * 2);
    const int group_row = warp_ % kStageGroups * kGroupKeys;  // of the warp's keys in their stage
    const uint32_t fragment_row = static_cast<uint32_t>((group_row & (params_.box_rows - 1)) + lane_ % 16);
    const uint32_t fragment_box = static_cast<uint32_t>(group_row >> params_.box_shift) * box_bytes;
    const uint32_t chunk_bytes = static_cast<uint32_t>(params_.box_rows * C::kKChunk * 2);
    const Rounds rounds = rounds_of(phase);
#pragma unroll 1
    for (int j = rounds.first; j < rounds.past; j++) {
      float c[C::kNt][4] = {};
#pragma unroll 1
      for (int sub = 0; sub < kStagesPerRound; sub++) {
        const int start = mine + (j * kStagesPerRound + sub) * C::kKeys;
        if (start + C::kKeys <= phase.begin || start >= phase.end) continue;
        hopper::mbarrier_wait(&s_.full[ring_.stage], ring_.phase);
        if (sub == warp_ / kStageGroups) {
          const uint32_t base = hopper::shared_address(s_.ring[ring_.stage]) + fragment_box;
          constexpr int kSteps = C::kKChunk / 16, kBatch = C::kDim / 16 < 8 ? C::kDim / 16 : 8;
#pragma unroll
          for (int first = 0; first < C::kDim / 16; first += kBatch) {
            uint32_t a[kBatch][4];
#pragma unroll
            for (int k = 0; k < kBatch; k++) {
              const int step = first + k;
              hopper::ldmatrix_x4(
                  a[k],
                  base + static_cast<uint32_t>(step / kSteps) * chunk_bytes +
                      swizzled<C::kKChunk>(fragment_row, static_cast<uint32_t>(step % kSteps * 32 + lane_ / 16 * 16)));
            }
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
      const int group_start = mine + (j * kWarps + warp_) * kGroupKeys, key = group_start + g_;
      const bool all = group_start >= seen_lo_ && group_start + 15 <= seen_hi_;
#pragma unroll
      for (int n = 0; n < C::kNt; n++) {
        if (params_.score.inner > 0.0f) {
          const float4 capped = capped_scores(params_.score, make_float4(c[n][0], c[n][1], c[n][2], c[n][3]));
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
        if (g_ < 2) s_.warp_max[warp_][j][n * 8 + 2 * x_ + g_] = m;
        reinterpret_cast<float4*>(s_.tiles[group_of(j)][n])[lane_] = make_float4(c[n][0], c[n][1], c[n][2], c[n][3]);
      }
    }
  }

  // The largest score of each block, to all CTAs.
  __device__ void block_maxima() {
    constexpr int kOwn = C::kBlocks / C::kCluster;
    if constexpr (C::kCluster > 1) {
      if (tid_ == 0) hopper::mbarrier_arrive_expect(&s_.exchange[0], sizeof(s_.block_max));
    }
    for (int i = tid_; i < kOwn * C::kRows; i += kConsumers) {
      const int block = i / C::kRows, row = i % C::kRows;
      float m = minus_inf();
#pragma unroll
      for (int w = 0; w < kWarps; w++) {
#pragma unroll
        for (int j = 0; j < C::kBlockRounds; j++) m = fmaxf(m, s_.warp_max[w][block * C::kBlockRounds + j][row]);
      }
      float* to = &s_.block_max[rank_ * kOwn + block][row];
      if constexpr (C::kCluster == 1) {
        *to = m;
      } else {
#pragma unroll
        for (uint32_t r = 0; r < C::kCluster; r++) hopper::store_async_f32(to, m, &s_.exchange[0], r);
      }
    }
    if constexpr (C::kCluster == 1) {
      consumers_sync();
    } else {
      hopper::mbarrier_wait_cluster(&s_.exchange[0], parity_);
    }
  }

  // This CTA's P and u to the others.
  __device__ void exchange_probabilities() {
    if constexpr (C::kCluster == 1) {
      consumers_sync();
    } else {
      constexpr uint32_t kBytes = sizeof(s_.tiles) / C::kCluster;
      hopper::fence_async_proxy();
      consumers_sync();
      if (tid_ == 0) {
        hopper::mbarrier_arrive_expect(&s_.exchange[1], kBytes * (C::kCluster - 1));
        const void* mine = s_.tiles[rank_ * (C::kKeysPerCta / kGroupKeys)];
        for (uint32_t i = 1; i < C::kCluster; i++) {
          hopper::copy_to_cta(mine, kBytes, &s_.exchange[1], (static_cast<uint32_t>(rank_) + i) % C::kCluster);
        }
      }
      hopper::mbarrier_wait_cluster(&s_.exchange[1], parity_);
    }
  }

  __device__ void grow(int block) {
#pragma unroll
    for (int n = 0; n < C::kNt; n++) {
      const float2 m = *reinterpret_cast<const float2*>(&s_.block_max[block][n * 8 + 2 * x_]);
      const float a0 = attention_grow(r_[n][0], m.x, params_.score.factor);
      const float a1 = attention_grow(r_[n][1], m.y, params_.score.factor);
      if (tid_ < 4) *reinterpret_cast<float2*>(&s_.alpha[block][n * 8 + 2 * x_]) = make_float2(a0, a1);
    }
  }

  __device__ void probabilities(const Phase& phase) {
    constexpr int kOwn = C::kBlocks / C::kCluster;
    // Blocks without keys leave everything as it is.
    const int first_block = (phase.begin - phase.origin) / C::kBlock;
    const int past_block = (phase.end - phase.origin + C::kBlock - 1) / C::kBlock;
    if constexpr (C::kCluster > 1) {
#pragma unroll 1
      for (int b = first_block; b < min(rank_ * kOwn, past_block); b++) grow(b);
    }
    const Rounds rounds = rounds_of(phase);
#pragma unroll 1
    for (int j = rounds.first; j < rounds.past; j++) {
      if (j % C::kBlockRounds == 0) grow(rank_ * kOwn + j / C::kBlockRounds);
      const int start = phase.origin + group_of(j) * kGroupKeys;
      if (start + 15 < phase.begin || start >= phase.end) continue;
#pragma unroll
      for (int n = 0; n < C::kNt; n++) {
        uint8_t* tile = s_.tiles[group_of(j)][n];
        const float4 c = reinterpret_cast<const float4*>(tile)[lane_];
        float p[4] = {c.x, c.y, c.z, c.w};
        __syncwarp();  // P goes where the scores were
#pragma unroll
        for (int i = 0; i < 4; i++) p[i] = ex2(__fmaf_rn(p[i], params_.score.factor, minus_r(n, i % 2)));
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
    if constexpr (C::kCluster > 1) {
#pragma unroll 1
      for (int b = max(first_block, (rank_ + 1) * kOwn); b < past_block; b++) grow(b);
    }
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
    const int q = n * 8 + 2 * x_ + (g_ & 1);
    const int first = (phase.begin - phase.origin) / kGroupKeys, past = (phase.end - phase.origin + 15) / kGroupKeys;
    constexpr int kBlockGroups = C::kBlock / kGroupKeys;
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
  }

  __device__ void total_sums() {
    const int n = kWarps - 1 - warp_;
    if (n >= C::kNt) return;
    const float pair = __fadd_rn(l_, __shfl_xor_sync(~0u, l_, 8));
    const float total = __fadd_rn(pair, __shfl_xor_sync(~0u, pair, 16));
    if (g_ < 2) s_.l[n * 8 + 2 * x_ + (g_ & 1)] = total;
  }

  // P·V of kBatch groups: what a warp multiplies while it loads the next.
  static constexpr int kBatch = C::kValues / kGroupKeys < 4 ? C::kValues / kGroupKeys : 4,
                       kBatchKeys = kBatch * kGroupKeys;
  struct Batch {
    uint32_t v[C::kWarpTiles][kBatch][4];
    uint32_t p[kBatch][C::kNt][2];
  };

  __device__ void values(const Phase& phase) {
    if (warp_ >= C::kTiles) {
      // The ring turns by what the others take; they must not be overtaken.
      const int first = (phase.begin - phase.origin) / C::kValues,
                past = (phase.end - phase.origin + C::kValues - 1) / C::kValues;
      ring_.template advance<kStages>(past - first);
    } else {
      const int past = phase.end - phase.origin;
      int key = (phase.begin - phase.origin) / kBatchKeys * kBatchKeys;
      Batch even, odd;
      bool waited = false;
      load_batch(phase, key, waited, even);
#pragma unroll 1
      for (; key < past; key += 2 * kBatchKeys) {
        if (key + kBatchKeys < past) load_batch(phase, key + kBatchKeys, waited, odd);
        multiply(phase, key, even);
        if (key + kBatchKeys >= past) break;
        if (key + 2 * kBatchKeys < past) load_batch(phase, key + 2 * kBatchKeys, waited, even);
        multiply(phase, key + kBatchKeys, odd);
      }
    }
    if constexpr (C::kTiles < kWarps) consumers_sync();
  }

  // `key` counts from the phase's origin. Waits for a stage at its first batch and gives it back at its last.
  __device__ void load_batch(const Phase& phase, int key, bool& waited, Batch& b) {
    if (!waited) hopper::mbarrier_wait(&s_.full[ring_.stage], ring_.phase);
    waited = true;
    // ldmatrix rows of P: two groups of one query tile, or one group of two.
    const uint32_t p_base = hopper::shared_address(s_.tiles[key / kGroupKeys][0]) +
                            static_cast<uint32_t>(lane_ / 16 * C::kTileBytes) + p_offset(lane_ % 8, lane_ / 8 % 2);
    load_probabilities(b.p, p_base);
    const uint32_t base = hopper::shared_address(s_.ring[ring_.stage]);
    const int box_mask = params_.box_rows - 1;
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int at = key % C::kValues + i * kGroupKeys;
      const uint32_t group =
          base + static_cast<uint32_t>((at & ~box_mask) * C::kColumns * 2 + (at & box_mask) * C::kVChunk * 2);
#pragma unroll
      for (int t = 0; t < C::kWarpTiles; t++) hopper::ldmatrix_x4_trans(b.v[t][i], group + v_lane_[t]);
    }
    if ((key + kBatchKeys) % C::kValues != 0 && phase.origin + key + kBatchKeys < phase.end) return;
    if (lane_ == 0) hopper::mbarrier_arrive_count(&s_.empty[ring_.stage], kValueArrivals);
    ring_.template advance<kStages>();
    waited = false;
  }

  __device__ void multiply(const Phase& phase, int key, Batch& b) {
    if (key % C::kBlock == 0) rescale(key / C::kBlock);
    const int at = phase.origin + key;
    if (at < phase.begin || at + kBatchKeys > phase.end) return multiply_part(phase, at, b);
#pragma unroll
    for (int i = 0; i < kBatch; i++) multiply_group(b, i);
  }

  __device__ void multiply_group(const Batch& b, int i) {
#pragma unroll
    for (int t = 0; t < C::kWarpTiles; t++) {
#pragma unroll
      for (int n = 0; n < C::kNt; n++) hopper::mma_m16n8k16<C::kF16>(o_[t][n], b.v[t][i], b.p[i][n][0], b.p[i][n][1]);
    }
  }

  // Where the phase ends or begins within the batch, whose first key is `at`.
  __device__ void multiply_part(const Phase& phase, int at, Batch& b) {
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int group = at + i * kGroupKeys;
      if (group < phase.begin || group >= phase.end) continue;
      if (group + 16 > phase.end) {
#pragma unroll
        for (int t = 0; t < C::kWarpTiles; t++) clear_absent(b.v[t][i], phase.end - group);
      }
      multiply_group(b, i);
    }
  }

  static __device__ void load_probabilities(uint32_t (&p)[kBatch][C::kNt][2], uint32_t address) {
    constexpr int kStep = C::kNt == 1 ? 2 : 1;  // groups a load
#pragma unroll
    for (int i = 0; i < kBatch; i += kStep) {
      uint32_t r[4];
      hopper::ldmatrix_x4(r, address + static_cast<uint32_t>(i * C::kNt * C::kTileBytes));
      p[i][0][0] = r[0], p[i][0][1] = r[1];
      p[i + kStep - 1][C::kNt - 1][0] = r[2], p[i + kStep - 1][C::kNt - 1][1] = r[3];
    }
  }

  // Keys from `past` on of a group hold anything, NaN too.
  __device__ void clear_absent(uint32_t (&v)[4], int past) const {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int key = 2 * x_ + i / 2 * 8;
      if (key >= past) v[i] = 0;
      if (key + 1 >= past) v[i] &= 0xffff;
    }
  }

  __device__ void rescale(int block) {
#pragma unroll
    for (int n = 0; n < C::kNt; n++) {
      const float2 alpha = *reinterpret_cast<const float2*>(&s_.alpha[block][n * 8 + 2 * x_]);
#pragma unroll
      for (int t = 0; t < C::kWarpTiles; t++) {
        o_[t][n][0] = __fmul_rn(o_[t][n][0], alpha.x), o_[t][n][1] = __fmul_rn(o_[t][n][1], alpha.y);
        o_[t][n][2] = __fmul_rn(o_[t][n][2], alpha.x), o_[t][n][3] = __fmul_rn(o_[t][n][3], alpha.y);
      }
    }
  }

  // 1/l with the sink; 0 for a row that saw nothing.
  __device__ float inverse(int q, float l, float r) const {
    if (r == minus_inf()) return 0.0f;
    if (a_.sinks != nullptr) l = attention_sink(l, a_.sinks[s_.row[q].head], r);
    return __fdiv_rn(1.0f, l);
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
        const int q = n * 8 + 2 * x_ + i, first_column = rank_ * C::kColumns + warp_ * 16 + g_;
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
      f(t * kWarps * 16 + 8, o_[t][n][2 + i]);
    }
  }

  // The CTA that finishes a request's tile last folds its super-blocks, each rank its own columns, four a thread.
  __device__ void fold_if_last(const Unit& unit) {
    uint32_t* counter = params_.counters + static_cast<int64_t>(unit.first_unit) * C::kCluster + rank_;
    consumers_sync();
    if (tid_ == 0) {
      s_.last = hopper::add_acq_rel(counter, 1) == static_cast<uint32_t>(unit.supers - 1);
      if (s_.last) *counter = 0;
    }
    consumers_sync();
    if (!s_.last) return;
    const int slice = tiles_of(unit.added, group_, C::kRows) * a_.cache.kv_heads;
    for (int i = tid_; i < C::kRows * (C::kColumns / 4); i += kConsumers) {
      const int q = i / (C::kColumns / 4), column = rank_ * C::kColumns + i % (C::kColumns / 4) * 4;
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

  Shared<C>& s_;
  const DecodeParams& params_;
  const AttentionArgs& a_;
  const int group_, rank_;
  const int tid_ = static_cast<int>(threadIdx.x), warp_ = tid_ / 32, lane_ = tid_ % 32, g_ = lane_ / 4, x_ = lane_ % 4;
  Ring ring_;
  uint32_t parity_ = 0;             // of the exchanges
  int seen_lo_, seen_hi_;           // keys that all the thread's rows see; none with a mask
  uint32_t v_lane_[C::kWarpTiles];  // the lane's offset in a group of V
  float l_;                         // row_sums
  float r_[C::kNt][2];
  float o_[C::kWarpTiles][C::kNt][4];
};

template <typename C>
__global__ void __launch_bounds__(kThreads, C::kMinCtas) attention_decode(const __grid_constant__ DecodeParams params) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared<C>& s = *reinterpret_cast<Shared<C>*>(raw);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const AttentionArgs& a = params.args;
  const int group = a.q_heads / a.cache.kv_heads;
  hopper::launch_dependents();
  if (warp == kWarps && lane == 0) {
    hopper::prefetch_tensor_map(&params.k);
    hopper::prefetch_tensor_map(&params.v);
    for (int i = 0; i < Shared<C>::kStages; i++) {
      hopper::mbarrier_init(&s.full[i], 1);
      hopper::mbarrier_init(&s.empty[i], kWarps);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      hopper::mbarrier_init(&s.unit_full[i], 1);
      hopper::mbarrier_init(&s.unit_empty[i], 1);
      hopper::mbarrier_init(&s.exchange[i], 1);
    }
    hopper::mbarrier_init_fence();
  }
  if (warp == 0) count_units(a, group, C::kRows, s.unit_start);
  int rank = 0;
  if constexpr (C::kCluster > 1) {
    rank = static_cast<int>(hopper::cluster_rank());
    hopper::cluster_sync();
  }
  __syncthreads();
  if (warp == kWarps) {
    const int clusters = static_cast<int>(gridDim.x) / C::kCluster, first = static_cast<int>(blockIdx.x) / C::kCluster;
    Producer<C> producer(s, params, group, rank);
    producer.run(clusters, first, s.unit_start[a.requests]);
  } else {
    Consumer<C> consumer(s, params, group, rank);
    consumer.run();
  }
  if constexpr (C::kCluster > 1) {
    __syncwarp();
    hopper::cluster_sync();  // what this CTA sent has been read
  }
}

// Of the device's pointers and the plan's numbers, what the kernel needs; shared with attention_decode.cu.
template <typename C>
void launch_config(const AttentionArgs& args, int units, const KernelContext& context) {
  const KvCacheView& cache = args.cache;
  const int page_rows = cache.page_size & -cache.page_size;  // largest power of two that divides a page
  DecodeParams params = {};
  params.args = args;
  params.score = score_scale(args);
  params.box_rows = std::min({page_rows, C::kKeys, C::kValues, 256});
  while ((1 << params.box_shift) < params.box_rows) params.box_shift++;
  params.counters = context.counters;
  params.tickets = context.counters == nullptr ? nullptr : context.counters + kCounters - kAttentionTickets;
  params.partial_o = static_cast<float*>(context.workspace);
  params.partial_rl = params.partial_o + static_cast<int64_t>(units) * C::kRows * C::kDim;
  const auto map = [&](const void* base, int chunk, int columns, int box_rows) {
    const uint64_t dims[3] = {static_cast<uint64_t>(chunk),
                              static_cast<uint64_t>(cache.pages) * cache.kv_heads * cache.page_size,
                              static_cast<uint64_t>(C::kDim / chunk)};
    const uint64_t strides[2] = {C::kDim * 2, static_cast<uint64_t>(chunk) * 2};
    const uint32_t box[3] = {static_cast<uint32_t>(chunk), static_cast<uint32_t>(box_rows),
                             static_cast<uint32_t>(columns / chunk)};
    return tensor_map(C::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, base, dims,
                      strides, box,
                      chunk == 64   ? CU_TENSOR_MAP_SWIZZLE_128B
                      : chunk == 32 ? CU_TENSOR_MAP_SWIZZLE_64B
                                    : CU_TENSOR_MAP_SWIZZLE_32B);
  };
  params.k = map(cache.k, C::kKChunk, C::kDim, params.box_rows);
  params.v = map(cache.v, C::kVChunk, C::kColumns, params.box_rows);
  const int resident = context.sm_count * C::kMinCtas / C::kCluster;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>((units < resident ? units : resident) * C::kCluster));
  shape.block = kThreads;
  shape.cluster = dim3(C::kCluster);
  shape.shared_bytes = sizeof(Shared<C>);
  allow_shared_memory("attention_decode", attention_decode<C>, shape.shared_bytes);
  launch("attention_decode", attention_decode<C>, shape, context.stream, params);
}

}  // namespace decode
}  // namespace isobit::cuda
