#pragma once
// A row of f32 values, cut among the CTAs of a cluster, flowing through shared memory; reductions over a CTA or a
// cluster. All that crosses threads is an integer: ordered keys and counts; so neither the cluster's size nor any order
// shows.
//
// The copy engine fills a ring of slots, one chunk each, in the order in which the chunks will be looked at: all of a
// row's part, then the next row's.
#include <cstdint>

#include "numerics/sampling.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/mbarrier.h"
#include "ops/cuda/row_plan.h"

namespace isobit::cuda {

constexpr int kRowWarps = kRowThreads / 32;
constexpr uint32_t kAllLanes = 0xffffffff;
constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr int kChunk = 4 * kRowThreads;  // values: a group of four a thread
constexpr int kSlots = 8;
constexpr int kLine = 32;  // values to 128 bytes: chunks and slots lie alike in them
constexpr int kListCapacity = 2048;
constexpr int kSortCapacity = kRowThreads;
constexpr int kUnits = 2048;  // values sampled from a row, at most
constexpr int kLinearBins = kRowThreads;
constexpr int kLogBins = 896;
constexpr int kMarkWords = 2048;  // a bit a value of the part

// The same address in the shared memory of CTA `rank` of the cluster.
template <typename T>
__device__ T* peer(T* p, int rank) {
  T* q;
  asm("mapa.u64 %0, %1, %2;" : "=l"(q) : "l"(p), "r"(rank));
  return q;
}

// hopper::cluster_sync() with one fence a CTA in place of one a thread: the CTA's barrier hands its writes to thread 0,
// whose fence hands them on.
__device__ inline void row_cluster_arrive() {
  __syncthreads();
  if (threadIdx.x == 0) asm volatile("fence.acq_rel.cluster;" ::: "memory");
  __syncwarp();
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ inline void row_cluster_sync() {
  row_cluster_arrive();
  hopper::cluster_wait();
}

// A CTA's share of a row: groups of four values.
struct RowPart {
  int rank, size;     // of the CTA in the cluster
  int first, groups;  // this CTA's groups
  int values;         // and how many values they hold
  int chunks;
  int lead, tail;  // values brought before the part's first; values that the copy engine cannot bring
};
__device__ __noinline__ inline RowPart row_part(int length) {
  RowPart p;
  p.rank = static_cast<int>(hopper::cluster_rank());
  p.size = static_cast<int>(hopper::cluster_size());
  const int groups = (length + 3) / 4,
            share = ((groups + p.size - 1) / p.size + kLine / 4 - 1) / (kLine / 4) * (kLine / 4);
  p.first = min(groups, p.rank * share);
  p.groups = min(groups - p.first, share);
  p.values = min(length - p.first * 4, p.groups * 4);
  p.chunks = (p.groups + kRowThreads - 1) / kRowThreads;
  return p;
}

// What the copy engine is to bring: `left` chunks from `from` on, all of `bytes` but the last one.
struct Load {
  uint64_t from;
  int left;
  uint32_t bytes, last_bytes;
};

struct Exchange {  // from one CTA to every other
  uint32_t largest, listed;
};
constexpr size_t kRowSharedBytes = (233472 / 2) - 1024;  // two CTAs an SM

struct RowShared {
  alignas(128) float slots[kSlots][kChunk + kLine];
  uint64_t list[kListCapacity];
  union {
    uint32_t units[kUnits];
    struct {
      uint64_t pulled[kSortCapacity], sorted[kSortCapacity];
    };
  };
  union {
    uint32_t log_bins[kLogBins];
    uint32_t numbers[kLinearBins];
    uint32_t marks[kMarkWords];
  };
  uint64_t full[kSlots];
  Load now, next;  // the loader's, touched by thread 0 alone, but for `next`
  uint32_t issued, slot;
  volatile int has_next;
  // Reductions and exchanges.
  uint64_t warp_sums[kRowWarps];
  uint32_t warp_keys[4][kRowWarps];
  Exchange from[kMaxRowCluster];
  uint64_t sums[kMaxRowCluster];
  uint64_t found_key, found_before;
  uint32_t list_count, found_bin, gathered;
};

__device__ inline void start_loader(RowShared& s) {
  for (int i = 0; i < kSlots; i++) hopper::mbarrier_init(&s.full[i], 1);
  hopper::mbarrier_init_fence();
  s.now = Load{};
  s.issued = s.slot = 0;
  s.has_next = 0;
}

// The loads of a part whose values start at `first`, in a buffer from `begin` (aligned to 16 bytes) to `end`; completes
// the part. One thread calls it, then publish_loads.
__device__ inline void plan_loads(RowShared& s, RowPart& part, const float* first, const float* begin,
                                  const float* end) {
  const uint64_t a = reinterpret_cast<uint64_t>(first);
  const uint64_t from = max(a & ~uint64_t{4 * kLine - 1}, reinterpret_cast<uint64_t>(begin));
  const uint64_t to = a + static_cast<uint64_t>(part.values) * 4;
  const uint64_t brought = min((to + 15) & ~uint64_t{15}, reinterpret_cast<uint64_t>(end) & ~uint64_t{15});
  const uint64_t last = from + static_cast<uint64_t>(max(part.chunks - 1, 0)) * (kChunk * 4);
  part.lead = static_cast<int>((a - from) / 4);
  part.tail = brought < to ? static_cast<int>((to - brought) / 4) : 0;
  const uint32_t bytes = (static_cast<uint32_t>(kChunk + part.lead) * 4 + 15) / 16 * 16;
  while (s.has_next != 0) {
  }
  s.next = {from, part.chunks, bytes, brought > last ? static_cast<uint32_t>(brought - last) : 0};
}
__device__ inline void publish_loads(RowShared& s) {
  __threadfence_block();
  s.has_next = 1;
}

// Thread 0: fills the slots of which all that is in them has been released. Short, as the CTA waits for it.
__device__ __noinline__ inline void refill(RowShared& s, uint32_t released) {
  Load now = s.now;
  uint32_t issued = s.issued, slot = s.slot;
  while (issued - released < kSlots) {
    if (now.left == 0) {
      if (s.has_next == 0) break;
      __threadfence_block();
      now = s.next;
      s.has_next = 0;
      continue;
    }
    const uint32_t bytes = now.left == 1 ? now.last_bytes : now.bytes;
    const uint32_t bar = hopper::shared_address(&s.full[slot]);
    if (bytes != 0) {
      hopper::mbarrier_arrive_expect(bar, bytes);
      asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                       hopper::shared_address(s.slots[slot])),
                   "l"(now.from), "r"(bytes), "r"(bar)
                   : "memory");
    } else {
      hopper::mbarrier_arrive(bar);
    }
    now.from += kChunk * 4;
    now.left--;
    issued++;
    slot = slot + 1 == kSlots ? 0 : slot + 1;
  }
  s.now = now;
  s.issued = issued;
  s.slot = slot;
}

