// The % operator of strings and str.format, for the conversions that make sense in a chat template.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>

#include "text/jinja_builtins.h"
#include "text/jinja_unicode.h"

namespace isobit::jinja {
namespace {

constexpr int64_t kMaxPrecision = 100;

// [[fill]align][sign][#][0][width][grouping][.precision][type]
struct Spec {
  std::string fill = " ";
  char align = 0;  // '<', '>', '^', '=' or none
  char sign = '-';
  bool alternate = false;
  int64_t width = 0;
  char grouping = 0;  // ',' or '_'
  int64_t precision = -1;
  char type = 0;
};

int64_t read_number(std::string_view text, std::size_t& i, int64_t fallback) {
  const std::size_t start = i;
  while (i < text.size() && text[i] >= '0' && text[i] <= '9') ++i;
  if (i == start) return fallback;
  int64_t value = 0;
  const auto result = std::from_chars(text.data() + start, text.data() + i, value);
  if (result.ec != std::errc()) throw type_error("too many decimal digits in format string");
  return value;
}

std::string pad(Heap& heap, const std::string& sign, const std::string& body, const Spec& spec, char default_align) {
  const auto length = static_cast<int64_t>(count_code_points(body) + sign.size());
  const int64_t missing = std::max<int64_t>(spec.width - length, 0);
  const char align = spec.align != 0 ? spec.align : default_align;
  const int64_t before = align == '>' ? missing : align == '^' ? missing / 2 : 0;
  const int64_t inside = align == '=' ? missing : 0;
  Builder out(heap);
  heap.check_string(static_cast<std::size_t>(missing));
  auto fill = [&](int64_t count) {
    for (int64_t i = 0; i < count; ++i) out.add(spec.fill);
  };
  fill(before);
  out.add(sign);
  fill(inside);
  out.add(body);
  fill(missing - before - inside);
  return out.take();
}

std::string sign_text(bool is_negative, char mode) {
  if (is_negative) return "-";
  return mode == '-' ? "" : std::string(1, mode);
}

void group_digits(std::string& digits, char separator, std::size_t every) {
  for (std::size_t i = digits.size(); i > every; i -= every) digits.insert(i - every, 1, separator);
}

std::string integer_digits(int64_t value, int base) {
  std::array<char, 72> buffer{};
  auto magnitude = static_cast<uint64_t>(value);
  if (value < 0) magnitude = 0 - magnitude;
  const auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), magnitude, base);
  return {buffer.data(), result.ptr};
}

// printf's conversions of a float, which Python shares: e, f, g and their upper-case forms.
std::string float_digits(double magnitude, char type, int64_t precision, bool alternate) {
  if (!std::isfinite(magnitude)) return std::isnan(magnitude) ? "nan" : "inf";
  const std::string pattern = fmt::format("%{}.*{}", alternate ? "#" : "", type);
  std::array<char, 512> buffer{};  // the largest double has 309 digits before the point
  const int written =
      std::snprintf(buffer.data(), buffer.size(), pattern.c_str(), static_cast<int>(precision), magnitude);
  return {buffer.data(), static_cast<std::size_t>(written)};
}

int64_t checked_precision(int64_t precision, int64_t fallback) {
  if (precision < 0) return fallback;
  if (precision > kMaxPrecision)
    throw problem(TemplateErrorKind::kLimit, "a precision of {} digits is more than the limit of {}", precision,
                  kMaxPrecision);
  return precision;
}

// str.format

class BraceFormatter {
 public:
  BraceFormatter(Heap& heap, const CallArguments& arguments) : heap_(heap), arguments_(arguments) {}

  std::string run(std::string_view pattern, int depth) {
    if (depth > 2) throw type_error("Max string recursion exceeded");
    Builder out(heap_);
    for (std::size_t i = 0; i < pattern.size();) {
      const char c = pattern[i];
      const bool doubled = i + 1 < pattern.size() && pattern[i + 1] == c;
      if ((c == '{' || c == '}') && doubled) {
        out.add(pattern.substr(i, 1));
        i += 2;
      } else if (c == '}') {
        throw type_error("Single '}}' encountered in format string");
      } else if (c == '{') {
        out.add(field(pattern, i, depth));
      } else {
        const std::size_t end = std::min(pattern.find_first_of("{}", i), pattern.size());
        out.add(pattern.substr(i, end - i));
        i = end;
      }
    }
    return out.take();
  }

