// The k largest of each row, in ascending order of index: a cluster of CTAs a row, row after row.
//
// Bytes: 4 a value, once. A threshold that at least k values reach and few more do comes from a sample of the row; one
// look lists what reaches it; the lists are cut exactly, by bins of the key and a sort of the bin where the k-th lies;
// what is left is marked in a bitmap, whose prefix counts put the indices in order. While a cluster sorts its row out,
// the others of its SMs read theirs. A row whose list was no good (ties, a sample that misled) is cut digit by digit.
// Which way a row takes changes nothing.
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/row_places.h"
#include "ops/cuda/row_select.h"

namespace isobit::cuda {
namespace {

constexpr int64_t kLongestPart = 32 * kMarkWords - 4 * (kLineGroups + 1);  // a bit a value; shares are rounded up

struct TopkParams {
  TopkPerRowArgs a;
  int clusters;
};

// f(key) for this thread's values of the CTA's part.
template <typename F>
__device__ void for_each_value(const RowValues& row, const RowPart& part, F&& f) {
#pragma unroll 1
  for (int g = part.first + static_cast<int>(threadIdx.x); g < part.first + part.groups; g += kRowThreads) {
    const float4 v = row_group(row, g);
    const int index = row.index(g);
#pragma unroll
    for (int j = 0; j < 4; j++) {
      if (row.valid(g, j)) {
        f(numerics::candidate_key(j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w, static_cast<uint32_t>(index + j)));
      }
    }
  }
}

// The largest key of the i-th group that the CTA samples.
__device__ uint32_t sampled_key(const RowValues& row, const RowPart& part, int i) {
  static_assert(int64_t{kUnits} * kMarkWords * 8 <= UINT32_MAX);
  const int n = sample_groups(part);
  if (part.groups < n && i >= part.groups) return 0;
  const int g =
      part.groups >= n
          ? static_cast<int>(static_cast<uint32_t>(i) * static_cast<uint32_t>(part.groups) / static_cast<uint32_t>(n))
          : i;
  return numerics::order_key(max_nan(row_group(row, part.first + g)));
}

__device__ __noinline__ void list_values(RowShared& s, const RowValues& row, int group, const float4 y,
                                         float threshold) {
  list_group(s, static_cast<uint32_t>(row.index(group)), y, threshold, [&](int j) { return row.valid(group, j); });
}

// This thread's look at the part: its largest value, and the list of those from `threshold` up.
__device__ float list_part(RowShared& s, const RowValues& row, const RowPart& part, float threshold) {
  const int end = part.first + part.groups, t = static_cast<int>(threadIdx.x);
  const int first_whole = part.first + (row.whole(part.first) ? 0 : 1);
  const int end_whole = end - (row.whole(end - 1) ? 0 : 1);
  float largest = kMinusInfinity;
#pragma unroll 1
  for (int g = first_whole + t; g < end_whole; g += kRowAhead * kRowThreads) {
    float4 y[kRowAhead];
#pragma unroll
    for (int u = 0; u < kRowAhead; u++) {
      y[u] = make_float4(kMinusInfinity, kMinusInfinity, kMinusInfinity, kMinusInfinity);
      if (g + u * kRowThreads < end_whole) y[u] = whole_group(row, g + u * kRowThreads);
    }
#pragma unroll
    for (int u = 0; u < kRowAhead; u++) {
      const float m = max_nan(y[u]);
      largest = max_nan(largest, m);
      if (!(m < threshold) && g + u * kRowThreads < end_whole)
        list_values(s, row, g + u * kRowThreads, y[u], threshold);
    }
  }
  // At most the first group and the last one; where they are the same, once.
  const bool before = t == 0 && first_whole > part.first, after = t == 1 && end_whole < end && end_whole >= first_whole;
  if (before || after) {
    const int g = before ? part.first : end - 1;
    const float4 y = edge_group(row, g);
    const float m = max_nan(y);
    largest = max_nan(largest, m);
    if (!(m < threshold)) list_values(s, row, g, y, threshold);
  }
  return largest;
}

// Writes the marked values of the part in ascending order, behind those of the CTAs before it.
__device__ void write_marked(RowShared& s, const RowValues& row, const RowPart& part, int32_t* out, int k) {
  const int words = (part.groups * 4 + 31) / 32, each = (words + kRowThreads - 1) / kRowThreads;
  const int first = static_cast<int>(threadIdx.x) * each, last = min(words, first + each);
  uint32_t mine = 0;
  for (int w = first; w < last; w++) mine += static_cast<uint32_t>(__popc(s.marks[w]));
  const uint64_t before = cta_sum_before(s, mine);
  if (threadIdx.x == kRowThreads - 1) s.found_before = before + mine;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < part.size) {
    *peer(&s.sums[part.rank], static_cast<int>(threadIdx.x)) = s.found_before;
  }
  publish();
  uint64_t at = before;
  for (int r = 0; r < part.rank; r++) at += s.sums[r];
  for (int w = first; w < last; w++) {
    for (uint32_t bits = s.marks[w]; bits != 0; bits &= bits - 1) {
      if (at < static_cast<uint64_t>(k)) out[at] = row.index(part.first) + w * 32 + __ffs(static_cast<int>(bits)) - 1;
      at++;
    }
  }
}

__device__ void select_row(RowShared& s, const RowValues& row, int32_t* out, int k) {
  const RowPart part = row_part(row);
  const uint32_t threshold =
      sampled_threshold(s, part, row.length, k, [&](int i) { return sampled_key(row, part, i); });
  const float largest_of_thread = part.groups > 0 ? list_part(s, row, part, order_value(threshold)) : kMinusInfinity;
  const uint32_t largest_of_cta = cta_max(s, 1, numerics::order_key(largest_of_thread));
  const uint32_t listed = s.list_count;
  const ClusterScan c = exchange_scan(s, part, largest_of_cta, listed);
  const auto goal = static_cast<uint64_t>(k);
  bool from_list = c.fits && c.listed >= goal;
  uint64_t cutoff = 0;
  if (from_list) {
    const Cut cut = cut_lists(s, part, static_cast<int>(listed), c.largest, threshold, goal);
    from_list = cut.found;
    cutoff = cut.key;
  }
  if (!from_list) {
    cutoff = find_cut(s, part, goal, [&](auto&& f) { for_each_value(row, part, f); });
  }
  const int words = (part.groups * 4 + 31) / 32;
  for (int w = static_cast<int>(threadIdx.x); w < words; w += kRowThreads) s.marks[w] = 0;
  __syncthreads();
  const auto mark = [&](uint64_t key) {
    const uint32_t at = key_id(key) - static_cast<uint32_t>(row.index(part.first));
    if (key >= cutoff) atomicOr(&s.marks[at / 32], 1u << (at % 32));
  };
  if (from_list) {
    for (uint32_t i = threadIdx.x; i < listed; i += kRowThreads) mark(s.list[i]);
  } else {
    for_each_value(row, part, mark);
  }
  __syncthreads();
  write_marked(s, row, part, out, k);
}

__device__ void write_short(int32_t* out, int length, int k) {
  const int size = static_cast<int>(hopper::cluster_size()), rank = static_cast<int>(hopper::cluster_rank());
  for (int i = rank * kRowThreads + static_cast<int>(threadIdx.x); i < k; i += size * kRowThreads) {
    out[i] = i < length ? i : -1;
  }
}

// A row's range; length -1 where it is none.
struct Range {
  int64_t start;
  int length;
};
__device__ Range row_range(const TopkPerRowArgs& a, int64_t row) {
  if (row >= a.rows) return {0, -1};
  const int64_t start = a.starts != nullptr ? __ldcg(a.starts + row) : 0;
  const int64_t end = a.ends != nullptr ? __ldcg(a.ends + row) : a.stride;
  const bool good = start >= 0 && start <= end && end <= a.stride;
  return {start, good ? static_cast<int>(end - start) : -1};
}

__global__ __launch_bounds__(kRowThreads, 3) void topk_kernel(const __grid_constant__ TopkParams p) {
  extern __shared__ __align__(16) uint8_t shared[];
  RowShared& s = *reinterpret_cast<RowShared*>(shared);
  hopper::launch_dependents();
  row_cluster_arrive();  // every CTA of the cluster runs: once waited for, they may write to each other
  hopper::wait_for_predecessors();
  int64_t i = blockIdx.x / hopper::cluster_size();
  Range range = row_range(p.a, i);
#pragma unroll 1
  for (; i < p.a.rows; i += p.clusters) {
    const Range now = range;
    range = row_range(p.a, i + p.clusters);
    int32_t* out = p.a.out + i * p.a.k;
    if (hopper::cluster_rank() == 0 && threadIdx.x == 0) p.a.status[i] = now.length < 0 ? kTopkBadRange : kTopkDone;
    if (now.length <= p.a.k) {
      write_short(out, now.length, p.a.k);
      continue;
    }
    hopper::cluster_wait();  // the row before is done, and so is what the others of the cluster read here
    if (threadIdx.x == 0) s.list_count = 0;
    select_row(s, row_values(p.a.logits + i * p.a.stride + now.start, now.length), out, p.a.k);
    row_cluster_arrive();
  }
  hopper::cluster_wait();  // others may still write here
}

static_assert(sizeof(RowShared) <= kRowSharedBytes);

}  // namespace

void launch_topk_per_row(const TopkPerRowArgs& args, const KernelContext& context) {
  if (args.rows == 0) return;
  if (reinterpret_cast<uintptr_t>(args.logits) % 16 != 0) {
    throw_invalid("topk_per_row: the logits must be aligned to 16 bytes");
  }
  const ClusterPlaces& places = row_places("topk_per_row", topk_kernel, sizeof(RowShared));
  const RowPlan plan = plan_rows(args.rows, args.stride, places, kLongestPart);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.clusters * plan.cluster));
  shape.block = dim3(kRowThreads);
  shape.cluster = dim3(static_cast<unsigned>(plan.cluster));
  shape.shared_bytes = sizeof(RowShared);
  launch("topk_per_row", topk_kernel, shape, context.stream, TopkParams{args, plan.clusters});
}

}  // namespace isobit::cuda
