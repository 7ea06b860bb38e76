#pragma once
// Prefill and chunks: many queries a request, so the time is that of the tensor cores. docs/operators.md has the
// arithmetic of the design.
//
// A tile is 64 rows a consumer warpgroup; a row is one query of one head, the heads of a KV head side by side. CTAs are
// persistent and take tiles from the longest to the shortest, to and fro. A producer warp copies Q, K and V (pages) in;
// a consumer keeps S, P and O in registers: S of the next block is computed while the tensor cores work at P·V of this
// one, and the warpgroups take turns, one at the matrix products while another is at its exponentials.
#include <algorithm>
#include <bit>

#include "ops/cuda/attention_device.cuh"
#include "ops/cuda/attention_order.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/hopper/registers.h"
#include "ops/cuda/hopper/tma.h"
#include "ops/cuda/hopper/wgmma.h"
#include "ops/cuda/launch.h"

namespace isobit::cuda {

struct PrefillParams {
  CUtensorMap q, k, v;
  AttentionArgs args;       // of the heads that this launch takes; q_heads is the stride of a token
  ScoreScale score;         // over a cache without scales
  int group;                // heads of a KV head
  int box_rows, box_shift;  // keys of a box, a power of two, and its exponent
  int cta_tokens;           // tokens of a CTA's part of a tile: its rows / heads of a KV head
  int min_rows;             // requests with fewer rows are another kernel's
  int together;             // TileOrder's
  bool widened;             // the cache is a part of an FP8 one, widened, a page a request
  float* folded;            // [CTAs, rows, head_dim], where shared memory has no room for it
  // Split: a tile's super-blocks are units of their own, and attention_fold puts them together.
  bool split;
  float* partial_o;   // [units, kCluster · rows, head_dim]
  float* partial_rl;  // [units, kCluster · rows, 2]
};

namespace prefill {

// CTAs that do neighbouring parts of a tile and copy K and V in for each other.
constexpr int kCluster = kAttentionPrefillCluster;

constexpr int kSuper = numerics::kAttentionSuperBlock;

// Warps that copy K and V in: of a block of 128 keys in pages of 16, a page each.
constexpr int kProducers = 4;
static_assert(kProducers * kCluster * 16 >= 128);

// kExtras: soft cap and mask bits, whose code costs the plain case registers.
template <int kHeadDim, int kWarpgroups, bool kHalf, bool kWithExtras = false>
struct Config {
  static constexpr bool kExtras = kWithExtras;
  static constexpr int kDim = kHeadDim, kWgs = kWarpgroups, kRows = 64 * kWgs;
  static constexpr bool kF16 = kHalf;
  static constexpr numerics::Operand kKind = kHalf ? numerics::Operand::kF16 : numerics::Operand::kBF16;
  static constexpr int kBlock = numerics::attention_block(kDim), kChunks = kDim / 64;
  static constexpr int kBlockBytes = kBlock * kDim * 2, kQBytes = kRows * kDim * 2;
  static constexpr int kThreads = 128 * (kWgs + 1), kConsumers = 128 * kWgs;
  static constexpr bool kFoldShared = kDim <= 128;
  static constexpr int kFoldBytes = kFoldShared ? kRows * kDim * 4 : 0;
  static constexpr int kSlots = (225 * 1024 - kQBytes - kFoldBytes) / kBlockBytes;
  static constexpr int kKStages = std::min((kSlots + 1) / 2, 4), kVStages = std::min(kSlots / 2, 4);
  static constexpr int kConsumerRegisters = kWgs == 3 ? 160 : 224, kProducerRegisters = kWgs == 3 ? 32 : 56;
  // While a tile is under way, or after it: for the former 32 registers are too few.
  static constexpr bool kFindsAhead = kProducerRegisters > 32;
  // O is rescaled under the products of the next scores, or right after the last values'.
  static constexpr bool kRescalesLate = kDim == 128;
  static_assert(kVStages >= 2);
};

constexpr int kNoMore = -1;

struct Tile {
  int request, head;
  int first_token;                         // of this CTA's part, counted in the request
  int query_start, added, kv_len;          // of the request
  int begin, end;                          // keys that some row of the tile may see; begin a multiple of 16
  int seen_by_all_begin, seen_by_all_end;  // by this CTA's rows
  int rows;                                // of this CTA; none: 0; kNoMore: nor any further tile
  int unit, first_unit, supers;            // supers: units of this tile; 1 unless split
};

template <typename C>
struct Shared {
  uint8_t q[C::kQBytes];
  uint8_t k[C::kKStages][C::kBlockBytes];
  uint8_t v[C::kVStages][C::kBlockBytes];
  uint8_t folded[C::kFoldBytes > 0 ? C::kFoldBytes : 16];
  uint64_t q_full, q_empty, k_full[C::kKStages], k_empty[C::kKStages], v_full[C::kVStages], v_empty[C::kVStages];
  float scratch;  // written, never read
  Tile tile[2];   // from the producer, in turns: read where needed, for want of registers
  Tile planned[kProducers];
  int32_t tile_start[1];  // [requests + 1]
};

__device__ inline int first_key(const AttentionArgs& a, int position) {
  return a.window > 0 ? max(0, position - a.window + 1) : 0;
}

__device__ inline float value_scale(const AttentionArgs& a, int head) {
  return a.cache.v_scale == nullptr ? 1.0f : a.cache.v_scale[head];
}

// Units of a tile of this request.
__device__ inline int supers_of(const PrefillParams& params, int kv_len, int added) {
  if (!params.split || kv_len <= 0) return 1;
  return (kv_len - 1) / kSuper - first_key(params.args, kv_len - added) / kSuper + 1;
}

// tile_start[b]: tiles (units, when split) of one KV head of the requests before b. By one warp.
__device__ inline void count_tiles(const PrefillParams& params, int group, int32_t* tile_start) {
  const AttentionArgs& a = params.args;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int before = 0;
  if (lane == 0) tile_start[0] = 0;
  for (int first = 0; first < a.requests; first += 32) {
    const int b = first + lane;
    int sum = 0;
    if (b < a.requests) {
      const int added = a.query_start[b + 1] - a.query_start[b];
      const bool here = !params.widened || a.page_table[b] >= 0;  // or another launch takes it
      if (added * group >= params.min_rows && here) {
        sum = (added + kCluster * params.cta_tokens - 1) / (kCluster * params.cta_tokens) *
              supers_of(params, a.kv_len[b], added);
      }
    }
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    if (b < a.requests) tile_start[b + 1] = before + sum;
    before += __shfl_sync(~0u, sum, 31);
  }
}

// Tile `index` of a KV head's.
__device__ inline Tile find_tile(const PrefillParams& params, int group, const int32_t* tile_start, int index, int head,
                                 int rank) {
  const AttentionArgs& a = params.args;
  int low = 0, high = a.requests;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (tile_start[middle] <= index ? low : high) = middle;
  }
  Tile t;
  t.request = low;
  t.head = head;
  t.query_start = a.query_start[low];
  t.added = a.query_start[low + 1] - t.query_start;
  t.kv_len = a.kv_len[low];
  t.supers = supers_of(params, t.kv_len, t.added);
  const int of_request = (index - tile_start[low]) / t.supers, tile_tokens = kCluster * params.cta_tokens;
  t.unit = index * a.cache.kv_heads + t.head;
  t.first_unit = (tile_start[low] + of_request * t.supers) * a.cache.kv_heads + t.head;
  const int prefix = t.kv_len - t.added;
  const int first = of_request * tile_tokens, last = min(first + tile_tokens, t.added) - 1;
  t.begin = first_key(a, prefix + first) / 16 * 16;
  t.end = a.causal ? prefix + last + 1 : t.kv_len;
  t.first_token = first + rank * params.cta_tokens;
  const int tokens = min(params.cta_tokens, t.added - t.first_token);
  t.rows = max(tokens, 0) * group;
  t.seen_by_all_begin = first_key(a, prefix + t.first_token + tokens - 1);
  t.seen_by_all_end = tokens <= 0 ? 0 : a.causal ? prefix + t.first_token + 1 : t.kv_len;
  if (t.kv_len <= 0) t.begin = t.end = 0;
  if (t.supers > 1) {
    const int super = first_key(a, prefix) / kSuper + (index - tile_start[low]) % t.supers;
    t.begin = max(t.begin, super * kSuper);
    t.end = min(t.end, (super + 1) * kSuper);
  }
  return t;
}

struct Slot {
  int stage = 0;
  uint32_t phase = 0;
  template <int kStages>
  __device__ void advance() {
    if (++stage == kStages) stage = 0, phase ^= 1;
  }
};

// Copies tiles in: a thread of each of kProducers warps, every CTA of the cluster. A thread copies one box of each
// block of K and V, to all CTAs of the cluster: that halves the reads of the L2 and the number of copies an SM starts;
// either would be the limit where pages are small. In shared memory 8 rows of 64 columns are a piece of 1 KB (swizzled
// within), the pieces of 8 rows follow each other, and then come the next 8 rows: so a page of 16 rows is one copy.
//
// What a slot waits for once it is free is time that the tensor cores wait: everything but the copy itself is worked
// out before, and the next tile is found while this one is under way.
template <typename C>
class Producer {
 public:
  __device__ Producer(Shared<C>& shared, const PrefillParams& params, int group, int producer, int rank)
      : s_(shared), params_(params), a_(params.args), group_(group), rank_(rank), first_(producer == 0) {
    const int box = producer * kCluster + rank;
    box_start_ = box < (C::kBlock >> params.box_shift) ? box << params.box_shift : kNoBox;
    planned_ = &s_.planned[producer];
    const uint32_t offset = box_start_ == kNoBox ? 0 : static_cast<uint32_t>(box_start_ * C::kDim * 2);
    k_ = hopper::shared_address(s_.k[0]) + offset;
    v_ = hopper::shared_address(s_.v[0]) + offset;
  }

