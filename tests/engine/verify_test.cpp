// The verifier must be able to fail: backends with one thing wrong, which it has to find and to name.
#include "engine/verify.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "engine/tiny_model.h"
#include "numerics/ieee.h"

namespace isobit::test {
namespace {

// Passes everything on; tests override what they spoil.
class Relay : public Backend {
 public:
  explicit Relay(std::unique_ptr<Backend> inner) : inner_(std::move(inner)) {}
  BackendInfo info() const override { return inner_->info(); }
  Buffer allocate(size_t bytes, std::string_view what) override { return inner_->allocate(bytes, what); }
  void upload(void* to, const void* from, size_t bytes) override { inner_->upload(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { inner_->download(to, from, bytes); }
  void copy(void* to, const void* from, size_t bytes) override { inner_->copy(to, from, bytes); }
  void synchronize() override { inner_->synchronize(); }
  std::unique_ptr<Linear> load_linear(std::span<const WeightPart> parts, LinearForm form, DType type) override {
    return inner_->load_linear(parts, form, type);
  }
  bool keeps_file_pages() const override { return inner_->keeps_file_pages(); }
  void embed(const EmbedArgs& a) override { inner_->embed(a); }
  void rms_norm(const RmsNormArgs& a) override { inner_->rms_norm(a); }
  void gemm(const GemmArgs& a) override { inner_->gemm(a); }
  void rope_cache(const RopeCacheArgs& a) override { inner_->rope_cache(a); }
  void attention(const AttentionArgs& a) override { inner_->attention(a); }
  void soft_cap(const SoftCapArgs& a) override { inner_->soft_cap(a); }
  std::unique_ptr<SamplerSlots> make_sampler(int slots, int64_t vocab) override {
    return inner_->make_sampler(slots, vocab);
  }
  void sample(SamplerSlots& slots, const SampleArgs& a) override { inner_->sample(slots, a); }
  void log_probs(const LogProbArgs& a) override { inner_->log_probs(a); }
  void topk_per_row(const TopkPerRowArgs& a) override { inner_->topk_per_row(a); }

 protected:
  Backend& inner() { return *inner_; }

 private:
  std::unique_ptr<Backend> inner_;
};

// Weights under which the order of a sum shows. Another order moves a well-conditioned sum by a unit of f32's last
// place, which the rounding to bf16 that follows swallows nearly always. Here the halves of every projection's input
// are equal and most of its weights cancel: large sums with a small result.
void ill_conditioned(std::string_view name, std::vector<float>& values) {
  constexpr size_t kHidden = 64, kFfn = 96;
  const bool vector = values.size() <= kHidden, down = name.ends_with("ffn_down.weight");
  const size_t columns = vector ? 1 : down ? kFfn : kHidden, rows = values.size() / columns, half = columns / 2;
  if (name == "output.weight" || name == "output_norm.weight") return;
  if (name == "token_embd.weight") {
    for (size_t r = 0; r < rows; r++)
      std::copy_n(values.data() + r * columns, half, values.data() + r * columns + half);
    return;
  }
  const bool expand = name.ends_with("ffn_gate.weight") || name.ends_with("ffn_up.weight") || vector;
  for (size_t r = 0; r < rows && !expand; r++) {
    constexpr size_t kSignal = 4;  // columns of each half that do not cancel
    float* w = values.data() + r * columns;
    for (size_t k = 0; k < half; k++) {
      if (k + kSignal < half) {
        w[k] *= 4096;
        w[k + half] = -w[k];
      } else {
        w[k] *= 3;
        w[k + half] *= 3;
      }
    }
  }
  std::copy_n(values.data(), values.size() / 2,
              values.data() + values.size() / 2);  // the output's halves are equal too
}

// One projection, the `victim`-th matrix loaded, sums its K in two halves that are added in f32, for more than one row:
// what a split-K kernel does that is chosen by the batch. Needs F32 weights, out in f32.
class SplitK final : public Relay {
 public:
  SplitK(std::unique_ptr<Backend> inner, int victim) : Relay(std::move(inner)), victim_(victim) {}

  std::unique_ptr<Linear> load_linear(std::span<const WeightPart> parts, LinearForm form, DType type) override {
    auto whole = Relay::load_linear(parts, form, type);
    if (loaded_++ != victim_) return whole;
    for (const bool second : {false, true}) {
      std::vector<std::vector<float>> values;
      std::vector<WeightPart> half;
      for (const WeightPart& p : parts) {
        EXPECT_EQ(p.dtype, DType::kF32);
        const int64_t k = p.cols / 2;
        std::vector<float>& v = values.emplace_back(static_cast<size_t>(p.rows * k));
        for (int64_t r = 0; r < p.rows; r++) {
          std::memcpy(v.data() + r * k, p.data + (r * p.cols + (second ? k : 0)) * 4, static_cast<size_t>(k) * 4);
        }
        half.push_back({DType::kF32, p.rows, k, reinterpret_cast<const std::byte*>(v.data())});
      }
      halves_.push_back(inner().load_linear(half, form, type));
    }
    victim_weights_ = whole.get();
    return whole;
  }

  void gemm(const GemmArgs& a) override {
    if (a.w != victim_weights_ || a.m < 2) return Relay::gemm(a);
    const auto n = static_cast<size_t>(a.w->n()), m = static_cast<size_t>(a.m), k = static_cast<size_t>(a.w->k() / 2);
    std::vector<float> sums[2] = {std::vector<float>(m * n), std::vector<float>(m * n)};
    for (size_t h = 0; h < 2; h++) {
      std::vector<uint16_t> x(m * k);
      for (size_t r = 0; r < m; r++) std::memcpy(x.data() + r * k, a.x + (2 * r + h) * k, k * sizeof(uint16_t));
      GemmArgs part = a;
      part.x = x.data();
      part.w = halves_[h].get();
      part.epilogue = Epilogue::kStoreF32;
      part.out = sums[h].data();
      inner().gemm(part);
    }
    auto* out = static_cast<float*>(a.out);
    for (size_t i = 0; i < m * n; i++) {
      const float acc = numerics::fadd(sums[0][i], sums[1][i]);
      out[i] = a.epilogue == Epilogue::kAddResidual ? numerics::fadd(out[i], acc) : acc;
    }
  }

 private:
  int victim_, loaded_ = 0;
  const Linear* victim_weights_ = nullptr;
  std::vector<std::unique_ptr<Linear>> halves_;
};

// Attention of the `victim`-th layer depends on how many sequences share the step.
class CrowdedAttention final : public Relay {
 public:
  CrowdedAttention(std::unique_ptr<Backend> inner, int victim, int layers)
      : Relay(std::move(inner)), victim_(victim), layers_(layers) {}
  void attention(const AttentionArgs& a) override {
    Relay::attention(a);
    if (call_++ % layers_ == victim_ && a.requests > 1) a.out[0] ^= 1;  // the first sequence's first row
  }

 private:
  int victim_, layers_, call_ = 0;
};

// Logits that depend on the number of rows: only the LM head's GEMM is that wide.
class WrongHead final : public Relay {
 public:
  using Relay::Relay;
  void gemm(const GemmArgs& a) override {
    Relay::gemm(a);
    if (a.w->n() == 300 && a.m > 1) static_cast<float*>(a.out)[300] += 1.0f;  // the second row's first logit
  }
};

// Takes the next token when several are sampled at once.
class WrongSampler final : public Relay {
 public:
  using Relay::Relay;
  void sample(SamplerSlots& slots, const SampleArgs& a) override {
    Relay::sample(slots, a);
    if (a.rows > 1) a.tokens[1] = (a.tokens[1] + 1) % 300;
  }
};

std::vector<VerifyPrompt> prompts() {
  std::vector<VerifyPrompt> all;
  for (const int length : {1, 5, 23, 40}) {
    VerifyPrompt p{.name = "prompt of " + std::to_string(length)};
    for (int i = 0; i < length; i++) p.tokens.push_back((i * 41 + length) % 300);
    all.push_back(std::move(p));
  }
  return all;
}

class VerifyTest : public ::testing::Test {
 protected:
  using Wrap = std::function<std::unique_ptr<Backend>(std::unique_ptr<Backend>)>;

  std::vector<VerifyRow> verify(const Wrap& wrap, bool backends = false) const {
    VerifyOptions o;
    o.decode_tokens = 4;
    o.batches = {1, 5};
    o.chunks = {7};
    const auto make = [&](int kind) {
      return wrap(make_backend({"cpu", kind == 1 ? 2 : 1, kind == 2 ? cpu_simd_targets().back() : ""}));
    };
    std::vector<VerifyBackend> kinds = {{0, "cpu"}};
    if (backends) kinds.insert(kinds.end(), {{1, "cpu, 2 threads"}, {2, "cpu, another target", true}});
    Verifier v(file_.file(), make, kinds, o);
    int rows = 0;
    auto result = v.run(prompts(), [&](const VerifyRow&) { rows++; });
    EXPECT_EQ(rows, v.settings().size());
    EXPECT_EQ(rows, result.size());
    return result;
  }

  static const VerifyRow& row(const std::vector<VerifyRow>& rows, std::string_view setting) {
    for (const VerifyRow& r : rows) {
      if (r.setting.name == setting) return r;
    }
    throw std::out_of_range(std::string(setting));
  }

  static std::string text(const VerifyDifference& d) {
    return fmt::format("{}, {} at {}: layer {}, {}", d.prompt, d.what, d.position, d.layer, d.op);
  }

  TinyFile file_{TinyModel{.layers = 3, .types = {kF32}, .change = ill_conditioned}};
};

TEST_F(VerifyTest, NothingWrongNothingFound) {
  std::set<std::string> names;
  for (const VerifyRow& r : verify([](auto b) { return b; }, true)) {
    EXPECT_TRUE(r.differences.empty()) << r.setting.name << ": " << text(r.differences[0]);
    const int kinds = r.setting.brief ? 3 : 8;
    EXPECT_GE(r.answers, kinds) << r.setting.name;
    EXPECT_LE(r.answers, kinds + 1) << r.setting.name;
    // Every position but those that came from the cache; logits of the prompt's last and the decoded ones.
    const int computed = r.setting.cache ? 20 : r.setting.brief ? 46 + 3 * 3 : 2 * (69 + 4 * 3);
    EXPECT_GE(r.positions, computed) << r.setting.name;
    EXPECT_GE(r.logit_rows, 4 * kinds) << r.setting.name;
    EXPECT_LE(r.logit_rows, 7 * r.answers) << r.setting.name;
    names.insert(r.setting.name);
  }
  EXPECT_EQ(names.size(), 1 + 1 + 4 + 2);
  EXPECT_TRUE(names.contains("batch of 5, shuffled, chunks of 7"));
  EXPECT_TRUE(names.contains("evicted and recomputed"));
}

class ChunkOrder : public VerifyTest {
 protected:
  // Splits K of one projection and expects to be told which, everywhere.
  void expect_found(int layer, int matrix, const std::string& op) const {
    constexpr int kBefore = 2, kMatricesPerLayer = 4;  // embedding and head; qkv, output, gate and up, down
    const int victim = kBefore + layer * kMatricesPerLayer + matrix;
    const auto rows = verify([&](auto b) { return std::make_unique<SplitK>(std::move(b), victim); });
    size_t found = 0;
    for (const VerifyRow& r : rows) {
      for (const VerifyDifference& d : r.differences) {
        found++;
        EXPECT_EQ(d.layer, layer) << r.setting.name << ": " << text(d);
        EXPECT_EQ(d.op, op) << r.setting.name << ": " << text(d);
      }
    }
    EXPECT_GT(found, 10);
    // Alone or in company a prompt longer than a token is a GEMM of many rows; its decoded tokens are in company only.
    const VerifyRow& batch = row(rows, "batch of 5");
    for (const bool sampled : {false, true}) {
      // A prompt of one token can come out the same by luck.
      EXPECT_GE(std::ranges::count(batch.differences, sampled, &VerifyDifference::sampled), 3);
    }
    for (const VerifyDifference& d : batch.differences) {
      const int32_t length = std::stoi(d.prompt.substr(sizeof("prompt of ") - 1));
      EXPECT_EQ(d.position, length == 1 ? 0 : length) << text(d);
    }
    EXPECT_FALSE(row(rows, "decoded tokens as one prefill").differences.empty());
    EXPECT_FALSE(row(rows, "evicted and recomputed").differences.empty());
  }
};

TEST_F(ChunkOrder, OfQkvIsFound) { expect_found(1, 0, "qkv"); }
TEST_F(ChunkOrder, OfTheDownProjectionIsFound) { expect_found(2, 3, "ffn_down"); }
TEST_F(ChunkOrder, OfTheOutputProjectionIsFound) { expect_found(0, 1, "attn_output"); }

TEST_F(VerifyTest, FindsAttentionThatMindsItsNeighbours) {
  const auto rows = verify([](auto b) { return std::make_unique<CrowdedAttention>(std::move(b), 1, 3); });
  for (const VerifyRow& r : rows) {
    for (const VerifyDifference& d : r.differences) {
      EXPECT_EQ(d.layer, 1) << r.setting.name << ": " << text(d);
      EXPECT_EQ(d.op, "attention") << r.setting.name << ": " << text(d);
    }
  }
  const auto& batch = row(rows, "batch of 5").differences;
  // The head does not see the first position of a long prompt: the residual stream tells.
  EXPECT_TRUE(std::ranges::any_of(batch, [](const VerifyDifference& d) { return d.what == "residual"; }));
  EXPECT_TRUE(row(rows, "decoded tokens as one prefill").differences.empty()) << "nobody else is in that step";
}

TEST_F(VerifyTest, NamesTheHead) {
  const auto rows = verify([](auto b) { return std::make_unique<WrongHead>(std::move(b)); });
  size_t found = 0;
  for (const VerifyRow& r : rows) {
    for (const VerifyDifference& d : r.differences) {
      found++;
      EXPECT_EQ(d.layer, -1) << r.setting.name << ": " << text(d);
      EXPECT_TRUE(d.op == "head" || d.op == "sample") << r.setting.name << ": " << text(d);
    }
  }
  EXPECT_GT(found, 0);
}

TEST_F(VerifyTest, NamesTheSampler) {
  const auto rows = verify([](auto b) { return std::make_unique<WrongSampler>(std::move(b)); });
  const VerifyRow& batch = row(rows, "batch of 5");
  ASSERT_FALSE(batch.differences.empty());
  for (const VerifyDifference& d : batch.differences) {
    EXPECT_EQ(d.what, "token") << text(d);
    EXPECT_EQ(d.op, "sample") << text(d);
    const int32_t length = std::stoi(d.prompt.substr(sizeof("prompt of ") - 1));
    EXPECT_TRUE(d.position >= length && d.position < length + 4) << text(d);
  }
}

}  // namespace
}  // namespace isobit::test
