#include "base/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>

#include "base/error.h"

namespace isobit {

void set_log_level(const std::string& level) {
  const auto parsed = spdlog::level::from_str(level);
  require(parsed != spdlog::level::off || level == "off",
          "log level '{}' is unknown; use trace, debug, info, warn, error or off", level);
  if (!spdlog::get("isobit")) {
    spdlog::set_default_logger(spdlog::stderr_color_mt("isobit"));
    spdlog::set_pattern("%^[%l]%$ %v");
  }
  spdlog::set_level(parsed);
}

}  // namespace isobit