// Where a CTA is in the sequence of chunks. `base`: the first item of this row.
struct Stream {
  uint32_t base;
  bool recycles;  // more will be loaded once slots are free
};

struct Chunk {
  float* values;  // [lead, lead + count) of the slot's
  int index, count;
};

// Chunk `index` of the part that starts at `first`.
__device__ inline Chunk wait_chunk(RowShared& s, const Stream& stream, int index, const float* first,
                                   const RowPart& part) {
  const uint32_t at = stream.base + static_cast<uint32_t>(index), slot = at % kSlots;
  hopper::mbarrier_wait(&s.full[slot], at / kSlots % 2);
  const Chunk c{s.slots[slot] + part.lead, index, min(kChunk, part.values - index * kChunk)};
  if (part.tail != 0 && index == part.chunks - 1) {
    const int i = part.values - part.tail + static_cast<int>(threadIdx.x);
    if (i < part.values) c.values[i - index * kChunk] = __ldcg(first + i);
    __syncthreads();
  }
  return c;
}

// This thread's group of a chunk; -infinity past the row's end.
__device__ inline float4 chunk_group(const Chunk& c) {
  const int at = static_cast<int>(threadIdx.x) * 4;
  const float* p = c.values + at;
  if (hopper::shared_address(c.values) % 16 == 0 && at + 4 <= c.count) return *reinterpret_cast<const float4*>(p);
  return make_float4(at < c.count ? p[0] : kMinusInfinity, at + 1 < c.count ? p[1] : kMinusInfinity,
                     at + 2 < c.count ? p[2] : kMinusInfinity, at + 3 < c.count ? p[3] : kMinusInfinity);
}

