#include "text/jinja_value.h"

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>

#include "text/jinja_loop.h"
#include "text/jinja_unicode.h"

namespace isobit::jinja {
namespace {

constexpr std::size_t kStringOverhead = 64;

std::string macro_text(const Macro& macro) {
  return macro.name.empty() ? "<Macro anonymous>" : fmt::format("<Macro '{}'>", macro.name);
}

void add_repr(Heap& heap, Builder& out, const Value& value);

void add_string_repr(Builder& out, std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out.add(1, quote);
  for (std::size_t i = 0; i < text.size();) {
    CodePoint point = decode_at(text, i);
    std::string_view raw = text.substr(i, point.bytes);
    i += point.bytes;
    if (point.code == static_cast<char32_t>(quote) || point.code == '\\') {
      out.add(1, '\\');
      out.add(raw);
    } else if (point.code == '\n') {
      out.add("\\n");
    } else if (point.code == '\r') {
      out.add("\\r");
    } else if (point.code == '\t') {
      out.add("\\t");
    } else if (is_printable(point.code)) {
      out.add(raw);
    } else if (point.code >= kBadByte) {
      out.add(fmt::format("\\x{:02x}", static_cast<uint32_t>(point.code - kBadByte)));
    } else if (point.code < 0x100) {
      out.add(fmt::format("\\x{:02x}", static_cast<uint32_t>(point.code)));
    } else if (point.code < 0x10000) {
      out.add(fmt::format("\\u{:04x}", static_cast<uint32_t>(point.code)));
    } else {
      out.add(fmt::format("\\U{:08x}", static_cast<uint32_t>(point.code)));
    }
  }
  out.add(1, quote);
}

void add_items(Heap& heap, Builder& out, const Values& items) {
  bool first = true;
  for (const Value& item : items) {
    if (!first) out.add(", ");
    first = false;
    add_repr(heap, out, item);
  }
}

void add_dict_repr(Heap& heap, Builder& out, const Dict& dict) {
  out.add("{");
  bool first = true;
  for (const auto& [key, value] : dict.entries) {
    if (!first) out.add(", ");
    first = false;
    add_repr(heap, out, key);
    out.add(": ");
    add_repr(heap, out, value);
  }
  out.add("}");
}

void add_sequence_repr(Heap& heap, Builder& out, const Value& value) {
  const Values& items = value.as<Sequence>().items;
  const bool is_list = value.is(Type::kList);
  out.add(is_list ? "[" : "(");
  add_items(heap, out, items);
  if (!is_list && items.size() == 1) out.add(",");
  out.add(is_list ? "]" : ")");
}

void add_object_repr(Heap& heap, Builder& out, const Value& value) {
  switch (value.type()) {
    case Type::kUndefined:
      return out.add("Undefined");
    case Type::kList:
    case Type::kTuple:
      return add_sequence_repr(heap, out, value);
    case Type::kDict:
      return add_dict_repr(heap, out, value.as<Dict>());
    case Type::kRange: {
      const Range& range = value.as<Range>();
      return out.add(range.step == 1 ? fmt::format("range({}, {})", range.start, range.stop)
                                     : fmt::format("range({}, {}, {})", range.start, range.stop, range.step));
    }
    case Type::kView:
      out.add(value.as<View>().name);
      out.add("([");
      add_items(heap, out, value.as<View>().items);
      return out.add("])");
    case Type::kNamespace:
      out.add("<Namespace ");
      add_dict_repr(heap, out, *value.as<Namespace>().attributes);
      return out.add(">");
    case Type::kMacro:
      return out.add(macro_text(value.as<Macro>()));
    case Type::kLoop: {
      auto& loop = value.as<Loop>();
      return out.add(fmt::format("<LoopContext {}/{}>", loop.index + 1, loop.size()));
    }
    default:
      return out.add(fmt::format("<{} object>", type_name(value)));
  }
}

void add_repr(Heap& heap, Builder& out, const Value& value) {
  Heap::Depth depth(heap);
  heap.step();
  switch (value.type()) {
    case Type::kNone:
      return out.add("None");
    case Type::kBool:
      return out.add(value.to_int() != 0 ? "True" : "False");
    case Type::kInt:
      return out.add(fmt::format("{}", value.to_int()));
    case Type::kFloat:
      return out.add(float_repr(value.to_double()));
    case Type::kString:
      if (value.is_markup()) out.add("Markup(");
      add_string_repr(out, value.text());
      if (value.is_markup()) out.add(")");
      return;
    default:
      return add_object_repr(heap, out, value);
  }
}

bool equal_numbers(const Value& a, const Value& b) {
  if (a.is_integral() && b.is_integral()) return a.to_int() == b.to_int();
  return a.to_double() == b.to_double();
}

bool equal_items(Heap& heap, const Values& a, const Values& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!a[i].same_as(b[i]) && !equals(heap, a[i], b[i])) return false;
  return true;
}

bool equal_dicts(Heap& heap, const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    const Value* other = b.find(heap, key);
    if (other == nullptr || (!value.same_as(*other) && !equals(heap, value, *other))) return false;
  }
  return true;
}

