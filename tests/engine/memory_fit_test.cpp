#include "engine/memory_fit.h"

#include <gtest/gtest.h>

namespace isobit {
namespace {

constexpr size_t kMB = size_t{1} << 20;

CacheAsked asked() {
  CacheAsked a;
  a.context = 4096;
  a.max_requests = 8;
  a.page_size = 16;
  a.page_bytes = 2 * kMB;
  return a;
}

TEST(MemoryFit, NamesTheLongestContext) {
  const std::string text = cache_that_fits(asked(), 200 * kMB);
  EXPECT_NE(text.find("a context of 4096 tokens takes 512 MB"), std::string::npos) << text;
  EXPECT_NE(text.find("--context 1520"), std::string::npos) << text;  // 95% of 200 MB: 95 pages of 16
}

TEST(MemoryFit, NamesTheSequencesThatFit) {
  const std::string text = cache_that_fits(asked(), 1700 * kMB);
  EXPECT_NE(text.find("3 of the 8 sequences"), std::string::npos) << text;
}

TEST(MemoryFit, SaysWhenNoContextFits) {
  EXPECT_NE(cache_that_fits(asked(), kMB).find("none fits"), std::string::npos);
  const std::string text = model_that_fits(16000 * kMB, 12000 * kMB);
  EXPECT_NE(text.find("4000 MB are missing"), std::string::npos) << text;
}

TEST(MemoryFit, SaysWhatTheWeightsLeave) {
  const std::string text = model_that_fits(16000 * kMB, 16100 * kMB);
  EXPECT_NE(text.find("100 MB are left"), std::string::npos) << text;
}

}  // namespace
}  // namespace isobit
