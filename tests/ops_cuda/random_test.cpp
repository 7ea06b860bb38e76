// Random operators: sizes, settings, values and places in memory are drawn; outputs, sampled where there are many, must
// be the scalar rules' bytes. ISOBIT_RANDOM_CASES: how many cases of each operator (the record takes 10^6 in all).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <stdexcept>
#include <thread>

#include "numerics/activation.h"
#include "numerics/convert.h"
#include "numerics/gemm.h"
#include "numerics/norm.h"
#include "numerics/softmax.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/linear_cuda.h"
#include "ops_cuda/attention_case.h"
#include "ops_cuda/gpu_memory.h"
#include "ops_cuda/place_row.h"

namespace isobit {
namespace {

using cuda::CudaLinear;
using numerics::Operand;

int64_t cases_wanted() {
  const char* s = std::getenv("ISOBIT_RANDOM_CASES");
  return s == nullptr ? 300 : std::max<int64_t>(1, std::strtoll(s, nullptr, 10));
}

struct Dice {
  std::mt19937_64 engine;
  bool one_in(uint64_t n) { return engine() % n == 0; }
  int64_t range(int64_t low, int64_t high) {  // both ends included
    return low + static_cast<int64_t>(engine() % static_cast<uint64_t>(high - low + 1));
  }
  int64_t log_uniform(int64_t most) {
    const double u = static_cast<double>(engine() >> 11) * 0x1p-53;
    return std::min(most, static_cast<int64_t>(std::exp(u * std::log(static_cast<double>(most) + 1))));
  }
};

// Values on both sides, of which a case takes a part from a drawn place on.
template <typename T>
class Pool {
 public:
  Pool(size_t count, const std::function<T(Dice&)>& draw) {
    Dice dice{std::mt19937_64(fresh_seed())};
    host_.resize(count);
    for (T& v : host_) v = draw(dice);
    gpu_ = std::make_unique<GpuArray<T>>(host_);
  }
  struct Part {
    const T *host, *gpu;
  };
  // aligned: the place is a multiple of 16 bytes.
  Part part(int64_t count, bool aligned, Dice& dice) const {
    int64_t at = dice.range(0, static_cast<int64_t>(host_.size()) - count);
    if (aligned) at -= at % static_cast<int64_t>(16 / sizeof(T));
    return {host_.data() + at, gpu_->data() + at};
  }

 private:
  std::vector<T> host_;
  std::unique_ptr<GpuArray<T>> gpu_;
};

// Mostly ordinary, a quarter over many powers of two, a few of any bits at all.
template <DType type>
uint16_t draw_16(Dice& dice) {
  const uint64_t r = dice.engine();
  if (r % 4099 == 0) return static_cast<uint16_t>(r >> 32);
  float u = static_cast<float>(static_cast<int64_t>(r >> 40) - (1 << 23)) / static_cast<float>(1 << 22);
  if (r % 4 == 1) u = std::ldexp(u, static_cast<int>(r >> 8 & 31) - 16);
  return type == DType::kBF16 ? numerics::f32_to_bf16(u) : numerics::f32_to_f16(u);
}
float draw_32(Dice& dice, bool hostile) {
  const uint64_t r = dice.engine();
  if (hostile && r % 4099 == 0) return numerics::from_bits(static_cast<uint32_t>(r >> 32));
  const float u = static_cast<float>(static_cast<int64_t>(r >> 40) - (1 << 23)) / static_cast<float>(1 << 21);
  return hostile && r % 4 == 1 ? std::ldexp(u, static_cast<int>(r >> 8 & 63) - 40) : u;
}

struct Pools {
  static constexpr size_t kCount = size_t{1} << 22;
  Pool<uint16_t> bf16{kCount, draw_16<DType::kBF16>}, f16{kCount, draw_16<DType::kF16>};
  Pool<float> f32{kCount, [](Dice& d) { return draw_32(d, true); }};
  Pool<float> ordinary{kCount, [](Dice& d) { return draw_32(d, false); }};
  const Pool<uint16_t>& of(DType type) const { return type == DType::kBF16 ? bf16 : f16; }
};

// One thread of the test: a stream and memory of its own.
class Worker {
 public:
  static constexpr size_t kOut = size_t{4} << 20, kScratch = size_t{48} << 20, kWorkspace = size_t{8} << 20;
  static constexpr uint8_t kPoison = 0xcd;