// f(chunk) for every chunk of the part.
template <typename F>
__device__ void for_each_chunk(RowShared& s, const Stream& stream, const float* first, const RowPart& part, F&& f) {
#pragma unroll 1
  for (int i = 0; i < part.chunks; i++) {
    f(wait_chunk(s, stream, i, first, part));
    if (!stream.recycles) continue;
    __syncthreads();
    if (threadIdx.x == 0) refill(s, stream.base + static_cast<uint32_t>(i) + 1);
  }
}

// The value (with +0 for -0) and the id of a candidate_key.
__device__ inline float key_value(uint64_t key) {
  const uint32_t u = static_cast<uint32_t>(key >> 32);
  return numerics::from_bits((u >> 31) != 0 ? u & 0x7fffffff : ~u);
}
__device__ inline uint32_t key_id(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }
__device__ inline float order_value(uint32_t key) { return key_value(static_cast<uint64_t>(key) << 32); }
constexpr uint32_t kMinusInfinityKey = 0x007fffff, kInfinityKey = 0xff800000;

// The largest key of the CTA, to all threads. Calls between which no other barrier lies need different places.
__device__ inline uint32_t cta_max(RowShared& s, int place, uint32_t key) {
  const uint32_t m = __reduce_max_sync(kAllLanes, key);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) s.warp_keys[place][threadIdx.x / 32] = m;
  __syncthreads();
  return __reduce_max_sync(kAllLanes, s.warp_keys[place][lane % kRowWarps]);
}

// The sum of the values of the threads before this one.
__device__ __noinline__ inline uint64_t cta_sum_before(RowShared& s, uint64_t v) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  uint64_t sum = v;
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
    const uint64_t below = __shfl_up_sync(kAllLanes, sum, h);
    if (lane >= h) sum += below;
  }
  __syncthreads();
  if (lane == 31) s.warp_sums[warp] = sum;
  __syncthreads();
  uint64_t before = lane < warp ? s.warp_sums[lane % kRowWarps] : 0;
#pragma unroll
  for (int h = 16; h > 0; h /= 2) before += __shfl_xor_sync(kAllLanes, before, h);
  return before + sum - v;
}

// What the whole cluster found.
struct ClusterScan {
  uint32_t largest;  // key
  bool fits;         // every CTA's list holds all that it should
  uint32_t listed;   // over the cluster
};
__device__ inline ClusterScan exchange_scan(RowShared& s, const RowPart& part, uint32_t largest, uint32_t listed) {
  if (static_cast<int>(threadIdx.x) < part.size) {
    *peer(&s.from[part.rank], static_cast<int>(threadIdx.x)) = {largest, listed};
  }
  row_cluster_sync();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const Exchange e = lane < part.size ? s.from[lane] : Exchange{0, 0};
  return {__reduce_max_sync(kAllLanes, e.largest), __reduce_max_sync(kAllLanes, e.listed) <= kListCapacity,
          __reduce_add_sync(kAllLanes, e.listed)};
}

}  // namespace isobit::cuda