template <typename T>
bool holds(Order order, const T& a, const T& b) {
  switch (order) {
    case Order::kLess:
      return a < b;
    case Order::kLessEqual:
      return a <= b;
    case Order::kGreater:
      return a > b;
    case Order::kGreaterEqual:
      return a >= b;
  }
  return false;
}

std::string_view symbol(Order order) {
  constexpr std::array<std::string_view, 4> kSymbols = {"<", "<=", ">", ">="};
  return kSymbols[static_cast<std::size_t>(order)];
}

bool compare_items(Heap& heap, Order order, const Values& a, const Values& b) {
  for (std::size_t i = 0; i < a.size() && i < b.size(); ++i)
    if (!a[i].same_as(b[i]) && !equals(heap, a[i], b[i])) return compare(heap, order, a[i], b[i]);
  return holds(order, a.size(), b.size());
}

// Code points compare as their UTF-8 bytes do.
int compare_text(Heap& heap, const std::string& a, const std::string& b) {
  heap.touch(std::min(a.size(), b.size()));
  return a.compare(b);
}

bool range_has(Heap& heap, const Range& range, const Value& item) {
  if (!item.is_number()) return false;
  if (!item.is_integral()) {
    heap.step(static_cast<std::size_t>(range.size()));
    for (int64_t i = 0; i < range.size(); ++i)
      if (range.at(i).to_double() == item.to_double()) return true;
    return false;
  }
  const int64_t size = range.size();
  if (size == 0) return false;
  const int64_t low = std::min(range.start, range.at(size - 1).to_int());
  const int64_t high = std::max(range.start, range.at(size - 1).to_int());
  const int64_t wanted = item.to_int();
  return wanted >= low && wanted <= high && (wanted - range.start) % range.step == 0;
}

bool items_have(Heap& heap, const Values& items, const Value& wanted) {
  return std::any_of(items.begin(), items.end(),
                     [&](const Value& item) { return item.same_as(wanted) || equals(heap, item, wanted); });
}

bool iterator_has(Heap& heap, Iterator& iterator, const Value& wanted) {
  while (iterator.next < iterator.items.size()) {
    const Value& item = iterator.items[iterator.next++];
    if (item.same_as(wanted) || equals(heap, item, wanted)) return true;
  }
  return false;
}

Values code_points(Heap& heap, const std::string& text) {
  Values items;
  heap.touch(text.size() * 16);
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t bytes = decode_at(text, i).bytes;
    items.push_back(heap.string(text.substr(i, bytes)));
    i += bytes;
  }
  return items;
}

Values copied(Heap& heap, const Values& items) {
  heap.step(1 + items.size());
  return items;
}

}  // namespace

String::String(std::string content, bool is_markup, Heap* owner)
    : text(std::move(content)), markup(is_markup), heap_(owner) {}

String::~String() {
  if (heap_ != nullptr) heap_->release(text.size() + kStringOverhead);
}