  __device__ void run() {
    find_next();
    while (planned_->rows != kNoMore) {
      const Keys keys = {planned_->begin, planned_->end, planned_->request, planned_->head};
      if (keys.begin < keys.end) {
        copy(keys);
      } else {
        hand_over();
        find_next();
      }
    }
    hand_over();
  }

 private:
  static constexpr int kNoBox = 1 << 20;  // beyond any block

  // What the copies need of a tile.
  struct Keys {
    int begin, end, request, head;
  };
  // What is to be copied of a block: bytes of all boxes, and this thread's row of the cache or -1.
  struct Block {
    uint32_t bytes;
    int row;
  };

  __device__ void find_next() {
    const TileOrder order(s_.tile_start[a_.requests], a_.cache.kv_heads, a_.requests, params_.together,
                          static_cast<int>(gridDim.x) / kCluster);
    const int rounds = order.rounds();
    int turn = -1;
    while (turn < 0 && round_ < rounds) turn = order.turn(round_++, static_cast<int>(blockIdx.x) / kCluster);
    Tile t = {};
    t.rows = kNoMore;
    if (turn >= 0) t = find_tile(params_, group_, s_.tile_start, order.tile(turn), order.head(turn), rank_);
    *planned_ = t;
  }

  // The planned tile and its queries to the consumers, once they are done with the tile before.
  __device__ void hand_over() {
    if (!first_) return;
    const Tile& t = *planned_;
    hopper::mbarrier_wait(&s_.q_empty, q_phase_ ^ 1);
    s_.tile[q_phase_] = t;
    q_phase_ ^= 1;
    if (t.begin >= t.end) return hopper::mbarrier_arrive(&s_.q_full);
    hopper::mbarrier_arrive_expect(&s_.q_full, static_cast<uint32_t>(params_.cta_tokens * group_ * C::kDim * 2));
    for (int c = 0; c < C::kChunks; c++) {
      hopper::tma_load_3d(s_.q + c * C::kRows * 128, &params_.q, &s_.q_full, c * 64, t.head * group_,
                          t.query_start + t.first_token, hopper::evict_first_policy());
    }
  }

