#pragma once
// The parts of Unicode that Python's str methods show: properties, case mappings, code points of UTF-8.
// A byte that is not part of well-formed UTF-8 counts as one code point of its own and is passed through unchanged.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace isobit::jinja {

// One code point of a text; `code` is kBadByte + byte for a byte that is not UTF-8.
struct CodePoint {
  char32_t code;
  std::size_t bytes;
};
inline constexpr char32_t kBadByte = 0x40000000;

CodePoint decode_at(std::string_view text, std::size_t offset);
void append_utf8(std::string& out, char32_t code);
std::size_t count_code_points(std::string_view text);

bool is_space(char32_t code);       // str.isspace and the regular expression \s
bool is_line_break(char32_t code);  // str.splitlines, where \r\n counts once
bool is_alpha(char32_t code);
bool is_decimal(char32_t code);
bool is_digit(char32_t code);
bool is_numeric(char32_t code);
bool is_lower(char32_t code);
bool is_upper(char32_t code);
bool is_title(char32_t code);  // the few title-case letters
bool is_printable(char32_t code);
inline bool is_cased(char32_t code) { return is_lower(code) || is_upper(code) || is_title(code); }
inline bool is_word(char32_t code) { return code == '_' || is_alpha(code) || is_numeric(code); }

void append_upper(std::string& out, char32_t code);
void append_lower(std::string& out, char32_t code);
void append_title(std::string& out, char32_t code);

// str.upper() and friends, with Python's rule for the final sigma in lower case.
std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
std::string to_title(std::string_view text);        // str.title
std::string to_capitalized(std::string_view text);  // str.capitalize
std::string to_swapped_case(std::string_view text);

}  // namespace isobit::jinja
