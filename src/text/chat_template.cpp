#include "text/chat_template.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "text/jinja_ast.h"
#include "text/jinja_interpreter.h"

namespace isobit {

using OrderedJson = nlohmann::ordered_json;

struct ChatTemplate::Parsed {
  jinja::Program program;
};

namespace {

using jinja::Heap;
using jinja::Value;

// Deeper JSON would only be cut off later, by a template that prints it.
constexpr int kMaxJsonDepth = 256;

Value to_value(Heap& heap, const OrderedJson& json, int depth) {
  require(depth <= kMaxJsonDepth, "the chat template's context is nested more than {} deep; flatten it", kMaxJsonDepth);
  switch (json.type()) {
    case OrderedJson::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case OrderedJson::value_t::number_integer:
      return Value::integer(json.get<int64_t>());
    case OrderedJson::value_t::number_unsigned: {
      const auto number = json.get<uint64_t>();
      require(number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
              "the integer {} in the chat template's context is larger than 64 signed bits", number);
      return Value::integer(static_cast<int64_t>(number));
    }
    case OrderedJson::value_t::number_float:
      return Value::floating(json.get<double>());
    case OrderedJson::value_t::string:
      return Value::constant(json.get_ref<const std::string&>());
    case OrderedJson::value_t::array: {
      jinja::Values items;
      items.reserve(json.size());
      for (const OrderedJson& item : json) items.push_back(to_value(heap, item, depth + 1));
      return Value(&heap.adopt<jinja::Sequence>(jinja::Type::kList, std::move(items)));
    }
    case OrderedJson::value_t::object: {
      auto& dict = heap.adopt<jinja::Dict>();
      for (const auto& [key, item] : json.items()) dict.set_text(heap, key, to_value(heap, item, depth + 1));
      return Value(&dict);
    }
    default:
      return {};
  }
}

std::tm local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  return parts;
}

OrderedJson parse_json(const std::string& text, const char* what) {
  OrderedJson json = OrderedJson::parse(text, nullptr, false);
  require(!json.is_discarded(), "the chat template's {} are not valid JSON: {:.80}", what, text);
  return json;
}

OrderedJson message_json(const Message& message) {
  OrderedJson json = OrderedJson::object();
  json["role"] = message.role;
  json["content"] = message.content;
  if (message.extra_json.empty()) return json;
  const OrderedJson extra = parse_json(message.extra_json, "message fields");
  require(extra.is_object(), "a message's further fields must be a JSON object, not {:.80}", message.extra_json);
  for (const auto& [key, value] : extra.items()) json[key] = value;
  return json;
}

}  // namespace

ChatTemplate::ChatTemplate(std::string source, TemplateOptions options)
    : source_(std::move(source)), options_(std::move(options)) {
  if (!options_.clock) options_.clock = local_time;
  parsed_ = std::make_shared<const Parsed>(Parsed{jinja::parse(source_, options_.limits)});
}

ChatTemplate ChatTemplate::chatml() {
  return ChatTemplate(
      "{% for message in messages %}"
      "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
      "{% endfor %}"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}");
}

ChatTemplate ChatTemplate::plain() {
  return ChatTemplate(
      "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
      "{% if not loop.last %}{{ '\\n\\n' }}{% endif %}{% endfor %}");
}

std::string ChatTemplate::render(std::span<const Message> messages, const ChatContext& context) const {
  OrderedJson json = OrderedJson::object();
  json["messages"] = OrderedJson::array();
  for (const Message& message : messages) json["messages"].push_back(message_json(message));
  json["tools"] = context.tools_json.empty() ? OrderedJson() : parse_json(context.tools_json, "tools");
  json["documents"] = context.documents_json.empty() ? OrderedJson() : parse_json(context.documents_json, "documents");
  json["add_generation_prompt"] = context.add_generation_prompt;
  json["bos_token"] = context.bos_token;
  json["eos_token"] = context.eos_token;
  if (!context.extra_json.empty()) {
    const OrderedJson extra = parse_json(context.extra_json, "further variables");
    require(extra.is_object(), "the chat template's further variables must be a JSON object, not {:.80}",
            context.extra_json);
    for (const auto& [key, value] : extra.items()) json[key] = value;
  }
  return render(json);
}

std::string ChatTemplate::render(const OrderedJson& context) const {
  require(context.is_object(), "the chat template's context must be a JSON object");
  auto lookup = [&context](Heap& heap, const std::string& name, Value& out) {
    auto it = context.find(name);
    if (it == context.end()) return false;
    out = to_value(heap, *it, 0);
    return true;
  };
  return jinja::render(parsed_->program, lookup, options_.limits, options_.clock);
}

}  // namespace isobit