  __device__ Block block_of(const Keys& t, int block) const {
    const int start = block * C::kBlock, low = max(t.begin - start, 0) >> params_.box_shift,
              high = (min(t.end - start, C::kBlock) + params_.box_rows - 1) >> params_.box_shift;
    const int position = start + box_start_, page_size = a_.cache.page_size;
    Block b = {static_cast<uint32_t>((high - low) << params_.box_shift) * (C::kDim * 2), -1};
    if (position + params_.box_rows > t.begin && position < t.end) {
      const int32_t page = a_.page_table[static_cast<int64_t>(t.request) * a_.table_stride + position / page_size];
      b.row = (page * a_.cache.kv_heads + t.head) * page_size + position % page_size;
    }
    return b;
  }

  template <int kStages>
  __device__ void load(const Block& b, uint32_t to, const CUtensorMap* map, uint64_t* full, uint64_t* empty,
                       Slot& slot) const {
    hopper::mbarrier_wait(&empty[slot.stage], slot.phase ^ 1);
    if (first_) {
      hopper::mbarrier_arrive_expect(&full[slot.stage], b.bytes);
    } else {
      hopper::mbarrier_arrive(&full[slot.stage]);  // who has nothing to copy must not fall behind by phases either
    }
    if (b.row >= 0) {
      hopper::tma_load_4d_multicast(to + static_cast<uint32_t>(slot.stage) * C::kBlockBytes, map,
                                    hopper::shared_address(&full[slot.stage]), 0, 0, 0, b.row / 8, (1 << kCluster) - 1,
                                    keep_);
    }
    slot.advance<kStages>();
  }
  __device__ void load_k(const Block& b) { load<C::kKStages>(b, k_, &params_.k, s_.k_full, s_.k_empty, k_slot_); }
  __device__ void load_v(const Block& b) { load<C::kVStages>(b, v_, &params_.v, s_.v_full, s_.v_empty, v_slot_); }

  __device__ void copy(const Keys& t) {
    const int first = t.begin / C::kBlock, past = (t.end + C::kBlock - 1) / C::kBlock, find_at = min(first + 2, past);
    Block before = block_of(t, first), now = {0, -1};
    if (first + 1 < past) now = block_of(t, first + 1);
    load_k(before);  // need not wait for the queries' place
    hand_over();
#pragma unroll 1
    for (int block = first + 1; block <= past; block++) {
      Block next = {0, -1};
      if (block + 1 < past) next = block_of(t, block + 1);
      if (block < past) load_k(now);
      load_v(before);
      if (C::kFindsAhead && block == find_at) find_next();
      before = now;
      now = next;
    }
    if constexpr (!C::kFindsAhead) find_next();
  }

  Shared<C>& s_;
  const PrefillParams& params_;
  const AttentionArgs& a_;
  const int group_, rank_;
  const bool first_;  // who tells the barriers what comes
  const uint64_t keep_ = hopper::evict_last_policy();
  int box_start_;  // of this thread's box in a block, in keys
  Tile* planned_;  // the next tile
  uint32_t k_, v_;
  Slot k_slot_, v_slot_;
  uint32_t q_phase_ = 0;
  int round_ = 0;
};

struct RowRange {
  int lo, hi;  // keys lo..hi; an absent row has hi = -1
  const uint64_t* mask;
};

// d[i] *= i / 2 even ? a0 : a1, for 16 registers, if `any`. The branch is hidden from the compiler: where it sees one
// it copies accumulators, and then it lets no two wgmma run side by side.
__device__ inline void multiply_if(bool any, float* d, float a0, float a1) {
  asm volatile(
      "{ .reg .pred p;\n"
      "setp.eq.u32 p, %18, 0;\n"
      "@p bra SKIP;\n"
      "mul.rn.f32 %0, %0, %16;\nmul.rn.f32 %1, %1, %16;\nmul.rn.f32 %2, %2, %17;\nmul.rn.f32 %3, %3, %17;\n"
      "mul.rn.f32 %4, %4, %16;\nmul.rn.f32 %5, %5, %16;\nmul.rn.f32 %6, %6, %17;\nmul.rn.f32 %7, %7, %17;\n"
      "mul.rn.f32 %8, %8, %16;\nmul.rn.f32 %9, %9, %16;\nmul.rn.f32 %10, %10, %17;\nmul.rn.f32 %11, %11, %17;\n"
      "mul.rn.f32 %12, %12, %16;\nmul.rn.f32 %13, %13, %16;\nmul.rn.f32 %14, %14, %17;\nmul.rn.f32 %15, %15, %17;\n"
      "SKIP: }"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
      : "f"(a0), "f"(a1), "r"(static_cast<uint32_t>(any)));
}

// Ends the life of what the registers held, without an instruction.
template <int n>
__device__ inline void forget(float (&d)[n]) {
#pragma unroll
  for (int i = 0; i < n; i++) asm volatile("" : "=f"(d[i]));
}

// What follows (a wait for the tensor cores) stays behind what `x` depends on: ptxas moves waits up across arithmetic
// and shuffles, but not across stores.
__device__ inline void complete(float* scratch, float x) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(hopper::shared_address(scratch)), "f"(x) : "memory");
}

