#include "text/jinja_error.h"

namespace isobit {

ErrorCode TemplateError::code_of(TemplateErrorKind kind) {
  switch (kind) {
    case TemplateErrorKind::kSyntax:
    case TemplateErrorKind::kSecurity:
    case TemplateErrorKind::kLimit:
    case TemplateErrorKind::kUndefined:
    case TemplateErrorKind::kRuntime:
      return ErrorCode::kBadFile;
    case TemplateErrorKind::kUnsupported:
      return ErrorCode::kUnsupported;
    case TemplateErrorKind::kRaised:  // the conversation, not the file
      return ErrorCode::kInvalidArgument;
  }
  return ErrorCode::kInternal;
}

std::string TemplateError::describe(TemplateErrorKind kind, int line, const std::string& detail) {
  if (kind == TemplateErrorKind::kRaised) return fmt::format("the chat template refused the conversation: {}", detail);
  if (line <= 0) return fmt::format("chat template: {}", detail);
  return fmt::format("chat template, line {}: {}", line, detail);
}

}  // namespace isobit
