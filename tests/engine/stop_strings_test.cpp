#include "engine/stop_strings.h"

#include <gtest/gtest.h>

#include "numerics/testing.h"
#include "weights/expect_error.h"

namespace isobit::test {
namespace {

struct Shown {
  std::string text;
  bool stopped = false;
};

Shown feed(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopStrings s(stops);
  Shown shown;
  for (const std::string& piece : pieces) shown.text += s.push(piece);
  shown.text += s.flush();
  shown.stopped = s.stopped();
  return shown;
}

TEST(StopStrings, AcrossPieces) {
  const Shown s = feed({"END"}, {"one E", "N", "D two"});
  EXPECT_EQ(s.text, "one ");
  EXPECT_TRUE(s.stopped);
}

TEST(StopStrings, HoldsBackOnlyWhatCouldStop) {
  StopStrings s({"END"});
  EXPECT_EQ(s.push("abE"), "ab");
  EXPECT_EQ(s.push("Nc"), "ENc");
  EXPECT_EQ(s.push("EN"), "");
  EXPECT_EQ(s.flush(), "EN");
  EXPECT_FALSE(s.stopped());
}

TEST(StopStrings, TheFirstToBeginWins) {
  EXPECT_EQ(feed({"cd", "bcdef"}, {"abcd"}).text, "ab") << "complete first";
  EXPECT_EQ(feed({"cd", "b"}, {"abcd"}).text, "a");
  EXPECT_EQ(feed({"aab"}, {"a", "a", "a", "b"}).text, "a");
}

TEST(StopStrings, NothingAfterTheStop) {
  StopStrings s({"\n\n"});
  EXPECT_EQ(s.push("a\n"), "a");
  EXPECT_EQ(s.push("\nb"), "");
  EXPECT_TRUE(s.stopped());
  EXPECT_EQ(s.push("c"), "");
  EXPECT_EQ(s.flush(), "");
}

TEST(StopStrings, BytesNotCharacters) {
  const Shown s = feed({"é"}, {"caf\xC3", "\xA9 noir"});
  EXPECT_EQ(s.text, "caf");
  EXPECT_TRUE(s.stopped);
}

TEST(StopStrings, WithoutAny) { EXPECT_EQ(feed({}, {"a", "", "b"}).text, "ab"); }

TEST(StopStrings, EmptyIsRefused) {
  expect_error(ErrorCode::kInvalidArgument, {"empty"}, [] { StopStrings({"a", ""}); });
}

// However the text is cut, what is shown is the text up to the first place where a stop string ends.
TEST(StopStrings, AnyCutShowsTheSame) {
  isobit::testing::Random random;
  for (int round = 0; round < 3000; round++) {
    std::vector<std::string> stops(static_cast<size_t>(1 + random.below(3)));
    for (std::string& s : stops) {
      for (int i = 1 + random.below(4); i > 0; i--) s += static_cast<char>('a' + random.below(2));
    }
    std::string text;
    for (int i = random.below(12); i > 0; i--) text += static_cast<char>('a' + random.below(2));
    std::vector<std::string> pieces;
    for (const char c : text) {
      if (pieces.empty() || random.below(2) == 0) pieces.emplace_back();
      pieces.back() += c;
    }
    std::string want = text;
    bool stopped = false;
    for (size_t end = 1; end <= text.size() && !stopped; end++) {
      size_t begin = std::string::npos;
      for (const std::string& s : stops) {
        if (text.substr(0, end).ends_with(s)) begin = std::min(begin, end - s.size());
      }
      if (begin == std::string::npos) continue;
      want = text.substr(0, begin);
      stopped = true;
    }
    std::vector<std::string> letters;
    for (const char c : text) letters.emplace_back(1, c);
    EXPECT_EQ(feed(stops, letters).text, want) << random.note();
    EXPECT_EQ(feed(stops, pieces).text, want)
        << "text " << text << ", stops " << stops[0] << " and " << stops.size() - 1 << " more, " << random.note();
    EXPECT_EQ(feed(stops, pieces).stopped, stopped);
  }
}

}  // namespace
}  // namespace isobit::test