 private:
  // A replacement field at pattern[i] == '{'; moves i behind its '}'.
  std::string field(std::string_view pattern, std::size_t& i, int depth) {
    std::size_t end = i + 1;
    int open = 1;
    for (; end < pattern.size(); ++end) {
      if (pattern[end] == '{') ++open;
      if (pattern[end] == '}' && --open == 0) break;
    }
    if (open != 0) throw type_error("expected '}}' before end of string");
    std::string_view body = pattern.substr(i + 1, end - i - 1);
    i = end + 1;
    const std::size_t stop = std::min(body.find_first_of("!:"), body.size());
    const std::string_view name = body.substr(0, stop);
    char conversion = 0;
    std::size_t spec_at = stop;
    if (stop < body.size() && body[stop] == '!') {
      if (stop + 1 >= body.size()) throw type_error("end of string while looking for conversion specifier");
      conversion = body[stop + 1];
      spec_at = stop + 2;
      if (spec_at < body.size() && body[spec_at] != ':') throw type_error("expected ':' after conversion specifier");
    }
    const Value value = lookup(name);  // before the fields inside the spec, which count on
    const std::string spec = spec_at < body.size() ? run(body.substr(spec_at + 1), depth + 1) : std::string();
    return formatted(converted(value, conversion), spec);
  }

  Value converted(const Value& value, char conversion) {
    if (conversion == 0) return value;
    if (conversion == 's') return heap_.string(to_text(heap_, value));
    if (conversion == 'r') return heap_.string(to_repr(heap_, value));
    throw type_error("Unknown conversion specifier '{}'", conversion);
  }

  Value lookup(std::string_view name) {
    const std::size_t end = std::min(name.find_first_of(".["), name.size());
    Value value = first(name.substr(0, end));
    for (std::size_t i = end; i < name.size();) {
      if (name[i] == '.') {
        const std::size_t stop = std::min(name.find_first_of(".[", i + 1), name.size());
        value = attribute(heap_, value, std::string(name.substr(i + 1, stop - i - 1)));
        i = stop;
        continue;
      }
      const std::size_t close = name.find(']', i);
      if (name[i] != '[' || close == std::string_view::npos) throw type_error("Missing ']' in format string");
      value = item(heap_, value, index(name.substr(i + 1, close - i - 1)));
      i = close + 1;
    }
    return value;
  }