  explicit Worker(uint64_t seed) : dice{std::mt19937_64(seed)} {
    cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    cuda::check(cudaMemset(counters_.data(), 0, cuda::kCounters * 4), "counters");
    void* host = nullptr;
    cuda::check(cudaHostAlloc(&host, kOut + kGuard, cudaHostAllocDefault), "pinned memory");
    host_ = static_cast<uint8_t*>(host);
  }
  ~Worker() {
    cudaStreamDestroy(stream_);
    cudaFreeHost(host_);
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  cuda::KernelContext context() const {
    cuda::KernelContext c;
    c.stream = stream_, c.sm_count = 132;
    c.workspace = workspace_.data(), c.workspace_bytes = kWorkspace, c.counters = counters_.data();
    return c;
  }
  uint8_t* scratch() const { return scratch_.data(); }
  // Poisons `bytes` of outputs and what follows them.
  uint8_t* out(size_t bytes) {
    used_ = bytes;
    cuda::check(cudaMemsetAsync(out_.data(), kPoison, bytes + kGuard, stream_), "poison");
    return out_.data();
  }
  void upload(void* to, const void* from, size_t bytes) const {
    cuda::check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_), "upload");
  }
  cudaStream_t stream() const { return stream_; }
  // The outputs, once all is done; null where a kernel wrote behind them.
  const uint8_t* finish() {
    cuda::check(cudaMemcpyAsync(host_, out_.data(), used_ + kGuard, cudaMemcpyDeviceToHost, stream_), "outputs");
    cuda::check(cudaStreamSynchronize(stream_), "case");
    for (size_t i = used_; i < used_ + kGuard; i++) {
      if (host_[i] != kPoison) return nullptr;
    }
    return host_;
  }

  Dice dice;
  const std::unique_ptr<Backend> cpu = make_cpu_backend({.threads = 1, .simd_target = {}});

