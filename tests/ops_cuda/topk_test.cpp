// Per-row top-k on the GPU against a sort, by bytes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "ops/cuda/kernels.h"
#include "ops/topk_testing.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit::test {
namespace {

struct Ranges {
  std::vector<int32_t> starts, ends;
};

void compare(int64_t rows, int64_t stride, int32_t k, bool all, int kind, std::mt19937_64& random) {
  SCOPED_TRACE(fmt::format("{} rows of {}, k {}, kind {}", rows, stride, k, kind));
  std::vector<float> y(static_cast<size_t>(rows * stride));
  Ranges ranges;
  for (int64_t r = 0; r < rows; r++) {
    const auto of =
        kind >= 0 ? static_cast<TopkRow>(kind)
                  : static_cast<TopkRow>(random() % 2 == 0 ? 0 : random() % static_cast<uint64_t>(TopkRow::kCount));
    fill_topk_row(of, y.data() + r * stride, stride, random);
    const auto s = static_cast<uint64_t>(stride);
    const auto start =
        static_cast<int32_t>(random() % 3 == 0 ? random() % s : random() % 2 * (random() % std::min<uint64_t>(s, 9)));
    ranges.starts.push_back(start);
    ranges.ends.push_back(start + static_cast<int32_t>(random() % 3 == 0
                                                           ? random() % (s - static_cast<uint64_t>(start) + 1)
                                                           : s - static_cast<uint64_t>(start)));
  }
  if (!all && rows > 3) ranges.starts[1] = -1, ranges.ends[2] = static_cast<int32_t>(stride) + 1, ranges.ends[3] = -5;
  const GpuArray<float> logits(y);
  const GpuArray<int32_t> starts(ranges.starts), ends(ranges.ends);
  const GpuArray<int32_t> out(static_cast<size_t>(rows * k)), status(static_cast<size_t>(rows));
  const TopkPerRowArgs a{
      logits.data(), all ? nullptr : starts.data(), all ? nullptr : ends.data(), rows, stride, k, out.data(),
      status.data()};
  a.check();
  cuda::KernelContext context;
  context.sm_count = 132;
  launch_topk_per_row(a, context);
  cuda::check(cudaDeviceSynchronize(), "topk_per_row");
  const std::vector<int32_t> got = out.get(), got_status = status.get();
  EXPECT_TRUE(out.guards_intact() && status.guards_intact());
  std::atomic<size_t> next{0};
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); t++) {
    threads.emplace_back([&] {
      for (size_t r = next++; r < static_cast<size_t>(rows); r = next++) {
        const int32_t start = all ? 0 : ranges.starts[r], end = all ? static_cast<int32_t>(stride) : ranges.ends[r];
        const bool good = start >= 0 && start <= end && end <= stride;
        const std::vector<int32_t> want =
            good ? topk_reference(y.data() + static_cast<int64_t>(r) * stride, start, end, k)
                 : std::vector<int32_t>(static_cast<size_t>(k), -1);
        const auto at = got.begin() + static_cast<std::ptrdiff_t>(r) * k;
        if (!std::equal(want.begin(), want.end(), at) || got_status[r] != (good ? kTopkDone : kTopkBadRange)) wrong++;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(GpuTopk, EqualsASort) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const int64_t stride : {1, 3, 100, 2048, 4097, 16384, 40001, 129280}) {
    for (const int rows : {1, 5, 33, 150}) {
      const auto most = static_cast<uint64_t>(std::min<int64_t>(stride, kMaxTopk));
      compare(rows, stride, static_cast<int32_t>(1 + random() % most), rows == 5, -1, random);
      if (stride >= 2048) compare(std::min(rows, 33), stride, rows % 2 == 0 ? 2048 : 1024, rows != 5, -1, random);
    }
  }
}

TEST(GpuTopk, HardRows) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int kind = 0; kind < static_cast<int>(TopkRow::kCount); kind++) {
    compare(3, 129280, 1024, true, kind, random);
    compare(40, 10007, 512, false, kind, random);
  }
}

TEST(GpuTopk, LongRowsAndManyRows) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  compare(2, kMaxTopkLength, 2048, true, -1, random);
  compare(20, kMaxTopkLength - 3, 2048, false, -1, random);
  compare(16384, 1000, 64, false, -1, random);
  compare(3000, 5000, 512, true, -1, random);
}

}  // namespace
}  // namespace isobit::test
