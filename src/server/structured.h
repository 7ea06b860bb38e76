#pragma once
// Structured output as clients ask for it: OpenAI's response_format, and the names that vLLM and SGLang have.
#include <optional>
#include <string>

#include "grammar/grammar.h"
#include "server/fields.h"

namespace isobit::server {

struct StructuredOutput {
  Constraint constraint;
  std::string param;  // that asked for it
};

// Throws ApiError naming the parameter: what is malformed, or that two were given. What the constraint itself says is
// checked when it is compiled.
std::optional<StructuredOutput> read_structured(const Fields& fields);

}  // namespace isobit::server
