// The k largest of each row, in ascending order of index: a cluster of CTAs a row, row after row.
//
// Bytes: 4 a value, once. A threshold that at least k values reach and few more do comes from a sample of the row; one
// look lists what reaches it (row_stream.h carries the row through shared memory, the next one behind it); the lists
// are cut exactly, by bins of the key and a sort of the bin where the k-th lies; what is left is marked in a bitmap,
// whose prefix counts put the indices in order. A row whose list was no good (ties, a sample that misled) is cut digit
// by digit. Which way a row takes changes nothing.
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/row_places.h"
#include "ops/cuda/row_select.h"

namespace isobit::cuda {
namespace {

constexpr int64_t kLongestPart = 32 * kMarkWords;  // a bit a value

struct TopkParams {
  TopkPerRowArgs a;
  int clusters;
};

enum class Kind : int { kEnd, kShort, kSelect };
struct Job {
  Kind kind;
  int64_t index;
  const float* y;
  int length;
  RowPart part;
};

struct TopkShared {
  RowShared rows;
  Job jobs[2];
};

__device__ void row_job(RowShared& s, const TopkParams& p, int64_t index, Job& j) {
  const TopkPerRowArgs& a = p.a;
  j.index = index;
  j.kind = Kind::kEnd;
  if (index >= a.rows) return;
  const int64_t start = a.starts != nullptr ? __ldcg(a.starts + index) : 0;
  const int64_t end = a.ends != nullptr ? __ldcg(a.ends + index) : a.stride;
  const bool good = start >= 0 && start <= end && end <= a.stride;
  j.length = good ? static_cast<int>(end - start) : -1;
  j.y = a.logits + index * a.stride + start;
  j.kind = j.length <= a.k ? Kind::kShort : Kind::kSelect;
  if (j.kind == Kind::kShort) return;
  j.part = row_part(j.length);
  plan_loads(s, j.part, j.y + static_cast<int64_t>(j.part.first) * 4, a.logits, a.logits + a.rows * a.stride);
  publish_loads(s);
}

__device__ float max_nan(float a, float b) {  // NaN if either is
  float m;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(m) : "f"(a), "f"(b));
  return m;
}

// f(key) for this thread's values of the CTA's part.
template <typename F>
__device__ void for_each_value(const Job& job, const RowPart& part, F&& f) {
  const int first = part.first * 4;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < part.values; i += kRowThreads) {
    const float v = __ldcg(job.y + first + i);
    f(numerics::candidate_key(v, static_cast<uint32_t>(first + i)));
  }
}

// The largest of the groups' keys of which this thread samples one.
__device__ uint32_t sampled_key(const Job& job, const RowPart& part) {
  const int n = sample_groups(part), t = static_cast<int>(threadIdx.x);
  if (t >= n || (part.groups < n && t >= part.groups)) return 0;
  const int g = part.groups >= n ? static_cast<int>(static_cast<int64_t>(t) * part.groups / n) : t;
  const float* y = job.y + static_cast<int64_t>(part.first + g) * 4;
  const int left = part.values - g * 4;
  if (reinterpret_cast<uintptr_t>(y) % 16 == 0 && left >= 4) {
    const float4 v = __ldcg(reinterpret_cast<const float4*>(y));
    return numerics::order_key(max_nan(max_nan(v.x, v.y), max_nan(v.z, v.w)));
  }
  uint32_t key = 0;
  for (int j = 0; j < 4 && j < left; j++) key = max(key, numerics::order_key(__ldcg(y + j)));
  return key;
}

// This thread's look at the part: its largest value, and the list of those from `threshold` up.
__device__ __noinline__ float list_row(RowShared& s, const Job& job, const Stream stream, float threshold) {
  const RowPart part = job.part;
  const int length = job.length;
  float largest = kMinusInfinity;
  for_each_chunk(s, stream, job.y + static_cast<int64_t>(part.first) * 4, part, [&](const Chunk& c) {
    const int t = static_cast<int>(threadIdx.x);
    if (t * 4 >= c.count) return;
    const float4 y = chunk_group(c);
    const float m = max_nan(max_nan(y.x, y.y), max_nan(y.z, y.w));
    largest = max_nan(largest, m);
    if (m < threshold) return;
    const int id = (part.first + c.index * kRowThreads + t) * 4;
    list_group(s, static_cast<uint32_t>(id), y, threshold, [&](int j) { return id + j < length; });
  });
  return largest;
}

// Writes the marked values of the part in ascending order, behind those of the CTAs before it.
__device__ void write_marked(RowShared& s, const RowPart& part, int32_t* out, int k) {
  const int words = (part.values + 31) / 32, each = (words + kRowThreads - 1) / kRowThreads;
  const int first = static_cast<int>(threadIdx.x) * each, last = min(words, first + each);
  uint32_t mine = 0;
  for (int w = first; w < last; w++) mine += static_cast<uint32_t>(__popc(s.marks[w]));
  const uint64_t before = cta_sum_before(s, mine);
  if (threadIdx.x == kRowThreads - 1) s.found_before = before + mine;
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < part.size) {
    *peer(&s.sums[part.rank], static_cast<int>(threadIdx.x)) = s.found_before;
  }
  row_cluster_sync();
  uint64_t at = before;
  for (int r = 0; r < part.rank; r++) at += s.sums[r];
  for (int w = first; w < last; w++) {
    for (uint32_t bits = s.marks[w]; bits != 0; bits &= bits - 1) {
      if (at < static_cast<uint64_t>(k)) out[at] = part.first * 4 + w * 32 + __ffs(static_cast<int>(bits)) - 1;
      at++;
    }
  }
}

