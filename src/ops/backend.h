#pragma once
// Where operators run. The decoder is written once against this interface; no code above it asks which backend it has.
// A backend owns its memory, threads or streams; two can live in one process. Operators run in the order they are
// called.
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "ops/attention.h"
#include "ops/buffer.h"
#include "ops/embed.h"
#include "ops/gemm.h"
#include "ops/linear.h"
#include "ops/move_cache.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "ops/sampling.h"
#include "ops/soft_cap.h"
#include "ops/topk.h"

namespace isobit {

struct BackendInfo {
  std::string name;         // "cpu", "cuda:0": for people to read
  std::string description;  // processor and SIMD target, or GPU and driver
  size_t memory_total = 0, memory_free = 0;
};

// Shapes of one step that a captured graph depends on; pointers must not change between steps of equal key.
struct StepKey {
  int32_t tokens = 0, requests = 0, logit_rows = 0, max_query = 0, max_kv = 0;
  uint32_t variant = 0;                              // whatever else changes the sequence of operators
  auto operator<=>(const StepKey&) const = default;  // NOLINT(modernize-use-nullptr): clang-tidy 14 misreads it
};

// Bytes between the host's and a backend's memory.
struct Upload {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
  // In the backend's memory, or null: a 32-bit word of -2 - i becomes drawn[i]. So a step's input can be what the step
  // before samples, unseen by the host. For upload_all of a backend that runs ahead (EngineOptions::ahead).
  const int32_t* drawn = nullptr;
};
struct Download {
  void* to = nullptr;
  const void* from = nullptr;
  size_t bytes = 0;
};

class Backend {
 public:
  Backend() = default;
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  virtual BackendInfo info() const = 0;

  // Zero-filled, aligned to 256 bytes. Throws Error(kOutOfMemory) that says how much was asked for, what for, and what
  // is left.
  virtual Buffer allocate(size_t bytes, std::string_view what) = 0;
  // Host to backend; the source may change as soon as the call returns.
  virtual void upload(void* to, const void* from, size_t bytes) = 0;
  // Backend to host; waits for the operators before it.
  virtual void download(void* to, const void* from, size_t bytes) = 0;
  // Several at once, for a step's inputs and outputs: one wait, or one launch, in all. Uploads are aligned to 4 bytes.
  virtual void upload_all(std::span<const Upload> parts) {
    for (const Upload& p : parts) upload(p.to, p.from, p.bytes);
  }
  virtual void download_all(std::span<const Download> parts) {
    for (const Download& p : parts) download(p.to, p.from, p.bytes);
  }
  // Starts a download_all: what comes back, called once, waits until the bytes are there. The operators may go on over
  // the memory meanwhile; at most two such downloads may be under way.
  virtual std::function<void()> download_later(std::span<const Download> parts) {
    download_all(parts);
    return [] {};
  }
  // Whether operators go on while the host does something else: then a step is worth starting before the last one's
  // results are seen.
  virtual bool runs_by_itself() const { return false; }
  virtual void copy(void* to, const void* from, size_t bytes) = 0;  // within the backend
  virtual void synchronize() = 0;

  // The parts must stay mapped as long as the result where keeps_file_pages() says so.
  virtual std::unique_ptr<Linear> load_linear(std::span<const WeightPart> parts, LinearForm form, DType type) = 0;
  virtual bool keeps_file_pages() const { return false; }

  virtual void embed(const EmbedArgs&) = 0;
  virtual void rms_norm(const RmsNormArgs&) = 0;
  virtual void gemm(const GemmArgs&) = 0;
  virtual void rope_cache(const RopeCacheArgs&) = 0;
  virtual void attention(const AttentionArgs&) = 0;
  // By copy(), for backends that have nothing better.
  virtual void move_cache(const MoveCacheArgs&);
  virtual void soft_cap(const SoftCapArgs&) = 0;
  // Neighbours in a layer, for backends that do better than one after the other: gemm(g) of rms_norm(n)'s output, which
  // need not be written, and rope_cache(r) of g's, which need not be either.
  virtual void norm_gemm(const RmsNormArgs& n, const GemmArgs& g) {
    rms_norm(n);
    gemm(g);
  }
  virtual void norm_gemm_rope(const RmsNormArgs& n, const GemmArgs& g, const RopeCacheArgs& r) {
    norm_gemm(n, g);
    rope_cache(r);
  }
  // A layer's FFN: norm_gemm(n, up), then gemm(down) of its output, which need not be written.
  virtual void norm_gemm_gemm(const RmsNormArgs& n, const GemmArgs& up, const GemmArgs& down) {
    norm_gemm(n, up);
    gemm(down);
  }
  virtual std::unique_ptr<SamplerSlots> make_sampler(int slots, int64_t vocab) = 0;
  virtual void sample(SamplerSlots&, const SampleArgs&) = 0;
  virtual void log_probs(const LogProbArgs&) = 0;
  virtual void topk_per_row(const TopkPerRowArgs&) = 0;

  // Sizes worth padding a step to, so that captured graphs can be reused; a backend without graphs pads nothing.
  virtual int32_t bucket(int32_t count) const { return count; }
  // Runs the operators of a step. A backend may record them at the first step of a key and replay them later.
  virtual void run_step(const StepKey&, const std::function<void()>& operators) { operators(); }
};

}  // namespace isobit
