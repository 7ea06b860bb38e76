// The engine on the GPU gives the CPU's tokens and log-probabilities: what the operators' tests do not see, because it
// is made by the host between steps (page tables of layers with a window, masks of structured output, drafts).
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/tiny_model.h"
#include "engine/trail.h"

namespace isobit::test {
namespace {

constexpr int32_t kWindow = 48, kVocab = 320;

TinyModel wide_enough_for_the_kernels() {
  TinyModel m;
  m.architecture = "qwen2";
  m.layers = 3;
  m.hidden = 256;
  m.ffn = 512;
  m.head_dim = 64;
  m.vocab = kVocab;
  m.context = 1024;
  m.types = {kBF16};
  return m;
}

TinyModel with_windows() {
  TinyModel m = wide_enough_for_the_kernels();
  m.extra = [](GgufBuilder& f) {
    Bytes windowed;
    for (const bool w : {true, false, true}) windowed.number<uint8_t>(w ? 1 : 0);
    f.u32("qwen2.attention.sliding_window", kWindow);
    f.array("qwen2.attention.sliding_window_pattern", ValueType::kBool, 3, windowed);
  };
  return m;
}

class GpuEngine : public ::testing::Test {
 protected:
  void SetUp() override {
    try {
      make_backend({"cuda", 0, ""});
    } catch (const Error& e) {
      GTEST_SKIP() << e.what();
    }
  }
  // All together; each one's tokens and bits of log-probabilities.
  static std::vector<Trail> run(Engine& engine, const std::vector<Request>& requests) {
    std::vector<Trail> trails;
    for (const Result& r : answers(engine, requests)) settle(trails.emplace_back(), r);
    return trails;
  }
  static void expect_equal(const std::vector<Trail>& want, const std::vector<Trail>& got, const std::string& what) {
    for (size_t i = 0; i < want.size(); i++) expect_same(want[i], got[i], fmt::format("{}, request {}", what, i));
  }
  static EngineOptions options(int32_t drafts) {
    EngineOptions o;
    o.context = 512;
    o.max_requests = 8;
    o.tokens_per_step = 128;
    o.draft_tokens = drafts;
    return o;
  }
};

TEST_F(GpuEngine, PagesOfLayersWithAWindow) {
  const TinyFile file(with_windows());
  std::vector<Request> requests;
  for (const int32_t length : {5, 47, 48, 49, 130, 130, 300, 420}) {
    Request r;
    for (int32_t i = 0; i < length; i++) r.prompt.push_back((i * i * 7 + i / 9) % 256);
    r.prompt.back() = static_cast<int32_t>(requests.size());
    r.max_tokens = 60;
    r.sampling.seed = requests.size();
    r.sampling.top_logprobs = 0;
    requests.push_back(std::move(r));
  }
  EngineOptions whole = options(0);
  whole.pages = whole.window_pages = 256;  // nothing is given up
  const std::vector<Trail> want = run(*file.engine(whole), requests);
  for (const int32_t drafts : {0, 3}) {
    EngineOptions o = options(drafts);
    o.pages = 200;
    o.window_pages = 40;
    Engine engine(make_backend({"cuda", 0, ""}), file.file(), o);
    expect_equal(want, run(engine, requests), fmt::format("{} drafts, cold", drafts));
    expect_equal(want, run(engine, requests), fmt::format("{} drafts, warm", drafts));
    EXPECT_GT(engine.stats().evicted_window_pages, 0);
    EXPECT_GT(engine.stats().cached_tokens, 0);
  }
}

TEST_F(GpuEngine, MasksOfStructuredOutput) {
  const TinyFile file(wide_enough_for_the_kernels());
  const auto answers = [&](const std::string& device, int32_t drafts) {
    Session s(file.path(), {device, 0, ""}, options(drafts));
    const Constraint forms[] = {{Constraint::Kind::kRegex, "[a-f]{3}-[0-9]{2,5}(cat|dog)"},
                                {Constraint::Kind::kJsonSchema,
                                 R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 4},
                                     "ok": {"type": "boolean"}}, "required": ["name", "ok"]})"}};
    std::vector<Request> requests;
    for (uint64_t i = 0; i < 9; i++) {
      Request r;
      r.prompt = s.text_prompt("Describe the cat as JSON, {\"name\": \"Tom\", \"ok\": true}: ");
      r.sampling.seed = i;
      r.sampling.temperature = i % 2 == 0 ? 0.0f : 1.0f;
      r.sampling.top_k = i % 4 == 3 ? 20 : 0;
      r.sampling.top_logprobs = 0;
      r.max_tokens = 60;
      r.stop_tokens = s.stop_tokens();
      if (i % 3 != 2) r.grammar = s.grammar(forms[i % 3]);
      requests.push_back(std::move(r));
    }
    return run(s.engine(), requests);
  };
  const std::vector<Trail> want = answers("cpu", 0);
  for (size_t i = 0; i < want.size(); i++) {
    if (i % 3 == 0) {
      EXPECT_EQ(want[i].reason, FinishReason::kStop) << want[i].error;
    }
  }
  for (const int32_t drafts : {0, 4}) expect_equal(want, answers("cuda", drafts), fmt::format("{} drafts", drafts));
}

}  // namespace
}  // namespace isobit::test
