#pragma once
// How a persistent kernel walks over the tiles of experts' rows (docs/operators.md, "Grouped"): the device alone knows
// how many rows an expert has, so every CTA counts tiles for itself, in shared memory, and takes them in one order.
#include "ops/cuda/expert_table.h"
#include "ops/cuda/hopper/cluster.h"
#include "ops/cuda/hopper/mbarrier.h"
#include "ops/cuda/ring.h"

namespace isobit::cuda {

struct ExpertRows {
  int first, count;
};
// Of one expert, whatever the device's numbers say within x.
__device__ inline ExpertRows expert_rows(const ExpertTable& t, int expert) {
  if (t.capacity > 0) return {expert * t.capacity, max(0, min(t.rows[expert], t.capacity))};
  const int first = max(0, min(t.rows[expert], t.m));
  return {first, max(0, min(t.rows[expert + 1], t.m) - first)};
}

// Fills tiles_before (experts + 1 words of shared memory: the tiles before each expert's first and, last, of all) by
// all threads of the CTA; a barrier follows.
__device__ inline void count_tiles(const ExpertTable& t, int tile_m, int n_tiles, int* tiles_before) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int e = thread; e < t.experts; e += static_cast<int>(blockDim.x)) {
    tiles_before[e + 1] = (expert_rows(t, e).count + tile_m - 1) / tile_m * n_tiles;
  }
  if (thread == 0) tiles_before[0] = 0;
  __syncthreads();
  if (thread >= 32) return;
  int before = 0;
  for (int first = 0; first < t.experts; first += 32) {
    const int e = first + thread;
    int sum = e < t.experts ? tiles_before[e + 1] : 0;
#pragma unroll
    for (int h = 1; h < 32; h *= 2) {
      const int left = __shfl_up_sync(0xffffffff, sum, h);
      if (thread >= h) sum += left;
    }
    if (e < t.experts) tiles_before[e + 1] = before + sum;
    before += __shfl_sync(0xffffffff, sum, 31);
  }
}

struct ExpertTile {
  int expert = 0;
  int row = 0, row_end = 0;  // of x: the tile's first, and the end of the expert's
  int n_tile = 0;
};

// Expert by expert, M before N, so that tiles which share rows of w are neighbours. Indices must not descend.
struct ExpertWalk {
  const ExpertTable& table;
  const int* tiles_before;
  int tile_m;
  int expert = 0;

  __device__ int count() const { return tiles_before[table.experts]; }
  __device__ ExpertTile at(int index) {
    while (index >= tiles_before[expert + 1]) expert++;
    const int in_expert = index - tiles_before[expert];
    const ExpertRows rows = expert_rows(table, expert);
    const int m_tiles = (rows.count + tile_m - 1) / tile_m;
    return {expert, rows.first + in_expert % m_tiles * tile_m, rows.first + rows.count, in_expert / m_tiles};
  }
};

// Which tiles a CTA computes: the first by its place in the grid, the next ones by tickets, since SMs whose memory is
// far are slower (with tiles dealt out evenly they stood idle for a sixth of a memory-bound launch). One warp takes
// tickets, a tile ahead, and passes them to all warps that walk: its own CTA's and, in a cluster, the others'.
class TileQueue {
 public:
  static constexpr uint32_t kBytes = 128;  // of shared memory, at 8 bytes

  // at: kBytes of this CTA's memory, at the same place in every CTA of the cluster. tickets: two counters, or null for
  // tiles dealt out evenly. clusters: in the grid.
  __device__ TileQueue(void* at, uint32_t* tickets, int cluster, int clusters)
      : at_(static_cast<uint64_t*>(at)), tickets_(tickets), cluster_(cluster), clusters_(clusters) {}

  // By one thread, before the barrier of the CTA or cluster. warps: of a CTA that walk.
  __device__ void init(int warps) const {
    for (int s = 0; s < kSlots; s++) {
      hopper::mbarrier_init(full(s), 1);
      hopper::mbarrier_init(empty(s), static_cast<uint32_t>(warps * cluster_));
    }
  }

  // The tile after `tile`. Whole warps call, each once a tile; `publish` makes it known.
  __device__ int next(int tile) {
    if (tickets_ == nullptr) return tile + clusters_;
    hopper::mbarrier_wait_cluster(full(ring_.slot), ring_.phase);
    const int after = *static_cast<volatile int*>(place(ring_.slot));
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      if (cluster_ == 1) {
        hopper::mbarrier_arrive(empty(ring_.slot));
      } else {
        hopper::mbarrier_arrive_remote(hopper::shared_address(empty(ring_.slot)), 0);
      }
    }
    ring_.step(kSlots);
    return after;
  }

  // By one warp of the cluster's first CTA, once a tile, before any warp can need the tile after it to go on.
  __device__ void publish() {
    if (tickets_ == nullptr) return;
    hopper::mbarrier_wait_cluster(empty(taken_.slot), taken_.phase ^ 1);
    if (threadIdx.x % 32 == 0) {
      const int tile = clusters_ + static_cast<int>(atomicAdd(tickets_, 1u));
      if (cluster_ == 1) {
        *place(taken_.slot) = tile;
        hopper::mbarrier_arrive(full(taken_.slot));
      }
      for (int rank = 0; cluster_ > 1 && rank < cluster_; rank++) {
        const uint32_t to = hopper::map_shared(hopper::shared_address(place(taken_.slot)), static_cast<uint32_t>(rank));
        asm volatile("st.shared::cluster.s32 [%0], %1;" ::"r"(to), "r"(tile) : "memory");
        hopper::mbarrier_arrive_remote(full(taken_.slot), static_cast<uint32_t>(rank));
      }
    }
    __syncwarp();
    taken_.step(kSlots);
  }

  // By the warp that published, behind its last tile: the last cluster leaves the counters zero.
  __device__ void finish() const {
    if (tickets_ == nullptr || threadIdx.x % 32 != 0) return;
    if (atomicAdd(tickets_ + 1, 1u) != static_cast<uint32_t>(clusters_ - 1)) return;
    tickets_[0] = tickets_[1] = 0;
  }

 private:
  static constexpr int kSlots = 4;
  __device__ uint64_t* full(int slot) const { return at_ + slot; }
  __device__ uint64_t* empty(int slot) const { return full(kSlots + slot); }
  __device__ int* place(int slot) const { return reinterpret_cast<int*>(full(2 * kSlots)) + slot; }

  uint64_t* at_;
  uint32_t* tickets_;
  int cluster_, clusters_;
  RingPosition ring_, taken_;
};

}  // namespace isobit::cuda