  static bool is_number(std::string_view text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) { return c >= '0' && c <= '9'; });
  }

  Value index(std::string_view text) {
    std::size_t i = 0;
    return is_number(text) ? Value::integer(read_number(text, i, 0)) : heap_.string(std::string(text));
  }

  Value first(std::string_view name) {
    if (name.empty() || is_number(name)) {
      std::size_t i = 0;
      const auto at = static_cast<std::size_t>(name.empty() ? next_++ : read_number(name, i, 0));
      if (at >= arguments_.positional.size())
        throw type_error("Replacement index {} out of range for positional args tuple", at);
      return arguments_.positional[at];
    }
    for (const auto& [given, value] : arguments_.named)
      if (given == name) return value;
    throw type_error("KeyError: '{}'", name);
  }

  static Spec parse_spec(std::string_view text) {
    Spec spec;
    std::size_t i = 0;
    auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
    const std::size_t fill_bytes = text.empty() ? 0 : decode_at(text, 0).bytes;
    if (fill_bytes < text.size() && fill_bytes > 0 && is_align(text[fill_bytes])) {
      spec.fill = std::string(text.substr(0, fill_bytes));
      spec.align = text[fill_bytes];
      i = fill_bytes + 1;
    } else if (!text.empty() && is_align(text[0])) {
      spec.align = text[0];
      i = 1;
    }
    auto take = [&](std::string_view any) {
      return i < text.size() && any.find(text[i]) != std::string_view::npos ? text[i++] : '\0';
    };
    if (const char sign = take("+- "); sign != 0) spec.sign = sign;
    spec.alternate = take("#") != 0;
    if (take("0") != 0 && spec.align == 0) {
      spec.fill.assign(1, '0');
      spec.align = '=';
    }
    spec.width = read_number(text, i, 0);
    spec.grouping = take(",_");
    if (take(".") != 0) {
      spec.precision = read_number(text, i, -1);
      if (spec.precision < 0) throw type_error("Format specifier missing precision");
    }
    spec.type = i < text.size() ? text[i++] : '\0';
    if (i < text.size()) throw type_error("Invalid format specifier");
    return spec;
  }

  std::string formatted(const Value& value, const std::string& text) {
    if (text.empty()) return to_text(heap_, value);
    const Spec spec = parse_spec(text);
    if (value.is_string()) return formatted_string(value.text(), spec);
    if (value.is_number()) return formatted_number(value, spec);
    throw type_error("unsupported format string passed to {}.__format__", type_name(value));
  }

  std::string formatted_string(const std::string& text, const Spec& spec) {
    if (spec.type != 0 && spec.type != 's')
      throw type_error("Unknown format code '{}' for object of type 'str'", spec.type);
    if (spec.align == '=' || spec.sign != '-') throw type_error("Sign not allowed in string format specifier");
    if (spec.precision < 0) return pad(heap_, "", text, spec, '<');
    std::size_t end = 0;
    for (int64_t i = 0; i < spec.precision && end < text.size(); ++i) end += decode_at(text, end).bytes;
    return pad(heap_, "", text.substr(0, end), spec, '<');
  }

  std::string formatted_number(const Value& value, const Spec& spec) {
    const bool plain_float = !value.is_integral();
    constexpr std::string_view kFloatTypes = "eEfFgG%";
    if (plain_float || (spec.type != 0 && kFloatTypes.find(spec.type) != std::string_view::npos))
      return formatted_float(value.to_double(), spec);
    if (value.is_bool() && spec.type == 0) return pad(heap_, "", value.to_int() != 0 ? "1" : "0", spec, '>');
    return formatted_integer(value.to_int(), spec);
  }

  std::string formatted_integer(int64_t value, const Spec& spec) {
    if (spec.precision >= 0) throw type_error("Precision not allowed in integer format specifier");
    if (spec.type == 'c') {
      std::string out;
      if (value < 0 || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
        throw type_error("%c arg not in range(0x110000)");
      append_utf8(out, static_cast<char32_t>(value));
      return pad(heap_, "", out, spec, '<');
    }
    int base = 10;
    std::string_view prefix;
    switch (spec.type) {
      case 0:
      case 'd':
      case 'n':
        break;
      case 'b':
        base = 2;
        prefix = "0b";
        break;
      case 'o':
        base = 8;
        prefix = "0o";
        break;
      case 'x':
      case 'X':
        base = 16;
        prefix = spec.type == 'x' ? "0x" : "0X";
        break;
      default:
        throw type_error("Unknown format code '{}' for object of type 'int'", spec.type);
    }
    std::string digits = integer_digits(value, base);
    if (spec.type == 'X') digits = to_upper(digits);
    if (spec.grouping != 0) group_digits(digits, spec.grouping, base == 10 ? 3 : 4);
    const std::string_view shown = spec.alternate ? prefix : std::string_view();
    return pad(heap_, fmt::format("{}{}", sign_text(value < 0, spec.sign), shown), digits, spec, '>');
  }

  std::string formatted_float(double value, const Spec& spec) {
    const double magnitude = std::abs(value);
    std::string digits;
    if (spec.type == 0 && spec.precision < 0) {
      digits = float_repr(magnitude);
    } else if (spec.type == '%') {
      digits = float_digits(magnitude * 100, 'f', checked_precision(spec.precision, 6), spec.alternate);
      digits.push_back('%');
    } else {
      constexpr std::string_view kTypes = "eEfFgG";
      const char type = spec.type == 0 ? 'g' : spec.type;
      if (kTypes.find(type) == std::string_view::npos)
        throw type_error("Unknown format code '{}' for object of type 'float'", spec.type);
      digits = float_digits(magnitude, type, checked_precision(spec.precision, 6), spec.alternate);
      if (spec.type == 0 && std::isfinite(magnitude) && digits.find_first_of(".e") == std::string::npos) digits += ".0";
    }
    if (spec.grouping != 0) {
      const std::size_t point = std::min(digits.find_first_of(".e%"), digits.size());
      std::string whole = digits.substr(0, point);
      group_digits(whole, spec.grouping, 3);
      digits = whole + digits.substr(point);
    }
    return pad(heap_, sign_text(std::signbit(value) && !std::isnan(value), spec.sign), digits, spec, '>');
  }

  Heap& heap_;
  const CallArguments& arguments_;
  int64_t next_ = 0;
};

