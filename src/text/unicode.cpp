#include "text/unicode.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "text/unicode_tables.h"

namespace isobit {

namespace {

// What a lead byte asks of the bytes after it (Unicode 15.0, table 3-7). missing < 0: not a lead byte.
struct Lead {
  int missing;
  unsigned char low;
  unsigned char high;
};

Lead lead_of(unsigned char byte) {
  if (byte < 0x80) return {0, 0x80, 0xBF};
  if (byte < 0xC2) return {-1, 0x80, 0xBF};
  if (byte < 0xE0) return {1, 0x80, 0xBF};
  if (byte == 0xE0) return {2, 0xA0, 0xBF};
  if (byte == 0xED) return {2, 0x80, 0x9F};
  if (byte < 0xF0) return {2, 0x80, 0xBF};
  if (byte == 0xF0) return {3, 0x90, 0xBF};
  if (byte < 0xF4) return {3, 0x80, 0xBF};
  if (byte == 0xF4) return {3, 0x80, 0x8F};
  return {-1, 0x80, 0xBF};
}

bool eight_ascii(const char* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
  return (word & 0x8080808080808080U) == 0;
}

}  // namespace

size_t valid_utf8_prefix(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    if (pos + 8 <= text.size() && eight_ascii(text.data() + pos)) {
      pos += 8;
      continue;
    }
    const Lead lead = lead_of(static_cast<unsigned char>(text[pos]));
    if (lead.missing < 0 || pos + static_cast<size_t>(lead.missing) >= text.size()) return pos;
    for (int i = 1; i <= lead.missing; i++) {
      const auto byte = static_cast<unsigned char>(text[pos + static_cast<size_t>(i)]);
      const unsigned char low = i == 1 ? lead.low : 0x80;
      const unsigned char high = i == 1 ? lead.high : 0xBF;
      if (byte < low || byte > high) return pos;
    }
    pos += static_cast<size_t>(lead.missing) + 1;
  }
  return pos;
}

std::string sanitize_utf8(std::string_view text) {
  const size_t valid = valid_utf8_prefix(text);
  std::string out(text.substr(0, valid));
  Utf8Sanitizer sanitizer;
  sanitizer.push(text.substr(valid), out);
  sanitizer.flush(out);
  return out;
}

void Utf8Sanitizer::push(std::string_view bytes, std::string& out) {
  for (const char byte : bytes) {
    if (missing_ == 0) {
      start(byte, out);
      continue;
    }
    const auto value = static_cast<unsigned char>(byte);
    if (value < low_ || value > high_) {  // the sequence so far is a maximal subpart; this byte begins anew
      flush(out);
      start(byte, out);
      continue;
    }
    pending_ += byte;
    low_ = 0x80;
    high_ = 0xBF;
    if (--missing_ > 0) continue;
    out += pending_;
    pending_.clear();
  }
}

void Utf8Sanitizer::flush(std::string& out) {
  if (missing_ > 0) out += kReplacementCharacter;
  missing_ = 0;
  pending_.clear();
}

void Utf8Sanitizer::start(char byte, std::string& out) {
  const Lead lead = lead_of(static_cast<unsigned char>(byte));
  if (lead.missing < 0) {
    out += kReplacementCharacter;
    return;
  }
  if (lead.missing == 0) {
    out += byte;
    return;
  }
  pending_.assign(1, byte);
  missing_ = lead.missing;
  low_ = lead.low;
  high_ = lead.high;
}

char32_t next_code_point(std::string_view text, size_t& pos) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(text[i])); };
  const char32_t lead = byte(pos);
  if (lead < 0x80) {
    pos += 1;
    return lead;
  }
  if (lead < 0xE0) {
    pos += 2;
    return (lead & 0x1F) << 6 | (byte(pos - 1) & 0x3F);
  }
  if (lead < 0xF0) {
    pos += 3;
    return (lead & 0x0F) << 12 | (byte(pos - 2) & 0x3F) << 6 | (byte(pos - 1) & 0x3F);
  }
  pos += 4;
  return (lead & 0x07) << 18 | (byte(pos - 3) & 0x3F) << 12 | (byte(pos - 2) & 0x3F) << 6 | (byte(pos - 1) & 0x3F);
}

namespace {

bool is_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

}  // namespace

std::string_view trim_left(std::string_view text) {
  for (size_t pos = 0; !text.empty(); pos = 0) {
    if (!is_white_space(next_code_point(text, pos))) break;
    text.remove_prefix(pos);
  }
  return text;
}

std::string_view trim_right(std::string_view text) {
  while (!text.empty()) {
    size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) begin--;
    size_t pos = begin;
    if (!is_white_space(next_code_point(text, pos))) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

void append_utf8(char32_t code_point, std::string& out) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
  const auto put_continuation = [&](int shift) { put(0x80 | ((code_point >> shift) & 0x3F)); };
  if (code_point < 0x80) {
    put(code_point);
  } else if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
    put_continuation(0);
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    put_continuation(6);
    put_continuation(0);
  } else {
    put(0xF0 | code_point >> 18);
    put_continuation(12);
    put_continuation(6);
    put_continuation(0);
  }
}