template <typename C>
class Consumer {
 public:
  __device__ Consumer(Shared<C>& shared, const PrefillParams& params, int group, int rank)
      : s_(shared), params_(params), a_(params.args), group_(group), rank_(rank) {
    float* base = nullptr;
    if constexpr (C::kFoldShared) {
      base = reinterpret_cast<float*>(s_.folded);
    } else {
      base = params.folded + static_cast<int64_t>(blockIdx.x) * C::kRows * C::kDim;
    }
    folded_ = reinterpret_cast<float4*>(base) + wg_ * (C::kDim / 8) * 128 + tid_;
    q_address_ = descriptor_address(s_.q + wg_ * 64 * 128);
    k_address_ = descriptor_address(s_.k[0]);
    v_address_ = descriptor_address(s_.v[0]);
    other_shared_ = hopper::map_shared(hopper::shared_address(&s_), static_cast<uint32_t>(lane_ % kCluster));
    row_token_ = static_cast<uint32_t>(row_of(0) / group | row_of(1) / group << 16);
  }

  __device__ void run() {
    if (C::kWgs > 1 && wg_ == C::kWgs - 1) hopper::named_barrier_arrive(kTurnBarrier, 256);
    for (;;) {
      hopper::mbarrier_wait(&s_.q_full, q_phase_);
      const Tile& t = s_.tile[q_phase_];
      q_phase_ ^= 1;
      if (t.rows == kNoMore) return;
      if (t.begin < t.end) {
        factor_ = score_of(t).factor;
        attend(t);
        finish(t);
      } else {
        release_q();
        for (int i = 0; i < 2; i++) folded_r_[i] = minus_inf(), inv_[i] = 0.0f;
        for (int i = 0; i < C::kDim / 2; i++) o_[i] = 0.0f;
      }
      if (t.supers > 1) {
        write_partial(t);
      } else {
        write(t);
      }
    }
  }

 private:
  static constexpr uint32_t kTurnBarrier = 2, kZeroBarrier = 1;  // turns: kTurnBarrier + warpgroup

  __device__ int row_of(int h) const { return wg_ * 64 + warp_ * 16 + g_ + 8 * h; }
  __device__ int token_of(const Tile& t, int h) const {
    return t.first_token + static_cast<int>(row_token_ >> (16 * h) & 0xffff);
  }

  __device__ RowRange range_of(const Tile& t, int h) const {
    if (row_of(h) >= t.rows) return {0, -1, nullptr};
    const int token = token_of(t, h), position = t.kv_len - t.added + token;
    return {first_key(a_, position), a_.causal ? position : t.kv_len - 1,
            !C::kExtras || a_.mask == nullptr ? nullptr
                                              : a_.mask + static_cast<int64_t>(t.query_start + token) * a_.mask_stride};
  }

  // Over an FP8 cache's keys and values, widened, the head's scales join the factor and the last division.
  __device__ ScoreScale score_of(const Tile& t) const {
    if (a_.cache.k_scale == nullptr) return params_.score;
    return score_scale(numerics::scale_of_cached(a_.scale, a_.soft_cap, a_.cache.k_scale[t.head], 1.0f));
  }

  // Waits for this warpgroup's turn at the tensor cores, and passes it on.
  __device__ void take_turn() const {
    if constexpr (C::kWgs > 1) hopper::named_barrier_sync(kTurnBarrier + wg_, 256);
  }
  __device__ void pass_turn() const {
    if constexpr (C::kWgs > 1) hopper::named_barrier_arrive(kTurnBarrier + (wg_ + 1) % C::kWgs, 256);
  }

  // Descriptor addresses are in units of 16 bytes and never carry beyond their field. (In a cluster the upper bits of
  // an address in shared memory are the CTA's.)
  static __device__ uint32_t descriptor_address(const void* p) { return (hopper::shared_address(p) & 0x3ffff) >> 4; }
  static __device__ uint64_t with_address(uint64_t descriptor, uint32_t address) {
    return (descriptor & ~uint64_t{0xffffffff}) | (static_cast<uint32_t>(descriptor) + address);
  }
  // The same in all lanes, and known to be: descriptors are taken from uniform registers, and to move them there one by
  // one takes longer than the products.
  static __device__ uint32_t uniform(uint32_t x) { return __reduce_or_sync(~0u, x); }

