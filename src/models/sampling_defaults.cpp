#include "models/sampling_defaults.h"

#include <fmt/ranges.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace isobit {
namespace {

constexpr int64_t kAnyVocabulary = INT32_MAX;  // logit biases, which depend on it, are not among the defaults

std::optional<float> json_number(const nlohmann::json& json, const char* key, const std::string& where) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return std::nullopt;
  if (!it->is_number()) {
    throw fail(ErrorCode::kBadFile, "{}: {} is {:.60}; a number is wanted", where, key, it->dump());
  }
  return it->get<float>();
}

// -1, 0 and what no vocabulary reaches: off.
std::optional<int32_t> whole(std::optional<float> value, const std::string& where) {
  if (!value) return std::nullopt;
  if (*value >= -1.0f && *value < 0x1p24f && std::trunc(*value) == *value) return static_cast<int32_t>(*value);
  throw fail(ErrorCode::kBadFile, "{}: top_k is {}; it must be an integer in [-1, 2^24)", where, *value);
}

SamplingDefaults of_json(std::string_view text, const std::string& where) {
  const nlohmann::json json = parse_json_file(text, where);
  if (!json.is_object()) throw fail(ErrorCode::kBadFile, "{}: is no JSON object; download it again", where);
  SamplingDefaults d;
  d.temperature = json_number(json, "temperature", where);
  d.top_k = whole(json_number(json, "top_k", where), where);
  d.top_p = json_number(json, "top_p", where);
  d.min_p = json_number(json, "min_p", where);
  d.repetition_penalty = json_number(json, "repetition_penalty", where);
  return d;
}

SamplingDefaults of_metadata(const Metadata& meta) {
  SamplingDefaults d;
  d.temperature = meta.find_f32("general.sampling.temp");
  d.top_k = meta.find_i32("general.sampling.top_k");
  d.top_p = meta.find_f32("general.sampling.top_p");
  d.min_p = meta.find_f32("general.sampling.min_p");
  d.repetition_penalty = meta.find_f32("general.sampling.penalty_repeat");
  return d;
}

}  // namespace

SamplingParams SamplingDefaults::over(SamplingParams base) const {
  base.temperature = temperature.value_or(base.temperature);
  base.top_k = top_k.value_or(base.top_k);
  base.top_p = top_p.value_or(base.top_p);
  base.min_p = min_p.value_or(base.min_p);
  base.repetition_penalty = repetition_penalty.value_or(base.repetition_penalty);
  return base;
}

std::string SamplingDefaults::describe() const {
  std::vector<std::string> all;
  if (temperature) all.push_back(fmt::format("temperature {}", *temperature));
  if (top_k) all.push_back(fmt::format("top-k {}", *top_k));
  if (top_p) all.push_back(fmt::format("top-p {}", *top_p));
  if (min_p) all.push_back(fmt::format("min-p {}", *min_p));
  if (repetition_penalty) all.push_back(fmt::format("repetition penalty {}", *repetition_penalty));
  return fmt::format("{}", fmt::join(all, ", "));
}

SamplingDefaults read_sampling_defaults(const Checkpoint& file) {
  const auto document = file.document("generation_config.json");
  const std::string where = document ? file.path() + "/generation_config.json" : file.path() + ", general.sampling";
  const SamplingDefaults d = document ? of_json(*document, where) : of_metadata(file.metadata());
  try {
    d.over({}).check(kAnyVocabulary);
  } catch (const Error& e) {
    throw fail(ErrorCode::kBadFile, "{}: {}", where, e.what());
  }
  return d;
}

}  // namespace isobit
