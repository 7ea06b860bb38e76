#include "grammar/constraint_size.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "base/error.h"

namespace isobit {
namespace {

constexpr size_t kLongest = 256 << 10,
                 kLongestSchema = 64 << 10;  // bytes; a schema's properties cost more than linearly
constexpr size_t kDeepest = 64;
// Characters of expressions once their counts are written out: (ab{3}){2} has 8. Of a schema's patterns every one
// becomes a state; elsewhere xgrammar counts.
constexpr int64_t kMostWritten = 1'000'000, kMostWrittenInSchema = 2000;

void check_at_most(const Constraint& c, int64_t count, int64_t most, std::string_view what) {
  require(count <= most, "the {} has {} {}; at most {} are allowed", constraint_name(c.kind), count, what, most);
}

// Reads a regular expression or EBNF just well enough to count.
class Expression {
 public:
  // quotes: "…" is a text, as in EBNF.
  Expression(std::string_view text, bool quotes) : text_(text), quotes_(quotes) {
    while (at_ < text_.size()) read(text_[at_++]);
  }

  size_t depth() const { return depth_; }
  // Of groups that are not closed the rest is not counted: such a text is refused anyway.
  int64_t written() const { return groups_.front().written; }

 private:
  struct Group {
    int64_t written = 0, last = 0;  // `last`: of its last part, which a count repeats
  };

  void read(char c) {
    if (c == '(') {
      groups_.emplace_back();
      depth_ = std::max(depth_, groups_.size() - 1);
    } else if (c == ')' && groups_.size() > 1) {
      const int64_t inner = groups_.back().written;
      groups_.pop_back();
      add(inner);
    } else if (c == '{') {
      repeat();
    } else {
      if (c == '\\') at_++;
      if (c == '[') skip_past(']');
      if (c == '"' && quotes_) skip_past('"');
      add(1);
    }
  }

  void skip_past(char end) {
    for (; at_ < text_.size() && text_[at_] != end; at_++) at_ += text_[at_] == '\\' ? 1 : 0;
    at_++;
  }

  void add(int64_t written) {
    groups_.back().last = written;
    groups_.back().written = std::min(groups_.back().written + written, kEnough);
  }

  // {n}, {m,} or {m,n}: the last number in it.
  void repeat() {
    const size_t end = std::min(text_.find('}', at_), text_.size());
    int64_t count = 0;
    for (const char* p = text_.data() + at_; p < text_.data() + end;) {
      int64_t number = 0;
      const auto [past, error] = std::from_chars(p, text_.data() + end, number);
      if (error == std::errc()) count = std::clamp<int64_t>(number, 0, kEnough);
      if (error == std::errc::result_out_of_range) count = kEnough;
      p = error == std::errc::invalid_argument ? p + 1 : past;
    }
    at_ = end + 1;
    Group& g = groups_.back();
    const int64_t more = g.last > 0 && count > 1 ? std::min(count - 1, kEnough / g.last + 1) * g.last : 0;
    g.written = std::min(g.written + more, kEnough);
    g.last = std::min(g.last + more, kEnough);
  }

  static constexpr int64_t kEnough = int64_t{1} << 40;
  std::string_view text_;
  bool quotes_;
  size_t at_ = 0, depth_ = 0;
  std::vector<Group> groups_ = {{}};
};

size_t json_depth(std::string_view text) {
  size_t depth = 0, most = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); i++) {
    const char c = text[i];
    if (in_string && c == '\\') i++;
    if (c == '"') in_string = !in_string;
    if (in_string) continue;
    if (c == '{' || c == '[') most = std::max(most, ++depth);
    if ((c == '}' || c == ']') && depth > 0) depth--;
  }
  return most;
}

// Of all patterns in a schema; whatever is no schema's pattern, but looks like one, counts too.
int64_t written_patterns(const nlohmann::json& schema) {
  int64_t sum = 0;
  for (const auto& [key, value] : schema.items()) {
    if (value.is_structured()) sum += written_patterns(value);
    if (key == "pattern" && value.is_string()) sum += Expression(value.get_ref<const std::string&>(), false).written();
    if (key != "patternProperties" || !value.is_object()) continue;
    for (const auto& [pattern, ignored] : value.items()) sum += Expression(pattern, false).written();
  }
  return sum;
}

void check_schema(const Constraint& c) {
  check_at_most(c, static_cast<int64_t>(c.text.size()), kLongestSchema, "bytes");
  check_at_most(c, static_cast<int64_t>(json_depth(c.text)), kDeepest, "brackets inside each other");
  const auto schema = nlohmann::json::parse(c.text, nullptr, false);
  if (!schema.is_structured()) return;  // for xgrammar to refuse, or to take
  check_at_most(c, written_patterns(schema), kMostWrittenInSchema,
                "characters in its patterns once counts are written out");
}

}  // namespace

void check_size(const Constraint& c) {
  if (c.kind == Constraint::Kind::kJsonSchema) return check_schema(c);
  check_at_most(c, static_cast<int64_t>(c.text.size()), kLongest, "bytes");
  if (c.kind != Constraint::Kind::kRegex && c.kind != Constraint::Kind::kGrammar) return;
  const Expression expression(c.text, c.kind == Constraint::Kind::kGrammar);
  check_at_most(c, static_cast<int64_t>(expression.depth()), kDeepest, "groups inside each other");
  check_at_most(c, expression.written(), kMostWritten, "characters once counts are written out");
}

}  // namespace isobit
