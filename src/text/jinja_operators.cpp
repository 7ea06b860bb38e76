// Arithmetic, attribute and item access, slices: Python's semantics within 64-bit integers.
#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>

#include "text/jinja_builtins.h"
#include "text/jinja_loop.h"
#include "text/jinja_unicode.h"

namespace isobit::jinja {
namespace {

[[noreturn]] void fail_overflow() { throw problem(TemplateErrorKind::kRuntime, "an integer does not fit in 64 bits"); }

std::string_view symbol(Operator op) {
  constexpr std::array<std::string_view, 7> kSymbols = {"+", "-", "*", "/", "//", "%", "** or pow()"};
  return kSymbols[static_cast<std::size_t>(op)];
}

[[noreturn]] void fail_operands(Operator op, const Value& left, const Value& right) {
  throw type_error("unsupported operand type(s) for {}: '{}' and '{}'", symbol(op), type_name(left), type_name(right));
}

int64_t floor_divided(int64_t a, int64_t b) {
  if (b == 0) throw type_error("integer division or modulo by zero");
  if (b == -1) return a == std::numeric_limits<int64_t>::min() ? (fail_overflow(), 0) : -a;
  const int64_t quotient = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? quotient - 1 : quotient;
}

int64_t modulo(int64_t a, int64_t b) {
  if (b == 0) throw type_error("integer division or modulo by zero");
  if (b == -1) return 0;
  const int64_t rest = a % b;
  return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}

// CPython's float_divmod.
double float_modulo(double a, double b) {
  if (b == 0) throw type_error("float modulo by zero");
  double rest = std::fmod(a, b);
  if (rest == 0) return std::copysign(0.0, b);
  return (b < 0) != (rest < 0) ? rest + b : rest;
}

double float_floor_divided(double a, double b) {
  if (b == 0) throw type_error("float floor division by zero");
  const double rest = std::fmod(a, b);
  double quotient = (a - rest) / b;
  if (rest != 0 && (b < 0) != (rest < 0)) quotient -= 1.0;
  if (quotient == 0) return std::copysign(0.0, a / b);
  const double floored = std::floor(quotient);
  return quotient - floored > 0.5 ? floored + 1.0 : floored;
}

Value integer_power(int64_t base, int64_t exponent) {
  if (exponent < 0) {
    if (base == 0) throw type_error("0.0 cannot be raised to a negative power");
    return Value::floating(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  if (base == 0 || base == 1) return Value::integer(exponent == 0 ? 1 : base);
  if (base == -1) return Value::integer(exponent % 2 == 0 ? 1 : -1);
  int64_t result = 1;
  for (int64_t i = 0; i < exponent; ++i) result = multiplied(result, base);  // overflows within 63 rounds
  return Value::integer(result);
}

Value float_power(double base, double exponent) {
  if (base == 0 && exponent < 0) throw type_error("0.0 cannot be raised to a negative power");
  if (base < 0 && std::isfinite(base) && std::isfinite(exponent) && std::floor(exponent) != exponent)
    throw type_error("a negative number to a fractional power is complex, which is not supported");
  const double result = std::pow(base, exponent);
  if (std::isinf(result) && std::isfinite(base) && std::isfinite(exponent))
    throw type_error("(34, 'Numerical result out of range')");
  return Value::floating(result);
}

Value integer_operation(Operator op, int64_t a, int64_t b) {
  int64_t result = 0;
  switch (op) {
    case Operator::kAdd:
      return Value::integer(added(a, b));
    case Operator::kSubtract:
      if (__builtin_sub_overflow(a, b, &result)) fail_overflow();
      return Value::integer(result);
    case Operator::kMultiply:
      return Value::integer(multiplied(a, b));
    case Operator::kDivide:
      if (b == 0) throw type_error("division by zero");
      return Value::floating(static_cast<double>(a) / static_cast<double>(b));
    case Operator::kFloorDivide:
      return Value::integer(floor_divided(a, b));
    case Operator::kModulo:
      return Value::integer(modulo(a, b));
    default:
      return integer_power(a, b);
  }
}

Value float_operation(Operator op, double a, double b) {
  switch (op) {
    case Operator::kAdd:
      return Value::floating(a + b);
    case Operator::kSubtract:
      return Value::floating(a - b);
    case Operator::kMultiply:
      return Value::floating(a * b);
    case Operator::kDivide:
      if (b == 0) throw type_error("float division by zero");
      return Value::floating(a / b);
    case Operator::kFloorDivide:
      return Value::floating(float_floor_divided(a, b));
    case Operator::kModulo:
      return Value::floating(float_modulo(a, b));
    default:
      return float_power(a, b);
  }
}

Value add_strings(Heap& heap, const Value& left, const Value& right) {
  const bool markup = left.is_markup() || right.is_markup();
  auto part = [&](const Value& value) {
    return markup && !value.is_markup() ? escape_html(heap, value.text()) : value.text();
  };
  heap.check_string(left.text().size() + right.text().size());
  if (!markup) {
    std::string text;
    text.reserve(left.text().size() + right.text().size());
    text.append(left.text()).append(right.text());
    return heap.string(std::move(text));
  }
  return heap.string(part(left) + part(right), true);
}

Value add_sequences(Heap& heap, const Value& left, const Value& right) {
  Values items = items_of(heap, left);
  const Values more = items_of(heap, right);
  heap.reserve((items.size() + more.size()) * sizeof(Value));
  items.insert(items.end(), more.begin(), more.end());
  return left.is(Type::kList) ? heap.list(std::move(items)) : heap.tuple(std::move(items));
}

Value repeated(Heap& heap, const Value& value, int64_t count) {
  const auto times = static_cast<std::size_t>(std::max<int64_t>(count, 0));
  if (value.is_string()) {
    const std::string& text = value.text();
    if (!text.empty() && times > heap.limits().string_bytes / text.size()) heap.check_string(SIZE_MAX);
    heap.check_string(times * text.size());
    std::string out;
    if (!text.empty()) {
      heap.touch(times * text.size() + times);
      out.reserve(times * text.size());
      for (std::size_t i = 0; i < times; ++i) out += text;
    }
    return heap.string(std::move(out), value.is_markup());
  }
  const Values& items = value.as<Sequence>().items;
  const std::size_t most = heap.limits().memory_bytes / sizeof(Value);
  if (!items.empty() && times > most / items.size()) heap.reserve(heap.limits().memory_bytes + 1);
  heap.step(times * items.size());
  heap.reserve(times * items.size() * sizeof(Value));
  Values out;
  if (!items.empty())
    for (std::size_t i = 0; i < times; ++i) out.insert(out.end(), items.begin(), items.end());
  return value.is(Type::kList) ? heap.list(std::move(out)) : heap.tuple(std::move(out));
}

Value multiply_mixed(Heap& heap, const Value& left, const Value& right) {
  const bool left_repeats = left.is_string() || left.is_sequence();
  const bool right_repeats = right.is_string() || right.is_sequence();
  if (left_repeats && right.is_integral()) return repeated(heap, left, right.to_int());
  if (right_repeats && left.is_integral()) return repeated(heap, right, left.to_int());
  if (left_repeats || right_repeats)
    throw type_error("can't multiply sequence by non-int of type '{}'", type_name(left_repeats ? right : left));
  fail_operands(Operator::kMultiply, left, right);
}

// Python's PySlice_AdjustIndices.
struct Span {
  int64_t start, step, count;
};

int64_t slice_bound(const Value& value, int64_t fallback, int64_t length, int64_t step) {
  if (value.is(Type::kNone)) return fallback;
  if (!value.is_integral()) {
    require_defined(value);
    throw type_error("slice indices must be integers or None or have an __index__ method");
  }
  int64_t bound = value.to_int();
  if (bound < 0) {
    bound = bound < -length ? -1 : bound + length;
    if (bound < 0) bound = step < 0 ? -1 : 0;
  }
  return bound >= length ? (step < 0 ? length - 1 : length) : bound;
}

Span slice_span(const Value& start, const Value& stop, const Value& step_value, int64_t length) {
  int64_t step = 1;
  if (!step_value.is(Type::kNone)) {
    if (!step_value.is_integral())
      throw type_error("slice indices must be integers or None or have an __index__ method");
    step = std::max(step_value.to_int(), -std::numeric_limits<int64_t>::max());
    if (step == 0) throw type_error("slice step cannot be zero");
  }
  const int64_t first = slice_bound(start, step < 0 ? length - 1 : 0, length, step);
  const int64_t last = slice_bound(stop, step < 0 ? -1 : length, length, step);
  int64_t count = 0;
  if (step < 0 && last < first) count = (first - last - 1) / -step + 1;
  if (step > 0 && first < last) count = (last - first - 1) / step + 1;
  return {first, step, count};
}

Value slice_string(Heap& heap, const Value& value, const Value& start, const Value& stop, const Value& step) {
  const std::string& text = value.text();
  heap.touch(text.size());
  std::vector<std::size_t> offsets;
  for (std::size_t i = 0; i < text.size(); i += decode_at(text, i).bytes) offsets.push_back(i);
  const auto length = static_cast<int64_t>(offsets.size());
  offsets.push_back(text.size());
  const Span span = slice_span(start, stop, step, length);
  std::string out;
  for (int64_t i = 0; i < span.count; ++i) {
    const auto at = static_cast<std::size_t>(span.start + i * span.step);
    out.append(text, offsets[at], offsets[at + 1] - offsets[at]);
  }
  return heap.string(std::move(out), value.is_markup());
}

Value slice_sequence(Heap& heap, const Value& value, const Value& start, const Value& stop, const Value& step) {
  const Values& items = value.as<Sequence>().items;
  const Span span = slice_span(start, stop, step, static_cast<int64_t>(items.size()));
  heap.step(static_cast<std::size_t>(span.count));
  Values out;
  for (int64_t i = 0; i < span.count; ++i) out.push_back(items[static_cast<std::size_t>(span.start + i * span.step)]);
  return value.is(Type::kList) ? heap.list(std::move(out)) : heap.tuple(std::move(out));
}

Value slice_range(Heap& heap, const Range& range, const Value& start, const Value& stop, const Value& step) {
  const Span span = slice_span(start, stop, step, range.size());
  // The values of a range and the steps of a slice multiply: a step past its length reads one item only.
  const int64_t by = span.count > 1 ? range.step * span.step : range.step;
  const int64_t first = range.start + (span.count > 0 ? span.start * range.step : 0);
  return Value(&heap.make<Range>(first, first + span.count * by, by));
}

// container[key] for a position; null when out of range.
Value at_position(Heap& heap, const Value& object, int64_t position, bool& found) {
  const int64_t length = length_of(heap, object);
  if (position < 0) position += length;
  found = position >= 0 && position < length;
  if (!found) return {};
  const auto at = static_cast<std::size_t>(position);
  if (object.is_sequence()) return object.as<Sequence>().items[at];
  if (object.is(Type::kRange)) return object.as<Range>().at(position);
  const std::string& text = object.text();
  std::size_t offset = 0;
  for (std::size_t i = 0; i < at; ++i) offset += decode_at(text, offset).bytes;
  return heap.string(text.substr(offset, decode_at(text, offset).bytes), object.is_markup());
}

// object[key] without the fall back to attributes.
Value subscript(Heap& heap, const Value& object, const Value& key, bool& found) {
  found = false;
  if (object.is(Type::kDict)) {
    const bool hashable = !key.is(Type::kList) && !key.is(Type::kDict) && !key.is(Type::kView);
    const Value* value = hashable ? object.as<Dict>().find(heap, key) : nullptr;
    found = value != nullptr;
    return found ? *value : Value();
  }
  const bool indexable = object.is_sequence() || object.is_string() || object.is(Type::kRange);
  if (indexable && key.is_integral()) return at_position(heap, object, key.to_int(), found);
  return {};
}

// The attributes that are not methods.
Value plain_attribute(Heap& heap, const Value& object, const std::string& name, bool& found) {
  found = true;
  switch (object.type()) {
    case Type::kNamespace:
      if (const Value* value = object.as<Namespace>().attributes->find(heap, Value::constant(name))) return *value;
      break;
    case Type::kCycler:
      if (name == "current") return object.as<Cycler>().items[object.as<Cycler>().position];
      break;
    case Type::kMacro:
      if (name == "name") return heap.string(object.as<Macro>().name);
      break;
    case Type::kRange:
      if (name == "start") return Value::integer(object.as<Range>().start);
      if (name == "stop") return Value::integer(object.as<Range>().stop);
      if (name == "step") return Value::integer(object.as<Range>().step);
      break;
    case Type::kInt:
    case Type::kBool:
      if (name == "real" || name == "numerator") return Value::integer(object.to_int());
      if (name == "imag") return Value::integer(0);
      if (name == "denominator") return Value::integer(1);
      break;
    case Type::kFloat:
      if (name == "real") return object;
      if (name == "imag") return Value::floating(0);
      break;
    default:
      break;
  }
  found = false;
  return {};
}

Value python_attribute(Heap& heap, const Value& object, const std::string& name, bool& found) {
  if (is_mutating_method(object.type(), name)) {
    found = true;
    return heap.forbidden(fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(object)));
  }
  if (const Method method = find_method(object.type(), name)) {
    found = true;
    return Value(&heap.make<MethodObject>(object, method, name == "cycle" ? "cycle" : "method"));
  }
  return plain_attribute(heap, object, name, found);
}

// What every Python object has; the sandbox hides it.
bool is_hidden(const std::string& name) { return name.starts_with("__") && name.ends_with("__"); }

Value hidden(Heap& heap, const Value& object, const std::string& name) {
  return heap.forbidden(fmt::format("access to attribute '{}' of '{}' object is unsafe.", name, type_name(object)));
}

}  // namespace

int64_t added(int64_t a, int64_t b) {
  int64_t result = 0;
  if (__builtin_add_overflow(a, b, &result)) fail_overflow();
  return result;
}

int64_t multiplied(int64_t a, int64_t b) {
  int64_t result = 0;
  if (__builtin_mul_overflow(a, b, &result)) fail_overflow();
  return result;
}

Value binary(Heap& heap, Operator op, const Value& left, const Value& right) {
  if (op == Operator::kModulo && left.is_string())
    return heap.string(format_percent(heap, left.text(), right).text(), left.is_markup());
  require_defined(left);
  require_defined(right);
  if (left.is_integral() && right.is_integral()) return integer_operation(op, left.to_int(), right.to_int());
  if (left.is_number() && right.is_number()) return float_operation(op, left.to_double(), right.to_double());
  if (op == Operator::kMultiply) return multiply_mixed(heap, left, right);
  if (op != Operator::kAdd) fail_operands(op, left, right);
  if (left.is_string() && right.is_string()) return add_strings(heap, left, right);
  if (left.is_sequence() && left.type() == right.type()) return add_sequences(heap, left, right);
  if (left.is_string()) throw type_error("can only concatenate str (not \"{}\") to str", type_name(right));
  fail_operands(op, left, right);
}

Value negative(const Value& value) {
  require_defined(value);
  if (!value.is_number()) throw type_error("bad operand type for unary -: '{}'", type_name(value));
  if (!value.is_integral()) return Value::floating(-value.to_double());
  int64_t result = 0;
  if (__builtin_sub_overflow(int64_t{0}, value.to_int(), &result)) fail_overflow();
  return Value::integer(result);
}

Value positive(const Value& value) {
  require_defined(value);
  if (!value.is_number()) throw type_error("bad operand type for unary +: '{}'", type_name(value));
  return value.is_integral() ? Value::integer(value.to_int()) : value;
}

Value concat(Heap& heap, const Values& values) {
  Builder out(heap);
  for (const Value& value : values) out.add(value.is_string() ? value.text() : to_text(heap, value));
  return heap.string(out.take());
}

Value attribute(Heap& heap, const Value& object, const std::string& name) {
  require_defined(object);
  bool found = false;
  Value value = python_attribute(heap, object, name, found);
  if (found) return value;
  value = subscript(heap, object, Value::constant(name), found);
  if (found) return value;
  return is_hidden(name) ? hidden(heap, object, name) : heap.undefined(name, owner_name(object));
}

Value item(Heap& heap, const Value& object, const Value& key) {
  require_defined(object);
  bool found = false;
  Value value = subscript(heap, object, key, found);
  if (found) return value;
  if (key.is_string()) {
    value = python_attribute(heap, object, key.text(), found);
    if (found) return value;
    if (is_hidden(key.text())) return hidden(heap, object, key.text());
  }
  if (key.is_string()) return heap.undefined(key.text(), owner_name(object));
  return heap.undefined_hint(fmt::format("{} has no element {}", owner_name(object), to_repr(heap, key)));
}

Value slice(Heap& heap, const Value& object, const Value& start, const Value& stop, const Value& step) {
  require_defined(object);
  if (object.is_string()) return slice_string(heap, object, start, stop, step);
  if (object.is_sequence()) return slice_sequence(heap, object, start, stop, step);
  if (object.is(Type::kRange)) return slice_range(heap, object.as<Range>(), start, stop, step);
  if (object.is(Type::kDict)) throw type_error("unhashable type: 'slice'");
  throw type_error("'{}' object is not subscriptable", type_name(object));
}

Value attribute_path(Heap& heap, const Value& object, const Value& path, const Value* fallback) {
  if (path.is(Type::kNone)) return object;
  Value at = object;
  auto follow = [&](const Value& part) {
    at = item(heap, at, part);
    if (fallback != nullptr && !fallback->is(Type::kNone) && at.is_undefined()) at = *fallback;
  };
  if (!path.is_string()) {
    follow(path);
    return at;
  }
  const std::string& text = path.text();
  for (std::size_t from = 0; from <= text.size();) {
    heap.step();
    const std::size_t dot = std::min(text.find('.', from), text.size());
    const std::string part = text.substr(from, dot - from);
    int64_t position = 0;
    const bool digits =
        !part.empty() && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    const auto parsed = std::from_chars(part.data(), part.data() + part.size(), position);
    follow(digits && parsed.ec == std::errc() ? Value::integer(position) : heap.string(part));
    from = dot + 1;
  }
  return at;
}

}  // namespace isobit::jinja