namespace {

using unicode_tables::Composition;
using unicode_tables::Decomposition;

// Hangul syllables compose and decompose by arithmetic (Unicode 15.0, section 3.12).
constexpr char32_t kSBase = 0xAC00, kLBase = 0x1100, kVBase = 0x1161, kTBase = 0x11A7;
constexpr char32_t kLCount = 19, kVCount = 21, kTCount = 28, kSCount = kLCount * kVCount * kTCount;

struct Character {
  char32_t code_point;
  uint8_t combining_class;
};

// The entry of sorted ranges that holds code_point, or nullptr.
template <typename Ranges>
auto find_range(const Ranges& ranges, char32_t code_point) -> const typename Ranges::value_type* {
  const auto after = std::upper_bound(ranges.begin(), ranges.end(), code_point,
                                      [](char32_t value, const auto& range) { return value < range.first; });
  if (after == ranges.begin()) return nullptr;
  const auto& range = *(after - 1);
  return code_point <= range.last ? &range : nullptr;
}

uint8_t combining_class(char32_t code_point) {
  const auto* range = find_range(unicode_tables::kCombiningClasses, code_point);
  return range == nullptr ? uint8_t{0} : range->value;
}

void decompose(char32_t code_point, std::vector<Character>& out) {
  if (code_point - kSBase < kSCount) {  // wraps to a large value below kSBase
    const char32_t index = code_point - kSBase;
    out.push_back({kLBase + index / (kVCount * kTCount), 0});
    out.push_back({kVBase + index % (kVCount * kTCount) / kTCount, 0});
    if (index % kTCount != 0) out.push_back({kTBase + index % kTCount, 0});
    return;
  }
  const auto& table = unicode_tables::kDecompositions;
  const auto found = std::lower_bound(table.begin(), table.end(), code_point,
                                      [](const Decomposition& d, char32_t value) { return d.code_point < value; });
  if (found == table.end() || found->code_point != code_point) {
    out.push_back({code_point, combining_class(code_point)});
    return;
  }
  decompose(found->first, out);  // the table is acyclic and at most four deep
  if (found->second != 0) decompose(found->second, out);
}

// The primary composite of the pair, or 0.
char32_t compose(char32_t first, char32_t second) {
  if (first - kLBase < kLCount && second - kVBase < kVCount) {
    return kSBase + ((first - kLBase) * kVCount + (second - kVBase)) * kTCount;
  }
  if (first - kSBase < kSCount && (first - kSBase) % kTCount == 0 && second > kTBase && second < kTBase + kTCount) {
    return first + (second - kTBase);
  }
  const auto& table = unicode_tables::kCompositions;
  const auto found = std::lower_bound(table.begin(), table.end(), std::pair{first, second},
                                      [](const Composition& c, const std::pair<char32_t, char32_t>& value) {
                                        return std::pair{c.first, c.second} < value;
                                      });
  if (found == table.end() || found->first != first || found->second != second) return 0;
  return found->code_point;
}

// Canonical ordering: each run of combining marks sorted by class, marks of one class left in order.
void order_marks(std::vector<Character>& characters) {
  auto run = characters.begin();
  while (run != characters.end()) {
    if (run->combining_class == 0) {
      ++run;
      continue;
    }
    const auto end = std::find_if(run, characters.end(), [](const Character& c) { return c.combining_class == 0; });
    std::stable_sort(run, end,
                     [](const Character& a, const Character& b) { return a.combining_class < b.combining_class; });
    run = end;
  }
}

// UAX #15's composition: a character joins the last starter unless a mark of its class or above stands between.
std::string compose_all(const std::vector<Character>& characters) {
  constexpr size_t kNone = static_cast<size_t>(-1);
  std::vector<Character> composed;
  composed.reserve(characters.size());
  size_t starter = kNone;
  for (const Character& character : characters) {
    if (starter != kNone) {
      const bool adjacent = composed.size() == starter + 1;
      const bool blocked = !adjacent && composed.back().combining_class >= character.combining_class;
      const char32_t joined = blocked ? 0 : compose(composed[starter].code_point, character.code_point);
      if (joined != 0) {
        composed[starter].code_point = joined;
        continue;
      }
    }
    if (character.combining_class == 0) starter = composed.size();
    composed.push_back(character);
  }
  std::string out;
  for (const Character& character : composed) append_utf8(character.code_point, out);
  return out;
}

}  // namespace

bool surely_nfc(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    if (pos + 8 <= text.size() && eight_ascii(text.data() + pos)) {
      pos += 8;
      continue;
    }
    const char32_t code_point = next_code_point(text, pos);
    if (code_point >= 0x300 && find_range(unicode_tables::kNfcUnsafe, code_point) != nullptr) return false;
  }
  return true;
}

std::string nfc(std::string_view text) {
  if (surely_nfc(text)) return std::string(text);
  std::vector<Character> characters;
  characters.reserve(text.size());
  for (size_t pos = 0; pos < text.size();) decompose(next_code_point(text, pos), characters);
  order_marks(characters);
  return compose_all(characters);
}

}  // namespace isobit
