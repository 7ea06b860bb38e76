#include "text/jinja_lexer.h"

#include <array>
#include <charconv>
#include <optional>

#include "text/jinja_unicode.h"

namespace isobit::jinja {
namespace {

bool is_ascii_digit(char c) { return c >= '0' && c <= '9'; }

int digit_value(char c) {
  if (is_ascii_digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 99;
}

// All line ends become \n, and one at the very end is dropped.
std::string normalized(const std::string& source) {
  std::string out;
  out.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out.push_back('\n');
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
    } else {
      out.push_back(source[i]);
    }
  }
  if (!out.empty() && out.back() == '\n') out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(const std::string& source) : text_(normalized(source)) {}

  std::vector<Token> run() {
    while (position_ < text_.size()) root();
    add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  struct Opening {  // a tag found in the data
    enum class Kind { kComment, kBlock, kVariable, kRaw } kind;
    std::size_t start;
    std::size_t end;  // behind the tag and its sign
    char sign;        // '-', '+' or 0
  };

  [[noreturn]] void fail_at(const std::string& message) const {
    throw TemplateError(TemplateErrorKind::kSyntax, line_, message);
  }

  bool has(std::size_t at, std::string_view what) const { return text_.compare(at, what.size(), what) == 0; }
  char at(std::size_t i) const { return i < text_.size() ? text_[i] : '\0'; }

  std::size_t skip_space(std::size_t i) const {
    while (i < text_.size()) {
      CodePoint point = decode_at(text_, i);
      if (!is_space(point.code)) break;
      i += point.bytes;
    }
    return i;
  }

  void count_lines(std::size_t from, std::size_t to) {
    for (std::size_t i = from; i < to; ++i) line_ += text_[i] == '\n' ? 1 : 0;
  }

  void add(TokenKind kind, std::string text) { tokens_.push_back({kind, line_, std::move(text)}); }

  void advance(std::size_t to) {
    if (to > position_) line_starting_ = text_[to - 1] == '\n';
    count_lines(position_, to);
    position_ = to;
  }

  // The end of "{% raw %}" when it stands at `start`, whose sign is already read.
  std::optional<std::size_t> raw_end(std::size_t after_sign) const {
    std::size_t i = skip_space(after_sign);
    if (!has(i, "raw")) return std::nullopt;
    i = skip_space(i + 3);
    if (has(i, "-%}")) return skip_space(i + 3);
    if (has(i, "%}")) return i + 2;
    return std::nullopt;
  }

  std::optional<Opening> find_opening() const {
    for (std::size_t i = position_; (i = text_.find('{', i)) != std::string::npos; ++i) {
      const char next = at(i + 1);
      if (next != '%' && next != '{' && next != '#') continue;
      const char sign = at(i + 2) == '-' || at(i + 2) == '+' ? at(i + 2) : '\0';
      const std::size_t end = i + 2 + (sign != '\0' ? 1 : 0);
      if (next == '#') return Opening{Opening::Kind::kComment, i, end, sign};
      if (next == '{') return Opening{Opening::Kind::kVariable, i, end, sign};
      if (auto raw = raw_end(end)) return Opening{Opening::Kind::kRaw, i, *raw, sign};
      // The sign is optional: in "{%-raw" without its "%}" the tag is a plain block.
      return Opening{Opening::Kind::kBlock, i, end, sign};
    }
    return std::nullopt;
  }

  // The end of the data before a tag: '-' strips all space, lstrip_blocks the indentation of a tag alone on its line.
  std::size_t data_end(std::size_t from, std::size_t to, char sign, bool strips_indent) const {
    if (sign == '-') {
      std::size_t end = from;
      for (std::size_t i = from; i < to;) {
        CodePoint point = decode_at(text_, i);
        i += point.bytes;
        if (!is_space(point.code)) end = i;
      }
      return end;
    }
    if (sign == '+' || !strips_indent) return to;
    std::size_t line_start = to;
    while (line_start > from && text_[line_start - 1] != '\n') --line_start;
    if (line_start == from && !line_starting_) return to;
    return skip_space(line_start) >= to ? line_start : to;
  }

  void add_data(std::size_t from, std::size_t to) {
    if (to > from) add(TokenKind::kData, text_.substr(from, to - from));
  }

  void root() {
    auto opening = find_opening();
    if (!opening) {
      add_data(position_, text_.size());
      return advance(text_.size());
    }
    const bool variable = opening->kind == Opening::Kind::kVariable;
    add_data(position_, data_end(position_, opening->start, opening->sign, !variable));
    advance(opening->start);
    const int tag_line = line_;
    switch (opening->kind) {
      case Opening::Kind::kComment:
        advance(opening->end);
        return comment(tag_line);
      case Opening::Kind::kRaw:
        advance(opening->end);
        return raw(tag_line);
      case Opening::Kind::kBlock:
        add(TokenKind::kBlockBegin, "{%");
        advance(opening->end);
        return tag(true);
      case Opening::Kind::kVariable:
        add(TokenKind::kVariableBegin, "{{");
        advance(opening->end);
        return tag(false);
    }
  }

  // Matches "+}", "-}\s*" or "}\n?" where } stands for `close`; the end behind it.
  std::optional<std::size_t> block_close(std::size_t i, std::string_view close) const {
    if (at(i) == '+' && has(i + 1, close)) return i + 1 + close.size();
    if (at(i) == '-' && has(i + 1, close)) return skip_space(i + 1 + close.size());
    if (!has(i, close)) return std::nullopt;
    const std::size_t end = i + close.size();
    return at(end) == '\n' ? end + 1 : end;
  }

  void comment(int tag_line) {
    for (std::size_t i = position_; i < text_.size(); ++i)
      if (auto end = block_close(i, "#}")) return advance(*end);
    line_ = tag_line;
    fail_at("missing end of comment tag");
  }

  std::optional<std::size_t> endraw(std::size_t i, char* sign) const {
    if (!has(i, "{%")) return std::nullopt;
    i += 2;
    *sign = '\0';
    if (at(i) == '-' || at(i) == '+') *sign = text_[i++];
    i = skip_space(i);
    if (!has(i, "endraw")) return std::nullopt;
    return block_close(skip_space(i + 6), "%}");
  }

  void raw(int tag_line) {
    for (std::size_t i = position_; (i = text_.find("{%", i)) != std::string::npos; ++i) {
      char sign = '\0';
      auto end = endraw(i, &sign);
      if (!end) continue;
      add_data(position_, data_end(position_, i, sign, true));
      return advance(*end);
    }
    line_ = tag_line;
    fail_at("missing end of raw directive");
  }

  std::optional<std::size_t> tag_close(bool block) const {
    if (!brackets_.empty()) return std::nullopt;
    if (block) return block_close(position_, "%}");
    if (has(position_, "-}}")) return skip_space(position_ + 3);
    if (has(position_, "}}")) return position_ + 2;
    return std::nullopt;
  }

  void tag(bool block) {
    brackets_.clear();
    while (position_ < text_.size()) {
      if (auto end = tag_close(block)) {
        add(block ? TokenKind::kBlockEnd : TokenKind::kVariableEnd, block ? "%}" : "}}");
        return advance(*end);
      }
      token();
    }
  }

  void token() {
    CodePoint point = decode_at(text_, position_);
    if (is_space(point.code)) return advance(skip_space(position_));
    const char c = text_[position_];
    if (is_ascii_digit(c)) return number();
    if (is_word(point.code)) return name();
    if ((c == '\'' || c == '"') && string(c)) return;
    operator_token();
  }

  void name() {
    std::size_t end = position_;
    while (end < text_.size()) {
      CodePoint point = decode_at(text_, end);
      const bool mark = point.code >= 0x300 && point.code <= 0x36F;
      if (!is_word(point.code) && !mark) break;
      end += point.bytes;
    }
    add(TokenKind::kName, text_.substr(position_, end - position_));
    advance(end);
  }

  // [0-9] runs with single underscores between digits; the end behind them, or `i` if there is none.
  std::size_t digits(std::size_t i, int base) const {
    std::size_t end = i;
    while (true) {
      const std::size_t next = end > i && at(end) == '_' ? end + 1 : end;
      if (next >= text_.size() || digit_value(text_[next]) >= base) return end;
      end = next + 1;
    }
  }

  // The end of a float at the position, or the position if it is none.
  std::size_t float_end() const {
    if (position_ > 0 && text_[position_ - 1] == '.') return position_;
    const std::size_t whole = digits(position_, 10);
    std::size_t end = whole;
    if (at(end) == '.' && digits(end + 1, 10) > end + 1) end = digits(end + 1, 10);
    std::size_t exponent = end;
    if (at(exponent) == 'e' || at(exponent) == 'E') {
      ++exponent;
      if (at(exponent) == '+' || at(exponent) == '-') ++exponent;
      if (digits(exponent, 10) > exponent) return digits(exponent, 10);
    }
    return end > whole ? end : position_;
  }

  static std::string without_underscores(std::string text) {
    std::erase(text, '_');
    return text;
  }

  void number() {
    if (std::size_t end = float_end(); end > position_) {
      const std::string text = without_underscores(text_.substr(position_, end - position_));
      add(TokenKind::kFloat, text);
      // from_chars gives no value past the range; strtod's infinity is what Python reads.
      tokens_.back().number = std::strtod(text.c_str(), nullptr);
      return advance(end);
    }
    integer();
  }

  void integer() {
    int base = 10;
    std::size_t start = position_;
    const char mark = static_cast<char>(at(position_ + 1) | 0x20);
    if (at(position_) == '0' && (mark == 'x' || mark == 'o' || mark == 'b')) {
      const int wanted = mark == 'x' ? 16 : mark == 'o' ? 8 : 2;
      const std::size_t from = position_ + 2 + (at(position_ + 2) == '_' ? 1 : 0);
      if (digits(from, wanted) > from) {
        base = wanted;
        start = from;
      }
    }
    // A leading zero ends a decimal number unless only zeros follow, as in Jinja2.
    const std::size_t end = base == 10 && at(start) == '0' ? zeros(start) : digits(start, base);
    const std::string text = without_underscores(text_.substr(start, end - start));
    int64_t value = 0;
    auto result = std::from_chars(text.data(), text.data() + text.size(), value, base);
    if (result.ec != std::errc()) fail_at(fmt::format("the integer {} does not fit in 64 bits", text.substr(0, 40)));
    add(TokenKind::kInteger, text);
    tokens_.back().integer = value;
    advance(end);
  }

  std::size_t zeros(std::size_t i) const {
    std::size_t end = i + 1;
    while (true) {
      const std::size_t next = at(end) == '_' ? end + 1 : end;
      if (at(next) != '0') return end;
      end = next + 1;
    }
  }

  bool string(char quote) {
    std::size_t end = position_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) return false;
    add(TokenKind::kString, unescaped(std::string_view(text_).substr(position_ + 1, end - position_ - 1)));
    advance(end + 1);
    return true;
  }

