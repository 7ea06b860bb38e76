// Layers with a window give up the pages that no token to come sees. Nobody's bits may tell.
#include <gtest/gtest.h>

#include "engine/tiny_model.h"
#include "engine/trail.h"
#include "numerics/testing.h"

namespace isobit::test {
namespace {

constexpr int32_t kWindow = 24, kPage = 4, kLongestText = 256;

// A layer a letter: w has a window, f sees everything.
TinyFile windowed_model(const std::string& layers) {
  TinyModel m;
  m.architecture = "qwen2";
  m.layers = static_cast<uint32_t>(layers.size());
  m.extra = [layers](GgufBuilder& f) {
    Bytes windowed;
    for (const char c : layers) windowed.number<uint8_t>(c == 'w' ? 1 : 0);
    f.u32("qwen2.attention.sliding_window", kWindow);
    f.array("qwen2.attention.sliding_window_pattern", ValueType::kBool, layers.size(), windowed);
  };
  return TinyFile(m);
}

EngineOptions small_engine() {
  EngineOptions o;
  o.context = kLongestText;
  o.page_size = kPage;
  o.max_requests = 4;
  o.tokens_per_step = 32;
  return o;
}

// With a page of those layers for every other page, nothing is given up.
EngineOptions keeping_all() {
  EngineOptions o = small_engine();
  o.pages = o.max_requests * kLongestText / kPage;
  o.window_pages = o.pages;
  return o;
}

std::vector<int32_t> prompt_text(int32_t count, int32_t first) {
  std::vector<int32_t> ids;
  for (int32_t i = 0; i < count; i++) ids.push_back((first + i * i * 7 + i / 9) % 256);
  return ids;
}

// Prompts that share beginnings, of lengths on both sides of the window; some repeat themselves, so that drafts come.
std::vector<Request> window_requests() {
  std::vector<Request> all;
  const int32_t lengths[] = {3, 23, 24, 25, 60, 100, 100, 180};
  for (int32_t i = 0; i < 8; i++) {
    Request r;
    r.prompt = prompt_text(lengths[i], i < 4 ? 5 : 40);
    if (i % 2 == 1) r.prompt.back() = i;
    r.max_tokens = 40;
    r.sampling.temperature = i % 3 == 0 ? 0.0f : 1.0f;
    r.sampling.seed = static_cast<uint64_t>(i);
    r.sampling.top_logprobs = 0;
    r.prompt_logprobs = i == 5;
    all.push_back(std::move(r));
  }
  return all;
}

void expect_no_trace(const std::string& layers) {
  SCOPED_TRACE(layers);
  const TinyFile file = windowed_model(layers);
  testing::Random random;
  std::vector<Trail> alone;
  for (const Request& r : window_requests()) {
    const auto whole = file.engine(keeping_all());
    EXPECT_EQ(whole->stats().window_pages_total, 0);
    alone.push_back(play(*whole, {r}).front());
  }
  for (int round = 0; round < 6; round++) {
    EngineOptions o = small_engine();
    o.tokens_per_step = 8 + random.below(40);
    o.chunk = random.below(2) == 0 ? 0 : 1 + random.below(20);
    o.draft_tokens = random.below(2) == 0 ? 0 : 3;
    o.prefix_cache = round != 1;
    o.ahead = random.below(2) == 0;
    if (round % 2 == 0) o.pages = kLongestText / kPage + random.below(40);
    o.window_pages = 9 + o.tokens_per_step / 2 + random.below(12);  // hardly more than one request takes
    const auto engine = file.engine(o);
    SCOPED_TRACE(fmt::format("{}: {} tokens a step, chunk {}, {} drafts, {} pages, {} of windows", random.note(),
                             o.tokens_per_step, o.chunk, o.draft_tokens, engine->options().pages,
                             engine->options().window_pages));
    EXPECT_GT(engine->stats().window_pages_total, 0);
    // The second time from the cache, in another order.
    std::vector<Request> again = window_requests();
    for (int pass = 0; pass < 2; pass++) {
      const std::vector<Trail> got = play(*engine, again);
      for (size_t i = 0; i < got.size(); i++) {
        const size_t which = pass == 0 ? i : got.size() - 1 - i;
        expect_same(alone[which], got[i], fmt::format("pass {}, request {}", pass, which));
      }
      std::ranges::reverse(again);
    }
    EXPECT_EQ(engine->stats().cached_tokens > 0, o.prefix_cache);
  }
}

TEST(WindowPages, MoveNoBits) { expect_no_trace("wfww"); }
TEST(WindowPages, OfEveryLayer) { expect_no_trace("ww"); }

// However long a request: the window's pages, and those of the step under way.
TEST(WindowPages, AreReallyFreed) {
  const TinyFile file = windowed_model("wwf");
  EngineOptions o = small_engine();
  o.prefix_cache = false;
  const auto engine = file.engine(o);
  const EngineStats empty = engine->stats();
  EXPECT_LT(empty.window_pages_total, empty.pages_total);
  Request r;
  r.prompt = prompt_text(200, 1);
  r.max_tokens = 50;
  r.on_finish = [](Result&&) {};
  engine->submit(std::move(r));
  int32_t most_window = 0, most = 0;
  while (engine->step()) {
    const EngineStats s = engine->stats();
    most_window = std::max(most_window, s.window_pages_total - s.window_pages_free);
    most = std::max(most, s.pages_total - s.pages_free);
  }
  EXPECT_GE(most, 240 / kPage);
  EXPECT_LE(most_window, kWindow / kPage + 2);
  EXPECT_EQ(engine->stats().window_pages_free, empty.window_pages_total);
}

// A conversation goes on where it ended, though its beginning's pages are gone.
TEST(WindowPages, AConversationsEndStaysInTheCache) {
  const TinyFile file = windowed_model("wf");
  EngineOptions o = small_engine();
  o.window_pages = 30;
  const auto engine = file.engine(o);
  Request r;
  r.prompt = prompt_text(150, 1);
  r.max_tokens = 10;
  const Trail first = play(*engine, {r}).front();
  EXPECT_GT(engine->stats().evicted_window_pages, 0);
  r.prompt.insert(r.prompt.end(), first.tokens.begin(), first.tokens.end());
  for (const int32_t t : prompt_text(20, 9)) r.prompt.push_back(t);
  r.max_tokens = 1;
  play(*engine, {r});
  EXPECT_EQ(engine->stats().cached_tokens, 156) << "the whole pages of 159 computed tokens";
}

TEST(WindowPages, TooFewAreRefused) {
  const TinyFile file = windowed_model("wf");
  EngineOptions o = small_engine();
  o.window_pages = 10;
  EXPECT_THROW(file.engine(o), Error);
}

}  // namespace
}  // namespace isobit::test
