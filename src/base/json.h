#pragma once
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace isobit {

// JSON of a file that is not trusted, with limits on its size and depth. Throws Error kBadFile whose message opens with
// `name`.
struct JsonLimits {
  size_t bytes = size_t{128} << 20;  // the largest tokenizer.json known has 33 MB
  int depth = 64;
};
nlohmann::json parse_json_file(std::string_view text, std::string_view name, JsonLimits limits = {});

}  // namespace isobit
