#pragma once
// Everything a request gives, kept as bits, so that two runs can be compared by bytes.
#include <gtest/gtest.h>

#include <bit>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/digest.h"
#include "engine/engine.h"

namespace isobit::test {

struct Trail {
  std::vector<int32_t> tokens;
  std::vector<uint32_t> logprobs;         // bits
  std::map<int32_t, uint64_t> logits;     // digest of each computed position's row
  std::vector<uint32_t> prompt_logprobs;  // bits
  FinishReason reason = FinishReason::kNone;
  std::string error;
};

inline std::vector<uint32_t> bits_of(const std::vector<float>& values) {
  std::vector<uint32_t> bits;
  for (const float v : values) bits.push_back(std::bit_cast<uint32_t>(v));
  return bits;
}

// Adds what the request's callbacks report to the trail, which must outlive the request.
inline Request observed(Request r, Trail& trail) {
  r.on_logits = [&trail](int32_t position, std::span<const float> logits) {
    Digest d;
    d.add(logits.data(), logits.size_bytes());
    EXPECT_TRUE(trail.logits.emplace(position, d.value()).second) << "position " << position << " reported twice";
  };
  return r;
}

inline void settle(Trail& trail, const Result& result) {
  trail.reason = result.reason;
  trail.error = result.error;
  for (const TokenOutput& t : result.tokens) {
    trail.tokens.push_back(t.token);
    trail.logprobs.push_back(std::bit_cast<uint32_t>(t.logprob));
  }
  trail.prompt_logprobs = bits_of(result.prompt_logprobs);
}

// No page is lost: each is free, cached or in use.
inline void expect_pages_add_up(const EngineStats& s) {
  EXPECT_EQ(s.pages_total, s.pages_free + s.pages_cached + s.pages_used)
      << s.pages_free << " free, " << s.pages_cached << " cached, " << s.pages_used << " used";
  EXPECT_EQ(s.window_pages_total, s.window_pages_free + s.window_pages_cached + s.window_pages_used)
      << "of windows: " << s.window_pages_free << " free, " << s.window_pages_cached << " cached, "
      << s.window_pages_used << " used";
}

inline void run_checked(Engine& engine) {
  while (engine.step()) expect_pages_add_up(engine.stats());
  const EngineStats s = engine.stats();
  expect_pages_add_up(s);
  EXPECT_EQ(s.pages_used + s.window_pages_used, 0);
  EXPECT_EQ(s.running + s.waiting, 0);
}

// Runs the requests together.
inline std::vector<Result> answers(Engine& engine, const std::vector<Request>& requests) {
  std::vector<RequestId> ids;
  for (const Request& r : requests) ids.push_back(engine.submit(r));
  run_checked(engine);
  std::vector<Result> all;
  for (const RequestId id : ids) all.push_back(engine.take(id).value());
  return all;
}

// Each token that `got` has is that of `want`, with its position, log-probabilities and digest of logits.
inline void expect_same_tokens(const Result& want, const Result& got) {
  ASSERT_LE(got.tokens.size(), want.tokens.size());
  for (size_t i = 0; i < got.tokens.size(); i++) {
    ASSERT_EQ(got.tokens[i].token, want.tokens[i].token) << "token " << i;
    ASSERT_EQ(got.tokens[i].position, want.tokens[i].position);
    ASSERT_EQ(std::bit_cast<uint32_t>(got.tokens[i].logprob), std::bit_cast<uint32_t>(want.tokens[i].logprob));
    ASSERT_EQ(got.tokens[i].top, want.tokens[i].top);
    ASSERT_EQ(got.tokens[i].logits_digest, want.tokens[i].logits_digest) << "logits of token " << i;
  }
}

// Runs the requests together and returns their trails.
inline std::vector<Trail> play(Engine& engine, const std::vector<Request>& requests) {
  std::vector<Trail> trails(requests.size());
  std::vector<RequestId> ids;
  for (size_t i = 0; i < requests.size(); i++) ids.push_back(engine.submit(observed(requests[i], trails[i])));
  run_checked(engine);
  for (size_t i = 0; i < requests.size(); i++) settle(trails[i], engine.take(ids[i]).value());
  return trails;
}

// Tokens, log-probabilities and every row of logits that both computed; `got` may have found a prefix in the cache.
inline void expect_same(const Trail& want, const Trail& got, const std::string& what) {
  SCOPED_TRACE(what);
  EXPECT_EQ(got.error, want.error);
  EXPECT_EQ(got.reason, want.reason);
  EXPECT_EQ(got.tokens, want.tokens);
  EXPECT_EQ(got.logprobs, want.logprobs);
  EXPECT_EQ(got.prompt_logprobs, want.prompt_logprobs);
  for (const auto& [position, digest] : got.logits) {
    const auto known = want.logits.find(position);
    if (known == want.logits.end()) {
      ADD_FAILURE() << "the baseline has no logits at position " << position;
    } else {
      ASSERT_EQ(digest, known->second) << "logits differ at position " << position;
    }
  }
}

}  // namespace isobit::test
