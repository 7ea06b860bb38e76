#include "text/jinja_unicode.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace isobit::jinja {
namespace {

struct CodeRange {
  uint32_t first, last, stride;
};
struct Shift {
  uint32_t first, last, stride;
  int32_t delta;
};
struct Special {
  uint32_t map, code;             // map: 0 upper, 1 lower, 2 title
  uint32_t first, second, third;  // zero: none
};

#include "text/jinja_unicode_data.inc"

template <std::size_t N>
bool contains(const CodeRange (&table)[N], char32_t code) {
  const auto* it = std::upper_bound(std::begin(table), std::end(table), code,
                                    [](char32_t value, const CodeRange& range) { return value < range.first; });
  if (it == std::begin(table)) return false;
  --it;
  return code <= it->last && (code - it->first) % it->stride == 0;
}

// Ranges of one table overlap where they alternate (stride 2), so a few neighbours are looked at.
template <std::size_t N>
char32_t shifted(const Shift (&table)[N], char32_t code) {
  const auto* it = std::upper_bound(std::begin(table), std::end(table), code,
                                    [](char32_t value, const Shift& shift) { return value < shift.first; });
  for (int seen = 0; it != std::begin(table) && seen < 8; ++seen) {
    --it;
    if (code <= it->last && (code - it->first) % it->stride == 0)
      return static_cast<char32_t>(static_cast<int64_t>(code) + it->delta);
  }
  return code;
}

// The table is in order of map, then code.
bool append_special(std::string& out, uint32_t map, char32_t code) {
  const auto* it = std::lower_bound(std::begin(kSpecial), std::end(kSpecial), std::pair<uint32_t, uint32_t>(map, code),
                                    [](const Special& special, const std::pair<uint32_t, uint32_t>& wanted) {
                                      return std::pair(special.map, special.code) < wanted;
                                    });
  if (it == std::end(kSpecial) || it->map != map || it->code != code) return false;
  for (uint32_t to : {it->first, it->second, it->third})
    if (to != 0) append_utf8(out, to);
  return true;
}

bool is_ascii_letter(char32_t code) { return (code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z'); }

// Unicode's Case_Ignorable, as far as it meets the final sigma rule in practice: marks and word punctuation.
bool is_case_ignorable(char32_t code) {
  return code == '\'' || code == '.' || code == ':' || code == '^' || code == '`' || code == 0xA8 || code == 0xAD ||
         code == 0xB7 || code == 0x2019 || (code >= 0x300 && code <= 0x36F);
}

bool is_final_sigma(std::string_view text, std::size_t before, std::size_t after) {
  bool cased_before = false;
  for (std::size_t end = before; end > 0;) {
    std::size_t start = end - 1;
    while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
    char32_t code = decode_at(text, start).code;
    end = start;
    if (is_case_ignorable(code)) continue;
    cased_before = is_cased(code);
    break;
  }
  if (!cased_before) return false;
  for (std::size_t i = after; i < text.size();) {
    CodePoint point = decode_at(text, i);
    i += point.bytes;
    if (!is_case_ignorable(point.code)) return !is_cased(point.code);
  }
  return true;
}

void append_lower_in(std::string& out, std::string_view text, std::size_t offset, CodePoint point) {
  constexpr char32_t kSigma = 0x3A3, kFinalSigma = 0x3C2;
  if (point.code == kSigma && is_final_sigma(text, offset, offset + point.bytes)) return append_utf8(out, kFinalSigma);
  append_lower(out, point.code);
}

template <typename Visit>
void each(std::string_view text, Visit visit) {
  for (std::size_t i = 0; i < text.size();) {
    CodePoint point = decode_at(text, i);
    visit(i, point);
    i += point.bytes;
  }
}

}  // namespace

CodePoint decode_at(std::string_view text, std::size_t offset) {
  auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[offset + i]); };
  unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const CodePoint bad{kBadByte + lead, 1};
  std::size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || offset + length > text.size()) return bad;
  char32_t code = lead & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return bad;
    code = (code << 6) | (byte(i) & 0x3Fu);
  }
  constexpr char32_t kLeast[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kLeast[length] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return bad;
  return {code, length};
}

void append_utf8(std::string& out, char32_t code) {
  auto put = [&](char32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (code >= kBadByte) return put(code - kBadByte);
  if (code < 0x80) return put(code);
  if (code < 0x800) {
    put(0xC0 | (code >> 6));
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3F));
  } else {
    put(0xF0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3F));
    put(0x80 | ((code >> 6) & 0x3F));
  }
  put(0x80 | (code & 0x3F));
}

