// The contract's bits do not depend on the compiler or its flags: the probe is compiled anew with each and its digest
// compared with this build's own and with the recorded one.
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>

#include "contract_digest.h"
#include "numerics/testing.h"

namespace isobit {
namespace {

// Of isobit-1. A change here is a change of the contract's bits: see docs/numerics.md, "How a change is made".
constexpr uint64_t kRecorded = 0x666c4b65151e99de;

std::string output_of(const std::string& command) {
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(popen((command + " 2>&1").c_str(), "r"), pclose);
  std::string text;
  std::array<char, 4096> buffer;
  size_t n = 0;
  while (pipe != nullptr && (n = std::fread(buffer.data(), 1, buffer.size(), pipe.get())) > 0) {
    text.append(buffer.data(), n);
  }
  return text;
}

bool installed(const std::string& compiler) {
  return std::system(("command -v " + compiler + " > /dev/null 2>&1").c_str()) == 0;
}

TEST(Flags, ThisBuildGivesTheRecordedDigest) { EXPECT_EQ(vectors::contract_digest(), kRecorded); }

TEST(Flags, EveryCompilerAndFlagGivesTheRecordedDigest) {
  if (testing::kSanitized) GTEST_SKIP() << "the release build's tests compile the same probes";
  const std::filesystem::path folder = std::filesystem::path(ISOBIT_BINARY_DIR) / "flags_probe";
  std::filesystem::create_directories(folder);
  const std::string source = std::string(ISOBIT_SOURCE_DIR) + "/tests/numerics/probe/flags_probe.cpp";
  int tried = 0;
  for (const std::string compiler : {"g++", "clang++"}) {
    if (!installed(compiler)) continue;
    for (const std::string flags : {"-O0", "-O3", "-O3 -march=native", "-O3 -march=native -ffp-contract=fast"}) {
      SCOPED_TRACE(compiler + " " + flags);
      const std::string program = (folder / ("probe_" + std::to_string(tried++))).string();
      const std::string build = compiler + " -std=c++20 " + flags + " -I'" + ISOBIT_SOURCE_DIR + "/src' '" + source +
                                "' -o '" + program + "'";
      ASSERT_EQ(output_of(build), "");
      char expected[32];
      std::snprintf(expected, sizeof expected, "%016llx\n", static_cast<unsigned long long>(kRecorded));
      EXPECT_EQ(output_of("'" + program + "'"), expected);
    }
  }
  if (tried == 0) GTEST_SKIP() << "neither g++ nor clang++ is on the PATH";
}

TEST(Flags, FastMathDoesNotCompile) {
  if (!installed("g++")) GTEST_SKIP() << "g++ is not on the PATH";
  const std::string said = output_of(std::string("g++ -std=c++20 -Ofast -fsyntax-only -I'") + ISOBIT_SOURCE_DIR +
                                     "/src' '" + ISOBIT_SOURCE_DIR + "/tests/numerics/probe/flags_probe.cpp'");
  EXPECT_NE(said.find("break the contract"), std::string::npos) << said;
}

}  // namespace
}  // namespace isobit
