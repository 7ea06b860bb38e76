#pragma once
// Decode and verify: few queries a request, so the time is that of reading K and V once. docs/operators.md has the
// arithmetic of the design.
//
// A unit is (request, KV head, tile of up to 16 rows, super-block); a row is one query of one head. A cluster of
// kCluster CTAs does a unit; CTAs are persistent and take unit after unit. Keys are the M side of mma.sync, queries its
// N side (8 or 16), so that a fragment of K or V is loaded once for all rows. Within a unit:
//   1. the keys of the super-block are shared out to the CTAs and, 16 at a time, to warps; scores stay in registers;
//   2. every block's largest score goes to all CTAs (exchange 1);
//   3. every thread walks R over the blocks, turns its scores into probabilities, and sends them, rounded, and the
//      row sums' u to all CTAs (exchange 2);
//   4. P·V is shared out by columns: CTA, then 16 columns a warp; each is one chain over the super-block's keys.
// One producer warp streams K, then V, then the next unit's K through a ring, so the memory never waits for 2 and 3.
// A request of several super-blocks leaves partial results in the workspace; the CTA that comes last folds them in
// ascending order.
#include <algorithm>

#include "ops/cuda/attention_device.cuh"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/mma.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/hopper/registers.h"
#include "ops/cuda/hopper/tma.h"
#include "ops/cuda/launch.h"

