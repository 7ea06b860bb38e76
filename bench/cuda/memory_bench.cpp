// Embedding, RMSNorm, rotation with the cache's write; and a plain copy, whose rate is what the memory gives.
#include <memory>
#include <vector>

#include "gpu_bench.h"
#include "ops/cuda/device.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/linear_cuda.h"

namespace isobit::bench {
namespace {

using Buffers = std::vector<DeviceBuffer>;

Buffers random_buffers(int count, size_t bytes) {
  Buffers v;
  for (int i = 0; i < count; i++) {
    v.emplace_back(bytes);
    v.back().fill_random_bf16(static_cast<uint64_t>(i) << 40);
  }
  return v;
}

cuda::KernelContext context(cudaStream_t stream) {
  cuda::KernelContext c;
  c.stream = stream;
  c.sm_count = 132;
  return c;
}

// As many bytes read as written.
double copy(size_t bytes) {
  const int copies = rotated_copies(2 * bytes);
  const Buffers from = random_buffers(copies, bytes), to = random_buffers(copies, bytes);
  return graph_us(copies, [&](int i, cudaStream_t stream) {
    const auto at = static_cast<size_t>(i);
    cuda::check(cudaMemcpyAsync(to[at].data(), from[at].data(), bytes, cudaMemcpyDeviceToDevice, stream), "copy");
  });
}

double rms_norm(int64_t rows, int64_t n) {
  const auto elements = static_cast<size_t>(rows * n);
  const int copies = rotated_copies(elements * 6);
  const Buffers x = random_buffers(copies, elements * 4), out = random_buffers(copies, elements * 2);
  DeviceBuffer weight(static_cast<size_t>(n) * 4);
  weight.fill_random_bf16(7);
  return graph_us(copies, [&](int i, cudaStream_t stream) {
    RmsNormArgs a;
    a.x = x[static_cast<size_t>(i)].data<float>(), a.weight = weight.data<float>();
    a.count = rows, a.n = n, a.out = out[static_cast<size_t>(i)].data<uint16_t>();
    launch_rms_norm(a, context(stream));
  });
}

double embed(int64_t rows, int64_t hidden, int64_t vocab) {
  const auto elements = static_cast<size_t>(rows * hidden);
  auto memory = std::make_shared<DeviceBuffer>(static_cast<size_t>(vocab * hidden) * 2);
  memory->fill_random_bf16(1);
  const cuda::CudaLinear table(vocab, hidden, LinearForm::kStacked, DType::kBF16,
                               Buffer(std::shared_ptr<void>(memory, memory->data()), memory->bytes()));
  const int copies = rotated_copies(elements * 6);
  const Buffers out = random_buffers(copies, elements * 4);
  std::vector<int32_t> ids(static_cast<size_t>(rows * copies));
  for (size_t i = 0; i < ids.size(); i++) ids[i] = static_cast<int32_t>(i * 2654435761u % static_cast<uint64_t>(vocab));
  const DeviceBuffer tokens(ids.size() * 4);
  cuda::check(cudaMemcpy(tokens.data(), ids.data(), ids.size() * 4, cudaMemcpyHostToDevice), "tokens");
  return graph_us(copies, [&](int i, cudaStream_t stream) {
    EmbedArgs a;
    a.table = &table, a.tokens = tokens.data<int32_t>() + i * rows, a.count = rows;
    a.out = out[static_cast<size_t>(i)].data<float>();
    launch_embed(a, context(stream));
  });
}

struct RopeShape {
  int64_t tokens;
  int q_heads, kv_heads, head_dim;
  RopeLayout layout;
  bool norm;
  size_t elements() const { return static_cast<size_t>(tokens * (q_heads + 2 * kv_heads) * head_dim); }
};

double rope_cache(const RopeShape& s) {
  constexpr int kPage = 16;
  const int copies = rotated_copies(s.elements() * 6);
  const Buffers qkv = random_buffers(copies, s.elements() * 4);
  const auto cache_bytes = static_cast<size_t>((s.tokens + kPage) * s.kv_heads * s.head_dim) * 2;
  const Buffers q = random_buffers(copies, static_cast<size_t>(s.tokens * s.q_heads * s.head_dim) * 2);
  const Buffers k = random_buffers(copies, cache_bytes), v = random_buffers(copies, cache_bytes);
  DeviceBuffer cos(static_cast<size_t>(s.tokens * s.head_dim) * 2), sin(cos.bytes()), norm(4096);
  cos.fill_random_bf16(2), sin.fill_random_bf16(3), norm.fill_random_bf16(4);
  std::vector<int32_t> position(static_cast<size_t>(s.tokens));
  std::vector<int64_t> slot(position.size());
  for (size_t i = 0; i < slot.size(); i++) position[i] = static_cast<int32_t>(i), slot[i] = static_cast<int64_t>(i);
  const DeviceBuffer positions(position.size() * 4), slots(slot.size() * 8), flags(position.size() * 4);
  cuda::check(cudaMemcpy(positions.data(), position.data(), positions.bytes(), cudaMemcpyHostToDevice), "positions");
  cuda::check(cudaMemcpy(slots.data(), slot.data(), slots.bytes(), cudaMemcpyHostToDevice), "slots");
  return graph_us(copies, [&](int i, cudaStream_t stream) {
    const auto at = static_cast<size_t>(i);
    RopeCacheArgs a;
    a.qkv = qkv[at].data<float>(), a.positions = positions.data<int32_t>(), a.slots = slots.data<int64_t>();
    a.count = s.tokens, a.q_heads = s.q_heads, a.cos = cos.data<float>(), a.sin = sin.data<float>();
    a.rope_dim = s.head_dim, a.max_position = s.tokens, a.layout = s.layout;
    if (s.norm) a.q_norm = norm.data<float>(), a.k_norm = norm.data<float>();
    a.cache.k = k[at].data(), a.cache.v = v[at].data(), a.cache.pages = (s.tokens + kPage) / kPage;
    a.cache.kv_heads = s.kv_heads, a.cache.page_size = kPage, a.cache.head_dim = s.head_dim;
    a.q = q[at].data<uint16_t>(), a.nonfinite = flags.data<int32_t>();
    launch_rope_cache(a, context(stream));
  });
}

void add(std::vector<Case>& cases) {
  const double mib64 = 64.0 * (1 << 20);
  cases.push_back({"copy", "64MiB", floor_us(0, 2 * mib64), [] { return copy(size_t{64} << 20); }});
  for (const auto& [rows, n] : {std::pair{4096, 4096}, {4096, 2048}, {8192, 576}, {1, 4096}, {1, 576}, {64, 4096}}) {
    cases.push_back({"rms_norm", std::to_string(rows) + "x" + std::to_string(n), floor_us(0, 6.0 * rows * n),
                     [rows, n] { return rms_norm(rows, n); }});
  }
  for (const auto& [rows, n] : {std::pair{4096, 4096}, {1, 4096}}) {
    cases.push_back({"embed", std::to_string(rows) + "x" + std::to_string(n), floor_us(0, 6.0 * rows * n),
                     [rows, n] { return embed(rows, n, 128256); }});
  }
  const RopeShape llama{4096, 32, 8, 128, RopeLayout::kInterleaved, false};
  RopeShape qwen = llama, one = llama;
  qwen.layout = RopeLayout::kHalves, qwen.norm = true;
  one.tokens = 1;
  for (const auto& [name, s] :
       {std::pair{"t4096-32-8-d128", llama}, {"t4096-32-8-d128-qknorm", qwen}, {"t1-32-8-d128", one}}) {
    cases.push_back(
        {"rope_cache", name, floor_us(0, 6.0 * static_cast<double>(s.elements())), [s = s] { return rope_cache(s); }});
  }
}

const AddCases kAdded(add);

}  // namespace
}  // namespace isobit::bench
