// Every code point through Python's str methods, by digest (make_template_goldens.py, unicode_digests).
#include "text/jinja_unicode.h"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "text/jinja_builtins.h"

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

TEST(JinjaUnicode, EveryCodePointIsAsInPython) {
  std::ifstream file(ISOBIT_SOURCE_DIR "/tests/text/data/template_goldens.json");
  const auto goldens = nlohmann::json::parse(file)["unicode"];
  ASSERT_GE(goldens.size(), 15u);
  TemplateLimits limits;
  limits.steps = SIZE_MAX;
  for (const auto& [name, golden] : goldens.items()) {
    SCOPED_TRACE(name);
    Heap heap(limits);
    const Method method = find_method(Type::kString, name);
    ASSERT_NE(method, nullptr);
    EXPECT_EQ(golden.get<std::string>(), digest([&](const std::string& text) -> std::string {
                const Value value = method(heap, Value::constant(text), {});
                if (value.is_string()) return value.text();
                return truth(value) ? "1" : "0";
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
