#pragma once
// The one exception type of the project. A message names the value, the limit and the remedy.
#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace isobit {

enum class ErrorCode {
  kInvalidArgument,  // the caller asked for something out of range
  kBadFile,          // a model or data file is damaged, truncated or hostile
  kUnsupported,      // well-formed, but not something this build can run
  kNotFound,         // no such file or model
  kOutOfMemory,      // memory or cache pages exhausted
  kIo,               // disk or network failed
  kDevice,           // the accelerator or its driver is missing or failed
  kNumerical,        // NaN or no finite value where a number is needed
  kInternal,         // a bug in isobit
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

// throw fail(ErrorCode::kBadFile, "tensor {}: offset {} is past the end {}", ...)
template <typename... Args>
[[nodiscard]] Error fail(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  return {code, fmt::format(format, std::forward<Args>(args)...)};
}

// Checks an argument at a boundary; the message is built only on failure.
template <typename... Args>
void require(bool ok, fmt::format_string<Args...> format, Args&&... args) {
  if (!ok) throw fail(ErrorCode::kInvalidArgument, format, std::forward<Args>(args)...);
}

}  // namespace isobit
