// The tests of `value is name(arguments)`, as in jinja2.tests.
#include <algorithm>
#include <array>

#include "text/jinja_builtins.h"

namespace isobit::jinja {
namespace {

using Args = const CallArguments&;

void no_arguments(Args arguments) { const Bound bound("test", arguments, {}); }

int64_t remainder_of(Heap& heap, const Value& value, const Value& divisor) {
  const Value rest = binary(heap, Operator::kModulo, value, divisor);
  // A float's remainder equals 0 or 1 only as a number: 2 stands for "neither".
  if (!rest.is_number()) return 2;
  if (rest.is_integral()) return rest.to_int();
  return rest.to_double() == 0 ? 0 : rest.to_double() == 1 ? 1 : 2;
}

bool test_odd(Heap& heap, const Value& value, Args arguments) {
  no_arguments(arguments);
  return remainder_of(heap, value, Value::integer(2)) == 1;
}
bool test_even(Heap& heap, const Value& value, Args arguments) {
  no_arguments(arguments);
  return remainder_of(heap, value, Value::integer(2)) == 0;
}
bool test_divisibleby(Heap& heap, const Value& value, Args arguments) {
  return remainder_of(heap, value, *Bound("divisibleby", arguments, {"num"}, 1).get(0)) == 0;
}

template <bool (*Has)(const Value&)>
bool property(Heap&, const Value& value, Args arguments) {
  no_arguments(arguments);
  return Has(value);
}

bool is_defined(const Value& value) { return !value.is_undefined(); }
bool is_undefined(const Value& value) { return value.is_undefined(); }
bool is_none(const Value& value) { return value.is(Type::kNone); }
bool is_boolean(const Value& value) { return value.is_bool(); }
bool is_true(const Value& value) { return value.is_bool() && value.to_int() != 0; }
bool is_false(const Value& value) { return value.is_bool() && value.to_int() == 0; }
bool is_integer(const Value& value) { return value.is(Type::kInt); }
bool is_float(const Value& value) { return value.is(Type::kFloat); }
bool is_number(const Value& value) { return value.is_number(); }
bool is_string(const Value& value) { return value.is_string(); }
bool is_mapping(const Value& value) { return value.is(Type::kDict); }
bool is_escaped(const Value& value) { return value.is_markup(); }

// Has a length and takes an index; undefined has both.
bool is_sequence(const Value& value) {
  return value.is_string() || value.is_sequence() || value.is(Type::kDict) || value.is(Type::kRange) ||
         value.is_undefined();
}

bool is_iterable_value(const Value& value) { return is_iterable(value) || value.is(Type::kLoop); }

bool is_callable(const Value& value) {
  switch (value.type()) {
    case Type::kMacro:
    case Type::kMethod:
    case Type::kFunction:
    case Type::kLoop:
    case Type::kJoiner:
    case Type::kUndefined:  // jinja2.Undefined defines __call__
      return true;
    default:
      return false;
  }
}

bool by_method(Heap& heap, const Value& value, Args arguments, std::string_view name) {
  no_arguments(arguments);
  const Method method = find_method(Type::kString, name);
  return truth(method(heap, to_string_value(heap, value), {}));
}
bool test_lower(Heap& heap, const Value& value, Args arguments) { return by_method(heap, value, arguments, "islower"); }
bool test_upper(Heap& heap, const Value& value, Args arguments) { return by_method(heap, value, arguments, "isupper"); }

const Value& other(const Bound& bound) { return *bound.get(0); }

bool test_eq(Heap& heap, const Value& value, Args arguments) {
  return equals(heap, value, other(Bound("eq", arguments, {"other"}, 1)));
}
bool test_ne(Heap& heap, const Value& value, Args arguments) { return !test_eq(heap, value, arguments); }

template <Order kOrder>
bool test_order(Heap& heap, const Value& value, Args arguments) {
  return compare(heap, kOrder, value, other(Bound("comparison", arguments, {"other"}, 1)));
}

bool test_in(Heap& heap, const Value& value, Args arguments) {
  return contains(heap, other(Bound("in", arguments, {"seq"}, 1)), value);
}

bool test_sameas(Heap& heap, const Value& value, Args arguments) {
  const Bound bound("sameas", arguments, {"other"}, 1);
  // CPython shares equal constants; strings and small ints behave as if they were one object.
  if (value.is_string() && other(bound).is_string()) return equals(heap, value, other(bound));
  return value.same_as(other(bound));
}

bool test_filter(Heap&, const Value& value, Args arguments) {
  no_arguments(arguments);
  return value.is_string() && find_filter(value.text()) != nullptr;
}
bool test_test(Heap&, const Value& value, Args arguments) {
  no_arguments(arguments);
  return value.is_string() && find_test(value.text()) != nullptr;
}

struct TestEntry {
  std::string_view name;
  Test test;
};

constexpr std::array<TestEntry, 39> kTests = {{
    {"odd", test_odd},
    {"even", test_even},
    {"divisibleby", test_divisibleby},
    {"defined", property<is_defined>},
    {"undefined", property<is_undefined>},
    {"none", property<is_none>},
    {"boolean", property<is_boolean>},
    {"true", property<is_true>},
    {"false", property<is_false>},
    {"integer", property<is_integer>},
    {"float", property<is_float>},
    {"number", property<is_number>},
    {"string", property<is_string>},
    {"mapping", property<is_mapping>},
    {"sequence", property<is_sequence>},
    {"iterable", property<is_iterable_value>},
    {"callable", property<is_callable>},
    {"escaped", property<is_escaped>},
    {"lower", test_lower},
    {"upper", test_upper},
    {"in", test_in},
    {"sameas", test_sameas},
    {"filter", test_filter},
    {"test", test_test},
    {"eq", test_eq},
    {"equalto", test_eq},
    {"==", test_eq},
    {"ne", test_ne},
    {"!=", test_ne},
    {"lt", test_order<Order::kLess>},
    {"lessthan", test_order<Order::kLess>},
    {"<", test_order<Order::kLess>},
    {"le", test_order<Order::kLessEqual>},
    {"<=", test_order<Order::kLessEqual>},
    {"gt", test_order<Order::kGreater>},
    {"greaterthan", test_order<Order::kGreater>},
    {">", test_order<Order::kGreater>},
    {"ge", test_order<Order::kGreaterEqual>},
    {">=", test_order<Order::kGreaterEqual>},
}};

}  // namespace

Test find_test(std::string_view name) {
  const auto* it =
      std::find_if(kTests.begin(), kTests.end(), [&](const TestEntry& entry) { return entry.name == name; });
  return it == kTests.end() ? nullptr : it->test;
}

}  // namespace isobit::jinja
