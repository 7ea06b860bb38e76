#pragma once
// Runs a parsed template.
#include <ctime>
#include <functional>
#include <string>
#include <string_view>

#include "text/jinja_ast.h"
#include "text/jinja_loop.h"
#include "text/jinja_value.h"

namespace isobit::jinja {

// Finds a variable of the context by name; false when there is none. Asked once for each name of the template.
using ContextLookup = std::function<bool(Heap& heap, const std::string& name, Value& out)>;

// The rendered text. Throws TemplateError with the line of the template.
std::string render(const Program& program, const ContextLookup& context, const TemplateLimits& limits,
                   const std::function<std::tm()>& clock);

}  // namespace isobit::jinja