 private:
  static constexpr size_t kGuard = 256;
  cudaStream_t stream_ = nullptr;
  uint8_t* host_ = nullptr;
  size_t used_ = 0;
  GpuArray<uint8_t> out_{kOut + kGuard}, scratch_{kScratch}, workspace_{kWorkspace};
  GpuArray<uint32_t> counters_{cuda::kCounters};
};

template <typename T>
T at(const uint8_t* bytes, int64_t index) {
  T v;
  std::memcpy(&v, bytes + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return v;
}
uint16_t round_to(DType type, float v) {
  return type == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v);
}

// A case: empty, or what was wrong.
using RandomCase = std::function<std::string(Worker&, const Pools&)>;

struct GemmDraw {
  int64_t m, n, k;  // n: outputs
  Epilogue epilogue;
  DType type;
  bool bias;
  bool gated() const { return epilogue == Epilogue::kSiluMul || epilogue == Epilogue::kGeluMul; }
  bool wide() const { return epilogue == Epilogue::kStoreF32 || epilogue == Epilogue::kAddResidual; }
  int64_t rows() const { return gated() ? 2 * n : n; }
  LinearForm form() const { return gated() ? LinearForm::kGated : LinearForm::kStacked; }
  std::string text() const {
    return fmt::format("gemm m {} n {} k {} epilogue {} {} bias {}", m, n, k, static_cast<int>(epilogue),
                       dtype_info(type).name, bias);
  }
};

GemmDraw draw_gemm(Dice& dice) {
  constexpr int64_t kMostOutputs = int64_t{1} << 18, kMostWeights = int64_t{1} << 20;
  GemmDraw g{};
  g.epilogue = static_cast<Epilogue>(dice.range(0, 4));
  g.type = dice.one_in(3) ? DType::kF16 : DType::kBF16;
  g.m = dice.one_in(3) ? dice.range(1, 20) : dice.log_uniform(4096);
  const bool whole = dice.one_in(2);
  g.n = dice.log_uniform(std::min<int64_t>(8192, kMostOutputs / g.m));
  if (whole) g.n = (g.n + 7) / 8 * 8;
  g.k = dice.log_uniform(std::min(kMostWeights / (2 * g.n), kMostWeights / g.m));
  if (whole) g.k = (g.k + 63) / 64 * 64;
  g.bias = !g.gated() && dice.one_in(3);
  return g;
}

// Weights as the GPU has them: rows of whole slices, gate and up in eights.
struct DrawnWeights {
  Pool<uint16_t>::Part part;
  std::unique_ptr<CudaLinear> linear;
};
DrawnWeights place_weights(const GemmDraw& g, Worker& worker, const Pools& pools) {
  const int64_t row = CudaLinear::padded_k(g.k), stored = CudaLinear::stored_rows(g.rows(), g.form());
  DrawnWeights w{pools.of(g.type).part(g.rows() * g.k, false, worker.dice), nullptr};
  std::vector<uint16_t> packed(static_cast<size_t>(stored * row), 0);
  for (int64_t r = 0; r < g.rows(); r++) {
    const int64_t up = r >= g.n ? 1 : 0, i = r - up * g.n;
    const int64_t to_row = g.gated() ? i / 8 * 16 + up * 8 + i % 8 : r;
    place_row(packed, stored, to_row, w.part.host + r * g.k, g.k);
  }
  uint8_t* to = worker.scratch();
  worker.upload(to, packed.data(), packed.size() * 2);
  const std::shared_ptr<void> view(to, [](void*) {});
  w.linear = std::make_unique<CudaLinear>(g.rows(), g.k, g.form(), g.type,
                                          Buffer(view, static_cast<size_t>(stored * row) * 2));
  return w;
}

std::string gemm_case(Worker& worker, const Pools& pools) {
  Dice& dice = worker.dice;
  const GemmDraw g = draw_gemm(dice);
  const DrawnWeights w = place_weights(g, worker, pools);
  const auto x = pools.of(g.type).part(g.m * g.k, dice.one_in(2), dice);
  const auto bias = pools.f32.part(g.n, false, dice), residual = pools.f32.part(g.m * g.n, false, dice);
  const size_t bytes = static_cast<size_t>(g.m * g.n) * (g.wide() ? 4 : 2);
  GemmArgs a;
  a.x = x.gpu, a.m = g.m, a.w = w.linear.get(), a.bias = g.bias ? bias.gpu : nullptr;
  a.epilogue = g.epilogue, a.type = g.type, a.out = worker.out(bytes);
  if (g.epilogue == Epilogue::kAddResidual) {
    cuda::check(cudaMemcpyAsync(a.out, residual.gpu, bytes, cudaMemcpyDeviceToDevice, worker.stream()), "residual");
  }
  a.check();
  launch_gemm(a, worker.context());
  const uint8_t* got = worker.finish();
  if (got == nullptr) return g.text() + ": wrote behind its outputs";
  const auto chain = [&](int64_t row, int64_t n) {
    const int64_t chunk = numerics::gemm_chunk_k(g.rows(), g.k);
    const uint16_t *xs = x.host + row * g.k, *ws = w.part.host + n * g.k;
    return g.type == DType::kBF16 ? numerics::gemm_dot<Operand::kBF16>(xs, ws, g.k, chunk)
                                  : numerics::gemm_dot<Operand::kF16>(xs, ws, g.k, chunk);
  };
  const int64_t samples = std::clamp<int64_t>(1024 / (g.k / 16 + 1), 2, 32);
  for (int64_t i = 0; i < samples; i++) {
    const int64_t index = i == 0 ? g.m * g.n - 1 : dice.range(0, g.m * g.n - 1), row = index / g.n, n = index % g.n;
    float v = chain(row, n);
    if (g.bias) v = numerics::fadd(v, bias.host[n]);
    if (g.gated()) {
      const float act = g.epilogue == Epilogue::kSiluMul ? numerics::silu(v) : numerics::gelu_tanh(v);
      v = numerics::fmul(act, chain(row, n + g.n));
    }
    if (g.epilogue == Epilogue::kAddResidual) v = numerics::fadd(residual.host[index], v);
    const uint32_t want = g.wide() ? numerics::bits(numerics::canonical(v)) : round_to(g.type, v);
    const uint32_t is = g.wide() ? at<uint32_t>(got, index) : at<uint16_t>(got, index);
    if (is != want) return fmt::format("{}: ({}, {}) is {:08x}, the rule gives {:08x}", g.text(), row, n, is, want);
  }
  return {};
}

std::string norm_case(Worker& worker, const Pools& pools) {
  Dice& dice = worker.dice;
  RmsNormArgs a;
  a.n = dice.log_uniform(20000);
  a.count = dice.log_uniform(std::max<int64_t>(1, (int64_t{1} << 19) / a.n));
  a.out_type = dice.one_in(3) ? DType::kF16 : DType::kBF16;
  const bool gather = dice.one_in(3);
  const auto x = pools.f32.part(a.count * a.n, true, dice), weight = pools.ordinary.part(a.n, true, dice);
  std::vector<int32_t> rows(static_cast<size_t>(a.count));
  for (int32_t& r : rows) r = static_cast<int32_t>(dice.range(-1, a.count - 1));
  worker.upload(worker.scratch(), rows.data(), rows.size() * 4);
  a.x = x.gpu, a.weight = weight.gpu, a.rows = gather ? reinterpret_cast<int32_t*>(worker.scratch()) : nullptr;
  a.out = reinterpret_cast<uint16_t*>(worker.out(static_cast<size_t>(a.count * a.n) * 2));
  a.check();
  launch_rms_norm(a, worker.context());
  const uint8_t* got = worker.finish();
  const std::string text =
      fmt::format("rms_norm {} x {} {} gather {}", a.count, a.n, dtype_info(a.out_type).name, gather);
  if (got == nullptr) return text + ": wrote behind its outputs";
  for (const int64_t i : {dice.range(0, a.count - 1), a.count - 1}) {
    const int64_t row = gather ? rows[static_cast<size_t>(i)] : i;
    const float* in = x.host + std::max<int64_t>(row, 0) * a.n;
    const float scale = numerics::rms_scale(numerics::sum_of_squares(in, a.n), a.n, a.eps);
    for (int64_t j = 0; j < a.n; j++) {
      const float v = row < 0 ? 0.0f : numerics::rms_value(in[j], scale, weight.host[j]);
      if (at<uint16_t>(got, i * a.n + j) != round_to(a.out_type, v)) return fmt::format("{}: ({}, {})", text, i, j);
    }
  }
  return {};
}

std::string embed_case(Worker& worker, const Pools& pools) {
  Dice& dice = worker.dice;
  const DType type = dice.one_in(3) ? DType::kF16 : DType::kBF16;
  const int64_t hidden = dice.log_uniform(9000), row = CudaLinear::padded_k(hidden);
  const int64_t vocab = dice.log_uniform((int64_t{1} << 21) / row);
  const auto table = pools.of(type).part(vocab * row, true, dice);
  const std::shared_ptr<void> view(const_cast<uint16_t*>(table.gpu), [](void*) {});
  const CudaLinear linear(vocab, hidden, LinearForm::kStacked, type,
                          Buffer(view, static_cast<size_t>(vocab * row) * 2));
  EmbedArgs a;
  a.count = dice.log_uniform(std::max<int64_t>(1, (int64_t{1} << 19) / hidden));
  std::vector<int32_t> tokens(static_cast<size_t>(a.count));
  for (int32_t& t : tokens) t = static_cast<int32_t>(dice.range(-1, vocab - 1));
  worker.upload(worker.scratch(), tokens.data(), tokens.size() * 4);
  a.table = &linear, a.tokens = reinterpret_cast<int32_t*>(worker.scratch());
  a.scale = dice.one_in(2) ? 1.0f : draw_32(dice, false);
  a.out = reinterpret_cast<float*>(worker.out(static_cast<size_t>(a.count * hidden) * 4));
  a.check();
  launch_embed(a, worker.context());
  const uint8_t* got = worker.finish();
  const std::string text = fmt::format("embed {} x {} of {} scale {}", a.count, hidden, vocab, a.scale);
  if (got == nullptr) return text + ": wrote behind its outputs";
  for (int64_t i = 0; i < a.count * hidden; i++) {
    const int32_t token = tokens[static_cast<size_t>(i / hidden)];
    const uint16_t bits = token < 0 ? 0 : table.host[CudaLinear::place(vocab, token, i % hidden)];
    float v = type == DType::kBF16 ? numerics::bf16_to_f32(bits) : numerics::f16_to_f32(bits);
    if (a.scale != 1.0f) v = numerics::fmul(v, a.scale);
    if (at<uint32_t>(got, i) != numerics::bits(token < 0 ? 0.0f : numerics::canonical(v))) {
      return fmt::format("{}: element {}", text, i);
    }
  }
  return {};
}

std::string log_probs_case(Worker& worker, const Pools& pools) {
  Dice& dice = worker.dice;
  LogProbArgs a;
  a.vocab = dice.one_in(50) ? 151936 : dice.log_uniform(20000);
  a.rows = dice.log_uniform(std::max<int64_t>(1, 40000 / a.vocab));
  const auto logits = pools.ordinary.part(a.rows * a.vocab, true, dice);
  std::vector<int32_t> targets(static_cast<size_t>(a.rows));
  for (int32_t& t : targets) t = static_cast<int32_t>(dice.range(0, a.vocab - 1));
  worker.upload(worker.scratch(), targets.data(), targets.size() * 4);
  const size_t column = targets.size() * 4;
  uint8_t* out = worker.out(3 * column);
  a.logits = logits.gpu, a.targets = reinterpret_cast<int32_t*>(worker.scratch());
  a.out = reinterpret_cast<float*>(out), a.best = reinterpret_cast<int32_t*>(out + column);
  a.status = reinterpret_cast<int32_t*>(out + 2 * column);
  a.check();
  launch_log_probs(a, worker.context());
  const uint8_t* got = worker.finish();
  const std::string text = fmt::format("log_probs {} x {}", a.rows, a.vocab);
  if (got == nullptr) return text + ": wrote behind its outputs";
  const int64_t i = dice.range(0, a.rows - 1);
  const float* row = logits.host + i * a.vocab;
  const float* best = std::max_element(row, row + a.vocab);
  uint64_t sum = 0;
  for (int64_t j = 0; j < a.vocab; j++) sum += numerics::mass(row[j], *best);
  const float want = numerics::log_probability(row[targets[static_cast<size_t>(i)]], *best, sum);
  const bool right = at<uint32_t>(got, i) == numerics::bits(want) && at<int32_t>(got, a.rows + i) == best - row &&
                     at<int32_t>(got, 2 * a.rows + i) == kSampled;
  return right ? std::string{} : fmt::format("{}: row {}", text, i);
}

RopeCacheArgs draw_rope(Dice& dice) {
  RopeCacheArgs a;
  a.count = dice.log_uniform(64);
  a.type = a.cache.type = dice.one_in(3) ? DType::kF16 : DType::kBF16;
  a.cache.kv_heads = static_cast<int32_t>(dice.range(1, 4));
  a.q_heads = a.cache.kv_heads * static_cast<int32_t>(dice.range(1, 5));
  a.cache.head_dim = static_cast<int32_t>(16 * dice.log_uniform(16));
  a.cache.page_size = static_cast<int32_t>(dice.log_uniform(64));
  a.cache.pages = a.count / a.cache.page_size + dice.range(1, 4);
  a.rope_dim = dice.one_in(4) ? 0 : dice.one_in(2) ? a.cache.head_dim : a.cache.head_dim / 2;
  a.max_position = 64;
  a.layout = dice.one_in(2) ? RopeLayout::kInterleaved : RopeLayout::kHalves;
  return a;
}

std::string rope_case(Worker& worker, const Pools& pools) {
  Dice& dice = worker.dice;
  RopeCacheArgs a = draw_rope(dice), cpu = a;
  const int64_t dim = a.cache.head_dim;
  const auto qkv = pools.f32.part(a.count * (a.q_heads + 2 * a.cache.kv_heads) * dim, true, dice);
  const auto cos = pools.ordinary.part(64 * dim, true, dice), sin = pools.ordinary.part(64 * dim, true, dice);
  const auto norm = pools.ordinary.part(dim, true, dice);
  const bool normed = dice.one_in(3);
  if (a.rope_dim > 0) a.cos = cos.gpu, a.sin = sin.gpu, cpu.cos = cos.host, cpu.sin = sin.host;
  if (normed) a.q_norm = a.k_norm = norm.gpu, cpu.q_norm = cpu.k_norm = norm.host;

  std::vector<int64_t> free(static_cast<size_t>(a.cache.pages * a.cache.page_size));
  for (size_t i = 0; i < free.size(); i++) free[i] = static_cast<int64_t>(i);
  std::shuffle(free.begin(), free.end(), dice.engine);
  free.resize(static_cast<size_t>(a.count));
  std::vector<int32_t> positions(free.size());
  for (int32_t& p : positions) p = static_cast<int32_t>(dice.range(0, a.max_position - 1));
  for (int64_t& slot : free) slot = dice.one_in(13) ? -1 : slot;
  worker.upload(worker.scratch(), free.data(), free.size() * 8);
  worker.upload(worker.scratch() + free.size() * 8, positions.data(), positions.size() * 4);
  a.qkv = qkv.gpu, a.slots = reinterpret_cast<int64_t*>(worker.scratch());
  a.positions = reinterpret_cast<int32_t*>(worker.scratch() + free.size() * 8);
  cpu.qkv = qkv.host, cpu.slots = free.data(), cpu.positions = positions.data();

  const auto q_bytes = static_cast<size_t>(a.count * a.q_heads * dim) * 2;
  const auto cache_bytes = static_cast<size_t>(a.cache.pages * a.cache.page_elements()) * 2;
  const size_t flags = q_bytes + 2 * cache_bytes, bytes = flags + static_cast<size_t>(a.count) * 4;
  const auto place = [&](RopeCacheArgs& args, uint8_t* out) {
    args.q = reinterpret_cast<uint16_t*>(out);
    args.cache.k = out + q_bytes, args.cache.v = out + q_bytes + cache_bytes;
    args.nonfinite = reinterpret_cast<int32_t*>(out + flags);
  };
  uint8_t* out = worker.out(bytes);
  cuda::check(cudaMemsetAsync(out + flags, 0, bytes - flags, worker.stream()), "flags");
  place(a, out);
  a.check();
  launch_rope_cache(a, worker.context());
  std::vector<uint8_t> want(bytes, Worker::kPoison);
  std::fill(want.begin() + static_cast<int64_t>(flags), want.end(), uint8_t{0});
  place(cpu, want.data());
  worker.cpu->rope_cache(cpu);
  const uint8_t* got = worker.finish();
  const std::string text =
      fmt::format("rope_cache {} tokens, {} + {} heads of {}, {} turn, layout {}, norm {}, pages of {}", a.count,
                  a.q_heads, a.cache.kv_heads, dim, a.rope_dim, static_cast<int>(a.layout), normed, a.cache.page_size);
  if (got == nullptr) return text + ": wrote behind its outputs";
  const auto differs = std::mismatch(want.begin(), want.end(), got).first;
  return differs == want.end() ? std::string{} : fmt::format("{}: byte {}", text, differs - want.begin());
}

// Keys and values are finite (rule N21): a cache of drawn pages, which requests share as their tables happen to say.
struct CachePools {
  static uint16_t finite_16(Dice& dice, DType type) { return round_to(type, draw_32(dice, false)); }
  static uint8_t finite_8(Dice& dice) {
    const auto v = static_cast<uint8_t>(dice.engine());
    return (v & 0x7f) == 0x7f ? uint8_t{0} : v;
  }
  Pool<uint16_t> bf16{Pools::kCount, [](Dice& d) { return finite_16(d, DType::kBF16); }};
  Pool<uint16_t> f16{Pools::kCount, [](Dice& d) { return finite_16(d, DType::kF16); }};
  Pool<uint8_t> e4m3{Pools::kCount, finite_8};
  Pool<float> scale{1 << 12, [](Dice& d) { return std::ldexp(1.0f + std::abs(draw_32(d, false)), -8); }};
  const Pool<uint16_t>& of(DType type) const { return type == DType::kBF16 ? bf16 : f16; }
};

// Requests of 1 to 4096 keys, log-uniform, as far as the outputs have room.
struct AttentionDraw {
  AttentionArgs args;
  std::vector<int32_t> starts = {0}, lengths, table, parents;
  std::vector<uint64_t> mask;