namespace isobit::cuda {

struct DecodeParams {
  CUtensorMap k, v;
  AttentionArgs args;
  ScoreScale score;
  int box_rows;  // keys of a copy: 1 << box_shift
  int box_shift;
  float* partial_o;   // [units, rows, head_dim]
  float* partial_rl;  // [units, rows, 2]
  uint32_t* counters;
};

namespace decode {

constexpr int kSuper = numerics::kAttentionSuperBlock, kGroupKeys = 16;
constexpr int kWarps = 8, kConsumers = kWarps * 32;
constexpr int kThreads = kConsumers + 128;  // registers are dealt out by warpgroup, so the producer has one
constexpr int kStageBytes = 16384;

constexpr int floor_power_of_two(int x) {
  int p = 1;
  while (p * 2 <= x) p *= 2;
  return p;
}

template <int kHeadDim, int kQueryTiles, int kClusterSize, bool kHalf>
struct Config {
  static constexpr int kDim = kHeadDim, kNt = kQueryTiles, kCluster = kClusterSize, kRows = 8 * kNt;
  static constexpr bool kF16 = kHalf;
  static constexpr int kBlock = numerics::attention_block(kDim), kBlocks = kSuper / kBlock;
  static constexpr int kKChunk = kDim % 64 == 0 ? 64 : 32;  // columns of a swizzled row of K
  static constexpr int kKeys = floor_power_of_two(kStageBytes / (2 * kDim));
  static constexpr int kColumns = kDim / kCluster;  // of V, for this CTA
  static constexpr int kVChunk = kColumns % 64 == 0 ? 64 : kColumns % 32 == 0 ? 32 : 16;
  static constexpr int kValues = floor_power_of_two(kStageBytes / (2 * kColumns));
  static constexpr int kTiles = kColumns / 16, kWarpTiles = (kTiles + kWarps - 1) / kWarps;
  static constexpr int kKeysPerCta = kSuper / kCluster, kWarpGroups = kKeysPerCta / kGroupKeys / kWarps;
  static constexpr int kMinCtas = kCluster > 1 && kNt == 1 ? 2 : 1;
  // kThreads·168 (80 with two CTAs a SM) at launch, dealt out anew.
  static constexpr int kConsumerRegisters = kMinCtas == 2 ? 104 : 232, kProducerRegisters = kMinCtas == 2 ? 32 : 40;
  static constexpr int kStages = kMinCtas == 2 ? 3 : kNt == 1 ? 9 : kCluster == 1 ? 5 : 7;
  static_assert(kColumns % 16 == 0 && kWarpGroups >= 1);
  // A group's place in shared memory, for 8 queries: P (8 × 16, 256 bytes) and u (128 bytes). Where a CTA does a whole
  // super-block the scores lie there first, 16 bytes a lane, and the loop over groups is not unrolled: 16 copies of its
  // body would be fetched anew for every unit. In a cluster they are few and stay in registers.
  static constexpr bool kScoresInShared = kCluster == 1;
  static constexpr int kTileBytes = kScoresInShared ? 512 : 384;
  static constexpr int kUnroll = kScoresInShared ? 1 : kWarpGroups;
};

template <typename C>
struct Shared {
  uint8_t ring[C::kStages][kStageBytes];
  uint8_t tiles[kSuper / kGroupKeys][C::kNt][C::kTileBytes];
  float warp_max[kWarps][C::kWarpGroups][C::kRows];
  float block_max[C::kBlocks][C::kRows];
  float alpha[C::kBlocks][C::kRows];
  float l[C::kRows];
  uint64_t full[C::kStages], empty[C::kStages], exchange[2];
  int32_t last;
  int32_t requests[1];  // Requests' arrays
};

// What is known of the requests, in shared memory: query_start, kv_len and unit_start[b], the units of the requests
// before b; requests of many rows have none.
struct Requests {
  int32_t *query_start, *unit_start, *kv_len;
  __device__ Requests(int32_t* base, int count)
      : query_start(base), unit_start(base + count + 1), kv_len(base + 2 * count + 2) {}
  static size_t bytes(int count) { return (3 * static_cast<size_t>(count) + 2) * sizeof(int32_t); }
};

// Byte offset, within a box of `chunk_columns`-wide rows, after the copy engine's swizzle.
template <int kChunk>
__device__ inline uint32_t swizzled(uint32_t row, uint32_t inner_bytes) {
  if constexpr (kChunk == 64) return row * 128 + (inner_bytes ^ ((row & 7) << 4));
  if constexpr (kChunk == 32) return row * 64 + (inner_bytes ^ (((row >> 1) & 3) << 4));
  return row * 32 + (inner_bytes ^ (((row >> 2) & 1) << 4));
}

struct Unit {
  int request, head, tile, super;       // super: absolute number of the super-block
  int query_start, added, kv_len;       // of the request
  int lo, end;                          // keys that some row of the tile may see
  int supers, first_super, first_unit;  // of the request; first_unit: of this head and tile
  int keys_begin, keys_end;             // of this super-block: begin a multiple of 16
};

__device__ inline int tiles_of(int added, int group, int rows) { return (added * group + rows - 1) / rows; }

__device__ inline int first_key(const AttentionArgs& a, int position) {
  return a.window > 0 ? max(0, position - a.window + 1) : 0;
}

__device__ inline int supers_of(const AttentionArgs& a, int kv_len, int added) {
  if (kv_len <= 0) return 1;
  return (kv_len - 1) / kSuper - first_key(a, kv_len - added) / kSuper + 1;
}

// Fills `to`. By one warp.
__device__ inline void count_units(const AttentionArgs& a, int group, int rows, const Requests& to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int before = 0;
  if (lane == 0) to.unit_start[0] = 0;
  for (int first = 0; first < a.requests; first += 32) {
    const int b = first + lane;
    int sum = 0;
    if (b < a.requests) {
      const int start = a.query_start[b], added = a.query_start[b + 1] - start, kv_len = a.kv_len[b];
      if (added * group <= kAttentionDecodeRows) {
        sum = tiles_of(added, group, rows) * a.cache.kv_heads * supers_of(a, kv_len, added);
      }
      to.query_start[b] = start;
      to.query_start[b + 1] = start + added;
      to.kv_len[b] = kv_len;
    }
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    if (b < a.requests) to.unit_start[b + 1] = before + sum;
    before += __shfl_sync(~0u, sum, 31);
  }
}

__device__ inline Unit find_unit(const AttentionArgs& a, int group, int rows, const Requests& requests, int index) {
  int low = 0, high = a.requests;  // the last request that starts at or before index
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (requests.unit_start[middle] <= index ? low : high) = middle;
  }
  Unit u;
  u.request = low;
  u.query_start = requests.query_start[low];
  u.added = requests.query_start[low + 1] - u.query_start;
  u.kv_len = requests.kv_len[low];
  const int prefix = u.kv_len - u.added, tiles = tiles_of(u.added, group, rows), slice = tiles * a.cache.kv_heads;
  const int rest = index - requests.unit_start[low];
  u.supers = supers_of(a, u.kv_len, u.added);
  u.first_super = u.kv_len <= 0 ? 0 : first_key(a, prefix) / kSuper;
  u.super = u.first_super + rest / slice;
  u.first_unit = requests.unit_start[low] + rest % slice;
  u.tile = rest % slice % tiles;
  u.head = rest % slice / tiles;
  const int last_row = min(u.added * group, (u.tile + 1) * rows) - 1;
  u.lo = first_key(a, prefix + u.tile * rows / group);
  u.end = a.causal ? prefix + last_row / group + 1 : u.kv_len;
  u.keys_begin = max(u.super * kSuper, u.lo / kGroupKeys * kGroupKeys);
  u.keys_end = u.kv_len <= 0 ? u.keys_begin : min((u.super + 1) * kSuper, u.end);
  return u;
}

struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  template <int kStages>
  __device__ void advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// Starting a copy takes a warp a while, so kProducers warps share them: box i of a super-block is warp i mod
// kProducers', whose lane i / kProducers knows its row in the cache.
constexpr int kProducers = 4;

template <typename C>
__device__ inline void produce(Shared<C>& s, const DecodeParams& params, int group, int rank, int clusters, int first,
                               int total, int producer) {
  const AttentionArgs& a = params.args;
  const int lane = static_cast<int>(threadIdx.x) % 32, page_size = a.cache.page_size, box_rows = params.box_rows;
  const int box_shift = params.box_shift;
  const uint64_t policy = hopper::evict_first_policy();
  Ring ring;
  for (int index = first; index < total; index += clusters) {
    const Unit unit = find_unit(a, group, C::kRows, Requests(s.requests, a.requests), index);
    if (unit.keys_begin >= unit.keys_end) continue;
    const int origin = unit.super * kSuper;
    const int position = origin + ((lane * kProducers + producer) << box_shift);
    int row = 0;
    if (position < unit.keys_end && position + box_rows > unit.keys_begin) {
      const int page = a.page_table[static_cast<int64_t>(unit.request) * a.table_stride + position / page_size];
      row = (page * a.cache.kv_heads + unit.head) * page_size + position % page_size;
    }
    // Boxes of `keys` keys from `start` that meet the unit's keys.
    const auto load_stage = [&](const CUtensorMap* map, int start, int keys, int row_bytes, int z) {
      const int low = max(unit.keys_begin, start) - origin, high = min(unit.keys_end, start + keys) - origin;
      const int begin = low >> box_shift, end = (high + box_rows - 1) >> box_shift;
      hopper::mbarrier_wait(&s.empty[ring.stage], ring.phase ^ 1);
      if (lane == 0 && producer == 0) {
        hopper::mbarrier_arrive_expect(&s.full[ring.stage],
                                       static_cast<uint32_t>(((end - begin) << box_shift) * row_bytes));
      }
      for (int box = begin + ((producer - begin) & (kProducers - 1)); box < end; box += kProducers) {
        const int box_row = __shfl_sync(~0u, row, box / kProducers);
        const int offset = ((box << box_shift) - (start - origin)) * row_bytes;
        if (lane == 0)
          hopper::tma_load_3d(s.ring[ring.stage] + offset, map, &s.full[ring.stage], 0, box_row, z, policy);
      }
      ring.advance<C::kStages>();
    };
    const int mine = origin + rank * C::kKeysPerCta;
    for (int start = mine; start < mine + C::kKeysPerCta; start += C::kKeys) {
      if (start + C::kKeys <= unit.keys_begin || start >= unit.keys_end) continue;
      load_stage(&params.k, start, C::kKeys, C::kDim * 2, 0);
    }
    for (int start = origin; start < origin + kSuper; start += C::kValues) {
      if (start + C::kValues <= unit.keys_begin || start >= unit.keys_end) continue;
      load_stage(&params.v, start, C::kValues, C::kColumns * 2, rank * (C::kColumns / C::kVChunk));
    }
  }
}

__device__ inline void consumers_sync() { hopper::named_barrier_sync(1, kConsumers); }

// Ends an exchange: all consumer warps of all CTAs of the cluster have come here, and what they stored before is
// visible.
template <typename C>
__device__ inline void exchange_done(Shared<C>& s, int which, uint32_t parity) {
  if constexpr (C::kCluster == 1) {
    consumers_sync();
  } else {
    __syncwarp();
    const uint32_t lane = threadIdx.x % 32;
    if (lane < C::kCluster) hopper::mbarrier_arrive_remote(&s.exchange[which], lane);
    hopper::mbarrier_wait_cluster(&s.exchange[which], parity);
  }
}

// To the same place in every CTA of the cluster.
template <int kCluster, typename T>
__device__ inline void store_everywhere(T* to, T value) {
  static_assert(sizeof(T) == 4);
  if constexpr (kCluster == 1) {
    *to = value;
  } else {
    const uint32_t address = hopper::shared_address(to);
    float f;
    memcpy(&f, &value, 4);
#pragma unroll
    for (uint32_t r = 0; r < kCluster; r++) hopper::store_cluster_f32(hopper::map_shared(address, r), f);
  }
}

// What this thread's two queries a tile (2x and 2x + 1) may see.
struct QueryRange {
  int lo, hi;  // keys lo..hi; an absent row has hi = -1
  const uint64_t* mask;
};

__device__ inline bool allowed(const QueryRange& q, int key) {
  if (key < q.lo || key > q.hi) return false;
  return q.mask == nullptr || ((q.mask[key / 64] >> (key % 64)) & 1) != 0;
}

template <typename C>
class Consumer {
 public:
  __device__ Consumer(Shared<C>& shared, const DecodeParams& params, int group, int rank)
      : s_(shared), params_(params), a_(params.args), group_(group), rank_(rank) {}