  __device__ void issue_scores() {
    const uint64_t form = hopper::k_major_descriptor(0u), k_form = hopper::k_major_descriptor(0u, C::kChunks * 1024);
    const uint32_t q = uniform(q_address_), k = uniform(k_address_ + k_slot_.stage * (C::kBlockBytes / 16));
    forget(scores_);
    hopper::wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::kDim / 16; i++) {
      hopper::wgmma<C::kBlock, C::kKind>(
          scores_, with_address(form, q + static_cast<uint32_t>(i / 4 * (C::kRows * 8) + i % 4 * 2)),
          with_address(k_form, k + static_cast<uint32_t>(i / 4 * 64 + i % 4 * 2)), i != 0);
    }
    hopper::wgmma_commit();
  }

  // O (+)= P·V of the block in the slot. `fresh`: O is taken as zero.
  __device__ void issue_values(bool fresh) {
    const uint64_t form = hopper::mn_major_descriptor(0u, 1024, C::kChunks * 1024);
    const uint32_t v = uniform(v_address_ + v_slot_.stage * (C::kBlockBytes / 16));
    hopper::pin_registers(o_);
    hopper::wgmma_fence();
#pragma unroll
    for (int i = 0; i < C::kBlock / 16; i++) {
      hopper::wgmma<C::kDim, C::kKind, 1>(
          o_, p_[i], with_address(form, v + static_cast<uint32_t>(128 * C::kChunks * i)), i != 0 || !fresh);
    }
    hopper::wgmma_commit();
  }

  // A block's rows that were not copied hold what an earlier block or the kernel's start left: finite, so that a zero
  // probability makes nothing of it. Rows from kv_len on were never written and may hold NaN: they are cleared, as far
  // as the last box brought them in.
  __device__ void clear_unwritten(const Tile& t, int start) {
    const int first = t.kv_len - start,
              past = (t.end - start + params_.box_rows - 1) / params_.box_rows * params_.box_rows;
    if (first >= past) return;
    for (int i = tid_ + wg_ * 128; i < (past - first) * (C::kDim / 8); i += C::kConsumers) {
      const int row = first + i / (C::kDim / 8), piece = i % (C::kDim / 8);
      // Whole 16-byte pieces: the swizzle moves them within their row.
      *reinterpret_cast<uint4*>(s_.v[v_slot_.stage] + (row / 8 * C::kChunks + piece / 8) * 1024 + row % 8 * 128 +
                                piece % 8 * 16) = make_uint4(0, 0, 0, 0);
    }
    hopper::fence_async_proxy();
    hopper::named_barrier_sync(kZeroBarrier, C::kConsumers);
  }

  // Scores to probabilities, in place; updates R and l. Returns α of the thread's two rows. No branch where kMasked is
  // false: ptxas moves the wait for the other products up to the first one.
  template <bool kMasked>
  __device__ void softmax(const Tile& t, int start, float (&alpha)[2]) {
    if (C::kExtras && params_.score.inner > 0.0f) {
#pragma unroll
      for (int i = 0; i < C::kBlock / 2; i++) scores_[i] = capped_score(params_.score, scores_[i]);
    }
    if constexpr (kMasked) mask(t, start);
    float m[2], r[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      m[h] = fmaxf(scores_[2 * h], scores_[2 * h + 1]);
#pragma unroll
      for (int j = 1; j < C::kBlock / 8; j++) {
        m[h] = fmaxf(m[h], fmaxf(scores_[4 * j + 2 * h], scores_[4 * j + 2 * h + 1]));
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) m[h] = fmaxf(m[h], __shfl_xor_sync(~0u, m[h], 1));
#pragma unroll
    for (int h = 0; h < 2; h++) {
      m[h] = fmaxf(m[h], __shfl_xor_sync(~0u, m[h], 2));
      alpha[h] = grow(r_[h], m[h]);
      r[h] = r_[h] == minus_inf() ? 0.0f : -r_[h];
    }
#pragma unroll
    for (int j = 0; j < C::kBlock / 16; j++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float v[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float& p = scores_[8 * j + i / 2 * 4 + 2 * h + i % 2];
          p = ex2(__fmaf_rn(p, factor_, r[h]));
          v[i] = p;
        }
        const float u = __fadd_rn(__fadd_rn(v[0], v[2]), __fadd_rn(v[1], v[3]));
        l_[h] = j == 0 ? __fmaf_rn(l_[h], alpha[h], u) : __fadd_rn(l_[h], u);
      }
    }
  }

  // attention_grow by selection.
  __device__ float grow(float& r, float block_max) const {
    const float b = __fmul_rn(block_max, factor_);
    const bool up = b > r;
    const float alpha = ex2(__fsub_rn(r, b));
    r = up ? b : r;
    return up ? alpha : 1.0f;
  }

  __device__ void mask(const Tile& t, int start) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const RowRange range = range_of(t, h);
      const int lo = range.lo - start - 2 * x_, hi = range.hi - start - 2 * x_;