  explicit AttentionDraw(Dice& dice) {
    AttentionArgs& a = args;
    static constexpr int32_t kDims[] = {64, 64, 128, 128, 256, 256, 96, 16}, kPages[] = {16, 16, 32, 64, 128, 1, 7};
    a.type = dice.one_in(4) ? DType::kF16 : DType::kBF16;
    a.cache.type = dice.one_in(6) ? DType::kF8E4M3 : a.type;
    a.cache.head_dim = kDims[dice.range(0, 7)], a.cache.page_size = kPages[dice.range(0, 6)];
    a.cache.kv_heads = static_cast<int32_t>(dice.range(1, 4));
    a.q_heads = a.cache.kv_heads * static_cast<int32_t>(dice.range(1, 8));
    a.cache.pages = Pools::kCount / a.cache.page_elements();
    a.scale = 1.0f / std::sqrt(static_cast<float>(a.cache.head_dim));
    if (dice.one_in(5)) a.soft_cap = 30.0f;
    if (dice.one_in(3)) a.window = static_cast<int32_t>(dice.log_uniform(3000));
    a.requests = static_cast<int32_t>(dice.log_uniform(64));
    const int64_t most_tokens = static_cast<int64_t>(Worker::kOut) / (2 * a.q_heads * a.cache.head_dim);
    const int64_t most_added = dice.one_in(3) ? 1 : dice.one_in(2) ? 16 : 4096;
    for (int b = 0; b < a.requests; b++) {
      const int64_t keys = dice.log_uniform(4096), room = most_tokens - a.tokens - (a.requests - b);
      const int64_t added = 1 + std::min({dice.log_uniform(most_added) - 1, keys - 1, std::max<int64_t>(room, 0)});
      lengths.push_back(dice.one_in(20) ? 0 : static_cast<int32_t>(keys));
      a.tokens += static_cast<int32_t>(added);
      starts.push_back(a.tokens);
      a.max_query = std::max(a.max_query, static_cast<int32_t>(added));
      a.max_kv = std::max(a.max_kv, static_cast<int32_t>(keys));
    }
    a.table_stride = (a.max_kv + a.cache.page_size - 1) / a.cache.page_size;
    table.resize(static_cast<size_t>(a.requests * a.table_stride));
    for (int32_t& page : table) page = static_cast<int32_t>(dice.range(0, a.cache.pages - 1));
    if (a.max_query <= 16 && dice.one_in(3)) {
      for (int b = 0; b < a.requests; b++) {
        for (int i = 0; i < starts[b + 1] - starts[b]; i++)
          parents.push_back(static_cast<int32_t>(dice.range(-1, i - 1)));
      }
    }
    a.causal = !parents.empty() || !dice.one_in(8);
    if (a.tokens <= 64 && dice.one_in(6)) {
      a.mask_stride = (a.max_kv + 63) / 64;
      mask.resize(static_cast<size_t>(a.tokens * a.mask_stride));
      for (uint64_t& m : mask) m = dice.engine() | dice.engine();
    }
  }
  std::string text() const {
    return fmt::format(
        "attention {} cache {} D {} heads {}/{} pages of {} cap {} window {} requests {} tokens {} keys {}"
        "{}{}{}",
        dtype_info(args.type).name, dtype_info(args.cache.type).name, args.cache.head_dim, args.q_heads,
        args.cache.kv_heads, args.cache.page_size, args.soft_cap, args.window, args.requests, args.tokens, args.max_kv,
        args.causal ? "" : " not causal", mask.empty() ? "" : " mask", parents.empty() ? "" : " tree");
  }
};

// One row a case is compared, and more while they take fewer than kSteps steps of 16 products.
std::string attention_case(Worker& worker, const Pools& pools) {
  constexpr int64_t kSteps = 6000;
  static const CachePools cache_pools;
  Dice& dice = worker.dice;
  AttentionDraw draw(dice);
  AttentionArgs& a = draw.args;
  const int64_t elements = a.cache.pages * a.cache.page_elements(), dim = a.cache.head_dim;
  const auto q = cache_pools.of(a.type).part(int64_t{a.tokens} * a.q_heads * dim, true, dice);
  const auto sinks = pools.ordinary.part(a.q_heads, false, dice);
  const auto k_scale = cache_pools.scale.part(a.cache.kv_heads, false, dice);
  const auto v_scale = cache_pools.scale.part(a.cache.kv_heads, false, dice);
  if (dice.one_in(3)) a.sinks = sinks.gpu;
  test::AttentionOnHost host{a};
  host.q = q.host, a.q = q.gpu;
  host.sinks = a.sinks != nullptr ? sinks.host : nullptr;
  host.query_start = draw.starts.data(), host.kv_len = draw.lengths.data(), host.page_table = draw.table.data();
  if (a.cache.type == DType::kF8E4M3) {
    const auto k = cache_pools.e4m3.part(elements, true, dice), v = cache_pools.e4m3.part(elements, true, dice);
    a.cache.k = const_cast<uint8_t*>(k.gpu), a.cache.v = const_cast<uint8_t*>(v.gpu);
    a.cache.k_scale = k_scale.gpu, a.cache.v_scale = v_scale.gpu;
    const auto reader = [&a, dim](const uint8_t* from) {
      return [&a, dim, from](int64_t at, uint16_t* to) {
        for (int64_t i = 0; i < dim; i++) to[i] = round_to(a.type, numerics::e4m3_to_f32(from[at + i]));
      };
    };
    host.key = reader(k.host), host.value = reader(v.host);
    host.k_scale = k_scale.host, host.v_scale = v_scale.host;
  } else {
    const auto k = cache_pools.of(a.type).part(elements, true, dice),
               v = cache_pools.of(a.type).part(elements, true, dice);
    a.cache.k = const_cast<uint16_t*>(k.gpu), a.cache.v = const_cast<uint16_t*>(v.gpu);
    const auto reader = [dim](const uint16_t* from) {
      return [dim, from](int64_t at, uint16_t* to) { std::copy_n(from + at, dim, to); };
    };
    host.key = reader(k.host), host.value = reader(v.host);
  }
  size_t used = 0;
  const auto place = [&](const auto& v) {
    uint8_t* to = worker.scratch() + used;
    worker.upload(to, v.data(), v.size() * sizeof(v[0]));
    used += (v.size() * sizeof(v[0]) + 15) / 16 * 16;
    return to;
  };
  a.query_start = reinterpret_cast<int32_t*>(place(draw.starts));
  a.kv_len = reinterpret_cast<int32_t*>(place(draw.lengths));
  a.page_table = reinterpret_cast<int32_t*>(place(draw.table));
  if (!draw.parents.empty()) {
    a.tree_parent = reinterpret_cast<int32_t*>(place(draw.parents));
    host.tree_parent = draw.parents.data();
  }
  if (!draw.mask.empty()) {
    a.mask = reinterpret_cast<uint64_t*>(place(draw.mask));
    host.mask = draw.mask.data();
  }
  const int64_t row_bytes = dim * 2;
  a.out = reinterpret_cast<uint16_t*>(worker.out(static_cast<size_t>(a.tokens * a.q_heads * row_bytes)));
  a.check();
  launch_attention(a, worker.context());
  const uint8_t* got = worker.finish();
  if (got == nullptr) return draw.text() + ": wrote behind its outputs";
  for (int64_t steps = 0; steps < kSteps;) {
    const int token = static_cast<int>(dice.range(0, a.tokens - 1)),
              head = static_cast<int>(dice.range(0, a.q_heads - 1));
    const std::vector<uint16_t> want = test::attention_answer(host, token, head);
    if (std::memcmp(want.data(), got + (int64_t{token} * a.q_heads + head) * row_bytes, row_bytes) != 0) {
      return fmt::format("{}: token {} head {}", draw.text(), token, head);
    }
    steps += 500 + int64_t{a.max_kv} * dim / 8;
  }
  return {};
}

// Cases in one thread a core, until one is wrong.
void run_cases(const RandomCase& one) {
  static const Pools pools;
  const int64_t wanted = cases_wanted();
  const uint64_t seed = fresh_seed();
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  const auto work = [&](uint64_t thread) {
    try {
      Worker worker(seed + thread);
      while (next++ < wanted && !failed) {
        const std::string wrong = one(worker, pools);
        if (!wrong.empty()) throw std::runtime_error(wrong);
      }
    } catch (const std::exception& e) {
      if (!failed.exchange(true)) ADD_FAILURE() << e.what() << "; seed " << seed;
    }
  };
  std::vector<std::thread> threads;
  const unsigned workers = std::clamp(std::thread::hardware_concurrency(), 1u, 16u);
  for (unsigned t = 0; t < workers; t++) threads.emplace_back(work, t);
  for (std::thread& t : threads) t.join();
  ::testing::Test::RecordProperty("cases", std::to_string(wanted));
}

TEST(GpuRandom, Gemm) { run_cases(gemm_case); }
TEST(GpuRandom, RmsNorm) { run_cases(norm_case); }
TEST(GpuRandom, Embed) { run_cases(embed_case); }
TEST(GpuRandom, RopeCache) { run_cases(rope_case); }
TEST(GpuRandom, LogProbs) { run_cases(log_probs_case); }
TEST(GpuRandom, Attention) { run_cases(attention_case); }

}  // namespace
}  // namespace isobit
