#pragma once
// Values of the template language, with Python's semantics for equality, truth, order and printing.
// Containers belong to the Heap of one rendering and die with it; strings are counted and freed when unused.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "text/jinja_error.h"

namespace isobit::jinja {

class Heap;
class Value;

enum class Type {
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kUndefined,
  kList,
  kTuple,
  kDict,
  kRange,
  kView,
  kIterator,
  kNamespace,
  kMacro,
  kMethod,
  kFunction,
  kLoop,
  kCycler,
  kJoiner,
};

// `markup` marks the result of |safe and |escape: adding a plain string to it escapes that string.
struct String {
  String(std::string content, bool is_markup, Heap* owner);
  ~String();
  String(const String&) = delete;
  String& operator=(const String&) = delete;

  const std::string text;
  const bool markup;

 private:
  Heap* heap_;  // null for constants of the template and texts of the context, which no budget counts
};

struct Object {
  explicit Object(Type object_type) : type(object_type) {}
  virtual ~Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  const Type type;
};

class Value {
 public:
  Value() = default;  // none
  static Value boolean(bool value) { return Value(Data(value)); }
  static Value integer(int64_t value) { return Value(Data(value)); }
  static Value floating(double value) { return Value(Data(value)); }
  static Value constant(std::string text) {
    return Value(Data(std::make_shared<const String>(std::move(text), false, nullptr)));
  }
  explicit Value(std::shared_ptr<const String> string) : data_(std::move(string)) {}
  explicit Value(Object* object) : data_(object) {}

  Type type() const;
  bool is(Type wanted) const { return type() == wanted; }
  bool is_undefined() const { return is(Type::kUndefined); }
  bool is_string() const { return std::holds_alternative<std::shared_ptr<const String>>(data_); }
  bool is_bool() const { return std::holds_alternative<bool>(data_); }
  bool is_integral() const { return is_bool() || std::holds_alternative<int64_t>(data_); }  // bool is an int
  bool is_number() const { return is_integral() || std::holds_alternative<double>(data_); }
  bool is_sequence() const { return is(Type::kList) || is(Type::kTuple); }

  // The content; the caller has checked the type.
  int64_t to_int() const;    // bool and int
  double to_double() const;  // bool, int and float
  const std::string& text() const { return std::get<std::shared_ptr<const String>>(data_)->text; }
  bool is_markup() const { return is_string() && std::get<std::shared_ptr<const String>>(data_)->markup; }
  Object* object() const { return std::get<Object*>(data_); }
  template <typename T>
  T& as() const {
    return static_cast<T&>(*object());
  }
  bool same_as(const Value& other) const;  // Python's `is`

 private:
  using Data = std::variant<std::monostate, bool, int64_t, double, std::shared_ptr<const String>, Object*>;
  explicit Value(Data data) : data_(std::move(data)) {}

  Data data_;
};

using Values = std::vector<Value>;

struct Undefined : Object {
  Undefined() : Object(Type::kUndefined) {}
  std::string name;   // the name or element that was looked up
  std::string owner;  // what it was looked up in, "dict object"; empty for a variable
  std::string hint;   // the whole message, where there is one
  bool forbidden = false;
};

struct Sequence : Object {  // list and tuple
  Sequence(Type object_type, Values values) : Object(object_type), items(std::move(values)) {}
  Values items;
};

struct Dict : Object {
  Dict() : Object(Type::kDict) {}
  const Value* find(Heap& heap, const Value& key) const;
  const Value* find_text(std::string_view key) const;
  void set(Heap& heap, const Value& key, Value value);
  void set_text(Heap& heap, std::string key, Value value);  // for the caller's own objects: not counted

  std::vector<std::pair<Value, Value>> entries;  // in order of insertion

 private:
  static constexpr std::size_t kIndexFrom = 8;  // smaller ones are searched in a line
  std::ptrdiff_t locate(Heap& heap, const Value& key) const;
  void append(Heap& heap, const Value& key, Value value, std::string hashed);
  std::unordered_map<std::string, std::size_t> index_;  // by hash_key
};

struct Range : Object {
  Range(int64_t first, int64_t last, int64_t by) : Object(Type::kRange), start(first), stop(last), step(by) {}
  int64_t size() const;
  Value at(int64_t i) const { return Value::integer(start + i * step); }
  int64_t start, stop, step;
};

struct View : Object {  // dict.items(), keys(), values()
  View(std::string_view view_name, Values values) : Object(Type::kView), name(view_name), items(std::move(values)) {}
  std::string_view name;
  Values items;
};

struct Iterator : Object {  // what a generator is in Python: read once, no length
  explicit Iterator(Values values) : Object(Type::kIterator), items(std::move(values)) {}
  Values items;
  std::size_t next = 0;
};

struct Namespace : Object {
  Namespace() : Object(Type::kNamespace) {}
  Dict* attributes = nullptr;
};

struct Cycler : Object {
  explicit Cycler(Values values) : Object(Type::kCycler), items(std::move(values)) {}
  Values items;
  std::size_t position = 0;
};

struct Joiner : Object {
  explicit Joiner(Value text) : Object(Type::kJoiner), separator(std::move(text)) {}
  Value separator;
  bool used = false;
};

enum class Function { kRange, kDict, kNamespace, kRaise, kStrftimeNow, kCycler, kJoiner };

struct FunctionObject : Object {
  explicit FunctionObject(Function which) : Object(Type::kFunction), function(which) {}
  Function function;
};

struct CallArguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

using Method = Value (*)(Heap& heap, const Value& self, const CallArguments& arguments);

struct MethodObject : Object {  // a method bound to its object
  MethodObject(Value receiver, Method function, std::string_view method_name)
      : Object(Type::kMethod), self(std::move(receiver)), method(function), name(method_name) {}
  Value self;
  Method method;
  std::string_view name;
};

// The memory and the step budget of one rendering. Every cost is charged before it is spent.
class Heap {
 public:
  explicit Heap(const TemplateLimits& limits) : limits_(limits) {}
  ~Heap() { objects_.clear(); }
  Heap(const Heap&) = delete;
  Heap& operator=(const Heap&) = delete;

