// The filters of `value | name(arguments)`, as in jinja2.filters, with the tojson of chat templates.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numeric>

#include "text/jinja_builtins.h"
#include "text/jinja_unicode.h"

namespace isobit::jinja {
namespace {

using Args = const CallArguments&;

void no_arguments(std::string_view name, Args arguments) { const Bound bound(name, arguments, {}); }

// soft_str: strings stay as they are, markup included; everything else becomes its text.
Value soft_string(Heap& heap, const Value& value) {
  return value.is_string() ? value : heap.string(to_text(heap, value));
}

Value string_method(Heap& heap, const Value& value, std::string_view name, Args arguments) {
  return find_method(Type::kString, name)(heap, soft_string(heap, value), arguments);
}

Value filter_upper(Heap& heap, const Value& value, Args arguments) {
  return string_method(heap, value, "upper", arguments);
}
Value filter_lower(Heap& heap, const Value& value, Args arguments) {
  return string_method(heap, value, "lower", arguments);
}
Value filter_capitalize(Heap& heap, const Value& value, Args arguments) {
  return string_method(heap, value, "capitalize", arguments);
}
Value filter_trim(Heap& heap, const Value& value, Args arguments) {
  return string_method(heap, value, "strip", arguments);
}
Value filter_string(Heap& heap, const Value& value, Args arguments) {
  no_arguments("string", arguments);
  return soft_string(heap, value);
}

Value filter_center(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("center", arguments, {"width"});
  CallArguments width;
  width.positional.push_back(bound.value(0, Value::integer(80)));
  return string_method(heap, value, "center", width);
}

Value filter_title(Heap& heap, const Value& value, Args arguments) {
  no_arguments("title", arguments);
  const std::string text = to_text(heap, value);
  heap.check_string(text.size() * 3);
  heap.touch(text.size() * 4);
  std::string out, word;
  auto flush = [&] {
    if (word.empty()) return;
    const std::size_t first = decode_at(word, 0).bytes;
    out += to_upper(std::string_view(word).substr(0, first));
    out += to_lower(std::string_view(word).substr(first));
    word.clear();
  };
  for (std::size_t i = 0; i < text.size();) {
    const CodePoint point = decode_at(text, i);
    const bool separates = is_space(point.code) ||
                           (point.code < 0x80 && std::string_view("-({[<").find(text[i]) != std::string_view::npos);
    if (separates) {
      flush();
      out.append(text, i, point.bytes);
    } else {
      word.append(text, i, point.bytes);
    }
    i += point.bytes;
  }
  flush();
  return heap.string(std::move(out));
}

Value filter_replace(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("replace", arguments, {"old", "new", "count"}, 2);
  CallArguments plain;
  plain.positional = {to_string_value(heap, *bound.get(0)), to_string_value(heap, *bound.get(1))};
  if (bound.get(2) != nullptr && !bound.get(2)->is(Type::kNone)) plain.positional.push_back(*bound.get(2));
  return find_method(Type::kString, "replace")(heap, to_string_value(heap, value), plain);
}

Value filter_format(Heap& heap, const Value& value, Args arguments) {
  if (!arguments.positional.empty() && !arguments.named.empty())
    throw type_error("can't handle positional and keyword arguments at the same time");
  const Value text = soft_string(heap, value);
  if (arguments.named.empty()) return format_percent(heap, text.text(), heap.tuple(arguments.positional));
  Dict& named = heap.dict();
  for (const auto& [name, content] : arguments.named) named.set(heap, heap.string(name), content);
  return format_percent(heap, text.text(), Value(&named));
}

Value filter_wordcount(Heap& heap, const Value& value, Args arguments) {
  no_arguments("wordcount", arguments);
  const std::string text = to_text(heap, value);
  heap.touch(text.size() * 4);
  int64_t count = 0;
  bool in_word = false;
  for (std::size_t i = 0; i < text.size();) {
    const CodePoint point = decode_at(text, i);
    i += point.bytes;
    const bool word = is_word(point.code);
    if (word && !in_word) ++count;
    in_word = word;
  }
  return Value::integer(count);
}

Value filter_indent(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("indent", arguments, {"width", "first", "blank"});
  require_defined(value);
  if (!value.is_string()) throw type_error("indent wants a string, not {}", type_name(value));
  const Value width = bound.value(0, Value::integer(4));
  std::string indention;
  if (width.is_string()) {
    indention = width.text();
  } else {
    const int64_t spaces = std::max<int64_t>(bound.integer(0, 4), 0);
    heap.check_string(static_cast<std::size_t>(spaces));
    indention.assign(static_cast<std::size_t>(spaces), ' ');
  }
  const bool blank = bound.flag(2, false);
  const Value lines = find_method(Type::kString, "splitlines")(heap, heap.string(value.text() + "\n"), {});
  Builder out(heap);
  if (bound.flag(1, false)) out.add(indention);
  bool first = true;
  for (const Value& line : lines.as<Sequence>().items) {
    if (!first) {
      out.add("\n");
      if (blank || !line.text().empty()) out.add(indention);
    }
    first = false;
    out.add(line.text());
  }
  return heap.string(out.take(), value.is_markup());
}

Value filter_truncate(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("truncate", arguments, {"length", "killwords", "end", "leeway"});
  const int64_t length = bound.integer(0, 255);
  const Value end = bound.value(2, Value::constant("..."));
  const int64_t leeway = bound.get(3) == nullptr || bound.get(3)->is(Type::kNone) ? 5 : bound.integer(3, 5);
  const int64_t end_length = length_of(heap, end);
  if (length < end_length) throw type_error("expected length >= {}, got {}", end_length, length);
  if (leeway < 0) throw type_error("expected leeway >= 0, got {}", leeway);
  if (length_of(heap, value) <= added(length, leeway)) return value;
  const Value cut = slice(heap, value, Value(), Value::integer(length - end_length), Value());
  if (!cut.is_string() || !end.is_string()) throw type_error("truncate wants strings");
  if (bound.flag(1, false)) return heap.string(cut.text() + end.text());
  const std::size_t space = cut.text().rfind(' ');
  return heap.string(cut.text().substr(0, space) + end.text());
}

Value filter_safe(Heap& heap, const Value& value, Args arguments) {
  no_arguments("safe", arguments);
  return value.is_markup() ? value : heap.string(to_text(heap, value), true);
}

Value filter_escape(Heap& heap, const Value& value, Args arguments) {
  no_arguments("escape", arguments);
  return value.is_markup() ? value : heap.string(escape_html(heap, to_text(heap, value)), true);
}

Value filter_forceescape(Heap& heap, const Value& value, Args arguments) {
  no_arguments("forceescape", arguments);
  return heap.string(escape_html(heap, to_text(heap, value)), true);
}

Value filter_tojson(Heap& heap, const Value& value, Args arguments) {
  return heap.string(to_json(heap, value, arguments));
}

Value filter_urlencode(Heap& heap, const Value& value, Args arguments) {
  no_arguments("urlencode", arguments);
  if (is_iterable(value) && !value.is_string())
    throw problem(TemplateErrorKind::kUnsupported, "urlencode of a {} is not supported", type_name(value));
  const std::string text = to_text(heap, value);
  Builder out(heap);
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool letter = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (letter || std::string_view("_.-~/").find(c) != std::string_view::npos) {
      out.add(std::string_view(&c, 1));
    } else {
      out.add(fmt::format("%{:02X}", byte));
    }
  }
  return heap.string(out.take());
}

// Numbers.

Value filter_abs(Heap&, const Value& value, Args arguments) {
  no_arguments("abs", arguments);
  require_defined(value);
  if (!value.is_number()) throw type_error("bad operand type for abs(): '{}'", type_name(value));
  if (!value.is_integral()) return Value::floating(std::abs(value.to_double()));
  return value.to_int() < 0 ? negative(value) : Value::integer(value.to_int());
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_space(static_cast<unsigned char>(text.front()))) text.remove_prefix(1);
  while (!text.empty() && is_space(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
  return text;
}

// Digits with single underscores between them, without them; false for anything else.
bool plain_digits(std::string_view text, std::string& out) {
  bool last_digit = false;
  for (const char c : text) {
    if (c == '_') {
      if (!last_digit) return false;
      last_digit = false;
      continue;
    }
    out.push_back(c);
    last_digit = true;
  }
  return last_digit;
}

enum class Parsed { kOk, kBad, kTooBig };

Parsed parse_int(std::string_view text, int64_t base, int64_t& out) {
  text = trimmed(text);
  const bool minus = !text.empty() && text[0] == '-';
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  auto has_prefix = [&](char letter) { return text.size() > 1 && text[0] == '0' && (text[1] | 0x20) == letter; };
  const std::array<std::pair<char, int64_t>, 3> prefixes = {{{'x', 16}, {'o', 8}, {'b', 2}}};
  bool prefixed = false;
  for (const auto& [letter, prefix_base] : prefixes) {
    if (prefixed || !has_prefix(letter) || (base != prefix_base && base != 0)) continue;
    text.remove_prefix(2);
    if (!text.empty() && text[0] == '_') text.remove_prefix(1);
    base = prefix_base;
    prefixed = true;
  }
  std::string digits;
  if (!plain_digits(text, digits)) return Parsed::kBad;
  if (base == 0) {
    const bool zeros = std::all_of(digits.begin(), digits.end(), [](char c) { return c == '0'; });
    if (digits[0] == '0' && !zeros) return Parsed::kBad;
    base = 10;
  }
  if (minus) digits.insert(digits.begin(), '-');
  const char* end = digits.data() + digits.size();
  const auto result = std::from_chars(digits.data(), end, out, static_cast<int>(base));
  if (result.ptr != end || result.ec == std::errc::invalid_argument) return Parsed::kBad;
  return result.ec == std::errc() ? Parsed::kOk : Parsed::kTooBig;
}

bool parse_float(std::string_view text, double& out) {
  text = trimmed(text);
  std::string plain;
  bool after_digit = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool digit = text[i] >= '0' && text[i] <= '9';
    if (text[i] == '_') {
      const bool before_digit = i + 1 < text.size() && text[i + 1] >= '0' && text[i + 1] <= '9';
      if (!after_digit || !before_digit) return false;
    } else {
      plain.push_back(text[i]);
    }
    after_digit = digit;
  }
  std::string_view rest = plain;
  double sign = 1;
  if (!rest.empty() && (rest[0] == '+' || rest[0] == '-')) {
    sign = rest[0] == '-' ? -1 : 1;
    rest.remove_prefix(1);
  }
  // from_chars would also take "nan(...)"; Python does not.
  if (rest.empty() || rest[0] == '-' || rest.find('(') != std::string_view::npos) return false;
  const auto result = std::from_chars(rest.data(), rest.data() + rest.size(), out);
  if (result.ptr != rest.data() + rest.size()) return false;
  if (result.ec == std::errc::result_out_of_range) out = std::strtod(std::string(rest).c_str(), nullptr);
  out *= sign;
  return result.ec != std::errc::invalid_argument;
}

bool truncated_double(double value, int64_t& out) {
  constexpr double kLimit = 9223372036854775808.0;
  if (!(std::abs(value) < kLimit)) return false;
  out = static_cast<int64_t>(value);
  return true;
}

Value filter_int(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("int", arguments, {"default", "base"});
  Value fallback = bound.value(0, Value::integer(0));
  int64_t number = 0;
  if (value.is_integral()) return Value::integer(value.to_int());
  require_defined(value);
  if (value.is(Type::kFloat)) {
    if (truncated_double(value.to_double(), number)) return Value::integer(number);
    if (!std::isfinite(value.to_double())) return fallback;
    throw type_error("{} does not fit in a 64-bit integer", float_repr(value.to_double()));
  }
  if (!value.is_string()) return fallback;
  const int64_t base = bound.integer(1, 10);
  if (base != 0 && (base < 2 || base > 36)) return fallback;
  heap.touch(value.text().size());
  const Parsed parsed = parse_int(value.text(), base, number);
  if (parsed == Parsed::kOk) return Value::integer(number);
  if (parsed == Parsed::kTooBig) throw type_error("the integer does not fit in 64 bits");
  double floating = 0;
  if (parse_float(value.text(), floating) && truncated_double(floating, number)) return Value::integer(number);
  return fallback;
}

Value filter_float(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("float", arguments, {"default"});
  require_defined(value);
  if (value.is_number()) return Value::floating(value.to_double());
  double number = 0;
  if (value.is_string()) {
    heap.touch(value.text().size());
    if (parse_float(value.text(), number)) return Value::floating(number);
  }
  return bound.value(0, Value::floating(0));
}

// Half to even on the decimal value, as Python's round: through the digits that printf rounds correctly.
double rounded(double value, int64_t digits) {
  if (!std::isfinite(value) || digits > 300) return value;
  if (digits < -308) return std::copysign(0.0, value);
  if (digits >= 0) {
    std::array<char, 700> buffer{};
    std::snprintf(buffer.data(), buffer.size(), "%.*f", static_cast<int>(digits), value);
    return std::strtod(buffer.data(), nullptr);
  }
  const double scale = std::pow(10.0, static_cast<double>(-digits));
  return std::nearbyint(value / scale) * scale;
}

Value round_integer(const Value& value, int64_t digits) {
  if (digits >= 0) return Value::integer(value.to_int());
  if (digits < -18) return Value::integer(0);
  int64_t scale = 1;
  for (int64_t i = 0; i < -digits; ++i) scale *= 10;
  const int64_t number = value.to_int();
  const int64_t rest = ((number % scale) + scale) % scale;
  const int64_t low = number - rest;
  const bool up = rest * 2 > scale || (rest * 2 == scale && (low / scale) % 2 != 0);
  return Value::integer(up ? added(low, scale) : low);
}

Value filter_round(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("round", arguments, {"precision", "method"});
  const int64_t precision = bound.integer(0, 0);
  const Value method = bound.value(1, Value::constant("common"));
  const std::string& name = method.is_string() ? method.text() : std::string();
  if (name != "common" && name != "ceil" && name != "floor") throw type_error("method must be common, ceil or floor");
  require_defined(value);
  if (!value.is_number()) throw type_error("type {} doesn't define __round__ method", type_name(value));
  if (name == "common") {
    if (value.is_integral()) return round_integer(value, precision);
    return Value::floating(rounded(value.to_double(), precision));
  }
  const Value scale = binary(heap, Operator::kPower, Value::integer(10), Value::integer(precision));
  const Value scaled = binary(heap, Operator::kMultiply, value, scale);
  int64_t whole = 0;
  const double exact = name == "ceil" ? std::ceil(scaled.to_double()) : std::floor(scaled.to_double());
  if (scaled.is_integral()) {
    whole = scaled.to_int();
  } else if (!truncated_double(exact, whole)) {
    throw type_error("cannot convert the float to a 64-bit integer");
  }
  return binary(heap, Operator::kDivide, Value::integer(whole), scale);
}

// Sequences.

Value filter_length(Heap& heap, const Value& value, Args arguments) {
  no_arguments("length", arguments);
  return Value::integer(length_of(heap, value));
}

Value filter_list(Heap& heap, const Value& value, Args arguments) {
  no_arguments("list", arguments);
  return heap.list(items_of(heap, value));
}

Value filter_first(Heap& heap, const Value& value, Args arguments) {
  no_arguments("first", arguments);
  if (value.is(Type::kIterator)) {
    auto& iterator = value.as<Iterator>();
    if (iterator.next < iterator.items.size()) return iterator.items[iterator.next++];
    return heap.undefined_hint("No first item, sequence was empty.");
  }
  if (value.is_sequence() && !value.as<Sequence>().items.empty()) return value.as<Sequence>().items.front();
  const Values items = items_of(heap, value);
  return items.empty() ? heap.undefined_hint("No first item, sequence was empty.") : items.front();
}

Value filter_last(Heap& heap, const Value& value, Args arguments) {
  no_arguments("last", arguments);
  if (value.is(Type::kIterator)) throw type_error("'generator' object is not reversible");
  if (value.is_sequence() && !value.as<Sequence>().items.empty()) return value.as<Sequence>().items.back();
  const Values items = items_of(heap, value);
  return items.empty() ? heap.undefined_hint("No last item, sequence was empty.") : items.back();
}

Value filter_reverse(Heap& heap, const Value& value, Args arguments) {
  no_arguments("reverse", arguments);
  if (value.is_string()) return slice(heap, value, Value(), Value(), Value::integer(-1));
  Values items = items_of(heap, value);
  std::reverse(items.begin(), items.end());
  return value.is(Type::kIterator) ? heap.list(std::move(items)) : heap.iterator(std::move(items));
}

Value filter_join(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("join", arguments, {"d", "attribute"});
  const std::string separator = to_text(heap, bound.value(0, Value::constant("")));
  const Value path = bound.value(1, Value());
  Builder out(heap);
  bool first = true;
  for (const Value& item : items_of(heap, value)) {
    if (!first) out.add(separator);
    first = false;
    const Value part = attribute_path(heap, item, path);
    out.add(part.is_string() ? part.text() : to_text(heap, part));
  }
  return heap.string(out.take());
}

Value filter_default(Heap&, const Value& value, Args arguments) {
  const Bound bound("default", arguments, {"default_value", "boolean"});
  const bool replaces = value.is_undefined() || (bound.flag(1, false) && !truth(value));
  return replaces ? bound.value(0, Value::constant("")) : value;
}

Value filter_items(Heap& heap, const Value& value, Args arguments) {
  no_arguments("items", arguments);
  if (value.is_undefined()) return heap.iterator({});
  if (!value.is(Type::kDict)) throw type_error("Can only get item pairs from a mapping.");
  Values items;
  for (const auto& [key, content] : value.as<Dict>().entries) items.push_back(heap.tuple({key, content}));
  return heap.iterator(std::move(items));
}

Value ignore_case(Heap& heap, const Value& value) {
  return value.is_string() ? string_method(heap, value, "lower", {}) : value;
}

Value filter_dictsort(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  require_defined(value);
  if (!value.is(Type::kDict)) throw type_error("'{}' object has no attribute 'items'", type_name(value));
  const Value by = bound.value(1, Value::constant("key"));
  const bool by_value = by.is_string() && by.text() == "value";
  if (!by_value && !(by.is_string() && by.text() == "key"))
    throw type_error("You can only sort by either \"key\" or \"value\"");
  const bool sensitive = bound.flag(0, false);
  Values items, keys;
  for (const auto& [key, content] : value.as<Dict>().entries) {
    items.push_back(heap.tuple({key, content}));
    const Value& subject = by_value ? content : key;
    keys.push_back(sensitive ? subject : ignore_case(heap, subject));
  }
  return heap.list(sorted(heap, std::move(items), keys, bound.flag(2, false)));
}

// The sort key of an item for one attribute path, or for several divided by commas.
Value sort_key(Heap& heap, const Value& item, const Value& paths, bool sensitive) {
  Values parts;
  auto add = [&](const Value& path) {
    Value part = attribute_path(heap, item, path);
    parts.push_back(sensitive ? part : ignore_case(heap, part));
  };
  if (!paths.is_string()) {
    add(paths);
  } else {
    for (std::size_t from = 0; from <= paths.text().size();) {
      const std::size_t comma = std::min(paths.text().find(',', from), paths.text().size());
      add(heap.string(paths.text().substr(from, comma - from)));
      from = comma + 1;
    }
  }
  return heap.list(std::move(parts));
}

Value filter_sort(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  Values items = items_of(heap, value);
  Values keys;
  for (const Value& item : items) keys.push_back(sort_key(heap, item, bound.value(2, Value()), bound.flag(1, false)));
  return heap.list(sorted(heap, std::move(items), keys, bound.flag(0, false)));
}

Value filter_unique(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("unique", arguments, {"case_sensitive", "attribute"});
  Dict& seen = heap.dict();
  Values items;
  for (const Value& item : items_of(heap, value)) {
    Value key = attribute_path(heap, item, bound.value(1, Value()));
    if (!bound.flag(0, false)) key = ignore_case(heap, key);
    if (seen.find(heap, key) != nullptr) continue;
    seen.set(heap, key, Value());
    items.push_back(item);
  }
  return heap.iterator(std::move(items));
}

Value extreme(Heap& heap, const Value& value, Args arguments, Order better, std::string_view name) {
  const Bound bound(name, arguments, {"case_sensitive", "attribute"});
  const Values items = items_of(heap, value);
  if (items.empty()) return heap.undefined_hint("No aggregated item, sequence was empty.");
  auto key_of = [&](const Value& item) {
    Value key = attribute_path(heap, item, bound.value(1, Value()));
    return bound.flag(0, false) ? key : ignore_case(heap, key);
  };
  const Value* best = &items[0];
  Value best_key = key_of(items[0]);
  for (std::size_t i = 1; i < items.size(); ++i) {
    Value key = key_of(items[i]);
    if (!compare(heap, better, key, best_key)) continue;
    best = &items[i];
    best_key = std::move(key);
  }
  return *best;
}

Value filter_min(Heap& heap, const Value& value, Args arguments) {
  return extreme(heap, value, arguments, Order::kLess, "min");
}
Value filter_max(Heap& heap, const Value& value, Args arguments) {
  return extreme(heap, value, arguments, Order::kGreater, "max");
}

Value filter_sum(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("sum", arguments, {"attribute", "start"});
  Value total = bound.value(1, Value::integer(0));
  if (total.is_string()) throw type_error("sum() can't sum strings [use ''.join(seq) instead]");
  for (const Value& item : items_of(heap, value))
    total = binary(heap, Operator::kAdd, total, attribute_path(heap, item, bound.value(0, Value())));
  return total;
}

Value filter_batch(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("batch", arguments, {"linecount", "fill_with"}, 1);
  const int64_t count = bound.integer(0, 0);
  const Value fill = bound.value(1, Value());
  Values batches, line;
  for (const Value& item : items_of(heap, value)) {
    if (static_cast<int64_t>(line.size()) == count) {
      batches.push_back(heap.list(std::move(line)));
      line.clear();
    }
    line.push_back(item);
  }
  if (!line.empty()) {
    const auto have = static_cast<int64_t>(line.size());
    if (!fill.is(Type::kNone) && have < count) {
      const auto missing = static_cast<std::size_t>(count - have);
      heap.step(missing);
      line.insert(line.end(), missing, fill);
    }
    batches.push_back(heap.list(std::move(line)));
  }
  return heap.iterator(std::move(batches));
}

Value filter_slice(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("slice", arguments, {"slices", "fill_with"}, 1);
  const int64_t slices = bound.integer(0, 0);
  const Value fill = bound.value(1, Value());
  const Values items = items_of(heap, value);
  if (slices == 0) throw type_error("integer division or modulo by zero");
  if (slices < 0) return heap.iterator({});
  heap.step(static_cast<std::size_t>(slices));
  const auto size = static_cast<int64_t>(items.size());
  const int64_t each = size / slices, extra = size % slices;
  Values out;
  auto next = items.begin();
  for (int64_t i = 0; i < slices; ++i) {
    const int64_t count = each + (i < extra ? 1 : 0);
    Values part(next, next + count);
    next += count;
    if (!fill.is(Type::kNone) && i >= extra) part.push_back(fill);
    out.push_back(heap.list(std::move(part)));
  }
  return heap.iterator(std::move(out));
}

// Gives pairs (key, items); the attributes .grouper and .list of Jinja2's pairs are not provided.
Value filter_groupby(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("groupby", arguments, {"attribute", "default", "case_sensitive"}, 1);
  const bool sensitive = bound.flag(2, false);
  auto key_of = [&](const Value& item) { return attribute_path(heap, item, *bound.get(0), bound.get(1)); };
  auto folded = [&](const Value& item) {
    const Value key = key_of(item);
    return sensitive ? key : ignore_case(heap, key);
  };
  Values items = items_of(heap, value);
  Values keys;
  for (const Value& item : items) keys.push_back(folded(item));
  items = sorted(heap, std::move(items), keys, false);
  Values groups, group;
  for (std::size_t i = 0; i < items.size(); ++i) {
    group.push_back(items[i]);
    if (i + 1 < items.size() && equals(heap, folded(items[i]), folded(items[i + 1]))) continue;
    const Value key = key_of(group[0]);
    groups.push_back(heap.tuple({key, heap.list(std::move(group))}));
    group.clear();
  }
  return heap.list(std::move(groups));
}

// Filters over filters and tests.

CallArguments without_first(Args arguments, std::size_t count) {
  CallArguments rest;
  rest.positional.assign(arguments.positional.begin() + static_cast<std::ptrdiff_t>(count), arguments.positional.end());
  rest.named = arguments.named;
  return rest;
}

std::string callable_name(const Value& value) {
  if (!value.is_string()) throw type_error("a filter or test is named by a string, not by {}", type_name(value));
  return value.text();
}

Value map_attribute(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("map", arguments, {"attribute", "default"}, 1);
  Values out;
  for (const Value& item : items_of(heap, value))
    out.push_back(attribute_path(heap, item, *bound.get(0), bound.get(1)));
  return heap.iterator(std::move(out));
}

Value filter_map(Heap& heap, const Value& value, Args arguments) {
  if (!truth(value)) return heap.iterator({});
  if (arguments.positional.empty()) {
    if (arguments.named.empty()) throw type_error("map requires a filter argument");
    return map_attribute(heap, value, arguments);
  }
  const std::string name = callable_name(arguments.positional[0]);
  const Filter filter = find_filter(name);
  if (filter == nullptr) throw type_error("no filter named '{}'", name);
  const CallArguments rest = without_first(arguments, 1);
  Heap::Depth depth(heap);  // map('map', 'map', ...) nests
  Values out;
  for (const Value& item : items_of(heap, value)) out.push_back(filter(heap, item, rest));
  return heap.iterator(std::move(out));
}

Value chosen(Heap& heap, const Value& value, Args arguments, bool wanted, bool by_attribute) {
  if (!truth(value)) return heap.iterator({});
  const std::size_t offset = by_attribute ? 1 : 0;
  if (arguments.positional.size() < offset) throw type_error("Missing parameter for attribute name");
  Test test = nullptr;
  CallArguments rest;
  if (arguments.positional.size() > offset) {
    const std::string name = callable_name(arguments.positional[offset]);
    test = find_test(name);
    if (test == nullptr) throw type_error("no test named '{}'", name);
    rest = without_first(arguments, offset + 1);
  }
  Values out;
  for (const Value& item : items_of(heap, value)) {
    const Value subject = by_attribute ? attribute_path(heap, item, arguments.positional[0]) : item;
    if ((test == nullptr ? truth(subject) : test(heap, subject, rest)) == wanted) out.push_back(item);
  }
  return heap.iterator(std::move(out));
}

Value filter_select(Heap& heap, const Value& value, Args arguments) {
  return chosen(heap, value, arguments, true, false);
}
Value filter_reject(Heap& heap, const Value& value, Args arguments) {
  return chosen(heap, value, arguments, false, false);
}
Value filter_selectattr(Heap& heap, const Value& value, Args arguments) {
  return chosen(heap, value, arguments, true, true);
}
Value filter_rejectattr(Heap& heap, const Value& value, Args arguments) {
  return chosen(heap, value, arguments, false, true);
}

Value filter_attr(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("attr", arguments, {"name"}, 1);
  require_defined(value);
  if (!bound.get(0)->is_string()) throw type_error("attribute name must be string");
  const std::string& name = bound.get(0)->text();
  // Like obj.name, but a dict's keys do not count.
  const bool is_method = find_method(value.type(), name) != nullptr || is_mutating_method(value.type(), name);
  if (value.is(Type::kDict) && !is_method) return heap.undefined(name, owner_name(value));
  return attribute(heap, value, name);
}

struct FilterEntry {
  std::string_view name;
  Filter filter;
};

constexpr std::array<FilterEntry, 47> kFilters = {{
    {"abs", filter_abs},
    {"attr", filter_attr},
    {"batch", filter_batch},
    {"capitalize", filter_capitalize},
    {"center", filter_center},
    {"count", filter_length},
    {"d", filter_default},
    {"default", filter_default},
    {"dictsort", filter_dictsort},
    {"e", filter_escape},
    {"escape", filter_escape},
    {"first", filter_first},
    {"float", filter_float},
    {"forceescape", filter_forceescape},
    {"format", filter_format},
    {"groupby", filter_groupby},
    {"indent", filter_indent},
    {"int", filter_int},
    {"items", filter_items},
    {"join", filter_join},
    {"last", filter_last},
    {"length", filter_length},
    {"list", filter_list},
    {"lower", filter_lower},
    {"map", filter_map},
    {"max", filter_max},
    {"min", filter_min},
    {"reject", filter_reject},
    {"rejectattr", filter_rejectattr},
    {"replace", filter_replace},
    {"reverse", filter_reverse},
    {"round", filter_round},
    {"safe", filter_safe},
    {"select", filter_select},
    {"selectattr", filter_selectattr},
    {"slice", filter_slice},
    {"sort", filter_sort},
    {"string", filter_string},
    {"sum", filter_sum},
    {"title", filter_title},
    {"tojson", filter_tojson},
    {"trim", filter_trim},
    {"truncate", filter_truncate},
    {"unique", filter_unique},
    {"upper", filter_upper},
    {"urlencode", filter_urlencode},
    {"wordcount", filter_wordcount},
}};

}  // namespace