#pragma unroll
      for (int j = 0; j < C::kBlock / 8; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int key = 8 * j + i;
          if (key < lo || key > hi) scores_[4 * j + 2 * h + i] = minus_inf();
        }
      }
      if constexpr (C::kExtras) {
        if (range.mask != nullptr) mask_bits(range, start, h);
      }
    }
  }

  __device__ void mask_bits(const RowRange& range, int start, int h) {
#pragma unroll
    for (int w = 0; w < C::kBlock / 64; w++) {
      if (start + 64 * w > range.hi) continue;
      const uint64_t word = range.mask[start / 64 + w] >> (2 * x_);
#pragma unroll
      for (int j = 0; j < 8; j++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          if (((word >> (8 * j + i)) & 1) == 0) scores_[4 * (8 * w + j) + 2 * h + i] = minus_inf();
        }
      }
    }
  }

  __device__ void round_probabilities() {
#pragma unroll
    for (int j = 0; j < C::kBlock / 16; j++) {
#pragma unroll
      for (int i = 0; i < 4; i++) p_[j][i] = round16x2<C::kF16>(scores_[8 * j + 2 * i], scores_[8 * j + 2 * i + 1]);
    }
  }

  // O times the last softmax's factors.
  __device__ void rescale() {
    const bool any = __any_sync(~0u, alpha_[0] != 1.0f || alpha_[1] != 1.0f);  // a product with 1 changes nothing
#pragma unroll
    for (int i = 0; i < C::kDim / 32; i++) multiply_if(any, o_ + 16 * i, alpha_[0], alpha_[1]);
  }

  __device__ float total_l(float l) const {
    const float pair = __fadd_rn(l, __shfl_xor_sync(~0u, l, 1));
    return __fadd_rn(pair, __shfl_xor_sync(~0u, pair, 2));
  }

  // Takes a finished super-block (its r, l and o_) into the folded result; the last one leaves it in o_.
  template <bool kLast>
  __device__ void fold(const float (&r)[2], const float (&l)[2]) {
    FoldFactors f[2];
    bool skip[2], copy[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      skip[h] = r[h] == minus_inf();
      copy[h] = folded_r_[h] == minus_inf();
      f[h] = attention_fold(folded_r_[h], r[h]);
      const float total = total_l(l[h]);
      if (skip[h]) continue;
      folded_l_[h] = copy[h] ? total : attention_fold_value(folded_l_[h], total, f[h]);
      folded_r_[h] = f[h].r;
    }
    constexpr int kBatch = C::kFoldShared ? 2 : 8;  // loads in flight
#pragma unroll
    for (int first = 0; first < C::kDim / 8; first += kBatch) {
      float4 old[kBatch];
      if (have_folded_) {
#pragma unroll
        for (int i = 0; i < kBatch; i++) old[i] = folded_[(first + i) * 128];
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
          const float before[4] = {old[i].x, old[i].y, old[i].z, old[i].w};
#pragma unroll
          for (int e = 0; e < 4; e++) {
            const int h = e / 2;
            float& o = o_[4 * (first + i) + e];
            const float both = attention_fold_value(before[e], o, f[h]);
            o = skip[h] ? before[e] : copy[h] ? o : both;
          }
        }
      }
      if constexpr (!kLast) {
#pragma unroll
        for (int i = 0; i < kBatch; i++) {
          const float* o = o_ + 4 * (first + i);
          folded_[(first + i) * 128] = make_float4(o[0], o[1], o[2], o[3]);
        }
      }
    }
    have_folded_ = true;
  }

  __device__ void attend(const Tile& t) {
    const int first = t.begin / C::kBlock * C::kBlock;
    have_folded_ = false;
#pragma unroll
    for (int h = 0; h < 2; h++) folded_r_[h] = r_[h] = minus_inf(), folded_l_[h] = l_[h] = 0.0f;
    hopper::mbarrier_wait(&s_.k_full[k_slot_.stage], k_slot_.phase);
    take_turn();
    issue_scores();
    pass_turn();
    hopper::wgmma_wait<0>();
    hopper::pin_registers(scores_);
    release_k();
    // Blocks that every row sees whole.
    const int plain_begin = (t.seen_by_all_begin + C::kBlock - 1) / C::kBlock * C::kBlock;
    const int plain_end = C::kExtras && a_.mask != nullptr ? 0 : t.seen_by_all_end / C::kBlock * C::kBlock;
    if (first < plain_begin || first >= plain_end) {
      softmax<true>(t, first, alpha_);
    } else {
      softmax<false>(t, first, alpha_);
    }
    alpha_[0] = alpha_[1] = 1.0f;
    round_probabilities();
    fresh_ = true;
    forget(o_);
    int start = first + C::kBlock;
#pragma unroll 1
    for (int part = 0; part < 3; part++) {
      if (part == 1) {
#pragma unroll 1
        for (; start < min(plain_end, t.end); start += C::kBlock) step<false>(t, start);
      } else {
        const int past = part == 0 ? min(plain_begin, t.end) : t.end;
#pragma unroll 1
        for (; start < past; start += C::kBlock) step<true>(t, start);
      }
    }
    release_q();
    if constexpr (C::kRescalesLate) rescale();
    hopper::mbarrier_wait(&s_.v_full[v_slot_.stage], v_slot_.phase);
    clear_unwritten(t, start - C::kBlock);
    issue_values(fresh_);
    hopper::wgmma_wait<0>();
    hopper::pin_registers(o_);
    release_v();
  }

  // Scores of the block at `start` and P·V of the one before it; softmax of the one while the other is under way.
  template <bool kMasked>
  __device__ void step(const Tile& t, int start) {
    hopper::mbarrier_wait(&s_.k_full[k_slot_.stage], k_slot_.phase);
    take_turn();
    issue_scores();
    if constexpr (C::kRescalesLate) rescale();
    hopper::mbarrier_wait(&s_.v_full[v_slot_.stage], v_slot_.phase);
    issue_values(fresh_);
    pass_turn();
    hopper::wgmma_wait<1>();
    release_k();
    hopper::wgmma_wait<1>();  // or ptxas moves the release behind the softmax
    hopper::pin_registers(scores_);
    const bool boundary = start % kSuper == 0;
    const float old_r[2] = {r_[0], r_[1]}, old_l[2] = {l_[0], l_[1]};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      r_[h] = boundary ? minus_inf() : r_[h];
      l_[h] = boundary ? 0.0f : l_[h];
    }
    softmax<kMasked>(t, start, alpha_);
    complete(&s_.scratch, __fadd_rn(l_[0], l_[1]));
    hopper::wgmma_wait<0>();
    hopper::pin_registers(o_);
    release_v();
    fresh_ = boundary;
    round_probabilities();
    if (boundary) {
      fold<false>(old_r, old_l);
      alpha_[0] = alpha_[1] = 1.0f;
    } else if constexpr (!C::kRescalesLate) {
      rescale();
    }
  }

  __device__ void finish(const Tile& t) {
    fold<true>(r_, l_);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      inv_[h] = 0.0f;
      if (folded_r_[h] == minus_inf() || t.supers > 1) continue;
      if (a_.sinks != nullptr) {
        folded_l_[h] = attention_sink(folded_l_[h], a_.sinks[t.head * group_ + row_of(h) % group_], folded_r_[h]);
      }
      inv_[h] = __fdiv_rn(value_scale(a_, t.head), folded_l_[h]);
    }
  }

  __device__ void write(const Tile& t) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const bool here = row_of(h) < t.rows;
      uint16_t* out = a_.out + (static_cast<int64_t>(t.query_start + token_of(t, h)) * a_.q_heads + t.head * group_ +
                                row_of(h) % group_) *
                                   C::kDim;
      const bool none = folded_r_[h] == minus_inf();
      // Of four times eight columns a lane has two each; four lanes trade, so that each stores eight at once.
#pragma unroll
      for (int j = 0; j < C::kDim / 8; j += 4) {
        uint32_t w[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float* o = o_ + 4 * (j + i) + 2 * h;
          const float low = none ? 0.0f : __fadd_rn(__fmul_rn(o[0], inv_[h]), 0.0f);
          const float high = none ? 0.0f : __fadd_rn(__fmul_rn(o[1], inv_[h]), 0.0f);
          w[i] = round16x2<C::kF16>(low, high);
        }
        transpose(w);
        if (here) *reinterpret_cast<uint4*>(out + 8 * (j + x_)) = make_uint4(w[0], w[1], w[2], w[3]);
      }
    }
  }

  // Word i of lane x (of four) becomes word x of lane i.
  __device__ void transpose(uint32_t (&w)[4]) const {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
      const bool odd = (x_ & bit) != 0;
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if ((i & bit) != 0) continue;
        const uint32_t given = odd ? w[i] : w[i + bit], got = __shfl_xor_sync(~0u, given, bit);
        (odd ? w[i] : w[i + bit]) = got;
      }
    }
  }

  __device__ void write_partial(const Tile& t) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      if (row_of(h) >= t.rows) continue;
      const int64_t row = (static_cast<int64_t>(t.unit) * kCluster + rank_) * C::kRows + row_of(h);
      if (x_ == 0) {
        *reinterpret_cast<float2*>(params_.partial_rl + row * 2) = make_float2(folded_r_[h], folded_l_[h]);
      }
