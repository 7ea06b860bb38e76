#include "server/structured.h"

#include <array>

namespace isobit::server {
namespace {

using Kind = Constraint::Kind;

struct Name {
  const char* name;
  Kind kind;
};
// At the request's top level.
constexpr std::array kTopLevel = {Name{"guided_json", Kind::kJsonSchema},
                                  Name{"guided_regex", Kind::kRegex},
                                  Name{"guided_grammar", Kind::kGrammar},
                                  Name{"guided_choice", Kind::kChoice},
                                  Name{"json_schema", Kind::kJsonSchema},
                                  Name{"regex", Kind::kRegex},
                                  Name{"ebnf", Kind::kGrammar}};
// In vLLM's structured_outputs.
constexpr std::array kStructuredOutputs = {Name{"json", Kind::kJsonSchema}, Name{"regex", Kind::kRegex},
                                           Name{"grammar", Kind::kGrammar}, Name{"choice", Kind::kChoice},
                                           Name{"json_object", Kind::kJsonObject}};

// A schema may be given as JSON or as its text.
std::string constraint_text(Kind kind, const Json& value, const std::string& param) {
  if (kind == Kind::kJsonObject) return {};
  if (kind == Kind::kChoice) {
    if (!value.is_array()) throw invalid(param, fmt::format("{} must be an array of strings", param));
    return to_text(value);
  }
  if (value.is_string()) return value.get<std::string>();
  if (kind != Kind::kJsonSchema || !(value.is_object() || value.is_boolean()))
    throw invalid(param, fmt::format("{} is a {}; it must be a string{}", param, value.type_name(),
                                     kind == Kind::kJsonSchema ? " or a JSON schema" : ""));
  return to_text(value);
}

class Reader {
 public:
  void add(Kind kind, const Json& value, const std::string& param) {
    if (found_) throw invalid(param, fmt::format("{} and {} were given; give one of them", found_->param, param));
    found_ = {{kind, constraint_text(kind, value, param)}, param};
  }
  template <size_t N>
  void add_named(const Fields& fields, const std::array<Name, N>& names) {
    for (const Name& n : names) {
      const Json* value = fields.find(n.name);
      if (value != nullptr && *value != Json(false)) add(n.kind, *value, fields.path(n.name));
    }
  }
  void add_response_format(const Json& format) {
    if (!format.is_object()) throw invalid("response_format", "response_format must be an object with a type");
    const Fields fields(format, "response_format.");
    const std::string type = fields.required_text("type");
    if (type == "text") return;
    if (type == "json_object") return add(Kind::kJsonObject, format, "response_format");
    if (type != "json_schema")
      throw invalid(
          "response_format",
          fmt::format("response_format is of type '{:.40}'; known are text, json_object and json_schema", type));
    const Json* outer = fields.find("json_schema");
    const Json* schema = outer != nullptr && outer->is_object() ? Fields(*outer).find("schema") : nullptr;
    if (schema == nullptr)
      throw invalid("response_format", "response_format.json_schema.schema is missing; it must be a JSON schema");
    add(Kind::kJsonSchema, *schema, "response_format");
  }
  std::optional<StructuredOutput> take() { return std::move(found_); }

 private:
  std::optional<StructuredOutput> found_;
};

}  // namespace

std::optional<StructuredOutput> read_structured(const Fields& fields) {
  Reader reader;
  if (const Json* format = fields.find("response_format")) reader.add_response_format(*format);
  if (const Json* outputs = fields.find("structured_outputs")) {
    if (!outputs->is_object()) throw invalid("structured_outputs", "structured_outputs must be an object");
    reader.add_named(Fields(*outputs, "structured_outputs."), kStructuredOutputs);
  }
  reader.add_named(fields, kTopLevel);
  return reader.take();
}

}  // namespace isobit::server