  const TemplateLimits& limits() const { return limits_; }
  void step(std::size_t cost = 1) {
    steps_ += cost;
    if (steps_ > limits_.steps) fail_steps();
  }
  void touch(std::size_t bytes) { step(1 + bytes / 16); }  // for work in proportion to a text
  void reserve(std::size_t bytes);                         // containers; never given back before the end
  void check_string(std::size_t bytes) const;              // before a text of so many bytes is built

  Value string(std::string text, bool markup = false);
  Value list(Values items) { return sequence(Type::kList, std::move(items)); }
  Value tuple(Values items) { return sequence(Type::kTuple, std::move(items)); }
  Value iterator(Values items);
  Value undefined(std::string name, std::string owner = {});
  Value undefined_hint(std::string hint);
  Value forbidden(std::string hint);
  Dict& dict();

  template <typename T, typename... Args>
  T& make(Args&&... args) {
    reserve(sizeof(T) + 32);
    auto owned = std::make_unique<T>(std::forward<Args>(args)...);
    T& object = *owned;
    objects_.push_back(std::move(owned));
    return object;
  }

  // An object of the caller's own, such as the context: owned, but not counted against the limits.
  template <typename T, typename... Args>
  T& adopt(Args&&... args) {
    auto owned = std::make_unique<T>(std::forward<Args>(args)...);
    T& object = *owned;
    objects_.push_back(std::move(owned));
    return object;
  }

  // Guards recursion over nested values and nested evaluation against the stack's end.
  class Depth {
   public:
    explicit Depth(Heap& heap) : heap_(heap) {
      if (++heap_.depth_ > heap_.limits_.depth) heap_.fail_depth();
    }
    ~Depth() { --heap_.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;

   private:
    Heap& heap_;
  };

 private:
  friend struct String;
  Value sequence(Type type, Values items);
  void hold(std::size_t bytes);
  void release(std::size_t bytes) { bytes_ -= bytes; }
  [[noreturn]] void fail_steps() const;
  [[noreturn]] void fail_depth();

  TemplateLimits limits_;
  std::size_t steps_ = 0;
  std::size_t bytes_ = 0;
  int depth_ = 0;
  std::vector<std::unique_ptr<Object>> objects_;
};

// A text under construction that stops at the heap's string limit.
class Builder {
 public:
  explicit Builder(Heap& heap) : heap_(heap) {}
  void add(std::string_view text) {
    heap_.check_string(out_.size() + text.size());
    heap_.touch(text.size());
    out_.append(text);
  }
  void add(std::size_t count, char fill) {
    heap_.check_string(count);
    heap_.check_string(out_.size() + count);
    heap_.touch(count);
    out_.append(count, fill);
  }
  std::string take() { return std::move(out_); }

 private:
  Heap& heap_;
  std::string out_;
};

std::string_view type_name(const Value& value);  // as Python's type(x).__name__
std::string owner_name(const Value& value);      // as Jinja2 names it in "X has no attribute"
[[noreturn]] void fail_undefined(const Value& undefined);
void require_defined(const Value& value);  // throws what Jinja2 throws when an undefined value is used

bool truth(const Value& value);
bool equals(Heap& heap, const Value& a, const Value& b);
enum class Order { kLess, kLessEqual, kGreater, kGreaterEqual };
bool compare(Heap& heap, Order order, const Value& a, const Value& b);  // TypeError where Python has no order
bool contains(Heap& heap, const Value& container, const Value& item);

std::string to_text(Heap& heap, const Value& value);    // Python's str()
std::string to_repr(Heap& heap, const Value& value);    // Python's repr()
Value to_string_value(Heap& heap, const Value& value);  // the value itself where it is a plain string
std::string float_repr(double value);
std::string escape_html(Heap& heap, std::string_view text);

// A text that is the same for keys that Python holds equal; TypeError for what cannot be hashed.
std::string hash_key(Heap& heap, const Value& key);

bool is_iterable(const Value& value);
Values items_of(Heap& heap, const Value& value);  // a copy; empties an iterator; TypeError when not iterable
int64_t length_of(Heap& heap, const Value& value);

}  // namespace isobit::jinja