  void add_escaped_code(std::string& out, std::string_view body, std::size_t& i, std::size_t length) const {
    char32_t code = 0;
    for (std::size_t k = 0; k < length; ++k) {
      const int digit = i + k < body.size() ? digit_value(body[i + k]) : 99;
      if (digit >= 16) fail_at("truncated \\x, \\u or \\U escape in a string");
      code = code * 16 + static_cast<char32_t>(digit);
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      fail_at(fmt::format("the escape of code point {:x} has no UTF-8 form", static_cast<uint32_t>(code)));
    i += length;
    append_utf8(out, code);
  }

  static void add_octal(std::string& out, std::string_view body, std::size_t& i) {
    char32_t code = 0;
    for (int k = 0; k < 3 && i < body.size() && digit_value(body[i]) < 8; ++k, ++i)
      code = code * 8 + static_cast<char32_t>(digit_value(body[i]));
    append_utf8(out, code);
  }

  // Python's "unicode-escape". An escaped character beyond ASCII appears as its own escape, which is Jinja2's quirk.
  static void add_unknown_escape(std::string& out, std::string_view body, std::size_t& i) {
    CodePoint point = decode_at(body, i);
    i += point.bytes;
    out.push_back('\\');
    const auto code = static_cast<uint32_t>(point.code);
    if (code < 0x80) {
      out.push_back(static_cast<char>(code));
    } else {
      out += code < 0x100     ? fmt::format("x{:02x}", code)
             : code < 0x10000 ? fmt::format("u{:04x}", code)
                              : fmt::format("U{:08x}", code);
    }
  }

  std::string unescaped(std::string_view body) const {
    constexpr std::string_view kPlain = "\\'\"abfnrtv";
    constexpr std::string_view kMeaning = "\\'\"\a\b\f\n\r\t\v";
    std::string out;
    for (std::size_t i = 0; i < body.size();) {
      if (body[i] != '\\') {
        out.push_back(body[i++]);
        continue;
      }
      const char c = body[++i];
      if (const std::size_t plain = kPlain.find(c); plain != std::string_view::npos) {
        out.push_back(kMeaning[plain]);
        ++i;
      } else if (c == '\n') {
        ++i;
      } else if (c == 'x' || c == 'u' || c == 'U') {
        add_escaped_code(out, body, ++i, c == 'x' ? 2 : c == 'u' ? 4 : 8);
      } else if (c >= '0' && c <= '7') {
        add_octal(out, body, i);
      } else if (c == 'N') {
        fail_at("\\N{...} escapes are not supported in strings");
      } else {
        add_unknown_escape(out, body, i);
      }
    }
    return out;
  }

  void operator_token() {
    constexpr std::array<std::string_view, 26> kOperators = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                             "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                             ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    for (std::string_view op : kOperators) {
      if (!has(position_, op)) continue;
      balance(op[0]);
      add(TokenKind::kOperator, std::string(op));
      return advance(position_ + op.size());
    }
    const std::size_t bytes = decode_at(text_, position_).bytes;
    fail_at(fmt::format("unexpected character '{}'", text_.substr(position_, bytes)));
  }

  void balance(char c) {
    if (c == '{') brackets_.push_back('}');
    if (c == '(') brackets_.push_back(')');
    if (c == '[') brackets_.push_back(']');
    if (c != '}' && c != ')' && c != ']') return;
    if (brackets_.empty()) fail_at(fmt::format("unexpected '{}'", c));
    const char expected = brackets_.back();
    brackets_.pop_back();
    if (expected != c) fail_at(fmt::format("unexpected '{}', expected '{}'", c, expected));
  }

  const std::string text_;
  std::size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::string brackets_;
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(const std::string& source) { return Lexer(source).run(); }

}  // namespace isobit::jinja
