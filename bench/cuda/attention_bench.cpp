// Rows attention: bf16, pages of 16 keys in random order, inputs rotated. ISOBIT_ATTENTION_PAGE sets another page size.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>

#include "gpu_bench.h"
#include "ops/cuda/attention_launch.h"
#include "ops/cuda/device.h"

namespace isobit::bench {
namespace {

struct AttentionShape {
  const char* name;
  int batch, added, prefix, q_heads, kv_heads, head_dim, window;
  bool fp8 = false;  // the cache

  int element_bytes() const { return fp8 ? 1 : 2; }
};

constexpr AttentionShape kShapes[] = {
    {"prefill-8192-d128", 1, 8192, 0, 32, 8, 128, 0},
    {"prefill-8192-d64", 1, 8192, 0, 32, 8, 64, 0},
    {"prefill-8192-d256", 1, 8192, 0, 8, 4, 256, 0},
    {"prefill-8192-d256-w1024", 1, 8192, 0, 8, 4, 256, 1024},
    {"new1000-d256", 1, 1000, 0, 8, 4, 256, 0},
    {"b4-new1000-d256", 4, 1000, 0, 8, 4, 256, 0},
    {"b8-new512-d256", 8, 512, 0, 8, 4, 256, 0},
    {"b16-new1024-d256", 16, 1024, 0, 8, 4, 256, 0},
    {"b32-new512-d256", 32, 512, 0, 8, 4, 256, 0},
    {"chunk512-after7680-d128", 1, 512, 7680, 32, 8, 128, 0},
    {"chunk512-after7680-d256", 1, 512, 7680, 8, 4, 256, 0},
    {"verify-b32x4-p64-d256-w1024", 32, 4, 64, 8, 4, 256, 1024},
    {"verify-b32x4-p1000-d256-w1024", 32, 4, 1000, 8, 4, 256, 1024},
    {"verify-b32x4-p8000-d256-w1024", 32, 4, 8000, 8, 4, 256, 1024},
    {"verify-b32x4-p8000-d256", 32, 4, 8000, 8, 4, 256, 0},
    {"decode-b32-8k-d128", 32, 1, 8191, 32, 8, 128, 0},
    {"decode-b128-1k-d128", 128, 1, 1023, 32, 8, 128, 0},
    {"decode-b1-8k-d128", 1, 1, 8191, 32, 8, 128, 0},
    {"decode-b1-32k-d128", 1, 1, 32767, 32, 8, 128, 0},
    {"decode-b64-1k-d64", 64, 1, 1023, 32, 8, 64, 0},
    {"decode-b32-8k-d128-kv8", 32, 1, 8191, 32, 8, 128, 0, true},
    {"decode-b128-1k-d128-kv8", 128, 1, 1023, 32, 8, 128, 0, true},
    {"decode-b1-8k-d128-kv8", 1, 1, 8191, 32, 8, 128, 0, true},
    {"decode-b64-1k-d64-kv8", 64, 1, 1023, 32, 8, 64, 0, true},
    {"verify-b32x4-p8000-d256-kv8", 32, 4, 8000, 8, 4, 256, 0, true},
    {"prefill-8192-d128-kv8", 1, 8192, 0, 32, 8, 128, 0, true},
    {"chunk512-after7680-d128-kv8", 1, 512, 7680, 32, 8, 128, 0, true},
    {"chunk512-after7680-d256-kv8", 1, 512, 7680, 8, 4, 256, 0, true},
};

// Keys that each query sees, summed, and keys that must be read.
struct Work {
  double pairs = 0, keys = 0;
};
Work work_of(const AttentionShape& s) {
  Work w;
  for (int i = 0; i < s.added; i++) {
    const int position = s.prefix + i;
    w.pairs += s.window > 0 ? std::min(position + 1, s.window) : position + 1;
  }
  const int first = s.window > 0 ? std::max(0, s.prefix - s.window + 1) : 0;
  w.keys = s.prefix + s.added - first;
  w.pairs *= s.batch, w.keys *= s.batch;
  return w;
}

double attention_floor(const AttentionShape& s) {
  const Work w = work_of(s);
  const double flops = w.pairs * 4 * s.head_dim * s.q_heads;
  const double bytes =
      w.keys * 2 * s.element_bytes() * s.head_dim * s.kv_heads + 4.0 * s.batch * s.added * s.q_heads * s.head_dim;
  return floor_us(flops, bytes);
}

template <typename T>
DeviceBuffer upload(const std::vector<T>& v) {
  DeviceBuffer d(v.size() * sizeof(T));
  cuda::check(cudaMemcpy(d.data(), v.data(), d.bytes(), cudaMemcpyHostToDevice), "upload");
  return d;
}

double run(const AttentionShape& s) {
  const char* page_text = std::getenv("ISOBIT_ATTENTION_PAGE");
  const int page = page_text != nullptr ? std::atoi(page_text) : 16;
  const int length = s.prefix + s.added, pages_each = (length + page - 1) / page, pages = pages_each * s.batch;
  const size_t cache_bytes = static_cast<size_t>(pages) * page * s.kv_heads * s.head_dim * s.element_bytes();
  const DeviceBuffer scales = upload(std::vector<float>(static_cast<size_t>(s.kv_heads), 1.0f));
  std::vector<int32_t> table(pages), starts(s.batch + 1), lengths(s.batch, length);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(1));
  for (int b = 0; b <= s.batch; b++) starts[b] = b * s.added;
  const DeviceBuffer d_table = upload(table), d_starts = upload(starts), d_lengths = upload(lengths);
  const size_t q_bytes = static_cast<size_t>(s.batch) * s.added * s.q_heads * s.head_dim * 2;
  DeviceBuffer q(q_bytes), out(q_bytes), workspace(size_t{64} << 20), counters(cuda::kCounters * 4);
  cuda::check(cudaMemset(counters.data(), 0, counters.bytes()), "counters");
  q.fill_random_bf16(7);
  std::vector<DeviceBuffer> k, v;
  const int copies = rotated_copies(2 * cache_bytes);
  for (int i = 0; i < copies; i++) {
    k.emplace_back(cache_bytes);
    v.emplace_back(cache_bytes);
    k.back().fill_random_bf16(static_cast<uint64_t>(2 * i + 1) << 40);
    v.back().fill_random_bf16(static_cast<uint64_t>(2 * i + 2) << 40);
  }
  AttentionArgs a;
  a.q = q.data<uint16_t>();
  a.query_start = d_starts.data<int32_t>();
  a.kv_len = d_lengths.data<int32_t>();
  a.page_table = d_table.data<int32_t>();
  a.tokens = s.batch * s.added, a.requests = s.batch, a.q_heads = s.q_heads, a.table_stride = pages_each;
  a.max_query = s.added, a.max_kv = length;
  a.scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  a.window = s.window;
  a.out = out.data<uint16_t>();
  cuda::KernelContext context;
  context.sm_count = 132;
  context.workspace = workspace.data();
  context.workspace_bytes = workspace.bytes();
  context.counters = counters.data<uint32_t>();
  return graph_us(std::max(copies, 8), [&](int i, cudaStream_t stream) {
    AttentionArgs call = a;
    call.cache = {k[i % copies].data(), v[i % copies].data(), pages, s.kv_heads, page, s.head_dim};
    if (s.fp8) {
      call.cache.type = DType::kF8E4M3;
      call.cache.k_scale = call.cache.v_scale = scales.data<float>();
    }
    call.check();
    cuda::KernelContext c = context;
    c.stream = stream;
    cuda::launch_attention(call, c);
  });
}

void add(std::vector<Case>& all) {
  for (const AttentionShape& s : kShapes)
    all.push_back({"attention", s.name, attention_floor(s), [s] { return run(s); }});
}
const AddCases added(add);

}  // namespace
}  // namespace isobit::bench
