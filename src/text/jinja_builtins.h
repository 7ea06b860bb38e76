#pragma once
// The filters, tests and methods of the language. Each has Python's argument names and errors.
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>

#include "text/jinja_ast.h"
#include "text/jinja_value.h"

namespace isobit::jinja {

// Null when there is none of that name.
Filter find_filter(std::string_view name);
Test find_test(std::string_view name);
Method find_method(Type type, std::string_view name);
bool is_mutating_method(Type type, std::string_view name);  // exists in Python, forbidden in the immutable sandbox

// Arguments matched to parameter names as a Python call does: TypeError for one too many, unknown or missing.
class Bound {
 public:
  Bound(std::string_view function, const CallArguments& arguments, std::initializer_list<std::string_view> names,
        std::size_t required = 0);
  const Value* get(std::size_t i) const { return slots_[i]; }  // null when not given
  bool flag(std::size_t i, bool fallback) const { return slots_[i] == nullptr ? fallback : truth(*slots_[i]); }
  int64_t integer(std::size_t i, int64_t fallback) const;  // TypeError unless an int
  Value value(std::size_t i, const Value& fallback) const { return slots_[i] == nullptr ? fallback : *slots_[i]; }

 private:
  static constexpr std::size_t kMost = 8;
  const Value* slots_[kMost] = {};
  std::string_view function_;
};

// Operators.
Value binary(Heap& heap, Operator op, const Value& left, const Value& right);
Value negative(const Value& value);
Value positive(const Value& value);
Value concat(Heap& heap, const Values& values);
Value format_percent(Heap& heap, const std::string& pattern, const Value& arguments);         // the % of strings
Value format_braces(Heap& heap, const std::string& pattern, const CallArguments& arguments);  // str.format

// obj.name and obj[key], undefined when there is none; obj[start:stop:step].
Value attribute(Heap& heap, const Value& object, const std::string& name);
Value item(Heap& heap, const Value& object, const Value& key);
Value slice(Heap& heap, const Value& object, const Value& start, const Value& stop, const Value& step);
// The value at a path such as "function.name" or "items.0", as filters take it. `fallback` replaces undefined parts.
Value attribute_path(Heap& heap, const Value& object, const Value& path, const Value* fallback = nullptr);

std::string to_json(Heap& heap, const Value& value, const CallArguments& options);
Values sorted(Heap& heap, Values items, const Values& keys, bool reverse);
int64_t multiplied(int64_t a, int64_t b);
int64_t added(int64_t a, int64_t b);

}  // namespace isobit::jinja
