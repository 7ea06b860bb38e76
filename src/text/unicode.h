#pragma once
// UTF-8 repair, whole and incremental, and Unicode normalization form C. Tables: Unicode 14 (unicode_tables.cpp).
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace isobit {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// Bytes of text, from the start, that are well-formed UTF-8 (Unicode 15.0, table 3-7); text.size() when all are.
size_t valid_utf8_prefix(std::string_view text);

// Replaces each maximal subpart of an ill-formed sequence by one U+FFFD (Unicode 15.0, section 3.9; the WHATWG
// decoder's practice), so "\xF0\x9F\x98" is one U+FFFD and "\xC0\xAF" is two.
std::string sanitize_utf8(std::string_view text);

// sanitize_utf8 over a stream: what is appended to `out` is always whole characters, and the concatenation of all
// pushes and the flush is sanitize_utf8 of the concatenated input.
class Utf8Sanitizer {
 public:
  void push(std::string_view bytes, std::string& out);
  void flush(std::string& out);
  size_t held_back() const { return pending_.size(); }  // bytes of a character not yet complete, 0 to 3

 private:
  void start(char byte, std::string& out);

  std::string pending_;
  int missing_ = 0;           // continuation bytes still to come
  unsigned char low_ = 0x80;  // range the next continuation byte must lie in
  unsigned char high_ = 0xBF;
};

// The code point at text[pos], pos moved past it. text must be well-formed UTF-8 and pos < text.size().
char32_t next_code_point(std::string_view text, size_t& pos);
// Without leading, or trailing, characters of Unicode's White_Space. text must be well-formed UTF-8.
std::string_view trim_left(std::string_view text);
std::string_view trim_right(std::string_view text);
void append_utf8(char32_t code_point, std::string& out);

// True when text (well-formed UTF-8) surely is in normalization form C; false means "perhaps not".
bool surely_nfc(std::string_view text);
// Normalization form C of well-formed UTF-8 (UAX #15).
std::string nfc(std::string_view text);

}  // namespace isobit
