// Every code point through Python's str methods, by digest (make_template_goldens.py, unicode_digests).
#include "text/jinja_unicode.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

namespace isobit::jinja {
namespace {

std::string digest(const std::function<std::string(const std::string&)>& convert) {
  uint64_t value = 0xCBF29CE484222325u;
  bool first = true;
  auto add = [&value](std::string_view text) {
    for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
  };
  for (char32_t code = 1; code < 0x110000; ++code) {
    if (code >= 0xD800 && code < 0xE000) continue;
    std::string text;
    append_utf8(text, code);
    if (!first) add("\n");
    first = false;
    add(convert(text));
  }
  return fmt::format("{:016x}", value);
}

using Convert = std::string (*)(std::string_view);
using Has = bool (*)(char32_t);

TEST(JinjaUnicode, EveryCodePointIsAsInPython) {
  std::ifstream file(ISOBIT_SOURCE_DIR "/tests/text/data/template_goldens.json");
  const auto goldens = nlohmann::json::parse(file)["unicode"];
  const std::map<std::string, Convert> conversions = {{"upper", to_upper},
                                                      {"lower", to_lower},
                                                      {"title", to_title},
                                                      {"capitalize", to_capitalized},
                                                      {"swapcase", to_swapped_case}};
  const std::map<std::string, Has> properties = {
      {"isalpha", is_alpha},
      {"isdecimal", is_decimal},
      {"isdigit", is_digit},
      {"isnumeric", is_numeric},
      {"isspace", is_space},
      {"islower", is_lower},
      {"isupper", is_upper},
      {"isprintable", is_printable},
      {"istitle", [](char32_t code) { return is_upper(code) || is_title(code); }},
      {"isalnum", [](char32_t code) { return is_alpha(code) || is_numeric(code); }}};
  ASSERT_EQ(goldens.size(), conversions.size() + properties.size());
  for (const auto& [name, convert] : conversions) {
    SCOPED_TRACE(name);
    EXPECT_EQ(goldens[name].get<std::string>(),
              digest([convert = convert](const std::string& text) { return convert(text); }));
  }
  for (const auto& [name, has] : properties) {
    SCOPED_TRACE(name);
    EXPECT_EQ(goldens[name].get<std::string>(), digest([has = has](const std::string& text) -> std::string {
                return has(decode_at(text, 0).code) ? "1" : "0";
              }));
  }
}

TEST(JinjaUnicode, BadBytesCountAsOneCodePointEachAndPassThrough) {
  for (const char* raw : {"\xff", "\xc3", "\xe2\x82", "\xed\xa0\x80", "\xf4\x90\x80\x80", "a\x80z", "\xc0\xaf"}) {
    const std::string text = raw;
    std::string again;
    std::size_t points = 0;
    for (std::size_t i = 0; i < text.size(); ++points) {
      const CodePoint point = decode_at(text, i);
      EXPECT_EQ(point.bytes, 1u);
      append_utf8(again, point.code);
      i += point.bytes;
    }
    EXPECT_EQ(again, text);
    EXPECT_EQ(points, count_code_points(text));
    EXPECT_EQ(to_upper(to_lower(text)), to_upper(text));
  }
}

}  // namespace
}  // namespace isobit::jinja
