#pragma once
// A model file's chat template: a Jinja2 program that turns a conversation into the text the model was trained on.
#include <ctime>
#include <functional>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>

#include "text/jinja_error.h"

namespace isobit {

struct Message {
  std::string role;
  std::string content;
  // A JSON object with the message's other fields, such as tool_calls or reasoning_content; a "content" in it (a list
  // of parts, or null) replaces `content`. Empty: none.
  std::string extra_json;
};

// What a template sees beside the messages. The JSON texts may be empty: none.
struct ChatContext {
  bool add_generation_prompt = true;
  std::string bos_token, eos_token;
  std::string tools_json;      // an array of tool schemas
  std::string documents_json;  // an array of {title, text}
  std::string extra_json;      // an object of further variables, such as {"enable_thinking": false}
};

struct TemplateOptions {
  TemplateLimits limits;
  std::function<std::tm()> clock;  // for strftime_now; empty: the local time
};

// Behaves as Jinja2 3.1 set up by Hugging Face's apply_chat_template: ImmutableSandboxedEnvironment, trim_blocks,
// lstrip_blocks, loop controls, the generation tag, raise_exception, strftime_now and a tojson without HTML escapes.
// Rendering changes nothing and may be done by several threads at once.
class ChatTemplate {
 public:
  // Throws TemplateError (kSyntax, kUnsupported, kLimit) with the line of the template.
  explicit ChatTemplate(std::string source, TemplateOptions options = {});

  // ChatML, for a model file that brings no template.
  static ChatTemplate chatml();
  // BOS and the messages' text, for models that know no turns.
  static ChatTemplate plain();

  // Throws TemplateError; kRaised carries the message of the template's raise_exception. A JSON text that does not
  // parse is an Error(kInvalidArgument).
  std::string render(std::span<const Message> messages, const ChatContext& context) const;
  // Every key of the object is a variable. Members keep their order, which `| tojson` shows.
  std::string render(const nlohmann::ordered_json& context) const;

  const std::string& source() const { return source_; }

 private:
  struct Parsed;
  std::string source_;
  TemplateOptions options_;
  std::shared_ptr<const Parsed> parsed_;
};

}  // namespace isobit
