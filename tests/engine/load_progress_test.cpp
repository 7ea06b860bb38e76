// What a loading engine reports: every tensor's bytes once, in rising order, up to the file's.
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/tiny_model.h"

namespace isobit::test {
namespace {

TEST(LoadProgress, RisesToTheWholeFile) {
  const TinyFile tiny;
  size_t bytes = 0, largest = 0;
  for (const Tensor& t : tiny.file()->tensors()) {
    bytes += t.bytes;
    largest = std::max(largest, t.bytes);
  }
  std::vector<std::pair<size_t, size_t>> seen;
  EngineOptions options;
  options.progress = [&](size_t done, size_t total) { seen.emplace_back(done, total); };
  tiny.engine(options);
  ASSERT_EQ(seen.size(), tiny.file()->tensors().size());
  size_t before = 0;
  for (const auto& [done, total] : seen) {
    EXPECT_EQ(total, bytes);
    EXPECT_GT(done, before);
    EXPECT_LE(done - before, largest);
    before = done;
  }
  EXPECT_EQ(before, bytes);
}

}  // namespace
}  // namespace isobit::test
