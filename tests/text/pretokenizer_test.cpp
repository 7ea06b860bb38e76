#include "text/pretokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/error.h"
#include "text/tokenizer_golden.h"
#include "text/unicode.h"

namespace isobit {

namespace {

std::vector<std::string> pieces(std::string_view name, const std::string& text) {
  const PreTokenizer pretokenizer(find_pretokenizer(name));
  std::vector<size_t> ends;
  pretokenizer.split(text, ends);
  std::vector<std::string> out;
  size_t begin = 0;
  for (const size_t end : ends) {
    out.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return out;
}

using Pieces = std::vector<std::string>;

}  // namespace

TEST(PreTokenizer, SplitsAsThePatternsSay) {
  EXPECT_EQ(pieces("gpt-2", "it's  2024's\n\n x"), (Pieces{"it", "'s", " ", " 2024", "'s", "\n\n", " x"}));
  EXPECT_EQ(pieces("smollm", "it's  2024's\n\n x"), (Pieces{"it", "'s", "  ", "2", "0", "2", "4", "'s", "\n\n", " x"}));
  EXPECT_EQ(pieces("llama-bpe", "IT'S  20245's.\n\n x\r\n"),
            (Pieces{"IT", "'S", " ", " ", "202", "45", "'s", ".\n\n", " x", "\r\n"}));
  EXPECT_EQ(pieces("qwen2", "IT'S  2024 (ok)"), (Pieces{"IT", "'S", " ", " ", "2", "0", "2", "4", " (", "ok", ")"}));
  EXPECT_EQ(pieces("gpt-2", "a\u180eb \u180e"), (Pieces{"a", "\u180e", "b", " \u180e"}));  // U+180E is no white space
  EXPECT_TRUE(pieces("gpt-2", "").empty());
}

TEST(PreTokenizer, UnknownNameIsNamedWithTheKnownOnes) {
  try {
    find_pretokenizer("no-such-pre");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    for (const char* part : {"no-such-pre", "smollm", "gpt-2", "llama-bpe", "qwen2"}) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
    }
  }
}

// Every code point is a letter, a number, white space or none of them exactly as HF's tokenizers have it, whatever
// Unicode version the installed PCRE2 was built with.
TEST(PreTokenizer, ClassOfEveryCodePoint) {
  const PreTokenizer pretokenizer(find_pretokenizer("gpt-2"));
  std::vector<char> expected(0x110000, 'o');
  const auto classes = golden::read("pretokenizer_classes.json");
  for (const char* kind : {"letter", "number", "space"}) {
    for (const auto& range : classes.at(kind)) {
      for (int c = range[0].get<int>(); c <= range[1].get<int>(); c++) expected[c] = kind[0];
    }
  }
  std::vector<size_t> ends;
  const auto count = [&](const std::string& text) {
    pretokenizer.split(text, ends);
    return ends.size();
  };
  int wrong = 0;
  for (char32_t c = 0; c < 0x110000; c++) {
    if (c >= 0xD800 && c < 0xE000) continue;
    std::string character;
    append_utf8(c, character);
    const char kind = count("a" + character) == 1   ? 'l'
                      : count("1" + character) == 1 ? 'n'
                      : count("!" + character) == 2 ? 's'
                                                    : 'o';
    if (kind != expected[c] && wrong++ < 20)
      ADD_FAILURE() << fmt::format("U+{:04X}: {}, not {}", int(c), kind, expected[c]);
  }
  EXPECT_EQ(wrong, 0);
}

TEST(PreTokenizer, LongRunsAreLinear) {
  constexpr size_t kSize = 1 << 20;  // quadratic work here would take minutes to hours
  for (const char* name : {"gpt-2", "smollm", "llama-bpe", "qwen2"}) {
    for (const char* unit : {"a", " ", "\n", "\u00e9", "!", "\xE5\xAD\x97", "1", " \n", " a", "\t \r", "\u3000"}) {
      SCOPED_TRACE(fmt::format("{} of '{}'", name, unit));
      std::string text;
      while (text.size() < kSize) text += unit;
      text += "x";
      const Pieces out = pieces(name, text);
      std::string joined;
      for (const std::string& piece : out) joined += piece;
      EXPECT_TRUE(joined == text);
    }
  }
}

}  // namespace isobit