__device__ void select_row(RowShared& s, const TopkParams& p, const Job& job, const Stream& stream) {
  const RowPart& part = job.part;
  hopper::cluster_wait();
  const uint32_t threshold = sampled_threshold(s, part, sampled_key(job, part), job.length, p.a.k);
  const float largest_of_thread = list_row(s, job, stream, order_value(threshold));
  const uint32_t largest_of_cta = cta_max(s, 1, numerics::order_key(largest_of_thread));
  const uint32_t listed = s.list_count;
  const ClusterScan c = exchange_scan(s, part, largest_of_cta, listed);
  const auto goal = static_cast<uint64_t>(p.a.k);
  bool from_list = c.fits && c.listed >= goal;
  uint64_t cutoff = 0;
  if (from_list) {
    const Cut cut = cut_lists(s, part, static_cast<int>(listed), c.largest, threshold, goal);
    from_list = cut.found;
    cutoff = cut.key;
  }
  if (!from_list) {
    cutoff = find_cut(s, part, goal, [&](auto&& f) { for_each_value(job, part, f); });
  }
  const int words = (part.values + 31) / 32;
  for (int w = static_cast<int>(threadIdx.x); w < words; w += kRowThreads) s.marks[w] = 0;
  __syncthreads();
  const auto mark = [&](uint64_t key) {
    const uint32_t at = key_id(key) - static_cast<uint32_t>(part.first) * 4;
    if (key >= cutoff) atomicOr(&s.marks[at / 32], 1u << (at % 32));
  };
  if (from_list) {
    for (uint32_t i = threadIdx.x; i < listed; i += kRowThreads) mark(s.list[i]);
  } else {
    for_each_value(job, part, mark);
  }
  __syncthreads();
  write_marked(s, part, p.a.out + job.index * p.a.k, p.a.k);
}

__device__ void write_short(const TopkParams& p, const Job& job) {
  int32_t* out = p.a.out + job.index * p.a.k;
  const int size = static_cast<int>(hopper::cluster_size()), rank = static_cast<int>(hopper::cluster_rank());
  for (int i = rank * kRowThreads + static_cast<int>(threadIdx.x); i < p.a.k; i += size * kRowThreads) {
    out[i] = i < job.length ? i : -1;
  }
}

__global__ __launch_bounds__(kRowThreads, 2) void topk_kernel(const __grid_constant__ TopkParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  TopkShared& all = *reinterpret_cast<TopkShared*>(shared);
  RowShared& s = all.rows;
  const int t = static_cast<int>(threadIdx.x);
  hopper::launch_dependents();
  if (t == 0) start_loader(s);
  row_cluster_arrive();  // every CTA of the cluster runs: once waited for, they may write to each other
  hopper::wait_for_predecessors();
  if (t == 0) {
    row_job(s, p, blockIdx.x / hopper::cluster_size(), all.jobs[0]);
  }
  uint32_t base = 0;
#pragma unroll 1
  for (int n = 0;; n++) {
    __syncthreads();
    const Job& job = all.jobs[n % 2];
    if (job.kind == Kind::kEnd) break;
    if (t == 0) {
      refill(s, base);
      s.list_count = 0;
    }
    __syncthreads();
    if (t == 32) {
      Job& next = all.jobs[(n + 1) % 2];
      row_job(s, p, job.index + p.clusters, next);
    }
    __syncwarp();
    if (hopper::cluster_rank() == 0 && t == 0) p.a.status[job.index] = job.length < 0 ? kTopkBadRange : kTopkDone;
    if (job.kind == Kind::kShort) {
      write_short(p, job);
      continue;
    }
    const RowPart& part = job.part;
    select_row(s, p, job, {base, job.index + p.clusters < p.a.rows || part.chunks > kSlots});
    base += static_cast<uint32_t>(part.chunks);
    row_cluster_arrive();
  }
  hopper::cluster_wait();  // others may still write here
}

static_assert(sizeof(TopkShared) <= kRowSharedBytes);

}  // namespace

void launch_topk_per_row(const TopkPerRowArgs& args, const KernelContext& context) {
  if (args.rows == 0) return;
  if (reinterpret_cast<uintptr_t>(args.logits) % 16 != 0) {
    throw_invalid("topk_per_row: the logits must be aligned to 16 bytes");
  }
  const ClusterPlaces& places = row_places("topk_per_row", topk_kernel, sizeof(TopkShared));
  const RowPlan plan = plan_rows(args.rows, args.stride, places, kLongestPart);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(plan.clusters * plan.cluster));
  shape.block = dim3(kRowThreads);
  shape.cluster = dim3(static_cast<unsigned>(plan.cluster));
  shape.shared_bytes = sizeof(TopkShared);
  launch("topk_per_row", topk_kernel, shape, context.stream, TopkParams{args, plan.clusters});
}

}  // namespace isobit::cuda