// printf-style

class PercentFormatter {
 public:
  PercentFormatter(Heap& heap, const Value& arguments) : heap_(heap), arguments_(arguments) {}

  std::string run(std::string_view pattern) {
    Builder out(heap_);
    for (std::size_t i = 0; i < pattern.size();) {
      const std::size_t percent = std::min(pattern.find('%', i), pattern.size());
      out.add(pattern.substr(i, percent - i));
      i = percent;
      if (i < pattern.size()) out.add(conversion(pattern, i));
    }
    const bool tuple = arguments_.is(Type::kTuple);
    const bool all_used = tuple ? used_ == arguments_.as<Sequence>().items.size() : used_ > 0;
    if (!all_used && !arguments_.is(Type::kDict) && !arguments_.is(Type::kList))
      throw type_error("not all arguments converted during string formatting");
    return out.take();
  }

 private:
  Value next() {
    if (!arguments_.is(Type::kTuple)) {
      if (used_++ > 0) throw type_error("not enough arguments for format string");
      return arguments_;
    }
    const Values& items = arguments_.as<Sequence>().items;
    if (used_ >= items.size()) throw type_error("not enough arguments for format string");
    return items[used_++];
  }

  int64_t star_or_number(std::string_view pattern, std::size_t& i, int64_t fallback) {
    if (i >= pattern.size() || pattern[i] != '*') return read_number(pattern, i, fallback);
    ++i;
    const Value value = next();
    if (!value.is_integral()) throw type_error("* wants int");
    return value.to_int();
  }

  std::string conversion(std::string_view pattern, std::size_t& i) {
    ++i;
    bool keyed = false;
    Value value;
    if (i < pattern.size() && pattern[i] == '(') {
      const std::size_t close = pattern.find(')', i);
      if (close == std::string_view::npos) throw type_error("incomplete format key");
      if (!arguments_.is(Type::kDict)) throw type_error("format requires a mapping");
      const std::string key(pattern.substr(i + 1, close - i - 1));
      const Value* found = arguments_.as<Dict>().find(heap_, Value::constant(key));
      if (found == nullptr) throw type_error("KeyError: '{}'", key);
      value = *found;
      keyed = true;
      i = close + 1;
    }
    Spec spec;
    bool left = false, zero = false;
    for (; i < pattern.size(); ++i) {
      const char flag = pattern[i];
      if (flag == '-')
        left = true;
      else if (flag == '0')
        zero = true;
      else if (flag == '+')
        spec.sign = '+';
      else if (flag == ' ')
        spec.sign = spec.sign == '+' ? '+' : ' ';
      else if (flag == '#')
        spec.alternate = true;
      else
        break;
    }
    spec.width = star_or_number(pattern, i, 0);
    if (spec.width < 0) {
      left = true;
      spec.width =
          spec.width == std::numeric_limits<int64_t>::min() ? std::numeric_limits<int64_t>::max() : -spec.width;
    }
    if (i < pattern.size() && pattern[i] == '.') {
      ++i;
      spec.precision = std::max<int64_t>(star_or_number(pattern, i, 0), 0);
    }
    while (i < pattern.size() && (pattern[i] == 'l' || pattern[i] == 'h' || pattern[i] == 'L')) ++i;
    if (i >= pattern.size()) throw type_error("incomplete format");
    spec.type = pattern[i++];
    if (spec.type == '%') return "%";
    if (!keyed) value = next();
    spec.align = left ? '<' : '>';
    const bool numeric = std::string_view("diuoxXeEfFgG").find(spec.type) != std::string_view::npos;
    if (zero && numeric && !left) {
      spec.fill.assign(1, '0');
      spec.align = '=';
    }
    return numeric ? number(value, spec) : text(value, spec);
  }

