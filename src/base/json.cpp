#include "base/json.h"

#include "base/error.h"

namespace isobit {

nlohmann::json parse_json_file(std::string_view text, std::string_view name, JsonLimits limits) {
  if (text.size() > limits.bytes) {
    throw fail(ErrorCode::kBadFile, "{}: has {} bytes; at most {} are read. It is damaged, or no file of a model", name,
               text.size(), limits.bytes);
  }
  const auto check_depth = [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth <= limits.depth) return true;
    throw fail(ErrorCode::kBadFile, "{}: is nested more than {} deep. It is damaged, or no file of a model", name,
               limits.depth);
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), check_depth);
  } catch (const nlohmann::json::exception& e) {
    throw fail(ErrorCode::kBadFile, "{}: is not JSON ({}); download it again", name, e.what());
  }
}

}  // namespace isobit
