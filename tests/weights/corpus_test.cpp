// The fuzzers' seed corpora in the ordinary tests: ok_* are read, bad_* are refused.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/error.h"
#include "weights/gguf.h"
#include "weights/safetensors.h"

namespace isobit::test {
namespace {

void check_corpus(const std::string& format, Checkpoint (*load)(const std::string&), size_t least_good,
                  size_t least_bad) {
  size_t good = 0, bad = 0;
  for (const auto& file : std::filesystem::directory_iterator(ISOBIT_SOURCE_DIR "/tests/fuzz/corpus/" + format)) {
    const std::string name = file.path().filename().string();
    SCOPED_TRACE(name);
    if (name.starts_with("ok_")) {
      ++good;
      EXPECT_NO_THROW(load(file.path().string()));
    } else if (name.starts_with("bad_")) {
      ++bad;
      EXPECT_THROW(load(file.path().string()), Error);
    }
  }
  EXPECT_GE(good, least_good);
  EXPECT_GE(bad, least_bad);
}

TEST(Corpus, GgufIsReadOrRefusedAsNamed) { check_corpus("gguf", load_gguf, 20, 25); }
TEST(Corpus, SafetensorsIsReadOrRefusedAsNamed) { check_corpus("safetensors", load_safetensors, 5, 8); }

}  // namespace
}  // namespace isobit::test
