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

// The i-th group that the CTA samples; -1: there is none.
__device__ int sampled_group(const RowPart& part, int i) {
  static_assert(int64_t{kUnits} * kMarkWords * 8 <= UINT32_MAX);
  const int n = sample_groups(part);
  if (part.groups < n) return i < part.groups ? part.first + i : -1;
  return part.first +
         static_cast<int>(static_cast<uint32_t>(i) * static_cast<uint32_t>(part.groups) / static_cast<uint32_t>(n));
}
__device__ uint32_t sampled_key(const RowValues& row, const RowPart& part, int i) {
  const int g = sampled_group(part, i);
  return g < 0 ? 0 : numerics::order_key(max_nan(row_group(row, g)));
}

// The groups at the row's ends that are not whole: at most the first and the last one; where they are the same, once.
__device__ __noinline__ float list_edges(RowShared& s, const RowValues& row, const RowPart& part, float threshold) {
  const int t = static_cast<int>(threadIdx.x), last = part.first + part.groups - 1;
  const int g = t == 0 ? part.first : last;
  if (t > 1 || row.whole(g) || (t == 1 && last == part.first)) return kMinusInfinity;
  const float4 y = edge_group(row, g);
#pragma unroll
  for (int j = 0; j < 4; j++) {
    const float v = j == 0 ? y.x : j == 1 ? y.y : j == 2 ? y.z : y.w;
    if (row.valid(g, j) && !(v < threshold)) list_value(s, part, v, row.index(g) + j);
  }
  return max_nan(y);
}

// This thread's look at the part: its largest value, and the list of those from `threshold` up.
__device__ float list_part(RowShared& s, const RowValues& row, const RowPart& part, float threshold) {
  const int end = part.first + part.groups, t = static_cast<int>(threadIdx.x);
  const int first_whole = part.first + (row.whole(part.first) ? 0 : 1);
  const int end_whole = end - (row.whole(end - 1) ? 0 : 1);
  float largest = list_edges(s, row, part, threshold);
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
      const int at = g + u * kRowThreads;
      if (!(m < threshold) && at < end_whole) list_group(s, part, y[u], row.index(at), threshold);
    }
  }
  return largest;
}

// How many the CTAs before this one have marked, where each knows but its own.
__device__ __noinline__ uint64_t marked_before(RowShared& s, const RowPart& part, uint64_t mine) {
  if (static_cast<int>(threadIdx.x) < part.size) *peer(&s.sums[part.rank], static_cast<int>(threadIdx.x)) = mine;
  publish();
  uint64_t before = 0;
  for (int r = 0; r < part.rank; r++) before += s.sums[r];
  return before;
}

// Marks the values from `cutoff` up; how many the CTAs before this one have.
__device__ uint64_t mark_listed(RowShared& s, const RowValues& row, const RowPart& part, uint64_t cutoff) {
  const uint32_t first = static_cast<uint32_t>(row.index(part.first));
  uint32_t before = 0;
  for_each_listed(s, part, [&](uint64_t key, int rank) {
    if (key < cutoff || rank > part.rank) return;
    const uint32_t at = key_id(key) - first;
    if (rank == part.rank) {
      atomicOr(&s.marks[at / 32], 1u << (at % 32));
    } else {
      before++;
    }
  });
  before = __reduce_add_sync(kAllLanes, before);
  if (threadIdx.x % 32 == 0 && before != 0) atomicAdd(&s.gathered, before);
  __syncthreads();
  return s.gathered;
}

// Writes the marked values of the part in ascending order, from place `begin` on; to all threads how many there are.
struct Marked {
  uint64_t before, all;  // this thread's words; the part
  int first, last;
};
__device__ Marked count_marked(RowShared& s, const RowPart& part) {
  const int words = (part.groups * 4 + 31) / 32, each = (words + kRowThreads - 1) / kRowThreads;
  Marked m;
  m.first = static_cast<int>(threadIdx.x) * each;
  m.last = min(words, m.first + each);
  uint32_t mine = 0;
  for (int w = m.first; w < m.last; w++) mine += static_cast<uint32_t>(__popc(s.marks[w]));
  m.before = cta_sum_before(s, mine);
  if (threadIdx.x == kRowThreads - 1) s.found_before = m.before + mine;
  __syncthreads();
  m.all = s.found_before;
  return m;
}
__device__ void write_marked(const RowShared& s, const RowValues& row, const RowPart& part, const Marked& m,
                             uint64_t begin, int32_t* out, int k) {
  uint64_t at = begin + m.before;
  for (int w = m.first; w < m.last; w++) {
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
  const ClusterScan c = exchange_scan(s, part, largest_of_cta, s.list_count);
  const auto goal = static_cast<uint64_t>(k);
  Cut cut{false, 0};
  if (c.fits && c.listed >= goal) cut = cut_list(s, part, c.largest, threshold, goal);
  const bool from_list = cut.found;
  if (!from_list) cut.key = find_cut(s, part, goal, [&](auto&& f) { for_each_value(row, part, f); });
  const int words = (part.groups * 4 + 31) / 32;
  for (int w = static_cast<int>(threadIdx.x); w < words; w += kRowThreads) s.marks[w] = 0;
  if (threadIdx.x == 0) s.gathered = 0;
  __syncthreads();
  uint64_t begin = 0;
  if (from_list) {
    begin = mark_listed(s, row, part, cut.key);
  } else {
    for_each_value(row, part, [&](uint64_t key) {
      const uint32_t at = key_id(key) - static_cast<uint32_t>(row.index(part.first));
      if (key >= cut.key) atomicOr(&s.marks[at / 32], 1u << (at % 32));
    });
    __syncthreads();
  }
  const Marked marked = count_marked(s, part);
  if (!from_list) begin = marked_before(s, part, marked.all);
  write_marked(s, row, part, marked, begin, out, k);
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