  __device__ void run(int clusters, int first, int total) {
    uint32_t parity = 0;
    for (int index = first; index < total; index += clusters) {
      const Unit unit = find_unit(a_, group_, C::kRows, Requests(s_.requests, a_.requests), index);
#pragma unroll
      for (int n = 0; n < C::kNt; n++) r_[n][0] = r_[n][1] = minus_inf();
      if (unit.keys_begin < unit.keys_end) {
        scores(unit);
        block_maxima();
        exchange_done<C>(s_, 0, parity);
        probabilities(unit);
        exchange_done<C>(s_, 1, parity);
        parity ^= 1;
        row_sums(unit);
        values(unit);
        consumers_sync();
      } else {
#pragma unroll
        for (int t = 0; t < C::kWarpTiles; t++) {
#pragma unroll
          for (int n = 0; n < C::kNt; n++) o_[t][n][0] = o_[t][n][1] = o_[t][n][2] = o_[t][n][3] = 0.0f;
        }
      }
      store(unit, index);
    }
  }

 private:
  __device__ int row_of(const Unit& unit, int q) const { return unit.tile * C::kRows + q; }
  __device__ bool present(const Unit& unit, int q) const { return row_of(unit, q) < unit.added * group_; }
  __device__ int token_of(const Unit& unit, int q) const { return unit.query_start + row_of(unit, q) / group_; }
  __device__ int head_of(const Unit& unit, int q) const { return unit.head * group_ + row_of(unit, q) % group_; }

