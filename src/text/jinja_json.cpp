// Python's json.dumps, as the tojson filter of chat templates calls it.
#include <algorithm>
#include <cmath>

#include "text/jinja_builtins.h"
#include "text/jinja_unicode.h"

namespace isobit::jinja {
namespace {

struct JsonOptions {
  bool ascii = false;
  bool sort_keys = false;
  bool pretty = false;
  std::string indent;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
};

class Writer {
 public:
  Writer(Heap& heap, const JsonOptions& options) : heap_(heap), options_(options), out_(heap) {}

  void value(const Value& value) {
    Heap::Depth depth(heap_);
    heap_.step();
    switch (value.type()) {
      case Type::kNone:
        return out_.add("null");
      case Type::kBool:
        return out_.add(value.to_int() != 0 ? "true" : "false");
      case Type::kInt:
        return out_.add(fmt::format("{}", value.to_int()));
      case Type::kFloat:
        return out_.add(number(value.to_double()));
      case Type::kString:
        return text(value.text());
      case Type::kList:
      case Type::kTuple:
        return array(value.as<Sequence>().items);
      case Type::kDict:
        return object(value.as<Dict>());
      default:
        throw type_error("Object of type {} is not JSON serializable", type_name(value));
    }
  }

  std::string take() { return out_.take(); }

 private:
  static std::string number(double value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
    return float_repr(value);
  }

  void escaped(char32_t code, std::string_view raw) {
    switch (code) {
      case '"':
        return out_.add("\\\"");
      case '\\':
        return out_.add("\\\\");
      case '\n':
        return out_.add("\\n");
      case '\r':
        return out_.add("\\r");
      case '\t':
        return out_.add("\\t");
      case '\f':
        return out_.add("\\f");
      case '\b':
        return out_.add("\\b");
      default:
        break;
    }
    const auto unit = static_cast<uint32_t>(code);
    if (code < 0x20) return out_.add(fmt::format("\\u{:04x}", unit));
    if (!options_.ascii || code < 0x80 || code >= kBadByte) return out_.add(raw);
    if (code < 0x10000) return out_.add(fmt::format("\\u{:04x}", unit));
    out_.add(fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((unit - 0x10000) >> 10), 0xDC00 + ((unit - 0x10000) & 0x3FF)));
  }

  void text(std::string_view text) {
    out_.add("\"");
    std::size_t plain = 0;
    for (std::size_t i = 0; i < text.size();) {
      const CodePoint point = decode_at(text, i);
      const bool copies =
          point.code >= 0x20 && point.code != '"' && point.code != '\\' && (point.code < 0x80 || !options_.ascii);
      if (!copies) {
        out_.add(text.substr(plain, i - plain));
        escaped(point.code, text.substr(i, point.bytes));
        plain = i + point.bytes;
      }
      i += point.bytes;
    }
    out_.add(text.substr(plain));
    out_.add("\"");
  }

  void line_break() {
    if (!options_.pretty) return;
    out_.add("\n");
    for (int i = 0; i < level_; ++i) out_.add(options_.indent);
  }

  void separator(bool& first) {
    if (!first) out_.add(options_.item_separator);
    first = false;
    line_break();
  }

  void array(const Values& items) {
    if (items.empty()) return out_.add("[]");
    out_.add("[");
    ++level_;
    bool first = true;
    for (const Value& item : items) {
      separator(first);
      value(item);
    }
    --level_;
    line_break();
    out_.add("]");
  }

  std::string key_text(const Value& key) {
    switch (key.type()) {
      case Type::kString:
        return key.text();
      case Type::kNone:
        return "null";
      case Type::kBool:
        return key.to_int() != 0 ? "true" : "false";
      case Type::kInt:
        return fmt::format("{}", key.to_int());
      case Type::kFloat:
        return number(key.to_double());
      default:
        throw type_error("keys must be str, int, float, bool or None, not {}", type_name(key));
    }
  }

  void object(const Dict& dict) {
    if (dict.entries.empty()) return out_.add("{}");
    out_.add("{");
    ++level_;
    bool first = true;
    auto entry = [&](const Value& key, const Value& content) {
      separator(first);
      text(key_text(key));
      out_.add(options_.key_separator);
      value(content);
    };
    if (options_.sort_keys) {
      Values keys;
      for (const auto& pair : dict.entries) keys.push_back(pair.first);
      for (const Value& key : sorted(heap_, keys, keys, false)) entry(key, *dict.find(heap_, key));
    } else {
      for (const auto& [key, content] : dict.entries) entry(key, content);
    }
    --level_;
    line_break();
    out_.add("}");
  }

  Heap& heap_;
  const JsonOptions& options_;
  Builder out_;
  int level_ = 0;
};

void read_separators(Heap& heap, const Value& value, JsonOptions& options) {
  const Values parts = items_of(heap, value);
  if (parts.size() != 2 || !parts[0].is_string() || !parts[1].is_string())
    throw type_error("tojson(): separators must be two strings");
  options.item_separator = parts[0].text();
  options.key_separator = parts[1].text();
}

}  // namespace

std::string to_json(Heap& heap, const Value& value, const CallArguments& arguments) {
  const Bound bound("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonOptions options;
  options.ascii = bound.flag(0, false);
  options.sort_keys = bound.flag(3, false);
  const Value indent = bound.value(1, Value());
  if (!indent.is(Type::kNone)) {
    options.pretty = true;
    options.item_separator.assign(1, ',');
    if (indent.is_string()) {
      options.indent = indent.text();
    } else {
      const int64_t width = std::max<int64_t>(bound.integer(1, 0), 0);
      heap.check_string(static_cast<std::size_t>(width));
      options.indent.assign(static_cast<std::size_t>(width), ' ');
    }
  }
  const Value separators = bound.value(2, Value());
  if (!separators.is(Type::kNone)) read_separators(heap, separators, options);
  Writer writer(heap, options);
  writer.value(value);
  return writer.take();
}

}  // namespace isobit::jinja