Filter find_filter(std::string_view name) {
  const auto* it =
      std::find_if(kFilters.begin(), kFilters.end(), [&](const FilterEntry& entry) { return entry.name == name; });
  return it == kFilters.end() ? nullptr : it->filter;
}

// A stable merge sort that only asks `<`, as Python's: values that have no order throw from inside it.
Values sorted(Heap& heap, Values items, const Values& keys, bool reverse) {
  std::vector<std::size_t> order(items.size()), merged(items.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  // Reversed order keeps equal items in place: the later one comes first only if it is greater.
  auto before = [&](std::size_t a, std::size_t b) {
    return reverse ? compare(heap, Order::kLess, keys[b], keys[a]) : compare(heap, Order::kLess, keys[a], keys[b]);
  };
  for (std::size_t width = 1; width < order.size(); width *= 2) {
    for (std::size_t low = 0; low < order.size(); low += 2 * width) {
      const std::size_t middle = std::min(low + width, order.size()), high = std::min(low + 2 * width, order.size());
      std::size_t left = low, right = middle;
      for (std::size_t out = low; out < high; ++out) {
        const bool takes_right = left >= middle || (right < high && before(order[right], order[left]));
        merged[out] = takes_right ? order[right++] : order[left++];
      }
    }
    order.swap(merged);
  }
  Values out;
  out.reserve(items.size());
  for (const std::size_t i : order) out.push_back(std::move(items[i]));
  return out;
}

}  // namespace isobit::jinja
