// The CPU's attention against rule N10's scalar form, by bytes.
#include <gtest/gtest.h>

#include <chrono>

#include "ops/attention_problem.h"

namespace isobit::testing {
namespace {

constexpr int64_t kBudget = 60000;  // scalar dot16 steps a case

bool time_left(std::chrono::steady_clock::time_point start, double seconds) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds;
}

TEST(AttentionCpu, RandomCallsEqualTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  const auto start = std::chrono::steady_clock::now();
  int cases = 0;
  while (cases < 400 && time_left(start, 8.0)) {
    const AttentionShape shape = random_attention_shape(random);
    SCOPED_TRACE(fmt::format("case {}: {}", cases++, shape.describe()));
    AttentionProblem problem(shape, random);
    const std::vector<uint16_t> out = problem.run(backends.random(random));
    const auto difference = problem.compare(out, random, kBudget);
    ASSERT_FALSE(difference.has_value()) << backends.last() << ": " << *difference;
  }
  std::printf("%d cases\n", cases);
  EXPECT_GE(cases, 20);
}

}  // namespace
}  // namespace isobit::testing
