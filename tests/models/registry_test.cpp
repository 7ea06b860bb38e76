#include "models/registry.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include "weights/expect_error.h"
#include "weights/gguf_builder.h"

namespace isobit::test {
namespace {

class RegistryTest : public ::testing::Test {
 protected:
  void SetUp() override { setenv("ISOBIT_CACHE", folder_.path().c_str(), 1); }
  void TearDown() override { unsetenv("ISOBIT_CACHE"); }
  TemporaryFolder folder_;
};

TEST_F(RegistryTest, EveryModelIsDescribedInFull) {
  for (const KnownModel& m : known_models()) {
    EXPECT_EQ(m.sha256.size(), 64) << m.name;
    EXPECT_GT(m.bytes, 0) << m.name;
    EXPECT_FALSE(m.parts.empty()) << m.name;
    std::vector<WheelMember> wheels(m.parts.begin(), m.parts.end());
    if (!m.terms.package.empty()) {
      wheels.push_back(m.terms);
      EXPECT_TRUE(m.terms_url.starts_with("https://")) << m.name;
    }
    for (const WheelMember& w : wheels) {
      EXPECT_EQ(w.sha256.size(), 64) << w.package;
      EXPECT_NE(w.package.find("=="), std::string_view::npos) << m.name;
      EXPECT_FALSE(w.member.empty()) << w.package;
    }
    EXPECT_EQ(find_model(m.name), &m);
  }
  EXPECT_EQ(find_model("smollm"), nullptr);
}

TEST_F(RegistryTest, ResolvesNamesAndPaths) {
  const KnownModel& m = *find_model("smollm2");
  expect_error(ErrorCode::kNotFound, {"'smollm2'", "isobit pull smollm2"}, [] { resolve_model("smollm2"); });
  std::filesystem::create_directories(folder_.path() / "models");
  const std::string file = folder_.write("models/" + std::string(m.file), std::string_view("x"));
  EXPECT_EQ(resolve_model("smollm2"), file);
  EXPECT_EQ(resolve_model(file), file);
  EXPECT_TRUE(names_model("smollm2") && names_model(file));
  EXPECT_FALSE(names_model("Why is the sky blue?"));
  expect_error(ErrorCode::kNotFound, {"'nowhere.gguf'", "smollm2"}, [] { resolve_model("nowhere.gguf"); });
}

TEST_F(RegistryTest, CacheFolderFollowsTheEnvironment) {
  EXPECT_EQ(cache_folder(), folder_.path());
  unsetenv("ISOBIT_CACHE");
  setenv("XDG_CACHE_HOME", "/somewhere", 1);
  EXPECT_EQ(cache_folder(), "/somewhere/isobit");
  unsetenv("XDG_CACHE_HOME");
  const std::string home = getenv("HOME") == nullptr ? "" : getenv("HOME");
  setenv("HOME", "/at/home", 1);
  EXPECT_EQ(cache_folder(), "/at/home/.cache/isobit");
  unsetenv("HOME");
  expect_error(ErrorCode::kNotFound, {"ISOBIT_CACHE"}, [] { cache_folder(); });
  if (!home.empty()) setenv("HOME", home.c_str(), 1);
}

}  // namespace
}  // namespace isobit::test
