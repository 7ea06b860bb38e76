// Per-row top-k on the CPU against a sort.
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/cpu_testing.h"
#include "ops/topk_testing.h"

namespace isobit::testing {
namespace {

using test::TopkRow;

TEST(TopkCpu, EqualsASort) {
  Random random;
  SCOPED_TRACE(random.note());
  std::mt19937_64 bits(random.bits());
  Backends backends;
  for (int round = 0; round < 120; round++) {
    const int64_t stride = log_uniform(random, 1, 6000), rows = 1 + random.below(6);
    const auto k = static_cast<int32_t>(std::min<int64_t>(stride, log_uniform(random, 1, kMaxTopk)));
    std::vector<float> y(static_cast<size_t>(rows * stride));
    std::vector<int32_t> starts, ends, status(static_cast<size_t>(rows), 77);
    std::vector<int32_t> out(static_cast<size_t>(rows * k), 12345);
    for (int64_t r = 0; r < rows; r++) {
      const auto kind = static_cast<TopkRow>(random.below(static_cast<int>(TopkRow::kCount)));
      test::fill_topk_row(kind, y.data() + r * stride, stride, bits);
      starts.push_back(random.below(2) == 0 ? 0 : random.below(static_cast<int>(stride)));
      ends.push_back(starts.back() + random.below(static_cast<int>(stride) - starts.back() + 1));
    }
    TopkPerRowArgs a{y.data(), starts.data(), ends.data(), rows, stride, k, out.data(), status.data()};
    if (round % 4 == 0) a.starts = a.ends = nullptr;
    a.check();
    check_topk_ranges(starts, ends, stride);
    backends.random(random).topk_per_row(a);
    for (size_t r = 0; r < static_cast<size_t>(rows); r++) {
      const int32_t start = a.starts != nullptr ? starts[r] : 0;
      const int32_t end = a.ends != nullptr ? ends[r] : static_cast<int32_t>(stride);
      const std::vector<int32_t> want =
          test::topk_reference(y.data() + static_cast<int64_t>(r) * stride, start, end, k);
      const auto at = out.begin() + static_cast<std::ptrdiff_t>(r) * k;
      ASSERT_EQ(std::vector<int32_t>(at, at + k), want) << fmt::format("{} row {} k {}", backends.last(), r, k);
      ASSERT_EQ(status[r], kTopkDone);
    }
  }
}

TEST(TopkCpu, BadRangesAndArgumentsAreRefusedByName) {
  const auto backend = make_cpu_backend({1, ""});
  std::vector<float> y(40, 1.0f);
  std::vector<int32_t> starts{0, 5, -1, 3, 11}, ends{8, 4, 3, 9, 11}, out(10, 77), status(5, 77);
  const TopkPerRowArgs good{y.data(), starts.data(), ends.data(), 5, 8, 2, out.data(), status.data()};
  backend->topk_per_row(good);
  EXPECT_EQ(status, (std::vector<int32_t>{kTopkDone, kTopkBadRange, kTopkBadRange, kTopkBadRange, kTopkBadRange}));
  EXPECT_EQ(out, (std::vector<int32_t>{0, 1, -1, -1, -1, -1, -1, -1, -1, -1}));
  const auto message = [](auto&& call) -> std::string {
    try {
      call();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  const auto refused = [&](auto&& change) {
    TopkPerRowArgs a = good;
    change(a);
    return message([&] { a.check(); });
  };
  EXPECT_NE(refused([](TopkPerRowArgs& a) { a.k = 0; }).find("k is 0"), std::string::npos);
  EXPECT_NE(refused([](TopkPerRowArgs& a) { a.k = 2049, a.stride = 4096; }).find("[1, 2048]"), std::string::npos);
  EXPECT_NE(refused([](TopkPerRowArgs& a) { a.k = 9; }).find("stride is 8"), std::string::npos);
  EXPECT_NE(refused([](TopkPerRowArgs& a) { a.stride = kMaxTopkLength + 1; }).find("stride"), std::string::npos);
  EXPECT_NE(refused([](TopkPerRowArgs& a) { a.rows = -1; }).find("-1 rows"), std::string::npos);
  EXPECT_NE(refused([](TopkPerRowArgs& a) { a.out = nullptr; }).find("out"), std::string::npos);
  EXPECT_EQ(refused([](TopkPerRowArgs&) {}), "");
  EXPECT_NE(message([&] { check_topk_ranges(starts, ends, 8); }).find("row 1 has the range [5, 4)"), std::string::npos);
}

}  // namespace
}  // namespace isobit::testing