  __device__ QueryRange range_of(const Unit& unit, int q) const {
    if (!present(unit, q)) return {0, -1, nullptr};
    const int position = unit.kv_len - unit.added + row_of(unit, q) / group_;
    return {first_key(a_, position), a_.causal ? position : unit.kv_len - 1,
            a_.mask == nullptr ? nullptr : a_.mask + static_cast<int64_t>(token_of(unit, q)) * a_.mask_stride};
  }

  // Rounds of 128 keys of this CTA's share that hold keys of the unit; the others are not touched.
  struct Rounds {
    int first, past;
  };
  __device__ Rounds rounds_of(const Unit& unit) const {
    const int mine = unit.super * kSuper + rank_ * C::kKeysPerCta;
    return {max(0, unit.keys_begin - mine) / 128, min(max(0, unit.keys_end - mine + 127) / 128, C::kWarpGroups)};
  }

  __device__ void scores(const Unit& unit) {
    uint32_t q[C::kNt][C::kDim / 16][2];
    QueryRange range[C::kNt][2];
    bool masked = false;
    int seen_lo = 0, seen_hi = 1 << 30;  // keys that all rows see
#pragma unroll
    for (int n = 0; n < C::kNt; n++) {
      const bool here = present(unit, n * 8 + g_);
      const uint16_t* from = a_.q;
      if (here)
        from += (static_cast<int64_t>(token_of(unit, n * 8 + g_)) * a_.q_heads + head_of(unit, n * 8 + g_)) * C::kDim;
#pragma unroll
      for (int k = 0; k < C::kDim / 16; k++) {
        q[n][k][0] = here ? *reinterpret_cast<const uint32_t*>(from + k * 16 + 2 * x_) : 0;
        q[n][k][1] = here ? *reinterpret_cast<const uint32_t*>(from + k * 16 + 2 * x_ + 8) : 0;
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        range[n][i] = range_of(unit, n * 8 + 2 * x_ + i);
        masked |= range[n][i].mask != nullptr;
        if (range[n][i].hi >= 0) seen_lo = max(seen_lo, range[n][i].lo), seen_hi = min(seen_hi, range[n][i].hi);
      }
    }
    constexpr int kStageGroups = C::kKeys / kGroupKeys, kStagesPerRound = kWarps / kStageGroups;
    const int mine = unit.super * kSuper + rank_ * C::kKeysPerCta;
    const uint32_t box_bytes = static_cast<uint32_t>(params_.box_rows * C::kDim * 2);
    const int group_row = warp_ % kStageGroups * kGroupKeys;  // of the warp's keys in their stage
    const uint32_t fragment_row = static_cast<uint32_t>(group_row % params_.box_rows + lane_ % 16);
    const uint32_t fragment_box = static_cast<uint32_t>(group_row / params_.box_rows) * box_bytes;
    const uint32_t chunk_bytes = static_cast<uint32_t>(params_.box_rows * C::kKChunk * 2);
    const Rounds rounds = rounds_of(unit);
#pragma unroll C::kUnroll
    for (int j = C::kScoresInShared ? rounds.first : 0; j < (C::kScoresInShared ? rounds.past : C::kWarpGroups); j++) {
      if (!C::kScoresInShared && (j < rounds.first || j >= rounds.past)) continue;
      float c[C::kNt][4] = {};
#pragma unroll 1
      for (int sub = 0; sub < kStagesPerRound; sub++) {
        const int start = mine + (j * kStagesPerRound + sub) * C::kKeys;
        if (start + C::kKeys <= unit.keys_begin || start >= unit.keys_end) continue;
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
                hopper::mma_m16n8k16<C::kF16>(c[n], a[k], q[n][first + k][0], q[n][first + k][1]);
              }
            }
          }
        }
        release();
      }
      // Element i: key + 8·(i / 2), query 2x + i % 2.
      const int group_start = mine + (j * kWarps + warp_) * kGroupKeys, key = group_start + g_;
      const bool all = !masked && group_start >= seen_lo && group_start + 15 <= seen_hi;