Type Value::type() const {
  switch (data_.index()) {
    case 0:
      return Type::kNone;
    case 1:
      return Type::kBool;
    case 2:
      return Type::kInt;
    case 3:
      return Type::kFloat;
    case 4:
      return Type::kString;
    default:
      return object()->type;
  }
}

int64_t Value::to_int() const { return is_bool() ? int64_t{std::get<bool>(data_)} : std::get<int64_t>(data_); }

double Value::to_double() const { return is_integral() ? static_cast<double>(to_int()) : std::get<double>(data_); }

bool Value::same_as(const Value& other) const {
  if (data_.index() != other.data_.index()) return false;
  if (std::holds_alternative<double>(data_)) return false;  // two float objects are rarely one
  if (is_string()) return std::get<4>(data_) == std::get<4>(other.data_);
  return data_ == other.data_;
}

std::ptrdiff_t Dict::locate(Heap& heap, const Value& key) const {
  if (entries.size() < kIndexFrom && key.is_string()) {
    for (std::size_t i = 0; i < entries.size(); ++i)
      if (entries[i].first.is_string() && entries[i].first.text() == key.text()) return static_cast<std::ptrdiff_t>(i);
    return -1;
  }
  const std::string wanted = hash_key(heap, key);
  if (entries.size() >= kIndexFrom) {
    auto it = index_.find(wanted);
    return it == index_.end() ? -1 : static_cast<std::ptrdiff_t>(it->second);
  }
  for (std::size_t i = 0; i < entries.size(); ++i)
    if (hash_key(heap, entries[i].first) == wanted) return static_cast<std::ptrdiff_t>(i);
  return -1;
}

const Value* Dict::find(Heap& heap, const Value& key) const {
  heap.step();
  const std::ptrdiff_t at = locate(heap, key);
  return at < 0 ? nullptr : &entries[static_cast<std::size_t>(at)].second;
}

const Value* Dict::find_text(std::string_view key) const {
  for (const auto& [name, value] : entries)
    if (name.is_string() && name.text() == key) return &value;
  return nullptr;
}

void Dict::set(Heap& heap, const Value& key, Value value) {
  std::string hashed = hash_key(heap, key);
  const std::ptrdiff_t at = locate(heap, key);
  if (at >= 0) {
    entries[static_cast<std::size_t>(at)].second = std::move(value);
    return;
  }
  heap.reserve(2 * sizeof(Value) + 64 + hashed.size());
  append(heap, key, std::move(value), std::move(hashed));
}

void Dict::set_text(Heap& heap, std::string key, Value value) {
  std::string hashed = fmt::format("s{}", key);
  append(heap, Value::constant(std::move(key)), std::move(value), std::move(hashed));
}

void Dict::append(Heap& heap, const Value& key, Value value, std::string hashed) {
  entries.emplace_back(key, std::move(value));
  if (entries.size() < kIndexFrom) return;
  if (entries.size() > kIndexFrom) {
    index_.emplace(std::move(hashed), entries.size() - 1);
    return;
  }
  for (std::size_t i = 0; i < entries.size(); ++i) index_.emplace(hash_key(heap, entries[i].first), i);
}

int64_t Range::size() const {
  if (step > 0) return stop > start ? (stop - start - 1) / step + 1 : 0;
  return stop < start ? (start - stop - 1) / -step + 1 : 0;
}

void Heap::fail_steps() const {
  throw problem(TemplateErrorKind::kLimit,
                "rendering took more than {} steps; the template loops too much, or the limit has to be raised",
                limits_.steps);
}

void Heap::fail_depth() {
  --depth_;  // the guard's destructor does not run when its constructor throws
  throw problem(
      TemplateErrorKind::kLimit,
      "evaluation is nested more than {} deep; a macro calls itself without end, or a value is nested too deep",
      limits_.depth);
}

void Heap::hold(std::size_t bytes) {
  if (bytes > limits_.memory_bytes || bytes_ > limits_.memory_bytes - bytes)
    throw problem(TemplateErrorKind::kLimit, "the template's values need more than {} bytes", limits_.memory_bytes);
  bytes_ += bytes;
}

void Heap::reserve(std::size_t bytes) { hold(bytes); }

