// Speculation gives way to load, and no bit moves when it comes and goes.
#include <gtest/gtest.h>

#include <filesystem>

#include "engine/session.h"
#include "engine/tiny_model.h"
#include "engine/trail.h"
#include "models/registry.h"
#include "numerics/testing.h"

namespace isobit::test {
namespace {

// Answers end one after the other, so that many run first and few later; greedy ones of a tiny model repeat themselves.
std::vector<Request> staggered(int32_t count) {
  std::vector<Request> all;
  for (int32_t i = 0; i < count; i++) {
    Request r;
    for (int32_t t = 0; t < 20; t++) r.prompt.push_back(3 + (t % 5) + i);
    r.max_tokens = 20 + 30 * i;
    r.sampling.temperature = 0;
    all.push_back(std::move(r));
  }
  return all;
}

TEST(Speculation, GivesWayToLoad) {
  const TinyFile file;
  const std::vector<Request> requests = staggered(4);
  std::vector<std::vector<int32_t>> want;
  const auto tokens_of = [](const Result& r) {
    std::vector<int32_t> tokens;
    for (const TokenOutput& t : r.tokens) tokens.push_back(t.token);
    return tokens;
  };
  for (const Request& r : requests) {
    const auto engine = file.engine();
    const RequestId id = engine->submit(r);
    engine->run_until_idle();
    want.push_back(tokens_of(engine->take(id).value()));
  }
  for (const bool ahead : {false, true}) {
    SCOPED_TRACE(ahead ? "ahead" : "one step at a time");
    EngineOptions options;
    options.draft_tokens = 4;
    options.draft_requests = 2;
    options.ahead = ahead;
    const auto engine = file.engine(options);
    std::vector<RequestId> ids;
    for (const Request& r : requests) ids.push_back(engine->submit(r));
    for (bool more = true; more;) {
      more = engine->step();
      const EngineStats s = engine->stats();
      EXPECT_TRUE(s.running <= options.draft_requests || s.drafted_tokens == 0) << s.running << " run";
    }
    EXPECT_GT(engine->stats().accepted_tokens, 0) << "once few run, guesses must come, and be right now and then";
    for (size_t i = 0; i < ids.size(); i++) {
      EXPECT_EQ(tokens_of(engine->take(ids[i]).value()), want[i]) << "request " << i;
    }
  }
}

// A text that is mostly copied: the same answer in two thirds of the steps, or fewer. How long the steps take is not a
// test's to say; with few rows a step it is hardly longer than plain decoding's.
TEST(Speculation, CopyingTakesFewerSteps) {
  if (testing::kSanitized) GTEST_SKIP() << "counts steps, which a sanitizer changes nothing of; a minute there";
  const std::filesystem::path path =
      std::filesystem::path(cache_folder()) / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf";
  if (!std::filesystem::exists(path)) GTEST_SKIP() << path << " is not there; scripts/quickstart fetches it";
  const std::string code =
      "for item in items:\n    if item.value > limit:\n        names.append(item.name)\n"
      "    if item.value < 0:\n        names.append(item.name)\n    if item.value == 0:\n        "
      "names.append(item.title)\n";
  GenerateOptions o;
  o.sampling.temperature = 0;
  o.max_tokens = 40;
  std::vector<std::string> digests;
  for (const int32_t drafts : {0, 8}) {
    EngineOptions engine;
    engine.context = 256;
    engine.max_requests = 1;
    engine.draft_tokens = drafts;
    Session s(path.string(), {"cpu", 2, ""}, engine);
    const auto prompt = s.chat_prompt({{"user", "Repeat this code without changing it:\n\n" + code, {}}});
    digests.push_back(s.generate(prompt, o).digest);
    if (drafts > 0) {
      EXPECT_LE(s.engine().stats().steps * 3, o.max_tokens * 2) << "steps with drafts";
    }
  }
  EXPECT_EQ(digests[0], digests[1]);
}

}  // namespace
}  // namespace isobit::test
