#pragma once
// Errors and limits of the chat template interpreter.
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include "base/error.h"

namespace isobit {

enum class TemplateErrorKind {
  kSyntax,       // the template is not the language
  kUnsupported,  // Jinja2 has it, this interpreter does not
  kRaised,       // the template called raise_exception
  kUndefined,    // an undefined value was used where a value is needed
  kSecurity,     // the sandbox forbids it (mutation, private attributes)
  kRuntime,      // what Python would answer with TypeError, ValueError, ...
  kLimit,        // a limit of TemplateLimits was reached
};

// What a template may use; it comes from a downloaded file, so it counts as hostile.
struct TemplateLimits {
  std::size_t steps = 20'000'000;         // evaluated nodes, plus one for every 16 bytes touched
  std::size_t memory_bytes = 128u << 20;  // live strings and all containers made by the template
  std::size_t string_bytes = 32u << 20;   // one string
  std::size_t output_bytes = 32u << 20;   // the rendered text
  int depth = 1000;                       // nested evaluations, macro calls included
  std::size_t source_bytes = 4u << 20;    // the template's own text
};

// what() names the template's line; detail() is the bare message (for kRaised, what the template said).
class TemplateError : public Error {
 public:
  TemplateError(TemplateErrorKind kind, int line, const std::string& detail)
      : Error(code_of(kind), describe(kind, line, detail)), kind_(kind), line_(line), detail_(detail) {}
  TemplateErrorKind kind() const { return kind_; }
  int line() const { return line_; }  // 1-based; 0 when not known
  const std::string& detail() const { return detail_; }

 private:
  static ErrorCode code_of(TemplateErrorKind kind);
  static std::string describe(TemplateErrorKind kind, int line, const std::string& detail);

  TemplateErrorKind kind_;
  int line_;
  std::string detail_;
};

namespace jinja {

// An error without a line; the interpreter adds the line it was at.
template <typename... Args>
[[nodiscard]] TemplateError problem(TemplateErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  return {kind, 0, fmt::format(format, std::forward<Args>(args)...)};
}

template <typename... Args>
[[nodiscard]] TemplateError type_error(fmt::format_string<Args...> format, Args&&... args) {
  return {TemplateErrorKind::kRuntime, 0, fmt::format(format, std::forward<Args>(args)...)};
}

}  // namespace jinja
}  // namespace isobit
