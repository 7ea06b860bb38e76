#include "models/load_check.h"

#include "base/error.h"
#include "models/decoder.h"

namespace isobit {
namespace {

class NoLinear final : public Linear {
 public:
  using Linear::Linear;
  size_t bytes() const override { return 0; }
};

// Keeps nothing and computes nothing: the decoder reads and checks a file's tensors as ever.
class NoBackend final : public Backend {
 public:
  BackendInfo info() const override { return {"none", "nothing", 0, 0}; }
  Buffer allocate(size_t, std::string_view) override { return {}; }
  void upload(void*, const void*, size_t) override {}
  std::unique_ptr<Linear> load_linear(std::span<const WeightPart> parts, LinearForm form, DType) override {
    int64_t rows = 0;
    for (const WeightPart& p : parts) rows += p.rows;
    return std::make_unique<NoLinear>(rows, parts.front().cols, form);
  }

  void download(void*, const void*, size_t) override { refuse(); }
  void copy(void*, const void*, size_t) override { refuse(); }
  void synchronize() override { refuse(); }
  void embed(const EmbedArgs&) override { refuse(); }
  void rms_norm(const RmsNormArgs&) override { refuse(); }
  void gemm(const GemmArgs&) override { refuse(); }
  void rope_cache(const RopeCacheArgs&) override { refuse(); }
  void attention(const AttentionArgs&) override { refuse(); }
  void soft_cap(const SoftCapArgs&) override { refuse(); }
  std::unique_ptr<SamplerSlots> make_sampler(int, int64_t) override { refuse(); }
  void sample(SamplerSlots&, const SampleArgs&) override { refuse(); }
  void log_probs(const LogProbArgs&) override { refuse(); }
  void topk_per_row(const TopkPerRowArgs&) override { refuse(); }

 private:
  [[noreturn]] static void refuse() {
    throw fail(ErrorCode::kInternal, "a backend that only checks was asked to compute");
  }
};

}  // namespace

void check_loads(const Checkpoint& file, const ModelConfig& config) {
  NoBackend backend;
  StepLimits least;
  least.tokens = least.logit_rows = 1;
  least.positions = 1;
  const Decoder decoder(backend, file, config, least);
}

}  // namespace isobit
