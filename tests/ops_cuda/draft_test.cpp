// Verification of draft trees on the GPU against plain decoding on the CPU.
#include <gtest/gtest.h>

#include "ops/cpu/cpu_backend.h"
#include "ops/cuda/kernels.h"
#include "ops/draft_testing.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit::testing {
namespace {

DraftResult run_on_gpu(SamplerSlots& pool, const DraftStep& s, int64_t vocab) {
  DraftResult r(s);
  const GpuArray<float> logits(s.logits);
  const GpuArray<int32_t> slots(s.slots), positions(s.positions), first_row(s.first_row), parents(s.parents),
      drafted(s.tokens), tokens(s.slots.size()), status(s.slots.size()), accepted(r.accepted.size()),
      bonus(r.bonus.size()), path(s.slots.size()), top_ids(r.top_ids);
  const GpuArray<float> logprobs(r.logprobs), top_logprobs(r.top_logprobs);
  cuda::KernelContext context;
  context.sm_count = 132;
  launch_sample(pool,
                draft_args(s,
                           {logits.data(), slots.data(), positions.data(), first_row.data(), parents.data(),
                            drafted.data(), tokens.data(), status.data(), accepted.data(), bonus.data(), path.data(),
                            top_ids.data(), logprobs.data(), top_logprobs.data()},
                           vocab),
                context);
  cuda::check(cudaDeviceSynchronize(), "sample");
  EXPECT_TRUE(tokens.guards_intact() && accepted.guards_intact() && bonus.guards_intact() && path.guards_intact());
  EXPECT_TRUE(top_ids.guards_intact() && logprobs.guards_intact() && top_logprobs.guards_intact());
  r.tokens = tokens.get(), r.status = status.get(), r.accepted = accepted.get(), r.bonus = bonus.get();
  r.path = path.get(), r.top_ids = top_ids.get(), r.logprobs = logprobs.get(), r.top_logprobs = top_logprobs.get();
  return r;
}

TEST(GpuDrafts, TreesEqualPlainDecoding) {
  Random random;
  SCOPED_TRACE(random.note());
  const auto plain = make_cpu_backend({1, ""});
  int compared = 0;
  for (int round = 0; compared < 100000 && !HasFailure(); round++) {
    const int64_t vocab = round == 0 ? 5000 : 2 + random.below(30);  // a row of several CTAs; rows of many trees
    const int requests = round == 0 ? 10 : 400, most = random.below(3) == 0 ? 50 : 10;
    SCOPED_TRACE(fmt::format("vocab {}", vocab));
    cuda::KernelContext context;
    const auto pool = cuda::make_sampler_slots(requests, vocab, context),
               plain_pool = plain->make_sampler(requests, vocab);
    const ToyTarget target(vocab, random.bits());
    compared += compare_trees(random, *plain, *pool, *plain_pool, target, round == 0 ? 10 : 30, most,
                              [&](const DraftStep& s) { return run_on_gpu(*pool, s, vocab); });
  }
}

// Prefill, decode and verify rows of any settings in one launch: each request as if it were alone, where a cluster of
// more CTAs has the row; and as the CPU has it.
TEST(GpuDrafts, MixedStepsEqualSoloRuns) {
  Random random;
  SCOPED_TRACE(random.note());
  const auto cpu = make_cpu_backend({1, ""});
  for (const int64_t vocab : {200, 50257, 151936}) {
    SCOPED_TRACE(fmt::format("vocab {}", vocab));
    constexpr int kSlots = 12;
    const auto make = [&] { return cuda::make_sampler_slots(kSlots, vocab, {}); };
    const auto pool = make(), solo = make(), planted = make();
    const ToyTarget target(vocab, random.bits());
    const MixedSteps seen =
        compare_with_solo(random, *pool, *solo, *planted, target, vocab == 200 ? 20 : 2,
                          [&](SamplerSlots& slots, const DraftStep& s) { return run_on_gpu(slots, s, vocab); });
    EXPECT_TRUE(seen.prefills > 0 && seen.decodes > 0 && seen.verifies > 0);
    EXPECT_GT(seen.planted, 0) << "noise keyed by the batch row was not seen";
  }
  // The same on two backends.
  constexpr int64_t kVocab = 2000;
  const auto pool = cuda::make_sampler_slots(8, kVocab, {}), planted = cuda::make_sampler_slots(8, kVocab, {});
  const auto on_cpu = cpu->make_sampler(8, kVocab);
  compare_with_solo(random, *pool, *on_cpu, *planted, ToyTarget(kVocab, random.bits()), 6,
                    [&](SamplerSlots& slots, const DraftStep& s) {
                      return &slots == on_cpu.get() ? run_on_host(*cpu, slots, s, kVocab)
                                                    : run_on_gpu(slots, s, kVocab);
                    });
}

// Every output equals the CPU's, whatever the parents and tokens are.
TEST(GpuDrafts, BadTreesEqualTheCpu) {
  Random random;
  SCOPED_TRACE(random.note());
  const auto cpu = make_cpu_backend({1, ""});
  constexpr int64_t kVocab = 6;
  constexpr int kRequests = 30;
  const ToyTarget target(kVocab, random.bits());
  const auto pool = cuda::make_sampler_slots(kRequests, kVocab, {}), cpu_pool = cpu->make_sampler(kRequests, kVocab);
  for (int slot = 0; slot < kRequests; slot++) {
    const SamplingParams p = draft_params(random, kVocab);
    pool->assign(slot, p, {});
    cpu_pool->assign(slot, p, {});
  }
  int bad = 0;
  for (int round = 0; round < 30; round++) {
    DraftStep s;
    for (int slot = 0; slot < kRequests; slot++) s.add_tree(random, target, slot, {slot % 6, round % 6}, 80);
    for (size_t i = 0; i < s.parents.size(); i++) {
      if (random.below(6) != 0) continue;
      if (s.parents[i] == -1) continue;
      s.parents[i] = static_cast<int32_t>(random.range(-3, static_cast<int64_t>(i) + 2));
      if (s.parents[i] < -1 || s.parents[i] >= s.rows() || random.below(2) == 0) s.tokens[i] = random.below(9) - 2;
    }
    const DraftResult got = run_on_gpu(*pool, s, kVocab), want = run_on_host(*cpu, *cpu_pool, s, kVocab);
    EXPECT_EQ(got.status, want.status) << round;
    EXPECT_EQ(got.tokens, want.tokens) << round;
    EXPECT_EQ(got.accepted, want.accepted) << round;
    EXPECT_EQ(got.bonus, want.bonus) << round;
    EXPECT_EQ(got.path, want.path) << round;
    bad += static_cast<int>(std::count(want.status.begin(), want.status.end(), kBadDraft));
  }
  EXPECT_GT(bad, 0);
}

}  // namespace
}  // namespace isobit::testing