#pragma unroll
      for (int j = 0; j < C::kDim / 8; j++) {
        *reinterpret_cast<float2*>(params_.partial_o + row * C::kDim + 8 * j + 2 * x_) =
            make_float2(o_[4 * j + 2 * h], o_[4 * j + 2 * h + 1]);
      }
    }
  }

  // One arrival a warp, at every CTA of the cluster.
  __device__ void release(uint64_t* bar) const {
    const uint32_t offset = hopper::shared_address(bar) - hopper::shared_address(&s_);
    if (lane_ < kCluster) hopper::mbarrier_arrive_mapped(other_shared_ + offset);
  }
  __device__ void release_k() {
    release(&s_.k_empty[k_slot_.stage]);
    k_slot_.template advance<C::kKStages>();
  }
  __device__ void release_v() {
    release(&s_.v_empty[v_slot_.stage]);
    v_slot_.template advance<C::kVStages>();
  }
  __device__ void release_q() {
    if (lane_ == 0) hopper::mbarrier_arrive(&s_.q_empty);
  }

  Shared<C>& s_;
  const PrefillParams& params_;
  const AttentionArgs& a_;
  const int group_, rank_;
  const int wg_ = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0), tid_ = static_cast<int>(threadIdx.x) % 128,
            warp_ = tid_ / 32, lane_ = tid_ % 32, g_ = lane_ / 4, x_ = lane_ % 4;
  Slot k_slot_, v_slot_;
  uint32_t q_phase_ = 0;
  bool have_folded_ = false, fresh_ = true;  // fresh_: O is to be taken as zero
  float4* folded_;
  uint32_t q_address_, k_address_, v_address_;
  uint32_t other_shared_;  // of lane's CTA in the cluster
  uint32_t row_token_;     // row / group of the thread's two rows
  float factor_;           // of the tile's scores
  float alpha_[2];         // of the last block: what O is still to be multiplied with
  float r_[2], l_[2], folded_r_[2], folded_l_[2], inv_[2];
  float scores_[C::kBlock / 2];
  uint32_t p_[C::kBlock / 16][4];
  float o_[C::kDim / 2];
};

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1) attention_prefill(const __grid_constant__ PrefillParams params) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared<C>& s = *reinterpret_cast<Shared<C>*>(raw);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  constexpr int kProducer = C::kWgs * 4;
  const int group = params.group;
  if (warp == kProducer && lane == 0) {
    hopper::prefetch_tensor_map(&params.q);
    hopper::prefetch_tensor_map(&params.k);
    hopper::prefetch_tensor_map(&params.v);
    hopper::mbarrier_init(&s.q_full, 1);
    hopper::mbarrier_init(&s.q_empty, C::kWgs * 4);
    for (int i = 0; i < C::kKStages; i++) {
      hopper::mbarrier_init(&s.k_full[i], kProducers);
      hopper::mbarrier_init(&s.k_empty[i], C::kWgs * 4 * kCluster);
    }
    for (int i = 0; i < C::kVStages; i++) {
      hopper::mbarrier_init(&s.v_full[i], kProducers);
      hopper::mbarrier_init(&s.v_empty[i], C::kWgs * 4 * kCluster);
    }
    hopper::mbarrier_init_fence();
  }
  for (int i = static_cast<int>(threadIdx.x); i < C::kVStages * C::kBlockBytes / 16; i += C::kThreads) {
    reinterpret_cast<uint4*>(s.v)[i] = make_uint4(0, 0, 0, 0);
  }
  hopper::fence_async_proxy();
  hopper::wait_for_predecessors();
  hopper::launch_dependents();
  if (warp == 0) count_tiles(params, group, s.tile_start);
  const int rank = static_cast<int>(hopper::cluster_rank());
  hopper::cluster_sync();
  if (warp >= kProducer) {
    if constexpr (C::kWgs > 1) hopper::lower_registers<C::kProducerRegisters>();
    if (lane == 0) Producer<C>(s, params, group, warp - kProducer, rank).run();
  } else {
    if constexpr (C::kWgs > 1) hopper::raise_registers<C::kConsumerRegisters>();
    Consumer<C> consumer(s, params, group, rank);
    consumer.run();
  }
  __syncwarp();
  hopper::cluster_sync();  // a CTA that has ended has no shared memory to copy to
}

// Puts the super-blocks of split tiles together, ascending. A CTA takes kFoldRows rows of a tile, a thread 4 columns.
constexpr int kFoldRows = 16, kFoldThreads = 256;

