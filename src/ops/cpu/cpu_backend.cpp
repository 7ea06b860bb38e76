#include "ops/cpu/cpu_backend.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/error.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/f16_linear.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/gemm_fp8.h"
#include "ops/cpu/huge_pages.h"
#include "ops/cpu/packed_linear.h"
#include "ops/cpu/simd_target.h"
#include "ops/linear_fp8.h"

namespace isobit {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kFastShare = 8;  // fast weights take at most about an eighth of the memory

size_t physical_bytes(int pages) {
  const long count = sysconf(pages), size = sysconf(_SC_PAGESIZE);
  return count > 0 && size > 0 ? static_cast<size_t>(count) * static_cast<size_t>(size) : 0;
}

class CpuFp8Kernels final : public Fp8Kernels {
 public:
  explicit CpuFp8Kernels(const cpu::Cpu& cpu) : cpu_(cpu) {}
  void quantize(const QuantizeFp8Args& a) override { run(a, cpu::quantize_fp8); }
  void gemm(const GemmFp8Args& a) override { run(a, cpu::gemm_fp8); }
  void gate(const GateArgs& a) override { run(a, cpu::gate); }
  std::span<std::byte> scratch(size_t bytes) override {
    const size_t wanted = (std::min(bytes, kMostScratch) + kAlignment - 1) / kAlignment * kAlignment;
    if (wanted > bytes_) {
      scratch_.reset(static_cast<std::byte*>(std::aligned_alloc(kAlignment, wanted)));
      bytes_ = scratch_ != nullptr ? wanted : 0;
    }
    return {scratch_.get(), bytes_};
  }

 private:
  static constexpr size_t kMostScratch = size_t{64} << 20;
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  template <typename Args>
  void run(const Args& a, void (*op)(const cpu::Cpu&, const Args&)) {
    a.check();
    op(cpu_, a);
  }

  cpu::Cpu cpu_;
  std::unique_ptr<std::byte, Free> scratch_;
  size_t bytes_ = 0;
};

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const CpuOptions& options)
      : simd_(cpu::simd_target(options.simd_target)), pool_(options.threads) {
    require(options.threads >= 0, "threads is {}; it must be positive, or 0 for one per core", options.threads);
  }

  BackendInfo info() const override {
    return {"cpu", fmt::format("CPU, {} threads, {}", pool_.size(), cpu::simd_target_name(simd_)),
            physical_bytes(_SC_PHYS_PAGES), physical_bytes(_SC_AVPHYS_PAGES)};
  }

  Buffer allocate(size_t bytes, std::string_view what) override {
    std::shared_ptr<void> p;
    if (bytes >= 2 * cpu::kHugePage) {
      p = cpu::map_huge(bytes);
    } else {
      const size_t rounded = std::max<size_t>(bytes + kAlignment - 1, kAlignment) / kAlignment * kAlignment;
      if (void* small = std::aligned_alloc(kAlignment, rounded)) p = {std::memset(small, 0, rounded), std::free};
    }
    if (p == nullptr) {
      throw fail(ErrorCode::kOutOfMemory, "cannot allocate {} MB for {}; {} MB of memory are free", bytes >> 20, what,
                 physical_bytes(_SC_AVPHYS_PAGES) >> 20);
    }
    return {std::move(p), bytes};
  }
  void upload(void* to, const void* from, size_t bytes) override { move(to, from, bytes); }
  void upload_all(std::span<const Upload> parts) override {
    for (const Upload& p : parts) {
      move(p.to, p.from, p.bytes);
      const auto words = std::span(static_cast<int32_t*>(p.to), p.drawn != nullptr ? p.bytes / 4 : 0);
      for (int32_t& w : words) w = w < -1 ? p.drawn[-2 - w] : w;
    }
  }
  void download(void* to, const void* from, size_t bytes) override { move(to, from, bytes); }
  void copy(void* to, const void* from, size_t bytes) override { move(to, from, bytes); }
  void synchronize() override {}

  std::unique_ptr<Linear> load_linear(std::span<const WeightPart> parts, LinearForm form, DType type) override {
    require(type == DType::kBF16 || type == DType::kF16, "load_linear: type is {}; it must be BF16 or F16",
            dtype_info(type).name);
    if (is_block_scaled(parts)) return load_fp8_linear(*this, parts, form);
    if (type == DType::kF16) return cpu::load_f16(pool_, parts, form, arena_);
    // Fast weights while they are small beside the machine's memory; the bits are the same.
    const bool fast = packed_bytes_ < physical_bytes(_SC_PHYS_PAGES) / kFastShare;
    auto packed = cpu::pack_linear(pool_, parts, form, fast ? cpu::Storage::kFast : cpu::Storage::kCompact, arena_);
    packed_bytes_ += packed->bytes();
    return packed;
  }

  void embed(const EmbedArgs& a) override { run(a, cpu::embed); }
  void rms_norm(const RmsNormArgs& a) override { run(a, cpu::rms_norm); }
  void gemm(const GemmArgs& a) override {
    if (as_fp8(a.w) != nullptr) {
      a.check();
      return fp8_gemm(fp8_, a);
    }
    const bool f16 = dynamic_cast<const cpu::F16Linear*>(a.w) != nullptr;
    require(a.w == nullptr || f16 == (a.type == DType::kF16),
            "gemm: type is {}, but the weights were loaded for the other", dtype_info(a.type).name);
    run(a, f16 ? cpu::gemm_f16 : cpu::gemm);
  }
  void norm_gemm(const RmsNormArgs& n, const GemmArgs& g) override {
    n.check();
    g.check();
    if (as_fp8(g.w) == nullptr || !fp8_norm_gemm(fp8_, n, g)) Backend::norm_gemm(n, g);
  }
  void norm_gemm_gemm(const RmsNormArgs& n, const GemmArgs& up, const GemmArgs& down) override {
    n.check();
    up.check();
    down.check();
    if (!fp8_norm_gemm_gemm(fp8_, n, up, down)) Backend::norm_gemm_gemm(n, up, down);
  }
  void rope_cache(const RopeCacheArgs& a) override { run(a, cpu::rope_cache); }
  void attention(const AttentionArgs& a) override { run(a, cpu::attention); }
  void soft_cap(const SoftCapArgs& a) override { run(a, cpu::soft_cap); }
  std::unique_ptr<SamplerSlots> make_sampler(int slots, int64_t vocab) override {
    return cpu::make_sampler(slots, vocab);
  }
  void sample(SamplerSlots& slots, const SampleArgs& a) override {
    a.check();
    if (a.rows > 0) cpu::sample({pool_, simd_}, slots, a);
  }
  void log_probs(const LogProbArgs& a) override { run(a, cpu::log_probs); }
  void topk_per_row(const TopkPerRowArgs& a) override { run(a, cpu::topk_per_row); }

 private:
  template <typename Args>
  void run(const Args& a, void (*op)(const cpu::Cpu&, const Args&)) {
    a.check();
    op({pool_, simd_}, a);
  }
  static void move(void* to, const void* from, size_t bytes) {
    if (bytes > 0) std::memmove(to, from, bytes);
  }

  int64_t simd_;
  ThreadPool pool_;
  CpuFp8Kernels fp8_{{pool_, simd_}};
  cpu::WeightArena arena_;
  size_t packed_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) { return std::make_unique<CpuBackend>(options); }

}  // namespace isobit