#pragma unroll
      for (int n = 0; n < C::kNt; n++) {
        if (params_.score.inner > 0.0f) {
#pragma unroll
          for (int i = 0; i < 4; i++) c[n][i] = capped_score(params_.score, c[n][i]);
        }
        if (!all) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            if (!allowed(range[n][i % 2], key + i / 2 * 8)) c[n][i] = minus_inf();
          }
        }
        // Largest of the 16 keys: lanes trade queries once, then reduce.
        const float even = fmaxf(c[n][0], c[n][2]), odd = fmaxf(c[n][1], c[n][3]);
        float m = fmaxf(odd_g() ? odd : even, __shfl_xor_sync(~0u, odd_g() ? even : odd, 4));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 8));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 16));
        if (g_ < 2) s_.warp_max[warp_][j][n * 8 + 2 * x_ + g_] = m;
        if constexpr (C::kScoresInShared) {
          reinterpret_cast<float4*>(s_.tiles[j * kWarps + warp_][n])[lane_] =
              make_float4(c[n][0], c[n][1], c[n][2], c[n][3]);
        } else {
#pragma unroll
          for (int i = 0; i < 4; i++) scores_[j][n][i] = c[n][i];
        }
      }
    }
  }

  __device__ void block_maxima() {
    consumers_sync();
    constexpr int kOwn = C::kBlocks / C::kCluster, kPerRound = 128 / C::kBlock;  // blocks of 8 groups
    for (int i = tid_; i < kOwn * C::kRows; i += kConsumers) {
      const int block = i / C::kRows, row = i % C::kRows, first = block % kPerRound * (kWarps / kPerRound);
      float m = minus_inf();
      for (int w = 0; w < kWarps / kPerRound; w++) m = fmaxf(m, s_.warp_max[first + w][block / kPerRound][row]);
      store_everywhere<C::kCluster>(&s_.block_max[rank_ * kOwn + block][row], m);
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

  __device__ void probabilities(const Unit& unit) {
    constexpr int kOwn = C::kBlocks / C::kCluster, kPerRound = 128 / C::kBlock;
    const int local = rank_ * C::kKeysPerCta, origin = unit.super * kSuper;
    // Blocks without keys leave everything as it is.
    const int first_block = (unit.keys_begin - origin) / C::kBlock;
    const int past_block = (unit.keys_end - origin + C::kBlock - 1) / C::kBlock;
    if constexpr (C::kCluster > 1) {
#pragma unroll 1
      for (int b = first_block; b < min(rank_ * kOwn, past_block); b++) grow(b);
    }
    const Rounds rounds = rounds_of(unit);
#pragma unroll C::kUnroll
    for (int j = C::kScoresInShared ? rounds.first : 0; j < (C::kScoresInShared ? rounds.past : C::kWarpGroups); j++) {
      if (!C::kScoresInShared && (j < rounds.first || j >= rounds.past)) continue;
      float r[C::kNt][2];
#pragma unroll
      for (int h = 0; h < kPerRound; h++) {
        grow(rank_ * kOwn + j * kPerRound + h);
#pragma unroll
        for (int n = 0; n < C::kNt; n++) {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            if (h == 0 || warp_ / (kWarps / kPerRound) == h) r[n][i] = r_[n][i] == minus_inf() ? 0.0f : -r_[n][i];
          }
        }
      }
      const int start = local + (j * kWarps + warp_) * kGroupKeys;
      if (origin + start + 15 < unit.keys_begin || origin + start >= unit.keys_end) continue;
#pragma unroll
      for (int n = 0; n < C::kNt; n++) {
        uint8_t* tile = s_.tiles[start / kGroupKeys][n];
        float p[4];
        if constexpr (C::kScoresInShared) {
          const float4 c = reinterpret_cast<const float4*>(tile)[lane_];
          p[0] = c.x, p[1] = c.y, p[2] = c.z, p[3] = c.w;
          __syncwarp();  // P goes where the scores were
        } else {
#pragma unroll
          for (int i = 0; i < 4; i++) p[i] = scores_[j][n][i];
        }
#pragma unroll
        for (int i = 0; i < 4; i++) p[i] = ex2(__fmaf_rn(p[i], params_.score.factor, r[n][i % 2]));
        // w = v[j] + v[j + 8] of queries 2x and 2x + 1; lanes trade, so that one adds w[2x'] + w[2x' + 1] of one query.
        const float even = __fadd_rn(p[0], p[2]), odd = __fadd_rn(p[1], p[3]);
        const float u = __fadd_rn(odd_g() ? odd : even, __shfl_xor_sync(~0u, odd_g() ? even : odd, 4));
        store_everywhere<C::kCluster>(reinterpret_cast<float*>(tile + 256) + lane_, u);
        // The same trade gives each lane two neighbouring keys of one query.
        const uint32_t top = round16x2<C::kF16>(p[0], p[1]), bottom = round16x2<C::kF16>(p[2], p[3]);
        const uint32_t other_top = __shfl_xor_sync(~0u, top, 4), other_bottom = __shfl_xor_sync(~0u, bottom, 4);
        const uint32_t first = odd_g() ? __byte_perm(other_top, top, 0x7632) : __byte_perm(top, other_top, 0x5410);
        const uint32_t second =
            odd_g() ? __byte_perm(other_bottom, bottom, 0x7632) : __byte_perm(bottom, other_bottom, 0x5410);
        const int query = 2 * x_ + (g_ & 1), pair = (g_ & ~1) * 2;
        store_everywhere<C::kCluster>(reinterpret_cast<uint32_t*>(tile + p_offset(query, 0) + pair), first);
        store_everywhere<C::kCluster>(reinterpret_cast<uint32_t*>(tile + p_offset(query, 1) + pair), second);
      }
    }
    if constexpr (C::kCluster > 1) {
#pragma unroll 1
      for (int b = max(first_block, (rank_ + 1) * kOwn); b < past_block; b++) grow(b);
    }
  }

  // Of a query's keys 8·half…: rows of 32 bytes, their halves swapped for queries 4 to 7, so that eight rows hit all
  // banks.
  static __device__ uint32_t p_offset(int query, int half) {
    return static_cast<uint32_t>(query * 32 + (half ^ (query / 4)) * 16);
  }

  // l of each row, by the last kNt warps; lane: query 2x + g % 2, sum g / 2.
  __device__ void row_sums(const Unit& unit) {
    const int n = kWarps - 1 - warp_;
    if (n >= C::kNt) return;
    const int origin = unit.super * kSuper, q = n * 8 + 2 * x_ + (g_ & 1);
    const int first = (unit.keys_begin - origin) / kGroupKeys, past = (unit.keys_end - origin + 15) / kGroupKeys;
    float l = 0.0f;
    constexpr int kBlockGroups = C::kBlock / kGroupKeys;
    for (int block = first / kBlockGroups; block * kBlockGroups < past; block++) {
      float alpha = s_.alpha[block][q];
      const int begin = max(first, block * kBlockGroups), end = min(past, (block + 1) * kBlockGroups);
#pragma unroll 4
      for (int i = begin; i < end; i++) {
        l = __fmaf_rn(l, alpha, reinterpret_cast<const float*>(s_.tiles[i][n] + 256)[lane_]);
        alpha = 1.0f;
      }
    }
    const float pair = __fadd_rn(l, __shfl_xor_sync(~0u, l, 8));
    const float total = __fadd_rn(pair, __shfl_xor_sync(~0u, pair, 16));
    if (g_ < 2) s_.l[q] = total;
  }

  __device__ void values(const Unit& unit) {
#pragma unroll
    for (int t = 0; t < C::kWarpTiles; t++) {
#pragma unroll
      for (int n = 0; n < C::kNt; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) o_[t][n][i] = 0.0f;
      }
    }
    const int origin = unit.super * kSuper;
    const uint32_t box_bytes = static_cast<uint32_t>(params_.box_rows * C::kColumns * 2);
    const uint32_t chunk_bytes = static_cast<uint32_t>(params_.box_rows * C::kVChunk * 2);
    const int lane_row = lane_ / 16 * 8 + lane_ % 8, lane_column = lane_ / 8 % 2 * 8;
    // ldmatrix rows: two groups of one query tile, or one group of two.
    const uint32_t p_base = hopper::shared_address(s_.tiles[0][0]) +
                            static_cast<uint32_t>(lane_ / 16 * (C::kNt == 1 ? C::kNt * C::kTileBytes : C::kTileBytes)) +
                            p_offset(lane_ % 8, lane_ / 8 % 2);
    constexpr int kBatch = C::kValues / kGroupKeys < 4 ? C::kValues / kGroupKeys : 4;  // groups; divides a block
#pragma unroll 1
    for (int start = origin; start < origin + kSuper; start += C::kValues) {
      if (start + C::kValues <= unit.keys_begin || start >= unit.keys_end) continue;
      hopper::mbarrier_wait(&s_.full[ring_.stage], ring_.phase);
      if (warp_ < C::kTiles) {
        const uint32_t base = hopper::shared_address(s_.ring[ring_.stage]);
        const int first = max(0, unit.keys_begin - start), past = min(C::kValues, unit.keys_end - start);
#pragma unroll 1
        for (int key = first / (kBatch * kGroupKeys) * (kBatch * kGroupKeys); key < past; key += kBatch * kGroupKeys) {
          const int in_super = start + key - origin;
          if (in_super % C::kBlock == 0) rescale(in_super / C::kBlock);
          uint32_t p[kBatch][C::kNt][2];
          load_probabilities<kBatch>(p, p_base + static_cast<uint32_t>(in_super / kGroupKeys * C::kNt * C::kTileBytes));
          const bool partial = key < first || key + kBatch * kGroupKeys > past;
#pragma unroll
          for (int t = 0; t < C::kWarpTiles; t++) {
            const int column = (warp_ + t * kWarps) * 16;
            if (C::kTiles % kWarps != 0 && column >= C::kColumns) continue;
            const uint32_t tile_base = base + static_cast<uint32_t>(column / C::kVChunk) * chunk_bytes;
            const uint32_t inner = static_cast<uint32_t>((column % C::kVChunk + lane_column) * 2);
            uint32_t v[kBatch][4];
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
              const int at = key + i * kGroupKeys, box = at >> params_.box_shift;
              const uint32_t row = static_cast<uint32_t>(at - (box << params_.box_shift) + lane_row);
              hopper::ldmatrix_x4_trans(
                  v[i], tile_base + static_cast<uint32_t>(box) * box_bytes + swizzled<C::kVChunk>(row, inner));
            }
#pragma unroll
            for (int i = 0; i < kBatch; i++) {
              if (partial) {
                const int at = key + i * kGroupKeys;
                if (at < first || at >= past) continue;
                if (at + 16 > past) clear_absent(v[i], past - at);
              }
#pragma unroll
              for (int n = 0; n < C::kNt; n++) hopper::mma_m16n8k16<C::kF16>(o_[t][n], v[i], p[i][n][0], p[i][n][1]);
            }
          }
        }
      }
      release();
    }
  }

  template <int kBatch>
  static __device__ void load_probabilities(uint32_t (&p)[kBatch][C::kNt][2], uint32_t address) {
    if constexpr (C::kNt == 1) {
#pragma unroll
      for (int i = 0; i < kBatch; i += 2) {
        uint32_t r[4];
        hopper::ldmatrix_x4(r, address + static_cast<uint32_t>(i * C::kTileBytes));
        p[i][0][0] = r[0], p[i][0][1] = r[1], p[i + 1][0][0] = r[2], p[i + 1][0][1] = r[3];
      }
    } else {
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        uint32_t r[4];
        hopper::ldmatrix_x4(r, address + static_cast<uint32_t>(i * 2 * C::kTileBytes));
        p[i][0][0] = r[0], p[i][0][1] = r[1], p[i][1][0] = r[2], p[i][1][1] = r[3];
      }
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

  __device__ float finish_l(const Unit& unit, int q, float l, float r) const {
    if (a_.sinks != nullptr) l = attention_sink(l, a_.sinks[head_of(unit, q)], r);
    return __fdiv_rn(1.0f, l);
  }
  __device__ void write(const Unit& unit, int q, int column, float o, float inv) const {
    a_.out[(static_cast<int64_t>(token_of(unit, q)) * a_.q_heads + head_of(unit, q)) * C::kDim + column] =
        round16<C::kF16>(__fadd_rn(__fmul_rn(o, inv), 0.0f));
  }

  __device__ void store(const Unit& unit, int index) {
    const bool whole = unit.supers == 1;
#pragma unroll
    for (int n = 0; n < C::kNt; n++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int q = n * 8 + 2 * x_ + i;
        if (!present(unit, q)) continue;
        const float r = r_[n][i];
        const float inv = whole && r != minus_inf() ? finish_l(unit, q, s_.l[q], r) : 0.0f;
        const int64_t row = static_cast<int64_t>(index) * C::kRows + q;
        if (!whole && g_ == 0 && warp_ == 0) {
          *reinterpret_cast<float2*>(params_.partial_rl + row * 2) = make_float2(r, r != minus_inf() ? s_.l[q] : 0.0f);
        }
#pragma unroll
        for (int t = 0; t < C::kWarpTiles; t++) {
          const int tile = warp_ + t * kWarps;
          if (tile >= C::kTiles) continue;
#pragma unroll
          for (int h = 0; h < 2; h++) {
            const int column = rank_ * C::kColumns + tile * 16 + g_ + 8 * h;
            const float o = o_[t][n][2 * h + i];
            if (!whole) {
              params_.partial_o[row * C::kDim + column] = o;
            } else if (r == minus_inf()) {
              write(unit, q, column, 0.0f, 0.0f);
            } else {
              write(unit, q, column, o, inv);
            }
          }
        }
      }
    }
    if (!whole) fold_if_last(unit);
  }

  // The CTA that finishes a request's tile last folds its super-blocks, each rank its own columns.
  __device__ void fold_if_last(const Unit& unit) {
    uint32_t* counter = params_.counters + static_cast<int64_t>(unit.first_unit) * C::kCluster + rank_;
    __threadfence();
    consumers_sync();
    if (tid_ == 0) s_.last = atomicAdd(counter, 1) == static_cast<uint32_t>(unit.supers - 1);
    consumers_sync();
    if (!s_.last) return;
    __threadfence();
    if (tid_ == 0) *counter = 0;
    const int slice = tiles_of(unit.added, group_, C::kRows) * a_.cache.kv_heads;
    const int rows = min(C::kRows, unit.added * group_ - unit.tile * C::kRows);
    for (int i = tid_; i < rows * C::kColumns; i += kConsumers) {
      const int q = i / C::kColumns, column = rank_ * C::kColumns + i % C::kColumns;
      float r = minus_inf(), l = 0.0f, o = 0.0f;
      constexpr int kBatch = 8;  // loads in flight
      for (int first = 0; first < unit.supers; first += kBatch) {
        float2 rl[kBatch];
        float later[kBatch];
#pragma unroll
        for (int s = 0; s < kBatch; s++) {
          const int super = min(first + s, unit.supers - 1);
          const int64_t row =
              (static_cast<int64_t>(unit.first_unit) + static_cast<int64_t>(super) * slice) * C::kRows + q;
          rl[s] = __ldcg(reinterpret_cast<const float2*>(params_.partial_rl + row * 2));
          later[s] = __ldcg(params_.partial_o + row * C::kDim + column);
        }
#pragma unroll
        for (int s = 0; s < kBatch; s++) {
          if (first + s >= unit.supers || rl[s].x == minus_inf()) continue;
          const FoldFactors f = attention_fold(r, rl[s].x);
          const bool copy = r == minus_inf();
          l = copy ? rl[s].y : attention_fold_value(l, rl[s].y, f);
          o = copy ? later[s] : attention_fold_value(o, later[s], f);
          r = f.r;
        }
      }
      if (r == minus_inf()) {
        write(unit, q, column, 0.0f, 0.0f);
      } else {
        write(unit, q, column, o, finish_l(unit, q, l, r));
      }
    }
  }

  __device__ void release() {
    if (lane_ == 0) hopper::mbarrier_arrive(&s_.empty[ring_.stage]);
    ring_.template advance<C::kStages>();
  }
  __device__ bool odd_g() const { return (g_ & 1) != 0; }

  Shared<C>& s_;
  const DecodeParams& params_;
  const AttentionArgs& a_;
  const int group_, rank_;
  const int tid_ = static_cast<int>(threadIdx.x), warp_ = tid_ / 32, lane_ = tid_ % 32, g_ = lane_ / 4, x_ = lane_ % 4;
  Ring ring_;
  float r_[C::kNt][2];
  float scores_[C::kScoresInShared ? 1 : C::kWarpGroups][C::kNt][4];  // of the warp's groups
  float o_[C::kWarpTiles][C::kNt][4];
};

