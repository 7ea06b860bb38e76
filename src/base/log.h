#pragma once
// Log lines go to stderr through spdlog; stdout belongs to answers.
#include <spdlog/spdlog.h>

namespace isobit {

// level: trace, debug, info, warn, error, off. Throws Error for any other word.
void set_log_level(const std::string& level);

}  // namespace isobit
