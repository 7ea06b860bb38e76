#include "text/unicode.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "text/tokenizer_golden.h"

namespace isobit {

namespace {

std::string whole(std::string_view bytes) { return sanitize_utf8(bytes); }

constexpr const char* kR = "\xEF\xBF\xBD";

// The definition, by brute force: at each position the longest prefix of a well-formed sequence, or one byte.
std::string sanitize_by_definition(const std::string& bytes) {
  const auto is_character = [](std::string_view s) { return !s.empty() && valid_utf8_prefix(s) == s.size(); };
  const auto is_prefix = [&](const std::string& s) {  // of some character: try every way to go on
    if (s.size() == 2) {
      for (int a = 0x80; a < 0xC0; a++) {
        if (is_character(s + static_cast<char>(a)) || is_character(s + static_cast<char>(a) + "\x80")) return true;
      }
      return false;
    }
    if (s.size() == 3) {
      return is_character(s + "\x80");
    }
    for (int a = 0x80; a < 0xC0; a++) {
      const std::string t = s + static_cast<char>(a);
      if (is_character(t) || is_character(t + "\x80") || is_character(t + "\x80\x80")) return true;
    }
    return false;
  };
  std::string out;
  for (size_t pos = 0; pos < bytes.size();) {
    size_t taken = 0;
    for (size_t n = 1; n <= 4 && pos + n <= bytes.size(); n++) {
      const std::string_view view = std::string_view(bytes).substr(pos, n);
      size_t after = 0;
      if (is_character(view) && (next_code_point(view, after), after == n)) taken = n;
    }
    if (taken > 0) {
      out += bytes.substr(pos, taken);
      pos += taken;
      continue;
    }
    size_t skip = 1;
    for (size_t n = 2; n <= 3 && pos + n <= bytes.size() && is_prefix(bytes.substr(pos, n)); n++) skip = n;
    out += kR;
    pos += skip;
  }
  return out;
}

}  // namespace

TEST(Unicode, InvalidSequencesBecomeOneReplacementPerMaximalSubpart) {
  const std::string r = kR;
  EXPECT_EQ(whole(""), "");
  EXPECT_EQ(whole("plain"), "plain");
  EXPECT_EQ(whole("\xF0\x9F\x98\x80"), "\xF0\x9F\x98\x80");
  EXPECT_EQ(whole("\xF0\x9F\x98"), r);
  EXPECT_EQ(whole("\xF0\x9F\x98x"), r + "x");
  EXPECT_EQ(whole("\xC0\xAF"), r + r);
  EXPECT_EQ(whole("\xE0\x80\x80"), r + r + r);
  EXPECT_EQ(whole("\xED\xA0\x80"), r + r + r);          // a surrogate
  EXPECT_EQ(whole("\xF4\x90\x80\x80"), r + r + r + r);  // past U+10FFFF
  EXPECT_EQ(whole("\xFF\xFE"), r + r);
  EXPECT_EQ(whole("a\x80z\xE2\x82"), "a" + r + "z" + r);
  // Unicode 15.0, tables 3-8 to 3-11
  EXPECT_EQ(whole("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(whole("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), r + r + r + r + r + r + r + r + "A");
  EXPECT_EQ(whole("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), r + r + r + r + r + "A" + r + r + "B");
  EXPECT_EQ(whole("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), r + r + r + r + "A");
}

TEST(Unicode, StreamEqualsWholeEqualsDefinitionOnRandomBytes) {
  const uint64_t seed = golden::fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const std::string likely = "ab\x7F\x80\x8F\x90\x9F\xA0\xBF\xC0\xC2\xDF\xE0\xE1\xED\xEF\xF0\xF1\xF4\xF5\xFF";
  for (int round = 0; round < 20000; round++) {
    std::string bytes;
    const size_t size = random() % 12;
    for (size_t i = 0; i < size; i++) bytes += likely[random() % likely.size()];
    Utf8Sanitizer stream;
    std::string pieces;
    for (size_t pos = 0; pos < bytes.size();) {
      const size_t n = std::min<size_t>(1 + random() % 3, bytes.size() - pos);
      stream.push(std::string_view(bytes).substr(pos, n), pieces);
      ASSERT_EQ(valid_utf8_prefix(pieces), pieces.size());
      ASSERT_LE(stream.held_back(), 3U);
      pos += n;
    }
    stream.flush(pieces);
    ASSERT_EQ(pieces, sanitize_utf8(bytes));
    ASSERT_EQ(pieces, sanitize_by_definition(bytes));
    ASSERT_EQ(valid_utf8_prefix(bytes) == bytes.size(), pieces == bytes);
  }
}

TEST(Unicode, EveryCodePointGoesToUtf8AndBack) {
  for (char32_t c = 0; c < 0x110000; c++) {
    std::string text;
    append_utf8(c, text);
    const bool surrogate = c >= 0xD800 && c < 0xE000;
    ASSERT_EQ(valid_utf8_prefix(text) == text.size(), !surrogate) << static_cast<uint32_t>(c);
    size_t pos = 0;
    ASSERT_EQ(next_code_point(text, pos), c);
    ASSERT_EQ(pos, text.size());
  }
}

TEST(Unicode, NfcOfRandomTextsAsUnicodesReference) {
  const auto json = golden::read("unicode_nfc.json");
  ASSERT_GE(json.at("cases").size(), 500U);
  for (const auto& pair : json.at("cases")) {
    const auto text = pair[0].get<std::string>();
    EXPECT_EQ(nfc(text), pair[1].get<std::string>()) << text;
    EXPECT_TRUE(!surely_nfc(text) || text == pair[1].get<std::string>()) << text;
  }
}

TEST(Unicode, NfcOfEveryCodePointAmongMarks) {
  uint64_t hash = 0xCBF29CE484222325U;
  const auto golden_json = golden::read("unicode_nfc.json");
  for (const auto& range : golden_json.at("assigned")) {
    for (auto c = range[0].get<char32_t>(); c <= range[1].get<char32_t>(); c++) {
      std::string text = "a";
      append_utf8(c, text);
      text += "\u0301\u0323";
      append_utf8(c, text);
      for (const char byte : nfc(text)) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001B3U;
    }
  }
  EXPECT_EQ(fmt::format("{:016x}", hash), golden_json.at("sweep_fnv1a64").get<std::string>());
}

}  // namespace isobit