std::size_t count_code_points(std::string_view text) {
  std::size_t count = 0;
  for (std::size_t i = 0; i < text.size(); ++count) i += decode_at(text, i).bytes;
  return count;
}

bool is_space(char32_t code) {
  if (code < 0x80) return (code >= 9 && code <= 13) || (code >= 0x1C && code <= 0x20);
  return code == 0x85 || code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool is_line_break(char32_t code) {
  return (code >= 10 && code <= 13) || (code >= 0x1C && code <= 0x1E) || code == 0x85 || code == 0x2028 ||
         code == 0x2029;
}

bool is_alpha(char32_t code) { return code < 0x80 ? is_ascii_letter(code) : contains(kAlpha, code); }
bool is_decimal(char32_t code) { return code < 0x80 ? code >= '0' && code <= '9' : contains(kDecimal, code); }
bool is_digit(char32_t code) { return is_decimal(code) || contains(kDigitOnly, code); }
bool is_numeric(char32_t code) { return is_digit(code) || contains(kNumericOnly, code); }
bool is_lower(char32_t code) { return code < 0x80 ? code >= 'a' && code <= 'z' : contains(kLower, code); }
bool is_upper(char32_t code) { return code < 0x80 ? code >= 'A' && code <= 'Z' : contains(kUpper, code); }

bool is_title(char32_t code) {
  return code == 0x1C5 || code == 0x1C8 || code == 0x1CB || code == 0x1F2 || (code >= 0x1F88 && code <= 0x1F8F) ||
         (code >= 0x1F98 && code <= 0x1F9F) || (code >= 0x1FA8 && code <= 0x1FAF) || code == 0x1FBC || code == 0x1FCC ||
         code == 0x1FFC;
}

bool is_printable(char32_t code) {
  if (code < 0x80) return code >= 0x20 && code != 0x7F;
  return code < kBadByte && !contains(kNotPrintable, code);
}

void append_upper(std::string& out, char32_t code) {
  if (code < 0x80) return out.push_back(static_cast<char>(code >= 'a' && code <= 'z' ? code - 32 : code));
  if (code >= kBadByte || !append_special(out, 0, code)) append_utf8(out, shifted(kToUpper, code));
}

void append_lower(std::string& out, char32_t code) {
  if (code < 0x80) return out.push_back(static_cast<char>(code >= 'A' && code <= 'Z' ? code + 32 : code));
  if (code >= kBadByte || !append_special(out, 1, code)) append_utf8(out, shifted(kToLower, code));
}

void append_title(std::string& out, char32_t code) {
  if (code < 0x80 || code >= kBadByte) return append_upper(out, code);
  if (append_special(out, 2, code)) return;
  char32_t title = shifted(kToTitle, code);
  // A letter that is its own title form is listed by neither table, and must not fall through to upper case.
  bool keeps_itself = is_title(code) || (code >= 0x10D0 && code <= 0x10FF);
  append_utf8(out, title != code || keeps_itself ? title : shifted(kToUpper, code));
}

std::string to_upper(std::string_view text) {
  std::string out;
  each(text, [&](std::size_t, CodePoint point) { append_upper(out, point.code); });
  return out;
}

std::string to_lower(std::string_view text) {
  std::string out;
  each(text, [&](std::size_t offset, CodePoint point) { append_lower_in(out, text, offset, point); });
  return out;
}

std::string to_title(std::string_view text) {
  std::string out;
  bool in_word = false;
  each(text, [&](std::size_t offset, CodePoint point) {
    if (in_word) {
      append_lower_in(out, text, offset, point);
    } else {
      append_title(out, point.code);
    }
    in_word = is_cased(point.code);
  });
  return out;
}

std::string to_capitalized(std::string_view text) {
  std::string out;
  each(text, [&](std::size_t offset, CodePoint point) {
    if (offset == 0) {
      append_title(out, point.code);
    } else {
      append_lower_in(out, text, offset, point);
    }
  });
  return out;
}

std::string to_swapped_case(std::string_view text) {
  std::string out;
  each(text, [&](std::size_t offset, CodePoint point) {
    if (is_upper(point.code)) {
      append_lower_in(out, text, offset, point);
    } else if (is_lower(point.code)) {
      append_upper(out, point.code);
    } else {
      append_utf8(out, point.code);
    }
  });
  return out;
}

}  // namespace isobit::jinja