  std::string text(const Value& value, Spec spec) {
    std::string content;
    if (spec.type == 's') {
      content = to_text(heap_, value);
    } else if (spec.type == 'r' || spec.type == 'a') {
      content = to_repr(heap_, value);
    } else if (spec.type == 'c') {
      content = character(value);
      spec.precision = -1;
    } else {
      throw type_error("unsupported format character '{}'", spec.type);
    }
    if (spec.precision >= 0) {
      std::size_t end = 0;
      for (int64_t i = 0; i < spec.precision && end < content.size(); ++i) end += decode_at(content, end).bytes;
      content.resize(end);
    }
    return pad(heap_, "", content, spec, '>');
  }

  std::string character(const Value& value) {
    if (value.is_string()) {
      if (count_code_points(value.text()) != 1) throw type_error("%c requires int or char");
      return value.text();
    }
    if (!value.is_integral()) throw type_error("%c requires int or char");
    const int64_t code = value.to_int();
    if (code < 0 || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      throw type_error("%c arg not in range(0x110000)");
    std::string out;
    append_utf8(out, static_cast<char32_t>(code));
    return out;
  }

  std::string number(const Value& value, const Spec& spec) {
    require_defined(value);
    if (!value.is_number()) throw type_error("%{} format: a number is required, not {}", spec.type, type_name(value));
    if (std::string_view("eEfFgG").find(spec.type) != std::string_view::npos) {
      const double content = value.to_double();
      const std::string digits =
          float_digits(std::abs(content), spec.type, checked_precision(spec.precision, 6), spec.alternate);
      return pad(heap_, sign_text(std::signbit(content) && !std::isnan(content), spec.sign), digits, spec, '>');
    }
    const bool decimal = spec.type == 'd' || spec.type == 'i' || spec.type == 'u';
    if (!value.is_integral() && !decimal)
      throw type_error("%{} format: an integer is required, not {}", spec.type, type_name(value));
    return integer(value, spec, decimal);
  }

  std::string integer(const Value& value, const Spec& spec, bool decimal) {
    int64_t content = 0;
    if (value.is_integral()) {
      content = value.to_int();
    } else {
      constexpr double kLimit = 9.2e18;
      if (!(std::abs(value.to_double()) < kLimit)) throw type_error("cannot convert the float to a 64-bit integer");
      content = static_cast<int64_t>(value.to_double());
    }
    const int base = decimal ? 10 : spec.type == 'o' ? 8 : 16;
    std::string digits = integer_digits(content, base);
    if (spec.type == 'X') digits = to_upper(digits);
    const auto wanted = static_cast<std::size_t>(checked_precision(spec.precision, 0));
    if (digits.size() < wanted) digits.insert(0, wanted - digits.size(), '0');
    const std::string prefix = !spec.alternate || decimal ? std::string() : fmt::format("0{}", spec.type);
    return pad(heap_, sign_text(content < 0, spec.sign) + prefix, digits, spec, '>');
  }

  Heap& heap_;
  const Value& arguments_;
  std::size_t used_ = 0;
};

}  // namespace

Value format_percent(Heap& heap, const std::string& pattern, const Value& arguments) {
  return heap.string(PercentFormatter(heap, arguments).run(pattern));
}

Value format_braces(Heap& heap, const std::string& pattern, const CallArguments& arguments) {
  return heap.string(BraceFormatter(heap, arguments).run(pattern, 0));
}

}  // namespace isobit::jinja