void Heap::check_string(std::size_t bytes) const {
  if (bytes > limits_.string_bytes)
    throw problem(TemplateErrorKind::kLimit, "a string of {} bytes is longer than the limit of {}", bytes,
                  limits_.string_bytes);
}

Value Heap::string(std::string text, bool markup) {
  check_string(text.size());
  touch(text.size());
  hold(text.size() + kStringOverhead);
  return Value(std::make_shared<const String>(std::move(text), markup, this));
}

Value Heap::sequence(Type type, Values items) {
  step(1 + items.size());
  reserve(items.size() * sizeof(Value));
  return Value(&make<Sequence>(type, std::move(items)));
}

Value Heap::iterator(Values items) {
  step(1 + items.size());
  reserve(items.size() * sizeof(Value));
  return Value(&make<Iterator>(std::move(items)));
}

Value Heap::undefined(std::string name, std::string owner) {
  reserve(name.size() + owner.size());
  auto& undefined = make<Undefined>();
  undefined.name = std::move(name);
  undefined.owner = std::move(owner);
  return Value(&undefined);
}

Value Heap::undefined_hint(std::string hint) {
  reserve(hint.size());
  auto& undefined = make<Undefined>();
  undefined.hint = std::move(hint);
  return Value(&undefined);
}

Value Heap::forbidden(std::string hint) {
  Value value = undefined_hint(std::move(hint));
  value.as<Undefined>().forbidden = true;
  return value;
}

Dict& Heap::dict() { return make<Dict>(); }

std::string_view type_name(const Value& value) {
  constexpr std::array<std::string_view, 19> kNames = {
      "NoneType",   "bool",        "int",       "float", "str",
      "Undefined",  "list",        "tuple",     "dict",  "range",
      "dict_items", "generator",   "Namespace", "Macro", "builtin_function_or_method",
      "function",   "LoopContext", "Cycler",    "Joiner"};
  if (value.is(Type::kView)) return value.as<View>().name;
  if (value.is_markup()) return "Markup";
  return kNames[static_cast<std::size_t>(value.type())];
}

std::string owner_name(const Value& value) {
  if (value.is(Type::kNone)) return "None";
  switch (value.type()) {
    case Type::kNamespace:
      return "isobit.Namespace object";
    case Type::kLoop:
    case Type::kMacro:
    case Type::kCycler:
    case Type::kJoiner:
      return fmt::format("jinja2.{} object", type_name(value));
    default:
      return fmt::format("{} object", type_name(value));
  }
}

void fail_undefined(const Value& value) {
  const auto& undefined = value.as<Undefined>();
  if (undefined.forbidden) throw problem(TemplateErrorKind::kSecurity, "{}", undefined.hint);
  if (!undefined.hint.empty()) throw problem(TemplateErrorKind::kUndefined, "{}", undefined.hint);
  if (undefined.owner.empty()) throw problem(TemplateErrorKind::kUndefined, "'{}' is undefined", undefined.name);
  throw problem(TemplateErrorKind::kUndefined, "'{}' has no attribute '{}'", undefined.owner, undefined.name);
}

void require_defined(const Value& value) {
  if (value.is_undefined()) fail_undefined(value);
}

bool truth(const Value& value) {
  switch (value.type()) {
    case Type::kNone:
    case Type::kUndefined:
      return false;
    case Type::kBool:
    case Type::kInt:
      return value.to_int() != 0;
    case Type::kFloat:
      return value.to_double() != 0.0;
    case Type::kString:
      return !value.text().empty();
    case Type::kList:
    case Type::kTuple:
      return !value.as<Sequence>().items.empty();
    case Type::kDict:
      return !value.as<Dict>().entries.empty();
    case Type::kRange:
      return value.as<Range>().size() > 0;
    case Type::kView:
      return !value.as<View>().items.empty();
    case Type::kLoop:
      return value.as<Loop>().size() > 0;
    default:
      return true;
  }
}

