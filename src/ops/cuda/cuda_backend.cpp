#include "ops/cuda/cuda_backend.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "base/error.h"
#include "ops/cuda/dequantize.h"
#include "ops/cuda/device.h"
#include "ops/cuda/gemm_fp8.h"
#include "ops/cuda/gemm_fp8_thin.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/linear_cuda.h"
#include "ops/cuda/scatter.h"
#include "ops/cuda/staging.h"
#include "ops/cuda/step_graphs.h"
#include "ops/linear_fp8.h"

namespace isobit {
namespace {

using cuda::check;

constexpr size_t kStagingBytes = size_t{16} << 20;
constexpr int32_t kBuckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256};
constexpr int32_t kBucketStep = 128;  // past the last

size_t megabytes(size_t bytes) { return (bytes + (size_t{1} << 20) - 1) >> 20; }

struct Memory {
  size_t free = 0, total = 0;
};
Memory device_memory() {
  Memory m;
  check(cudaMemGetInfo(&m.free, &m.total), "asking for the GPU's free memory");
  return m;
}

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
  ~Stream() {
    cudaStreamSynchronize(stream_);
    cudaStreamDestroy(stream_);
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaFp8Kernels final : public Fp8Kernels {
 public:
  explicit CudaFp8Kernels(const cuda::KernelContext& context) : context_(context) {}
  void quantize(const QuantizeFp8Args& a) override {
    a.check();
    launch_quantize_fp8(a, context_);
  }
  void gemm(const GemmFp8Args& a) override {
    a.check();
    launch_gemm_fp8(a, context_);
  }
  void gate(const GateArgs& a) override {
    a.check();
    launch_gate(a, context_);
  }
  bool quantized_gemm(const QuantizeFp8Args& q, const GemmFp8Args& g, const Fp8After& after) override {
    q.check();
    g.check();
    return launch_quantized_gemm_fp8(q, g, after, context_);
  }
  std::span<std::byte> scratch(size_t) override {
    return {static_cast<std::byte*>(context_.workspace), context_.workspace_bytes};
  }

 private:
  const cuda::KernelContext& context_;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options)
      : device_(cuda::open_device(options.device)),
        staging_(stream_, kStagingBytes),
        graphs_(stream_),
        use_graphs_(options.graphs),
        workspace_(allocate(options.workspace_bytes, "the operators' workspace")),
        unpack_(allocate(kStagingBytes, "unpacking weights")),
        counters_(allocate(cuda::kCounters * sizeof(uint32_t), "the operators' counters")) {
    context_.stream = stream_;
    context_.sm_count = device_.sm_count;
    context_.workspace = workspace_.data();
    context_.workspace_bytes = workspace_.bytes();
    context_.counters = static_cast<uint32_t*>(counters_.data());
  }

  ~CudaBackend() override {
    cudaSetDevice(device_.id);
    cudaStreamSynchronize(stream_);
  }

  BackendInfo info() const override {
    use_device();
    const Memory m = device_memory();
    return {fmt::format("cuda:{}", device_.id),
            fmt::format("{}, {} SMs, driver for CUDA {}.{}", device_.name, device_.sm_count,
                        device_.driver_version / 1000, device_.driver_version % 1000 / 10),
            m.total, m.free};
  }

  Buffer allocate(size_t bytes, std::string_view what) override {
    use_device();
    void* p = nullptr;
    const cudaError_t status = cudaMalloc(&p, std::max<size_t>(bytes, 1));
    if (status == cudaErrorMemoryAllocation) {
      cudaGetLastError();
      const Memory m = device_memory();
      throw fail(ErrorCode::kOutOfMemory,
                 "{} needs {} MB on cuda:{}; {} of {} MB are free, {} MB are missing (other processes on the GPU count "
                 "too: see nvidia-smi)",
                 what, megabytes(bytes), device_.id, m.free >> 20, m.total >> 20,
                 megabytes(bytes > m.free ? bytes - m.free : 0));
    }
    check(status, fmt::format("allocating {} MB for {}", megabytes(bytes), what));
    const int id = device_.id;
    std::shared_ptr<void> owner(p, [id](void* memory) {
      cudaSetDevice(id);
      cudaFree(memory);
    });
    check(cudaMemsetAsync(p, 0, bytes, stream_), "clearing memory");
    check(cudaStreamSynchronize(stream_), "clearing memory");
    return {std::move(owner), bytes};
  }

  void upload(void* to, const void* from, size_t bytes) override {
    use_device();
    staging_.upload(to, from, bytes);
  }
  void download(void* to, const void* from, size_t bytes) override {
    use_device();
    staging_.download(to, from, bytes);
  }
  void upload_all(std::span<const Upload> parts) override {
    use_device();
    staging_.upload_all(parts);
  }
  void download_all(std::span<const Download> parts) override {
    use_device();
    staging_.download_all(parts);
  }
  std::function<void()> download_later(std::span<const Download> parts) override {
    use_device();
    return staging_.download_later(parts);
  }
  bool runs_by_itself() const override { return true; }
  void copy(void* to, const void* from, size_t bytes) override {
    use_device();
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_), "copy");
  }
  void synchronize() override {
    use_device();
    check(cudaStreamSynchronize(stream_), "waiting for the GPU");
  }

  std::unique_ptr<Linear> load_linear(std::span<const WeightPart> parts, LinearForm form, DType type) override {
    require(!parts.empty(), "load_linear: no parts");
    require(form == LinearForm::kStacked || (parts.size() == 2 && parts[0].rows == parts[1].rows),
            "load_linear: a gated pair needs two parts of equal rows");
    require(type == DType::kBF16 || type == DType::kF16, "load_linear: type is {}; it must be BF16 or F16",
            dtype_info(type).name);
    if (is_block_scaled(parts)) return load_fp8_linear(*this, parts, form);
    const int64_t k = parts[0].cols;
    int64_t n = 0;
    for (const WeightPart& p : parts) {
      check_part(p, k);
      n += p.rows;
    }
    const int64_t row = cuda::CudaLinear::padded_k(k), rows = cuda::CudaLinear::stored_rows(n, form);
    Buffer storage =
        allocate(static_cast<size_t>(rows * row) * sizeof(uint16_t), fmt::format("a weight matrix of {} x {}", n, k));
    cuda::DequantizeRows to;
    to.to = type;
    to.out = storage.data<uint16_t>();
    to.out_rows = rows;
    to.gated = form == LinearForm::kGated;
    for (const WeightPart& p : parts) {
      unpack(p, to);
      if (to.gated) {
        to.part++;
      } else {
        to.first += p.rows;
      }
    }
    // A GEMM asks for its weights before it waits for the kernels before it.
    synchronize();
    return std::make_unique<cuda::CudaLinear>(n, k, form, type, std::move(storage));
  }

  void embed(const EmbedArgs& a) override {
    a.check();
    use_device();
    launch_embed(a, context_);
  }
  void rms_norm(const RmsNormArgs& a) override {
    a.check();
    use_device();
    launch_rms_norm(a, context_);
  }
  void gemm(const GemmArgs& a) override {
    a.check();
    use_device();
    if (as_fp8(a.w) != nullptr) return fp8_gemm(fp8_, a);
    launch_gemm(a, context_);
  }
  void rope_cache(const RopeCacheArgs& a) override {
    a.check();
    use_device();
    launch_rope_cache(a, context_);
  }
  void attention(const AttentionArgs& a) override {
    a.check();
    use_device();
    launch_attention(a, context_);
  }
  // The heads of a token in one launch, as far as they go into one; the next token's wait for it.
  void move_cache(const MoveCacheArgs& a) override {
    use_device();
    a.check();
    for (const CacheMove& move : a.moves) {
      cuda::ScatterParts rows;
      const auto send = [&] { launch_scatter(std::exchange(rows, {}), stream_); };
      for_each_row(a.cache, move, [&](void* to, const void* from, size_t bytes) {
        rows.part[static_cast<size_t>(rows.count++)] = {static_cast<uint32_t*>(to), static_cast<const uint32_t*>(from),
                                                        bytes / sizeof(uint32_t)};
        if (static_cast<size_t>(rows.count) == rows.part.size()) send();
      });
      send();
    }
  }
  void soft_cap(const SoftCapArgs& a) override {
    a.check();
    use_device();
    launch_soft_cap(a, context_);
  }
  void norm_gemm(const RmsNormArgs& n, const GemmArgs& g) override {
    n.check();
    g.check();
    use_device();
    if (as_fp8(g.w) != nullptr) {
      if (!fp8_norm_gemm(fp8_, n, g)) Backend::norm_gemm(n, g);
      return;
    }
    launch_gemm_between(&n, g, nullptr, context_);
  }
  void norm_gemm_gemm(const RmsNormArgs& n, const GemmArgs& up, const GemmArgs& down) override {
    n.check();
    up.check();
    down.check();
    use_device();
    if (!fp8_norm_gemm_gemm(fp8_, n, up, down)) Backend::norm_gemm_gemm(n, up, down);
  }
  void norm_gemm_rope(const RmsNormArgs& n, const GemmArgs& g, const RopeCacheArgs& r) override {
    n.check();
    g.check();
    r.check();
    use_device();
    if (as_fp8(g.w) != nullptr) {
      if (!fp8_norm_gemm_rope(fp8_, n, g, r)) Backend::norm_gemm_rope(n, g, r);
      return;
    }
    launch_gemm_between(&n, g, &r, context_);
  }
  std::unique_ptr<SamplerSlots> make_sampler(int slots, int64_t vocab) override {
    use_device();
    return cuda::make_sampler_slots(slots, vocab, context_);
  }
  void sample(SamplerSlots& slots, const SampleArgs& a) override {
    a.check();
    use_device();
    launch_sample(slots, a, context_);
  }
  void log_probs(const LogProbArgs& a) override {
    a.check();
    use_device();
    launch_log_probs(a, context_);
  }
  void topk_per_row(const TopkPerRowArgs& a) override {
    a.check();
    use_device();
    launch_topk_per_row(a, context_);
  }

  int32_t bucket(int32_t count) const override {
    const auto* found = std::lower_bound(std::begin(kBuckets), std::end(kBuckets), count);
    return found != std::end(kBuckets) ? *found : (count + kBucketStep - 1) / kBucketStep * kBucketStep;
  }

  void run_step(const StepKey& key, const std::function<void()>& operators) override {
    use_device();
    if (use_graphs_) {
      graphs_.run(key, operators);
    } else {
      operators();
    }
  }

 private:
  void use_device() const { check(cudaSetDevice(device_.id), "choosing the GPU"); }

  void check_part(const WeightPart& p, int64_t k) const {
    require(p.cols == k, "load_linear: parts of {} and {} columns; they must be equal", k, p.cols);
    require(p.rows > 0 && p.cols > 0, "load_linear: a part of {} x {}; both must be positive", p.rows, p.cols);
    require(p.data != nullptr, "load_linear: a part's data is null");
    const DTypeInfo info = dtype_info(p.dtype);
    require(cuda::can_dequantize(p.dtype), "load_linear: {} is not a weight's type", info.name);
    require(k % info.block_elements == 0, "load_linear: {} columns of {}; a multiple of {} is needed", k, info.name,
            info.block_elements);
  }

  // Through the staging memory, as many whole rows at a time as fit.
  void unpack(const WeightPart& p, cuda::DequantizeRows to) {
    use_device();
    const size_t row_bytes = dtype_bytes(p.dtype, static_cast<size_t>(p.cols));
    require(row_bytes <= unpack_.bytes(), "load_linear: a row of {} bytes; at most {} are supported", row_bytes,
            unpack_.bytes());
    const auto rows_at_once = static_cast<int64_t>(unpack_.bytes() / row_bytes);
    to.from = p.dtype;
    to.packed = unpack_.data<std::byte>();
    to.cols = p.cols;
    const int64_t base = to.first;
    for (int64_t r = 0; r < p.rows; r += rows_at_once) {
      to.rows = std::min(rows_at_once, p.rows - r);
      to.first = base + r;
      staging_.upload(unpack_.data(), p.data + static_cast<size_t>(r) * row_bytes,
                      static_cast<size_t>(to.rows) * row_bytes);
      launch_dequantize(to, stream_);
    }
  }

  cuda::Device device_;
  Stream stream_;
  cuda::Staging staging_;
  cuda::StepGraphs graphs_;
  bool use_graphs_;
  Buffer workspace_, unpack_, counters_;
  cuda::KernelContext context_;
  CudaFp8Kernels fp8_{context_};
};

}  // namespace

int cuda_device_count(std::string* why_none) { return cuda::device_count(why_none); }

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options) {
  return std::make_unique<CudaBackend>(options);
}

}  // namespace isobit
