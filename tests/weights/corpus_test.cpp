// The fuzzer's seed corpus in the ordinary tests: ok_* are read, bad_* are refused.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "weights/gguf.h"

namespace isobit::test {
namespace {

TEST(GgufCorpus, IsReadOrRefusedAsNamed) {
  size_t good = 0, bad = 0;
  for (const auto& file : std::filesystem::directory_iterator(ISOBIT_SOURCE_DIR "/tests/fuzz/corpus/gguf")) {
    const std::string name = file.path().filename().string();
    SCOPED_TRACE(name);
    if (name.starts_with("ok_")) {
      ++good;
      EXPECT_NO_THROW(load_gguf(file.path().string()));
    } else if (name.starts_with("bad_")) {
      ++bad;
      EXPECT_THROW(load_gguf(file.path().string()), Error);
    }
  }
  EXPECT_GE(good, 20u);
  EXPECT_GE(bad, 25u);
}

}  // namespace
}  // namespace isobit::test