bool equals(Heap& heap, const Value& a, const Value& b) {
  Heap::Depth depth(heap);
  heap.step();
  if (a.is_number() && b.is_number()) return equal_numbers(a, b);
  if (a.type() != b.type()) return false;
  switch (a.type()) {
    case Type::kNone:
    case Type::kUndefined:
      return true;
    case Type::kString:
      if (a.text().size() != b.text().size()) return false;
      heap.touch(a.text().size());
      return a.text() == b.text();
    case Type::kList:
    case Type::kTuple:
      return equal_items(heap, a.as<Sequence>().items, b.as<Sequence>().items);
    case Type::kDict:
      return equal_dicts(heap, a.as<Dict>(), b.as<Dict>());
    case Type::kRange: {
      const Range &left = a.as<Range>(), &right = b.as<Range>();
      if (left.size() != right.size()) return false;
      if (left.size() == 0) return true;
      return left.start == right.start && (left.size() == 1 || left.step == right.step);
    }
    default:
      return a.object() == b.object();
  }
}

bool compare(Heap& heap, Order order, const Value& a, const Value& b) {
  Heap::Depth depth(heap);
  heap.step();
  require_defined(a);
  require_defined(b);
  if (a.is_integral() && b.is_integral()) return holds(order, a.to_int(), b.to_int());
  if (a.is_number() && b.is_number()) return holds(order, a.to_double(), b.to_double());
  if (a.is_string() && b.is_string()) return holds(order, compare_text(heap, a.text(), b.text()), 0);
  if (a.is_sequence() && a.type() == b.type())
    return compare_items(heap, order, a.as<Sequence>().items, b.as<Sequence>().items);
  throw type_error("'{}' not supported between instances of '{}' and '{}'", symbol(order), type_name(a), type_name(b));
}

bool contains(Heap& heap, const Value& container, const Value& item) {
  heap.step();
  switch (container.type()) {
    case Type::kString:
      if (!item.is_string()) throw type_error("'in <string>' requires string as left operand, not {}", type_name(item));
      heap.touch(container.text().size());
      return container.text().find(item.text()) != std::string::npos;
    case Type::kUndefined:
      return false;
    case Type::kDict:
      return container.as<Dict>().find(heap, item) != nullptr;
    case Type::kList:
    case Type::kTuple:
      return items_have(heap, container.as<Sequence>().items, item);
    case Type::kView:
      return items_have(heap, container.as<View>().items, item);
    case Type::kRange:
      return range_has(heap, container.as<Range>(), item);
    case Type::kIterator:
      return iterator_has(heap, container.as<Iterator>(), item);
    default:
      throw type_error("argument of type '{}' is not iterable", type_name(container));
  }
}

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  std::array<char, 40> buffer{};
  auto result = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, std::chars_format::scientific);
  std::string shortest(buffer.data(), result.ptr);  // d[.ddd]e[+-]xx, the shortest that reads back
  const std::size_t e = shortest.find('e');
  const int exponent = std::stoi(shortest.substr(e + 1));
  std::string sign = shortest[0] == '-' ? "-" : "";
  std::string digits;
  for (char c : shortest.substr(0, e))
    if (c >= '0' && c <= '9') digits.push_back(c);
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    return fmt::format("{}{}{}{}e{}{:02}", sign, digits[0], count > 1 ? "." : "", digits.substr(1),
                       exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0) return fmt::format("{}0.{:0>{}}{}", sign, "", -exponent - 1, digits);
  if (count <= exponent + 1) return fmt::format("{}{}{:0>{}}.0", sign, digits, "", exponent + 1 - count);
  const std::size_t whole = static_cast<std::size_t>(exponent) + 1;
  return fmt::format("{}{}.{}", sign, digits.substr(0, whole), digits.substr(whole));
}

std::string to_text(Heap& heap, const Value& value) {
  if (value.is_string()) return value.text();
  if (value.is_undefined()) return {};
  return to_repr(heap, value);
}

std::string to_repr(Heap& heap, const Value& value) {
  Builder out(heap);
  add_repr(heap, out, value);
  return out.take();
}

Value to_string_value(Heap& heap, const Value& value) {
  if (value.is_string() && !value.is_markup()) return value;
  return heap.string(to_text(heap, value));
}

