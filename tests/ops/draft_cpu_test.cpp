// Verification of draft trees on the CPU against plain decoding.
#include <gtest/gtest.h>

#include "ops/cpu_testing.h"
#include "ops/draft_testing.h"

namespace isobit::testing {
namespace {

TEST(DraftsCpu, TreesEqualPlainDecoding) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  const auto plain = make_cpu_backend({1, ""});
  int compared = 0;
  while (compared < cases(100000) && !HasFailure()) {
    const int64_t vocab = 2 + random.below(30);
    Backend& backend = backends.random(random);
    SCOPED_TRACE(fmt::format("vocab {} {}", vocab, backends.last()));
    const auto pool = backend.make_sampler(50, vocab), plain_pool = plain->make_sampler(50, vocab);
    const ToyTarget target(vocab, random.bits());
    compared += compare_trees(random, *plain, *pool, *plain_pool, target, 40, 12,
                              [&](const DraftStep& s) { return run_on_host(backend, *pool, s, vocab); });
  }
}

// Prefill, decode and verify rows of any settings in one call: each request as if it were alone.
TEST(DraftsCpu, MixedStepsEqualSoloRuns) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (const int64_t vocab : {9, 200, 1100}) {
    Backend& backend = backends.random(random);
    SCOPED_TRACE(fmt::format("vocab {} {}", vocab, backends.last()));
    const auto pool = backend.make_sampler(16, vocab), solo = backend.make_sampler(16, vocab),
               planted = backend.make_sampler(16, vocab);
    const ToyTarget target(vocab, random.bits());
    const MixedSteps seen = compare_with_solo(
        random, *pool, *solo, *planted, target, 12,
        [&](SamplerSlots& slots, const DraftStep& s) { return run_on_host(backend, slots, s, vocab); });
    EXPECT_TRUE(seen.prefills > 0 && seen.decodes > 0 && seen.verifies > 0);
    EXPECT_GT(seen.planted, 0) << "noise keyed by the batch row was not seen";
  }
}

// A tree of a slot that counts must be a path to the root; a row that is none fails alone, and nothing is accepted
// through it.
TEST(DraftsCpu, BadPathsFailAlone) {
  const auto backend = make_cpu_backend({1, ""});
  const ToyTarget target(8, 5);
  SamplingParams p;
  p.temperature = 0.0f;
  p.presence_penalty = 0.1f;
  const auto pool = backend->make_sampler(2, 8);
  pool->assign(0, p, {});
  p.presence_penalty = 0.0f;
  pool->assign(1, p, {});
  for (const int slot : {0, 1}) {
    DraftStep s;
    s.add_row(target, slot, {1}, -1, 0);
    s.add_row(target, slot, {1, 2}, 1, 2);   // its own parent
    s.add_row(target, slot, {1, 2}, 7, 2);   // a parent behind it
    s.add_row(target, slot, {1, 2}, -2, 2);  // no row
    s.add_row(target, slot, {1, 2}, 0, 8);   // no token
    s.add_row(target, slot, {1, 2}, 4, 3);   // through one that is bad
    s.first_row.push_back(6);
    const DraftResult r = run_on_host(*backend, *pool, s, 8);
    EXPECT_EQ(r.status[0], kSampled);
    EXPECT_EQ(r.accepted[0], 0);
    EXPECT_EQ(r.bonus[0], r.tokens[0]);
    for (size_t i = 1; i < 6; i++) {
      EXPECT_EQ(r.status[i], slot == 0 ? kBadDraft : kSampled) << i;
      EXPECT_EQ(r.tokens[i] == -1, slot == 0) << i;
    }
  }
}

TEST(DraftsCpu, ChainsAreAcceptedToTheirLimit) {
  const auto backend = make_cpu_backend({1, ""});
  const ToyTarget target(16, 9);
  for (const bool counts : {false, true}) {
    SamplingParams p;
    p.temperature = 0.0f;
    p.frequency_penalty = counts ? 0.3f : 0.0f;
    const auto pool = backend->make_sampler(1, 16), plain_pool = backend->make_sampler(1, 16);
    pool->assign(0, p, {});
    plain_pool->assign(0, p, {});
    DraftStep s;
    std::vector<int32_t> context = {3};
    s.add_row(target, 0, context, -1, 0);
    for (int i = 0; i < kMaxDraftDepth + 1; i++) {
      context.push_back(decode_one(*backend, *plain_pool, 0, target, context));
      s.add_row(target, 0, context, i, context.back());
    }
    s.first_row.push_back(static_cast<int32_t>(s.slots.size()));
    const DraftResult r = run_on_host(*backend, *pool, s, 16);
    EXPECT_EQ(r.accepted[0], kMaxDraftDepth + 1);  // the last row's token is the bonus, where the row may be sampled
    EXPECT_EQ(r.status.back(), counts ? kBadDraft : kSampled);
    EXPECT_EQ(r.bonus[0] == -1, counts);
  }
}

// Drafts by a model that is near the target: with the target's noise they are accepted more often than with their own.
TEST(DraftsCpu, SharedNoiseRaisesAcceptance) {
  Random random;
  SCOPED_TRACE(random.note());
  const auto backend = make_cpu_backend({1, ""});
  constexpr int64_t kVocab = 64;
  constexpr int kDraws = 4000;
  const auto pool = backend->make_sampler(1, kVocab);
  double share[2] = {};
  for (const bool own : {false, true}) {
    SamplingParams p;
    p.seed = 1234;
    pool->assign(0, p, {});
    const ToyTarget target(kVocab, 77);
    int same = 0;
    for (int i = 0; i < kDraws; i++) {
      const std::vector<float> y = target.logits({i});
      std::vector<float> near = y;
      for (float& v : near) v += random.normal(0.3f);
      const int32_t slot = 0, position = i;
      int32_t token[2] = {}, status = 0;
      SampleArgs a;
      a.slots = &slot, a.positions = &position, a.rows = 1, a.vocab = kVocab, a.status = &status;
      a.logits = y.data(), a.tokens = &token[0];
      backend->sample(*pool, a);
      a.logits = near.data(), a.tokens = &token[1], a.draft_noise = own;
      backend->sample(*pool, a);
      same += token[0] == token[1] ? 1 : 0;
    }
    share[own ? 1 : 0] = static_cast<double>(same) / kDraws;
  }
  std::printf("toy draft: %.3f accepted with the target's noise, %.3f with its own\n", share[0], share[1]);
  EXPECT_GT(share[0], share[1] + 0.2);
}

}  // namespace
}  // namespace isobit::testing
