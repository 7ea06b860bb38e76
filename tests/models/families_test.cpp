// Every family against transformers: tiny random models that it saved, its logits in float32, prompts longer than the
// windows and than the original contexts. The bound is one and a half times what rounding activations to bf16 does to
// the same model (tests/truth/make_family_goldens.py measures it with transformers alone).
#include <gtest/gtest.h>

#include "engine/device.h"
#include "engine/receipt.h"
#include "models/family_golden.h"
#include "models/rope_config.h"
#include "weights/expect_error.h"

namespace isobit::test {
namespace {

constexpr double kBound = 1.5;

using Change = void (*)(ModelConfig&);

std::vector<float> cpu_logits(const std::string& name, const std::vector<int32_t>& tokens, Change change = nullptr,
                              int32_t chunk = 64, int32_t page_size = 16, int64_t context = 96) {
  const Checkpoint file = load_hf_folder(family_folder(name));
  ModelConfig config = read_config(file);
  if (change != nullptr) change(config);
  const auto backend = make_backend({"cpu", 1, {}});
  return decoder_logits(*backend, file, config, tokens, chunk, page_size, context);
}

// In units of what rounding to bf16 does.
double error_of(const std::string& name, Change change = nullptr) {
  const FamilyGolden golden = read_family_golden(name);
  return rms_difference(cpu_logits(name, golden.tokens, change), golden.logits) / golden.bf16_rms;
}

class Family : public ::testing::TestWithParam<std::string> {};

TEST_P(Family, AgreesWithTransformers) {
  const double error = error_of(GetParam());
  std::cout << "[    error ] " << GetParam() << ": " << error << " of what rounding does\n";
  EXPECT_LT(error, kBound);
}

TEST_P(Family, ChunksAndPagesMoveNoBit) {
  const FamilyGolden golden = read_family_golden(GetParam());
  const std::vector<float> whole = cpu_logits(GetParam(), golden.tokens);
  for (const int32_t chunk : {1, 7, 16}) {
    const std::vector<float> parts = cpu_logits(GetParam(), golden.tokens, nullptr, chunk, chunk + 1);
    ASSERT_EQ(parts.size(), whole.size());
    EXPECT_EQ(0, std::memcmp(parts.data(), whole.data(), parts.size() * sizeof(float))) << "chunks of " << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, Family, ::testing::ValuesIn(family_names()), [](const auto& tested) {
  std::string name = tested.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

TEST(Families, AllOfThemHaveATruth) {
  const std::vector<std::string> names = family_names();
  for (const char* name : {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "smollm3", "gpt-oss"}) {
    EXPECT_TRUE(std::ranges::count(names, name)) << name;
  }
}

// The context decides, not the prompt: see docs/numerics.md N25.
TEST(Families, LongRopeTurnsByTheOriginalContextWhereThatIsAll) {
  const FamilyGolden golden = read_family_golden("phi3");
  ASSERT_FALSE(golden.short_logits.empty());
  const size_t vocab = golden.logits.size() / golden.tokens.size(), count = golden.short_logits.size() / vocab;
  const std::vector<int32_t> prompt(golden.tokens.begin(), golden.tokens.begin() + static_cast<long>(count));
  const auto error = [&](int64_t context) {
    const std::vector<float> got = cpu_logits("phi3", prompt, nullptr, 64, 16, context);
    return rms_difference(got, golden.short_logits) / golden.bf16_rms;
  };
  EXPECT_LT(error(24), kBound);
  EXPECT_GT(error(25), kBound);
  const ModelConfig config = read_config(load_hf_folder(family_folder("phi3")));
  EXPECT_EQ(config.least_context(24), 0);
  EXPECT_EQ(config.least_context(25), 25);
  EXPECT_EQ(config.least_context(96), 25);
  EXPECT_EQ(read_config(load_hf_folder(family_folder("llama"))).least_context(96), 0);
}

// Two contexts may be two models; the fingerprint and receipts tell them apart.
TEST(Families, TheFingerprintSaysWhichFrequencies) {
  const auto file = std::make_shared<const Checkpoint>(load_hf_folder(family_folder("phi3")));
  const auto engine = [&](int32_t context) {
    return std::make_unique<Engine>(make_backend({"cpu", 1, {}}), file, EngineOptions{.context = context});
  };
  const auto near = engine(24), far = engine(25), farther = engine(96);
  EXPECT_FALSE(fingerprint(*near).ends_with("/long"));
  EXPECT_EQ(fingerprint(*far), fingerprint(*near) + "/long");
  Request r{.prompt = {1, 2, 3}, .max_tokens = 2, .digest_logits = true};
  const RequestId id = far->submit(Request(r));
  far->run_until_idle();
  const Receipt receipt = read_receipt(receipt_json(make_receipt(*far, r, far->take(id)->tokens)));
  EXPECT_FALSE(replay(*farther, receipt));
  expect_error(ErrorCode::kInvalidArgument, {"long frequencies", "--context 25"}, [&] { replay(*near, receipt); });
}

// What the configuration does not ask for is not left out in silence.
TEST(Families, ATensorThatNothingUsesIsRefused) {
  const auto lose_bias = [](ModelConfig& c) { c.qkv_bias = false; };
  expect_error(ErrorCode::kUnsupported, {"_proj.bias", "Llama"}, [&] { error_of("llama-llama3", lose_bias); });
}

// The bound is worth something: each of these mistakes breaks it.
struct Mistake {
  const char* family;
  const char* what;
  Change make;
};
void PrintTo(const Mistake& m, std::ostream* out) { *out << m.family << ": " << m.what; }

class AMistake : public ::testing::TestWithParam<Mistake> {};

TEST_P(AMistake, BreaksTheBound) { EXPECT_GT(error_of(GetParam().family, GetParam().make), kBound); }

void widen_windows(ModelConfig& c) {
  for (LayerConfig& l : c.layers) l.window += l.window > 0 ? 1 : 0;
}
void lose_windows(ModelConfig& c) {
  for (LayerConfig& l : c.layers) l.window = 0;
}
void one_rope(ModelConfig& c) {
  for (LayerConfig& l : c.layers) l.rope = 0;
}
void unscaled_rope(ModelConfig& c) {
  RopeConfig& r = c.ropes.front();
  r = make_rope(r.dim, r.layout, 10000.0, {});
}

constexpr Mistake kMistakes[] = {
    {"llama", "interleaved pairs", [](ModelConfig& c) { c.ropes[0].layout = RopeLayout::kInterleaved; }},
    {"llama-llama3", "no scaling",
     [](ModelConfig& c) { c.ropes[0] = make_rope(16, RopeLayout::kHalves, 500000.0, {}); }},
    {"llama-linear", "no scaling", unscaled_rope},
    {"llama-yarn", "no scaling", unscaled_rope},
    {"llama-yarn", "no magnitude", [](ModelConfig& c) { c.ropes[0].magnitude = 1.0; }},
    {"mistral", "a window one longer", widen_windows},
    {"qwen2", "a window in all layers", [](ModelConfig& c) { c.layers[0].window = c.layers[1].window; }},
    {"qwen2", "no window", lose_windows},
    {"gemma2", "a window one longer", widen_windows},
    {"gemma2", "no soft cap of scores", [](ModelConfig& c) { c.attention_soft_cap = 0; }},
    {"gemma2", "no soft cap of logits", [](ModelConfig& c) { c.logit_soft_cap = 0; }},
    {"gemma2", "norm weights as they are", [](ModelConfig& c) { c.weights_less_one = false; }},
    {"gemma2", "the embedding as it is", [](ModelConfig& c) { c.embedding_scale = 1; }},
    {"gemma3", "a window one longer", widen_windows},
    {"gemma3", "one rotary base", one_rope},
    {"gemma3", "SiLU for GELU", [](ModelConfig& c) { c.activation = GatedActivation::kSilu; }},
    {"phi3", "a window one longer", widen_windows},
    {"smollm3", "rotation everywhere", one_rope},
    {"gpt-oss", "a window one longer", widen_windows},
    {"gpt-oss", "yarn's range in whole indices",
     [](ModelConfig& c) {
       RopeScaling s{.kind = RopeScaling::Kind::kYarn, .factor = 8.0, .original_context = 24.0, .beta_fast = 2.0};
       s.beta_slow = 0.1;
       s.magnitude = c.ropes[0].magnitude;
       c.ropes[0] = make_rope(16, RopeLayout::kHalves, 150000.0, s);
     }},
};
INSTANTIATE_TEST_SUITE_P(Tiny, AMistake, ::testing::ValuesIn(kMistakes));

}  // namespace
}  // namespace isobit::test