std::string escape_html(Heap& heap, std::string_view text) {
  Builder out(heap);
  for (std::size_t i = 0; i < text.size(); ++i) {
    switch (text[i]) {
      case '&':
        out.add("&amp;");
        break;
      case '<':
        out.add("&lt;");
        break;
      case '>':
        out.add("&gt;");
        break;
      case '"':
        out.add("&#34;");
        break;
      case '\'':
        out.add("&#39;");
        break;
      default:
        out.add(text.substr(i, 1));
    }
  }
  return out.take();
}

std::string hash_key(Heap& heap, const Value& key) {
  Heap::Depth depth(heap);
  switch (key.type()) {
    case Type::kNone:
      return "n";
    case Type::kBool:
    case Type::kInt:
      return fmt::format("i{}", key.to_int());
    case Type::kFloat: {
      const double value = key.to_double();
      constexpr double kLimit = 9.0e18;
      if (std::floor(value) == value && std::abs(value) < kLimit)
        return fmt::format("i{}", static_cast<int64_t>(value));
      return fmt::format("f{:x}", std::bit_cast<uint64_t>(value));
    }
    case Type::kString:
      heap.touch(key.text().size());
      return fmt::format("s{}", key.text());
    case Type::kUndefined:
      return "u";
    case Type::kTuple: {
      Builder out(heap);
      out.add("t");
      for (const Value& item : key.as<Sequence>().items) {
        std::string part = hash_key(heap, item);
        out.add(fmt::format("{}:", part.size()));
        out.add(part);
      }
      return out.take();
    }
    case Type::kList:
    case Type::kDict:
    case Type::kView:
      throw type_error("unhashable type: '{}'", type_name(key));
    default:
      return fmt::format("o{}", static_cast<const void*>(key.object()));
  }
}

bool is_iterable(const Value& value) {
  switch (value.type()) {
    case Type::kString:
    case Type::kUndefined:
    case Type::kList:
    case Type::kTuple:
    case Type::kDict:
    case Type::kRange:
    case Type::kView:
    case Type::kIterator:
      return true;
    default:
      return false;
  }
}

Values items_of(Heap& heap, const Value& value) {
  switch (value.type()) {
    case Type::kString:
      return code_points(heap, value.text());
    case Type::kUndefined:
      return {};
    case Type::kList:
    case Type::kTuple:
      return copied(heap, value.as<Sequence>().items);
    case Type::kView:
      return copied(heap, value.as<View>().items);
    case Type::kDict: {
      Values keys;
      heap.step(value.as<Dict>().entries.size());
      for (const auto& entry : value.as<Dict>().entries) keys.push_back(entry.first);
      return keys;
    }
    case Type::kRange: {
      const Range& range = value.as<Range>();
      heap.step(static_cast<std::size_t>(range.size()));
      Values items;
      for (int64_t i = 0; i < range.size(); ++i) items.push_back(range.at(i));
      return items;
    }
    case Type::kIterator: {
      auto& iterator = value.as<Iterator>();
      Values rest(iterator.items.begin() + static_cast<std::ptrdiff_t>(iterator.next), iterator.items.end());
      iterator.next = iterator.items.size();
      heap.step(rest.size());
      return rest;
    }
    default:
      throw type_error("'{}' object is not iterable", type_name(value));
  }
}

int64_t length_of(Heap& heap, const Value& value) {
  switch (value.type()) {
    case Type::kString:
      heap.touch(value.text().size());
      return static_cast<int64_t>(count_code_points(value.text()));
    case Type::kUndefined:
      return 0;
    case Type::kList:
    case Type::kTuple:
      return static_cast<int64_t>(value.as<Sequence>().items.size());
    case Type::kDict:
      return static_cast<int64_t>(value.as<Dict>().entries.size());
    case Type::kRange:
      return value.as<Range>().size();
    case Type::kView:
      return static_cast<int64_t>(value.as<View>().items.size());
    case Type::kLoop:
      return static_cast<int64_t>(value.as<Loop>().size());
    default:
      throw type_error("object of type '{}' has no len()", type_name(value));
  }
}

}  // namespace isobit::jinja
