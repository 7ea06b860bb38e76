// What the commands share. The commands themselves are tested as a user meets them: tests/e2e.
#include <gtest/gtest.h>

#include <csignal>

#include "cli/cli.h"
#include "weights/expect_error.h"
#include "weights/gguf_builder.h"

namespace isobit::cli {
namespace {

TEST(ExitCode, OfEveryError) {
  EXPECT_EQ(exit_code(ErrorCode::kInternal), 1);
  EXPECT_EQ(exit_code(ErrorCode::kInvalidArgument), 2);
  for (const ErrorCode c : {ErrorCode::kBadFile, ErrorCode::kUnsupported, ErrorCode::kNotFound})
    EXPECT_EQ(exit_code(c), 3);
  EXPECT_EQ(exit_code(ErrorCode::kDevice), 4);
  for (const ErrorCode c : {ErrorCode::kOutOfMemory, ErrorCode::kIo}) EXPECT_EQ(exit_code(c), 5);
  EXPECT_EQ(exit_code(ErrorCode::kNumerical), 6);
}

TEST(InterruptFlag, RaisedBySigintAndCleared) {
  Interrupt interrupt;
  EXPECT_FALSE(interrupt.raised());
  std::raise(SIGINT);
  EXPECT_TRUE(interrupt.raised() && interrupt.flag().load());
  interrupt.clear();
  EXPECT_FALSE(interrupt.raised());
}

TEST(InterruptFlag, ASecondSigintEndsTheProgram) {
  EXPECT_EXIT(
      {
        Interrupt interrupt;
        std::raise(SIGINT);
        std::raise(SIGINT);
      },
      ::testing::ExitedWithCode(kInterrupted), "");
}

TEST(ReadFile, NamesWhatCannotBeRead) {
  const test::TemporaryFolder folder;
  EXPECT_EQ(read_file(folder.write("a.txt", std::string_view("one\n\0two", 8))), std::string("one\n\0two", 8));
  test::expect_error(ErrorCode::kNotFound, {"none.txt"}, [&] { read_file((folder.path() / "none.txt").string()); });
  test::expect_error(ErrorCode::kNotFound, {"is a folder"}, [&] { read_file(folder.path().string()); });
}

TEST(SamplingFlagsTest, SeedsAndBiases) {
  SamplingFlags f;
  f.seed = "0x10";
  f.logit_bias = {"42=-1.5", "7=3"};
  const GenerateOptions o = f.options();
  EXPECT_EQ(o.sampling.seed, 16);
  EXPECT_EQ(o.sampling.logit_bias, (std::vector<std::pair<int32_t, float>>{{42, -1.5f}, {7, 3.0f}}));
  f.seed = "18446744073709551615";
  EXPECT_EQ(f.options().sampling.seed, UINT64_MAX);
  for (const std::string bad : {"18446744073709551616", "-1", "1.5", "x", " ", "1 2"}) {
    f.seed = bad;
    test::expect_error(ErrorCode::kInvalidArgument, {"seed '" + bad + "'"}, [&] { f.options(); });
  }
  f.seed = "";
  EXPECT_NE(f.options().sampling.seed, f.options().sampling.seed) << "drawn anew";
  for (const std::string bad : {"42", "42=", "=1", "42=1x", "a=1"}) {
    f.logit_bias = {bad};
    test::expect_error(ErrorCode::kInvalidArgument, {"'" + bad + "'"}, [&] { f.options(); });
  }
}

}  // namespace
}  // namespace isobit::cli
