// Methods of str, dict, list, tuple, cycler; Python's names, arguments and results.
#include <algorithm>
#include <array>
#include <functional>

#include "text/jinja_builtins.h"
#include "text/jinja_unicode.h"

namespace isobit::jinja {
namespace {

using Args = const CallArguments&;

const std::string& text_argument(const Bound& bound, std::size_t i, std::string_view function) {
  const Value& value = *bound.get(i);
  if (!value.is_string()) throw type_error("{} argument must be str, not {}", function, type_name(value));
  return value.text();
}

// A new string that stays marked safe if the old one was.
Value derived(Heap& heap, const Value& self, std::string text) {
  return heap.string(std::move(text), self.is_markup());
}

// Stripping.

std::vector<char32_t> code_points(const std::string& text) {
  std::vector<char32_t> codes;
  for (std::size_t i = 0; i < text.size();) {
    CodePoint point = decode_at(text, i);
    codes.push_back(point.code);
    i += point.bytes;
  }
  return codes;
}

std::size_t last_point_start(std::string_view text, std::size_t end) {
  // A well-formed sequence has at most four bytes; anything else counts byte by byte.
  for (std::size_t length = 4; length > 1; --length)
    if (length <= end && decode_at(text, end - length).bytes == length) return end - length;
  return end - 1;
}

Value stripped(Heap& heap, const Value& self, Args arguments, std::string_view name, bool left, bool right) {
  const Bound bound(name, arguments, {"chars"});
  const std::string& text = self.text();
  heap.touch(text.size());
  std::vector<char32_t> chars;
  const bool spaces = bound.get(0) == nullptr || bound.get(0)->is(Type::kNone);
  if (!spaces) chars = code_points(text_argument(bound, 0, name));
  auto drops = [&](char32_t code) {
    if (spaces) return is_space(code);
    heap.step(1 + chars.size() / 8);
    return std::find(chars.begin(), chars.end(), code) != chars.end();
  };
  std::size_t start = 0, end = text.size();
  while (left && start < end) {
    CodePoint point = decode_at(text, start);
    if (!drops(point.code)) break;
    start += point.bytes;
  }
  while (right && end > start) {
    const std::size_t last = last_point_start(text, end);
    if (last < start || !drops(decode_at(text, last).code)) break;
    end = last;
  }
  if (start == 0 && end == text.size()) return self;
  return derived(heap, self, text.substr(start, end - start));
}

Value str_strip(Heap& heap, const Value& self, Args arguments) {
  return stripped(heap, self, arguments, "strip", true, true);
}
Value str_lstrip(Heap& heap, const Value& self, Args arguments) {
  return stripped(heap, self, arguments, "lstrip", true, false);
}
Value str_rstrip(Heap& heap, const Value& self, Args arguments) {
  return stripped(heap, self, arguments, "rstrip", false, true);
}

// Splitting.

using Pieces = std::vector<std::string_view>;

Pieces split_by(std::string_view text, std::string_view separator, int64_t most) {
  Pieces pieces;
  std::size_t from = 0;
  while (most < 0 || static_cast<int64_t>(pieces.size()) < most) {
    const std::size_t at = text.find(separator, from);
    if (at == std::string_view::npos) break;
    pieces.push_back(text.substr(from, at - from));
    from = at + separator.size();
  }
  pieces.push_back(text.substr(from));
  return pieces;
}

Pieces split_by_right(std::string_view text, std::string_view separator, int64_t most) {
  Pieces pieces;
  std::size_t end = text.size();
  while ((most < 0 || static_cast<int64_t>(pieces.size()) < most) && end >= separator.size()) {
    const std::size_t at = text.rfind(separator, end - separator.size());
    if (at == std::string_view::npos) break;
    pieces.push_back(text.substr(at + separator.size(), end - at - separator.size()));
    end = at;
  }
  pieces.push_back(text.substr(0, end));
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

std::size_t skip(std::string_view text, std::size_t i, bool spaces) {
  while (i < text.size()) {
    CodePoint point = decode_at(text, i);
    if (is_space(point.code) != spaces) break;
    i += point.bytes;
  }
  return i;
}

Pieces split_spaces(std::string_view text, int64_t most) {
  Pieces pieces;
  std::size_t from = skip(text, 0, true);
  while (from < text.size()) {
    if (most >= 0 && static_cast<int64_t>(pieces.size()) >= most) {
      // The last piece keeps what is inside it, and loses the space behind.
      pieces.push_back(text.substr(from));
      break;
    }
    const std::size_t end = skip(text, from, false);
    pieces.push_back(text.substr(from, end - from));
    from = skip(text, end, true);
  }
  return pieces;
}

std::size_t skip_back(std::string_view text, std::size_t end, bool spaces) {
  while (end > 0) {
    const std::size_t last = last_point_start(text, end);
    if (is_space(decode_at(text, last).code) != spaces) break;
    end = last;
  }
  return end;
}

Pieces split_spaces_right(std::string_view text, int64_t most) {
  Pieces pieces;
  std::size_t end = skip_back(text, text.size(), true);
  while (end > 0) {
    if (most >= 0 && static_cast<int64_t>(pieces.size()) >= most) {
      pieces.push_back(text.substr(0, end));
      break;
    }
    const std::size_t start = skip_back(text, end, false);
    pieces.push_back(text.substr(start, end - start));
    end = skip_back(text, start, true);
  }
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

Value list_of(Heap& heap, const Value& self, const Pieces& pieces) {
  Values items;
  heap.step(pieces.size());
  for (std::string_view piece : pieces) items.push_back(derived(heap, self, std::string(piece)));
  return heap.list(std::move(items));
}

Value split(Heap& heap, const Value& self, Args arguments, bool from_right) {
  const std::string_view name = from_right ? "rsplit" : "split";
  const Bound bound(name, arguments, {"sep", "maxsplit"});
  const int64_t most = bound.integer(1, -1);
  heap.touch(self.text().size());
  if (bound.get(0) == nullptr || bound.get(0)->is(Type::kNone)) {
    heap.touch(self.text().size() * 4);
    return list_of(heap, self, from_right ? split_spaces_right(self.text(), most) : split_spaces(self.text(), most));
  }
  const std::string& separator = text_argument(bound, 0, name);
  if (separator.empty()) throw type_error("empty separator");
  heap.touch(self.text().size() * 4);
  return list_of(heap, self,
                 from_right ? split_by_right(self.text(), separator, most) : split_by(self.text(), separator, most));
}

Value str_split(Heap& heap, const Value& self, Args arguments) { return split(heap, self, arguments, false); }
Value str_rsplit(Heap& heap, const Value& self, Args arguments) { return split(heap, self, arguments, true); }

Value str_splitlines(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("splitlines", arguments, {"keepends"});
  const bool keep = bound.flag(0, false);
  const std::string_view text = self.text();
  heap.touch(text.size() * 4);
  Pieces pieces;
  for (std::size_t from = 0, i = 0; i < text.size();) {
    CodePoint point = decode_at(text, i);
    std::size_t end = i + point.bytes;
    if (is_line_break(point.code)) {
      if (point.code == '\r' && end < text.size() && text[end] == '\n') ++end;
      pieces.push_back(text.substr(from, (keep ? end : i) - from));
      from = end;
    } else if (end == text.size()) {
      pieces.push_back(text.substr(from));
    }
    i = end;
  }
  return list_of(heap, self, pieces);
}

Value partitioned(Heap& heap, const Value& self, Args arguments, bool from_right) {
  const Bound bound(from_right ? "rpartition" : "partition", arguments, {"sep"}, 1);
  const std::string& separator = text_argument(bound, 0, "partition");
  if (separator.empty()) throw type_error("empty separator");
  const std::string& text = self.text();
  heap.touch(text.size());
  const std::size_t at = from_right ? text.rfind(separator) : text.find(separator);
  const Value none = derived(heap, self, "");
  if (at == std::string::npos) return heap.tuple(from_right ? Values{none, none, self} : Values{self, none, none});
  return heap.tuple({derived(heap, self, text.substr(0, at)), derived(heap, self, separator),
                     derived(heap, self, text.substr(at + separator.size()))});
}

Value str_partition(Heap& heap, const Value& self, Args arguments) { return partitioned(heap, self, arguments, false); }
Value str_rpartition(Heap& heap, const Value& self, Args arguments) { return partitioned(heap, self, arguments, true); }

// Searching. Positions are in code points.

struct Window {                  // the part text[start:end] that a search looks at
  std::size_t from = 0, to = 0;  // bytes
  int64_t first = 0;             // code point at `from`
  bool valid = true;
};

Window window(Heap& heap, const std::string& text, const Bound& bound, std::size_t start_index) {
  heap.touch(text.size());
  auto given = [&](std::size_t i) { return bound.get(i) != nullptr && !bound.get(i)->is(Type::kNone); };
  Window out{0, text.size(), 0, true};
  if (!given(start_index) && !given(start_index + 1)) return out;
  const auto length = static_cast<int64_t>(count_code_points(text));
  auto resolve = [&](std::size_t i, int64_t fallback) {
    int64_t position = given(i) ? bound.integer(i, 0) : fallback;
    if (position < 0) position = std::max<int64_t>(position < -length ? 0 : position + length, 0);
    return position;
  };
  const int64_t start = resolve(start_index, 0);
  const int64_t end = std::min(resolve(start_index + 1, length), length);
  out.valid = start <= end;
  if (!out.valid) return out;
  out.first = start;
  std::size_t byte = 0;
  for (int64_t i = 0; i < end; ++i) {
    if (i == start) out.from = byte;
    byte += decode_at(text, byte).bytes;
  }
  if (start == end) out.from = byte;
  out.to = byte;
  return out;
}

int64_t found_at(Heap& heap, const Value& self, Args arguments, std::string_view name, bool last) {
  const Bound bound(name, arguments, {"sub", "start", "end"}, 1);
  const std::string& wanted = text_argument(bound, 0, name);
  const std::string& text = self.text();
  const Window where = window(heap, text, bound, 1);
  if (!where.valid) return -1;
  const std::string_view part = std::string_view(text).substr(where.from, where.to - where.from);
  const std::size_t at = last ? part.rfind(wanted) : part.find(wanted);
  if (at == std::string_view::npos) return -1;
  return where.first + static_cast<int64_t>(count_code_points(part.substr(0, at)));
}

Value str_find(Heap& heap, const Value& self, Args arguments) {
  return Value::integer(found_at(heap, self, arguments, "find", false));
}
Value str_rfind(Heap& heap, const Value& self, Args arguments) {
  return Value::integer(found_at(heap, self, arguments, "rfind", true));
}

Value found_or_error(int64_t at) {
  if (at < 0) throw type_error("substring not found");
  return Value::integer(at);
}
Value str_index(Heap& heap, const Value& self, Args arguments) {
  return found_or_error(found_at(heap, self, arguments, "index", false));
}
Value str_rindex(Heap& heap, const Value& self, Args arguments) {
  return found_or_error(found_at(heap, self, arguments, "rindex", true));
}

Value str_count(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("count", arguments, {"sub", "start", "end"}, 1);
  const std::string& wanted = text_argument(bound, 0, "count");
  const Window where = window(heap, self.text(), bound, 1);
  if (!where.valid) return Value::integer(0);
  const std::string_view part = std::string_view(self.text()).substr(where.from, where.to - where.from);
  if (wanted.empty()) return Value::integer(static_cast<int64_t>(count_code_points(part)) + 1);
  int64_t count = 0;
  for (std::size_t at = part.find(wanted); at != std::string_view::npos; at = part.find(wanted, at + wanted.size()))
    ++count;
  return Value::integer(count);
}

bool has_affix(std::string_view text, const Value& affix, bool at_start, std::string_view name) {
  if (!affix.is_string())
    throw type_error("{} first arg must be str or a tuple of str, not {}", name, type_name(affix));
  return at_start ? text.starts_with(affix.text()) : text.ends_with(affix.text());
}

Value with_affix(Heap& heap, const Value& self, Args arguments, bool at_start) {
  const std::string_view name = at_start ? "startswith" : "endswith";
  const Bound bound(name, arguments, {"prefix", "start", "end"}, 1);
  const Window where = window(heap, self.text(), bound, 1);
  const std::string_view part =
      where.valid ? std::string_view(self.text()).substr(where.from, where.to - where.from) : std::string_view();
  const Value& affix = *bound.get(0);
  if (!affix.is(Type::kTuple)) {
    const bool has = has_affix(part, affix, at_start, name);
    return Value::boolean(where.valid && has);
  }
  heap.step(affix.as<Sequence>().items.size());
  for (const Value& one : affix.as<Sequence>().items)
    if (has_affix(part, one, at_start, name)) return Value::boolean(where.valid);
  return Value::boolean(false);
}

Value str_startswith(Heap& heap, const Value& self, Args arguments) { return with_affix(heap, self, arguments, true); }
Value str_endswith(Heap& heap, const Value& self, Args arguments) { return with_affix(heap, self, arguments, false); }

Value without_affix(Heap& heap, const Value& self, Args arguments, bool at_start) {
  const Bound bound(at_start ? "removeprefix" : "removesuffix", arguments, {"affix"}, 1);
  const std::string& affix = text_argument(bound, 0, "removeprefix");
  const std::string& text = self.text();
  if (affix.empty() || !(at_start ? text.starts_with(affix) : text.ends_with(affix))) return self;
  return derived(heap, self, at_start ? text.substr(affix.size()) : text.substr(0, text.size() - affix.size()));
}

Value str_removeprefix(Heap& heap, const Value& self, Args arguments) {
  return without_affix(heap, self, arguments, true);
}
Value str_removesuffix(Heap& heap, const Value& self, Args arguments) {
  return without_affix(heap, self, arguments, false);
}

// Replacing and joining.

Value str_replace(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("replace", arguments, {"old", "new", "count"}, 2);
  const std::string& from = text_argument(bound, 0, "replace");
  const std::string to = self.is_markup() && !bound.get(1)->is_markup()
                             ? escape_html(heap, text_argument(bound, 1, "replace"))
                             : text_argument(bound, 1, "replace");
  int64_t left = bound.integer(2, -1);
  const std::string& text = self.text();
  Builder out(heap);
  std::size_t at = 0;
  if (from.empty()) {  // Python puts the new text before every code point and at the end
    for (; left != 0; --left) {
      out.add(to);
      if (at >= text.size()) return derived(heap, self, out.take());
      const std::size_t bytes = decode_at(text, at).bytes;
      out.add(std::string_view(text).substr(at, bytes));
      at += bytes;
    }
  }
  for (; left != 0 && !from.empty(); --left) {
    const std::size_t next = text.find(from, at);
    if (next == std::string::npos) break;
    out.add(std::string_view(text).substr(at, next - at));
    out.add(to);
    at = next + from.size();
  }
  out.add(std::string_view(text).substr(at));
  return derived(heap, self, out.take());
}

Value str_join(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("join", arguments, {"iterable"}, 1);
  if (!is_iterable(*bound.get(0))) throw type_error("can only join an iterable");
  Builder out(heap);
  bool first = true;
  for (const Value& part : items_of(heap, *bound.get(0))) {
    if (!first) out.add(self.text());
    first = false;
    if (!part.is_string()) throw type_error("sequence item: expected str instance, {} found", type_name(part));
    out.add(part.text());
  }
  return derived(heap, self, out.take());
}

Value str_format(Heap& heap, const Value& self, Args arguments) {
  return derived(heap, self, format_braces(heap, self.text(), arguments).text());
}

Value str_format_map(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("format_map", arguments, {"mapping"}, 1);
  if (!bound.get(0)->is(Type::kDict)) throw type_error("format_map() wants a mapping");
  CallArguments named;
  for (const auto& [key, value] : bound.get(0)->as<Dict>().entries)
    if (key.is_string()) named.named.emplace_back(key.text(), value);
  return derived(heap, self, format_braces(heap, self.text(), named).text());
}

// Case.

template <std::string (*Convert)(std::string_view)>
Value converted(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("method", arguments, {});
  heap.check_string(self.text().size() * 3);  // a code point grows to three at most
  heap.touch(self.text().size() * 4);
  return derived(heap, self, Convert(self.text()));
}

// Padding.

Value padded(Heap& heap, const Value& self, Args arguments, std::string_view name, bool left, bool right) {
  const Bound bound(name, arguments, {"width", "fillchar"}, 1);
  const std::string fill = bound.get(1) == nullptr ? " " : text_argument(bound, 1, name);
  if (count_code_points(fill) != 1) throw type_error("the fill character must be exactly one character long");
  const int64_t width = bound.integer(0, 0);
  const int64_t missing = width - length_of(heap, self);
  if (missing <= 0) return self;
  // CPython's rounding for center.
  const int64_t before = left && right ? missing / 2 + (missing & width & 1) : left ? missing : 0;
  Builder out(heap);
  heap.check_string(static_cast<std::size_t>(missing));
  for (int64_t i = 0; i < before; ++i) out.add(fill);
  out.add(self.text());
  for (int64_t i = before; i < missing; ++i) out.add(fill);
  return derived(heap, self, out.take());
}

Value str_center(Heap& heap, const Value& self, Args arguments) {
  return padded(heap, self, arguments, "center", true, true);
}
Value str_ljust(Heap& heap, const Value& self, Args arguments) {
  return padded(heap, self, arguments, "ljust", false, true);
}
Value str_rjust(Heap& heap, const Value& self, Args arguments) {
  return padded(heap, self, arguments, "rjust", true, false);
}

Value str_zfill(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("zfill", arguments, {"width"}, 1);
  const int64_t missing = bound.integer(0, 0) - length_of(heap, self);
  if (missing <= 0) return self;
  const std::string& text = self.text();
  const bool sign = !text.empty() && (text[0] == '-' || text[0] == '+');
  Builder out(heap);
  if (sign) out.add(std::string_view(text).substr(0, 1));
  out.add(static_cast<std::size_t>(missing), '0');
  out.add(std::string_view(text).substr(sign ? 1 : 0));
  return derived(heap, self, out.take());
}

Value str_expandtabs(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("expandtabs", arguments, {"tabsize"});
  const int64_t size = bound.integer(0, 8);
  const std::string& text = self.text();
  Builder out(heap);
  int64_t column = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t bytes = decode_at(text, i).bytes;
    if (text[i] == '\t') {
      const int64_t fill = size > 0 ? size - column % size : 0;
      out.add(static_cast<std::size_t>(fill), ' ');
      column += fill;
    } else {
      out.add(std::string_view(text).substr(i, bytes));
      column = text[i] == '\n' || text[i] == '\r' ? 0 : column + 1;
    }
    i += bytes;
  }
  return derived(heap, self, out.take());
}

// Questions about every code point.

template <bool (*Has)(char32_t), bool kEmpty>
Value all_points(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("method", arguments, {});
  const std::string& text = self.text();
  heap.touch(text.size() * 4);
  if (text.empty()) return Value::boolean(kEmpty);
  for (std::size_t i = 0; i < text.size();) {
    CodePoint point = decode_at(text, i);
    if (!Has(point.code)) return Value::boolean(false);
    i += point.bytes;
  }
  return Value::boolean(true);
}

bool is_alphanumeric(char32_t code) { return is_alpha(code) || is_numeric(code); }
bool is_ascii(char32_t code) { return code < 0x80; }

// At least one cased code point, and all cased ones of that case.
bool all_cased(Heap& heap, const std::string& text, bool (*has)(char32_t)) {
  heap.touch(text.size() * 4);
  bool any = false;
  for (std::size_t i = 0; i < text.size();) {
    CodePoint point = decode_at(text, i);
    i += point.bytes;
    if (!is_cased(point.code)) continue;
    if (!has(point.code)) return false;
    any = true;
  }
  return any;
}

Value str_islower(Heap& heap, const Value& self, Args) {
  return Value::boolean(all_cased(heap, self.text(), is_lower));
}
Value str_isupper(Heap& heap, const Value& self, Args) {
  return Value::boolean(all_cased(heap, self.text(), is_upper));
}

Value str_istitle(Heap& heap, const Value& self, Args) {
  heap.touch(self.text().size() * 4);
  bool any = false, in_word = false;
  for (std::size_t i = 0; i < self.text().size();) {
    CodePoint point = decode_at(self.text(), i);
    i += point.bytes;
    const bool starts = is_upper(point.code) || is_title(point.code);
    if (starts && in_word) return Value::boolean(false);
    if (is_lower(point.code) && !in_word) return Value::boolean(false);
    in_word = is_cased(point.code);
    any = any || in_word;
  }
  return Value::boolean(any);
}

Value str_isidentifier(Heap& heap, const Value& self, Args) {
  heap.touch(self.text().size() * 4);
  bool first = true;
  for (std::size_t i = 0; i < self.text().size();) {
    CodePoint point = decode_at(self.text(), i);
    i += point.bytes;
    if (!(first ? point.code == '_' || is_alpha(point.code) : is_word(point.code))) return Value::boolean(false);
    first = false;
  }
  return Value::boolean(!first);
}

// dict

Value dict_view(Heap& heap, const Value& self, Args arguments, std::string_view name, std::string_view method) {
  const Bound bound(method, arguments, {});
  Values items;
  heap.step(self.as<Dict>().entries.size());
  for (const auto& [key, value] : self.as<Dict>().entries) {
    if (method == "items") {
      items.push_back(heap.tuple({key, value}));
    } else {
      items.push_back(method == "keys" ? key : value);
    }
  }
  heap.reserve(items.size() * sizeof(Value));
  return Value(&heap.make<View>(name, std::move(items)));
}

Value dict_items(Heap& heap, const Value& self, Args arguments) {
  return dict_view(heap, self, arguments, "dict_items", "items");
}
Value dict_keys(Heap& heap, const Value& self, Args arguments) {
  return dict_view(heap, self, arguments, "dict_keys", "keys");
}
Value dict_values(Heap& heap, const Value& self, Args arguments) {
  return dict_view(heap, self, arguments, "dict_values", "values");
}

Value dict_get(Heap& heap, const Value& self, Args arguments) {
  if (!arguments.named.empty()) throw type_error("dict.get() takes no keyword arguments");
  const Bound bound("get", arguments, {"key", "default"}, 1);
  const Value* value = self.as<Dict>().find(heap, *bound.get(0));
  return value != nullptr ? *value : bound.value(1, Value());
}

Value dict_copy(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("copy", arguments, {});
  Dict& copy = heap.dict();
  for (const auto& [key, value] : self.as<Dict>().entries) copy.set(heap, key, value);
  return Value(&copy);
}

// list and tuple

Value sequence_index(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("index", arguments, {"value", "start", "stop"}, 1);
  const Values& items = self.as<Sequence>().items;
  const auto size = static_cast<int64_t>(items.size());
  auto clamp = [&](int64_t i) { return std::clamp<int64_t>(i < -size ? 0 : i < 0 ? i + size : i, 0, size); };
  for (int64_t i = clamp(bound.integer(1, 0)); i < clamp(bound.integer(2, size)); ++i)
    if (equals(heap, items[static_cast<std::size_t>(i)], *bound.get(0))) return Value::integer(i);
  throw type_error("{} is not in {}", to_repr(heap, *bound.get(0)), type_name(self));
}

Value sequence_count(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("count", arguments, {"value"}, 1);
  int64_t count = 0;
  for (const Value& item : self.as<Sequence>().items) count += equals(heap, item, *bound.get(0)) ? 1 : 0;
  return Value::integer(count);
}

Value list_copy(Heap& heap, const Value& self, Args arguments) {
  const Bound bound("copy", arguments, {});
  return heap.list(items_of(heap, self));
}

// int and float, cycler

Value float_is_integer(Heap&, const Value& self, Args arguments) {
  const Bound bound("is_integer", arguments, {});
  const double value = self.to_double();
  return Value::boolean(value - value == 0 && value == static_cast<double>(static_cast<int64_t>(value)));
}

Value int_bit_length(Heap&, const Value& self, Args arguments) {
  const Bound bound("bit_length", arguments, {});
  auto magnitude = static_cast<uint64_t>(self.to_int());
  if (self.to_int() < 0) magnitude = 0 - magnitude;
  int64_t bits = 0;
  for (; magnitude != 0; magnitude >>= 1) ++bits;
  return Value::integer(bits);
}

Value cycler_next(Heap&, const Value& self, Args) {
  auto& cycler = self.as<Cycler>();
  Value value = cycler.items[cycler.position];
  cycler.position = (cycler.position + 1) % cycler.items.size();
  return value;
}

Value cycler_reset(Heap&, const Value& self, Args) {
  self.as<Cycler>().position = 0;
  return {};
}

struct MethodEntry {
  std::string_view name;
  Method method;
};

constexpr std::array<MethodEntry, 43> kStringMethods = {{
    {"strip", str_strip},
    {"lstrip", str_lstrip},
    {"rstrip", str_rstrip},
    {"split", str_split},
    {"rsplit", str_rsplit},
    {"splitlines", str_splitlines},
    {"partition", str_partition},
    {"rpartition", str_rpartition},
    {"find", str_find},
    {"rfind", str_rfind},
    {"index", str_index},
    {"rindex", str_rindex},
    {"count", str_count},
    {"startswith", str_startswith},
    {"endswith", str_endswith},
    {"removeprefix", str_removeprefix},
    {"removesuffix", str_removesuffix},
    {"replace", str_replace},
    {"join", str_join},
    {"format", str_format},
    {"format_map", str_format_map},
    {"upper", converted<to_upper>},
    {"lower", converted<to_lower>},
    {"title", converted<to_title>},
    {"capitalize", converted<to_capitalized>},
    {"swapcase", converted<to_swapped_case>},
    {"center", str_center},
    {"ljust", str_ljust},
    {"rjust", str_rjust},
    {"zfill", str_zfill},
    {"expandtabs", str_expandtabs},
    {"isalpha", all_points<is_alpha, false>},
    {"isalnum", all_points<is_alphanumeric, false>},
    {"isdigit", all_points<is_digit, false>},
    {"isdecimal", all_points<is_decimal, false>},
    {"isnumeric", all_points<is_numeric, false>},
    {"isspace", all_points<is_space, false>},
    {"isascii", all_points<is_ascii, true>},
    {"isprintable", all_points<is_printable, true>},
    {"islower", str_islower},
    {"isupper", str_isupper},
    {"istitle", str_istitle},
    {"isidentifier", str_isidentifier},
}};

constexpr std::array<MethodEntry, 5> kDictMethods = {
    {{"items", dict_items}, {"keys", dict_keys}, {"values", dict_values}, {"get", dict_get}, {"copy", dict_copy}}};
constexpr std::array<MethodEntry, 3> kListMethods = {
    {{"index", sequence_index}, {"count", sequence_count}, {"copy", list_copy}}};
constexpr std::array<MethodEntry, 2> kTupleMethods = {{{"index", sequence_index}, {"count", sequence_count}}};
constexpr std::array<MethodEntry, 1> kFloatMethods = {{{"is_integer", float_is_integer}}};
constexpr std::array<MethodEntry, 1> kIntMethods = {{{"bit_length", int_bit_length}}};
constexpr std::array<MethodEntry, 2> kCyclerMethods = {{{"next", cycler_next}, {"reset", cycler_reset}}};

template <std::size_t N>
Method find_in(const std::array<MethodEntry, N>& table, std::string_view name) {
  for (const MethodEntry& entry : table)
    if (entry.name == name) return entry.method;
  return nullptr;
}

}  // namespace

Method find_method(Type type, std::string_view name) {
  switch (type) {
    case Type::kString:
      return find_in(kStringMethods, name);
    case Type::kDict:
      return find_in(kDictMethods, name);
    case Type::kList:
      return find_in(kListMethods, name);
    case Type::kTuple:
      return find_in(kTupleMethods, name);
    case Type::kFloat:
      return find_in(kFloatMethods, name);
    case Type::kInt:
    case Type::kBool:
      return find_in(kIntMethods, name);
    case Type::kCycler:
      return find_in(kCyclerMethods, name);
    default:
      return nullptr;
  }
}

bool is_mutating_method(Type type, std::string_view name) {
  constexpr std::array<std::string_view, 5> kDict = {"clear", "pop", "popitem", "setdefault", "update"};
  constexpr std::array<std::string_view, 8> kList = {"append", "clear", "pop",    "reverse",
                                                     "insert", "sort",  "extend", "remove"};
  if (type == Type::kDict) return std::find(kDict.begin(), kDict.end(), name) != kDict.end();
  if (type == Type::kList) return std::find(kList.begin(), kList.end(), name) != kList.end();
  return false;
}

Bound::Bound(std::string_view function, const CallArguments& arguments, std::initializer_list<std::string_view> names,
             std::size_t required)
    : function_(function) {
  if (arguments.positional.size() > names.size())
    throw type_error("{}() takes at most {} argument(s) ({} given)", function, names.size(),
                     arguments.positional.size());
  for (std::size_t i = 0; i < arguments.positional.size(); ++i) slots_[i] = &arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto* it = std::find(names.begin(), names.end(), std::string_view(name));
    if (it == names.end()) throw type_error("{}() got an unexpected keyword argument '{}'", function, name);
    const Value*& slot = slots_[it - names.begin()];
    if (slot != nullptr) throw type_error("{}() got multiple values for argument '{}'", function, name);
    slot = &value;
  }
  for (std::size_t i = 0; i < required; ++i)
    if (slots_[i] == nullptr)
      throw type_error("{}() is missing the required argument '{}'", function, names.begin()[i]);
}

int64_t Bound::integer(std::size_t i, int64_t fallback) const {
  const Value* value = slots_[i];
  if (value == nullptr) return fallback;
  require_defined(*value);
  if (!value->is_integral())
    throw type_error("{}(): '{}' object cannot be interpreted as an integer", function_, type_name(*value));
  return value->to_int();
}

}  // namespace isobit::jinja
