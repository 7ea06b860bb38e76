// Where xgrammar's messages go: what it refuses is an exception with its bare words, what it remarks goes to the log.
#include <stdexcept>
#include <string>

#include "base/log.h"

namespace xgrammar {

[[noreturn]] void LogFatalImpl(const std::string& /*file*/, int /*line*/, const std::string& message) {
  throw std::runtime_error(message);
}

void LogMessageImpl(const std::string& /*file*/, int /*line*/, int /*level*/, const std::string& message) {
  spdlog::debug("xgrammar: {}", message);
}

}  // namespace xgrammar
