// The CPU's attention against rule N10's scalar form, by bytes.
#include <gtest/gtest.h>

#include <chrono>

#include "base/error.h"
#include "numerics/convert.h"
#include "ops/attention_problem.h"

namespace isobit::testing {
namespace {

constexpr int64_t kBudget = 30000;  // scalar dot16 steps a case

// Seconds since the first call of a test; a busy machine gets fewer random cases, not a slower test.
class Clock {
 public:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

void expect_equal(const AttentionShape& shape, Random& random, Backends& backends, int64_t budget = kBudget) {
  SCOPED_TRACE(shape.describe());
  AttentionProblem problem(shape, random);
  // The scalar target is the rule itself, a key at a time: for small calls only.
  int64_t work = 0;
  for (int t = 0; t < problem.tokens(); t++) work += problem.cost(t) * problem.q_heads();
  Backend* backend = &backends.random(random);
  while (work > 300000 && backends.last().find("scalar") != std::string::npos) backend = &backends.random(random);
  const auto difference = problem.compare(problem.run(*backend), random, budget);
  ASSERT_FALSE(difference.has_value()) << backends.last() << ": " << *difference;
}

TEST(AttentionCpu, RandomCallsEqualTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  const Clock clock;
  int cases = 0;
  while (cases < 300 && (clock.seconds() < 6.0 || cases < 10)) {
    SCOPED_TRACE(fmt::format("case {}", cases++));
    expect_equal(random_attention_shape(random), random, backends);
    if (::testing::Test::HasFatalFailure()) return;
  }
  RecordProperty("cases", cases);
}

TEST(AttentionCpu, EveryTargetAndThreadCountGivesTheSameBytes) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (int i = 0; i < 3; i++) {
    AttentionShape shape = random_attention_shape(random);
    shape.head_dim = pick(random, {64, 96, 128});
    for (auto& r : shape.requests) {
      r.length = std::min(r.length, 400);
      r.added = std::min({r.added, r.length > 0 ? r.length : 2, 4});
    }
    SCOPED_TRACE(shape.describe());
    AttentionProblem problem(shape, random);
    const std::vector<uint16_t> first = problem.run(backends.get(backends.targets().back(), 1));
    for (const std::string& target : backends.targets()) {
      for (int threads = 1; threads <= 3; threads++) {
        const auto difference = first_difference(first, problem.run(backends.get(target, threads)));
        ASSERT_FALSE(difference) << target << ", " << threads << " threads, element " << *difference;
      }
    }
  }
}

TEST(AttentionCpu, LengthsAroundBlocksAndSuperBlocks) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (const int head_dim : {64, 256}) {
    for (const int length : {1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049, 2176, 4097}) {
      AttentionShape shape;
      shape.head_dim = head_dim;
      shape.requests = {{length, std::min(length, 3)}};
      expect_equal(shape, random, backends, 6000);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(AttentionCpu, WindowsAroundEveryEdge) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (const int window : {1, 2, 127, 128, 129, 300}) {
    for (const int length : {window - 1, window, window + 1, window + 128, 2048 + window}) {
      if (length < 1) continue;
      AttentionShape shape;
      shape.window = window;
      shape.sinks = window == 129;
      shape.group = 3;
      shape.requests = {{length, std::min(length, 2)}};
      expect_equal(shape, random, backends, 6000);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// A chain of new tokens, one after the other, all at once, or with the first ones already in the cache: no seam.
TEST(AttentionCpu, ChunksAndNeighboursDoNotMatter) {
  Random random;
  SCOPED_TRACE(random.note());
  const auto backend = make_cpu_backend({2, ""});
  constexpr int kLength = 333, kDim = 64, kPages = 40, kPage = 16, kHeads = 9, kKv = 3;
  std::vector<uint16_t> k(static_cast<size_t>(kPages * kKv * kPage * kDim)), v(k.size());
  std::vector<uint16_t> q(static_cast<size_t>(kLength * kHeads * kDim));
  for (auto* x : {&k, &v, &q}) {
    for (uint16_t& e : *x) e = numerics::f32_to_bf16(random.normal());
  }
  std::vector<int32_t> table(kPages);
  for (int i = 0; i < kPages; i++) table[static_cast<size_t>(i)] = (i * 7) % kPages;
  const auto run = [&](int begin, int end) {
    const std::vector<int32_t> start = {0, end - begin}, length = {end};
    std::vector<uint16_t> out(static_cast<size_t>((end - begin) * kHeads * kDim), 0xaaab);
    AttentionArgs a;
    a.q = q.data() + begin * kHeads * kDim;
    a.cache = {k.data(), v.data(), kPages, kKv, kPage, kDim, DType::kBF16, nullptr, nullptr};
    a.query_start = start.data();
    a.kv_len = length.data();
    a.page_table = table.data();
    a.tokens = end - begin;
    a.requests = 1;
    a.q_heads = kHeads;
    a.table_stride = kPages;
    a.max_query = end - begin;
    a.max_kv = end;
    a.scale = 0.125f;
    a.out = out.data();
    backend->attention(a);
    return out;
  };
  const std::vector<uint16_t> whole = run(0, kLength);
  for (const int chunk : {1, 16, 64, 77}) {
    for (int begin = 0; begin < kLength; begin += chunk) {
      const int end = std::min(kLength, begin + chunk);
      const std::vector<uint16_t> part = run(begin, end);
      ASSERT_EQ(std::memcmp(part.data(), whole.data() + begin * kHeads * kDim, part.size() * 2), 0)
          << "chunk " << chunk << " at " << begin;
    }
  }
}

TEST(AttentionCpu, PlantedDefectsAreSeen) {
  using Defect = AttentionProblem::Defect;
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (const Defect defect : {Defect::kShiftedBlocks, Defect::kWindowOffByOne, Defect::kStaleKey,
                              Defect::kSinkInMaximum, Defect::kTreeBySlot, Defect::kSeam, Defect::kValueScale}) {
    bool seen = false;
    for (int i = 0; i < 20 && !seen; i++) {
      AttentionShape shape;
      shape.group = 3;
      const bool regroups = defect == Defect::kShiftedBlocks || defect == Defect::kTreeBySlot;
      shape.requests = {{regroups ? 40 + random.below(40) : 200 + random.below(100), regroups ? 40 : 12}};
      // Regrouped sums differ in the last bits of f32: f16 outputs, and many, show it.
      if (regroups) shape.type = shape.cache_type = DType::kF16;
      shape.window = defect == Defect::kWindowOffByOne ? 100 : 0;
      shape.sinks = defect == Defect::kSinkInMaximum;
      shape.tree = defect == Defect::kTreeBySlot;
      if (defect == Defect::kValueScale) shape.cache_type = DType::kF8E4M3;
      AttentionProblem problem(shape, random);
      const std::vector<uint16_t> out = problem.run(backends.get("", 2));
      ASSERT_FALSE(problem.compare(out, random, kBudget).has_value());
      seen = problem.compare(out, random, 10 * kBudget, defect).has_value();
    }
    EXPECT_TRUE(seen) << "defect " << static_cast<int>(defect);
  }
}

TEST(AttentionCpu, ContradictionsAreErrors) {
  Random random;
  SCOPED_TRACE(random.note());
  const auto backend = make_cpu_backend({1, ""});
  std::vector<uint16_t> pages(16 * 16), q(16), out(16);
  const std::vector<int32_t> start = {0, 1};
  std::vector<int32_t> length = {5}, table = {0};
  AttentionArgs a;
  a.q = q.data();
  a.cache = {pages.data(), pages.data(), 1, 1, 16, 16, DType::kBF16, nullptr, nullptr};
  a.query_start = start.data();
  a.kv_len = length.data();
  a.page_table = table.data();
  a.tokens = a.requests = a.q_heads = a.table_stride = a.max_query = 1;
  a.max_kv = 16;
  a.out = out.data();
  EXPECT_NO_THROW(backend->attention(a));
  table[0] = 1;
  EXPECT_THROW(backend->attention(a), Error);
  table[0] = 0;
  length[0] = 17;
  EXPECT_THROW(backend->attention(a), Error);
}

}  // namespace
}  // namespace isobit::testing