template <typename C>
__global__ void __launch_bounds__(kFoldThreads) attention_fold_kernel(const __grid_constant__ PrefillParams params) {
  extern __shared__ int32_t tile_start[];
  const AttentionArgs& a = params.args;
  const int group = params.group;
  hopper::wait_for_predecessors();
  hopper::launch_dependents();
  if (threadIdx.x < 32) count_tiles(params, group, tile_start);
  __syncthreads();
  const int slices = kCluster * C::kRows / kFoldRows, slice = static_cast<int>(blockIdx.x) % slices;
  const int total = tile_start[a.requests] * a.cache.kv_heads;
  const int turn = static_cast<int>(blockIdx.x) / slices;
  if (turn >= total) return;
  const int rank = slice / (C::kRows / kFoldRows);  // the CTA whose rows these were
  const Tile t = find_tile(params, group, tile_start, turn / a.cache.kv_heads, turn % a.cache.kv_heads, rank);
  if (t.supers == 1 || t.unit != t.first_unit) return;  // one CTA a tile and slice
  for (int i = static_cast<int>(threadIdx.x); i < kFoldRows * (C::kDim / 4); i += kFoldThreads) {
    const int row = slice % (C::kRows / kFoldRows) * kFoldRows + i / (C::kDim / 4), column = i % (C::kDim / 4) * 4;
    if (row >= t.rows) break;
    float r = minus_inf(), l = 0.0f, o[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    constexpr int kBatch = 4;  // loads in flight
    for (int first = 0; first < t.supers; first += kBatch) {
      float2 rl[kBatch];
      float4 v[kBatch];
#pragma unroll
      for (int s = 0; s < kBatch; s++) {
        const int64_t unit = t.first_unit + static_cast<int64_t>(min(first + s, t.supers - 1)) * a.cache.kv_heads;
        const int64_t at = (unit * kCluster + rank) * C::kRows + row;
        rl[s] = __ldcg(reinterpret_cast<const float2*>(params.partial_rl + at * 2));
        v[s] = __ldcg(reinterpret_cast<const float4*>(params.partial_o + at * C::kDim + column));
      }
#pragma unroll
      for (int s = 0; s < kBatch; s++) {
        if (first + s >= t.supers || rl[s].x == minus_inf()) continue;
        const float later[4] = {v[s].x, v[s].y, v[s].z, v[s].w};
        const FoldFactors f = attention_fold(r, rl[s].x);
        const bool copy = r == minus_inf();
        l = copy ? rl[s].y : attention_fold_value(l, rl[s].y, f);
        for (int e = 0; e < 4; e++) o[e] = copy ? later[e] : attention_fold_value(o[e], later[e], f);
        r = f.r;
      }
    }
    const int head = t.head * group + row % group;
    float inv = 0.0f;
    if (r != minus_inf()) {
      if (a.sinks != nullptr) l = attention_sink(l, a.sinks[head], r);
      inv = __fdiv_rn(value_scale(a, t.head), l);
    }
    const auto value = [&](int e) { return r == minus_inf() ? 0.0f : __fadd_rn(__fmul_rn(o[e], inv), 0.0f); };
    const int64_t token = t.query_start + t.first_token + row / group;
    *reinterpret_cast<uint2*>(a.out + (token * a.q_heads + head) * C::kDim + column) =
        make_uint2(round16x2<C::kF16>(value(0), value(1)), round16x2<C::kF16>(value(2), value(3)));
  }
}

template <typename C>
void launch_config(const AttentionArgs& args, int group, const AttentionPlan& plan, const KernelContext& context) {
  const KvCacheView& cache = args.cache;
  const int page_rows = cache.page_size & -cache.page_size;  // largest power of two that divides a page
  PrefillParams params = {};
  params.args = args;
  params.score = score_scale(args);
  params.group = group;
  params.box_rows = std::min(page_rows, C::kBlock / kCluster);
  params.box_shift = std::countr_zero(static_cast<unsigned>(params.box_rows));
  params.cta_tokens = C::kRows / group;
  params.together = plan.together;
  params.min_rows = least_prefill_rows(plan);
  params.widened = plan.widened_heads > 0;
  params.folded = static_cast<float*>(context.workspace);
  params.split = plan.split;
  params.partial_o = params.folded;
  params.partial_rl = params.partial_o + plan.tiles * cache.kv_heads * kCluster * C::kRows * C::kDim;
  const auto type = C::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const uint64_t q_dims[3] = {C::kDim, static_cast<uint64_t>(cache.kv_heads * group),
                              static_cast<uint64_t>(args.tokens)};
  const uint64_t q_strides[2] = {C::kDim * 2, static_cast<uint64_t>(args.q_heads) * C::kDim * 2};
  const uint32_t q_box[3] = {64, static_cast<uint32_t>(group), static_cast<uint32_t>(params.cta_tokens)};
  params.q = tensor_map(type, 3, args.q, q_dims, q_strides, q_box, CU_TENSOR_MAP_SWIZZLE_128B);
  const uint64_t rows = static_cast<uint64_t>(cache.pages) * cache.kv_heads * cache.page_size;
  const uint64_t dims[4] = {64, 8, C::kChunks, rows / 8}, strides[3] = {C::kDim * 2, 128, C::kDim * 16};
  const uint32_t box[4] = {64, 8, C::kChunks, static_cast<uint32_t>(params.box_rows / 8)};
  params.k = tensor_map(type, 4, cache.k, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
  params.v = tensor_map(type, 4, cache.v, dims, strides, box, CU_TENSOR_MAP_SWIZZLE_128B);
  const int64_t clusters = std::min<int64_t>(plan.tiles * cache.kv_heads, context.sm_count / kCluster);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(clusters * kCluster));
  shape.cluster = dim3(kCluster);
  shape.block = C::kThreads;
  shape.shared_bytes = sizeof(Shared<C>) + static_cast<size_t>(args.requests) * 4;
  allow_shared_memory("attention_prefill", attention_prefill<C>, shape.shared_bytes);
  launch("attention_prefill", attention_prefill<C>, shape, context.stream, params);
  if (!plan.split) return;
  shape.grid = dim3(static_cast<unsigned>(plan.tiles * cache.kv_heads * (kCluster * C::kRows / kFoldRows)));
  shape.cluster = dim3(1);
  shape.block = kFoldThreads;
  shape.shared_bytes = static_cast<size_t>(args.requests + 1) * 4;
  launch("attention_fold", attention_fold_kernel<C>, shape, context.stream, params);
}

}  // namespace prefill
}  // namespace isobit::cuda