template <typename C>
__global__ void __launch_bounds__(kThreads, C::kMinCtas) attention_decode(const __grid_constant__ DecodeParams params) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared<C>& s = *reinterpret_cast<Shared<C>*>(raw);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const AttentionArgs& a = params.args;
  const int group = a.q_heads / a.cache.kv_heads;
  if (warp == kWarps && lane == 0) {
    hopper::prefetch_tensor_map(&params.k);
    hopper::prefetch_tensor_map(&params.v);
    for (int i = 0; i < C::kStages; i++) {
      hopper::mbarrier_init(&s.full[i], 1);
      hopper::mbarrier_init(&s.empty[i], kWarps);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) hopper::mbarrier_init(&s.exchange[i], kWarps * C::kCluster);
    hopper::mbarrier_init_fence();
  }
  hopper::wait_for_predecessors();
  hopper::launch_dependents();
  const Requests requests(s.requests, a.requests);
  if (warp == 0) count_units(a, group, C::kRows, requests);
  int rank = 0;
  if constexpr (C::kCluster > 1) {
    rank = static_cast<int>(hopper::cluster_rank());
    hopper::cluster_sync();
  }
  __syncthreads();
  const int total = requests.unit_start[a.requests];
  const int clusters = static_cast<int>(gridDim.x) / C::kCluster, first = static_cast<int>(blockIdx.x) / C::kCluster;
  if (warp >= kWarps) {
    hopper::lower_registers<C::kProducerRegisters>();
    produce<C>(s, params, group, rank, clusters, first, total, warp - kWarps);
  } else {
    hopper::raise_registers<C::kConsumerRegisters>();
    Consumer<C> consumer(s, params, group, rank);
    consumer.run(clusters, first, total);
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
  shape.shared_bytes = sizeof(Shared<C>) + Requests::bytes(args.requests);
  allow_shared_memory("attention_decode", attention_decode<C>, shape.shared_bytes);
  launch("attention_decode", attention_decode<C>, shape, context.stream, params);
}

}  // namespace decode
}  // namespace isobit::cuda
