#pragma once
// A row of f32 values, cut among the CTAs of a cluster, and what they tell each other about it.
#include "ops/cuda/row_reduce.h"

namespace isobit::cuda {

constexpr int kLineGroups = 8;       // groups of four values to 128 bytes
constexpr int kRowAhead = 5;         // groups in flight a thread
constexpr int kListCapacity = 3968;  // candidates a cluster keeps
constexpr int kSortCapacity = kRowThreads;
constexpr int kUnits = 2048;  // groups sampled from a row, at most
constexpr int kLinearBins = kRowThreads;
constexpr int kLogBins = 896;
constexpr int kMarkWords = 4096;  // a bit a value of the part

// A row's values, in groups of four that lie at 16 bytes: `shift` values of the first one are before the row.
struct RowValues {
  const float* y;  // where the first group starts
  int length, shift;
  __device__ int groups() const { return (length + shift + 3) / 4; }
  // The index in the row of a group's first value.
  __device__ int index(int group) const { return group * 4 - shift; }
  __device__ bool whole(int group) const { return index(group) >= 0 && index(group) + 4 <= length; }
  __device__ bool valid(int group, int j) const { return static_cast<uint32_t>(index(group) + j) < uint32_t(length); }
};
__device__ inline RowValues row_values(const float* y, int length) {
  const auto shift = static_cast<int>(reinterpret_cast<uintptr_t>(y) / 4 % 4);
  return {y - shift, length, shift};
}

__device__ inline float4 whole_group(const RowValues& row, int group) {
  return __ldcg(reinterpret_cast<const float4*>(row.y) + group);
}
// -infinity where the row has no value.
__device__ __noinline__ inline float4 edge_group(const RowValues& row, int group) {
  const float* p = row.y + static_cast<int64_t>(group) * 4;
  return make_float4(
      row.valid(group, 0) ? __ldcg(p) : kMinusInfinity, row.valid(group, 1) ? __ldcg(p + 1) : kMinusInfinity,
      row.valid(group, 2) ? __ldcg(p + 2) : kMinusInfinity, row.valid(group, 3) ? __ldcg(p + 3) : kMinusInfinity);
}
__device__ inline float4 row_group(const RowValues& row, int group) {
  return row.whole(group) ? whole_group(row, group) : edge_group(row, group);
}

// A CTA's share of a row's groups.
struct RowPart {
  int rank, size;     // of the CTA in the cluster
  int first, groups;  // this CTA's groups
  int list;           // places in the cluster's list
};
__device__ inline RowPart row_part(const RowValues& row) {
  RowPart p;
  p.rank = static_cast<int>(hopper::cluster_rank());
  p.size = static_cast<int>(hopper::cluster_size());
  const int groups = row.groups(),
            share = ((groups + p.size - 1) / p.size + kLineGroups - 1) / kLineGroups * kLineGroups;
  p.first = min(groups, p.rank * share);
  p.groups = min(groups - p.first, share);
  p.list = kListCapacity / p.size;
  return p;
}

struct Exchange {  // from one CTA to every other
  uint32_t largest, listed;
};

struct RowShared {
  uint64_t list[kListCapacity];  // of every CTA of the cluster, each in its share
  union {
    uint32_t units[kUnits];
    uint64_t pulled[kSortCapacity];
    uint32_t marks[kMarkWords];
  };
  union {
    uint32_t log_bins[kLogBins];
    uint32_t numbers[kLinearBins];
  };
  // Reductions and exchanges.
  uint64_t warp_sums[kRowWarps];
  uint32_t warp_keys[4][kRowWarps];
  Exchange from[kMaxRowCluster];
  uint64_t sums[kMaxRowCluster];
  uint64_t found_key, found_before;
  uint32_t list_count, found_bin, gathered;
};

// Three CTAs on an SM leave 92 KB of its memory to the L1.
constexpr size_t kRowSharedBytes = 164 * 1024 / 3 - 1024;

// What all threads of the cluster wrote is seen by all.
__device__ inline void row_cluster_arrive() {
  __syncthreads();
  publish_arrive();
}
__device__ inline void row_cluster_sync() {
  row_cluster_arrive();
  hopper::cluster_wait();
}

// What the whole cluster found.
struct ClusterScan {
  uint32_t largest;  // key
  bool fits;         // the list holds all that it should
  uint32_t listed;   // over the cluster
};
// Every CTA gets every CTA's list, too.
__device__ inline ClusterScan exchange_scan(RowShared& s, const RowPart& part, uint32_t largest, uint32_t listed) {
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, share = part.list;
  if (t < part.size) *peer(&s.from[part.rank], t) = {largest, listed};
  const int count = min(static_cast<int>(listed), share);
  for (int r = t / 32; r < part.size; r += kRowWarps) {  // a warp a CTA
    if (r == part.rank) continue;
    for (int i = lane; i < count; i += 32) peer(s.list, r)[part.rank * share + i] = s.list[part.rank * share + i];
  }
  row_cluster_sync();
  const Exchange e = lane < part.size ? s.from[lane] : Exchange{0, 0};
  return {__reduce_max_sync(kAllLanes, e.largest),
          __reduce_max_sync(kAllLanes, e.listed) <= static_cast<uint32_t>(share),
          __reduce_add_sync(kAllLanes, e.listed)};
}

// f(key, rank) for this thread's part of the cluster's list, which fits.
template <typename F>
__device__ void for_each_listed(const RowShared& s, const RowPart& part, F&& f) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int rank = warp % part.size, warps = (kRowWarps - 1 - rank) / part.size + 1;
  const int first = rank * part.list, end = first + static_cast<int>(s.from[rank].listed);
#pragma unroll 1
  for (int i = first + warp / part.size * 32 + lane; i < end; i += warps * 32) f(s.list[i], rank);
}

}  // namespace isobit::cuda
