#include "server/fields.h"

#include <array>
#include <cmath>

namespace isobit::server {
namespace {

constexpr int kMaxDepth = 64;

const char* type_of(const Json& j) { return j.type_name(); }

// Messages of the engine begin with the parameter they are about.
std::string param_of(const std::string& message) {
  constexpr std::array kKnown = {"temperature",      "top_k",      "top_p",      "min_p",  "repetition_penalty",
                                 "presence_penalty", "logit_bias", "max_tokens", "prompt", "frequency_penalty",
                                 "top_logprobs",     "priority"};
  for (const std::string_view name : kKnown) {
    if (message.starts_with(name) || message.starts_with("the " + std::string(name))) return std::string(name);
  }
  return message.starts_with("a stop string") ? "stop" : "";
}

}  // namespace

Json ApiError::body() const {
  const auto or_null = [](const std::string& s) { return s.empty() ? Json() : Json(s); };
  return {{"error", {{"message", what()}, {"type", type_}, {"param", or_null(param_)}, {"code", or_null(code_)}}}};
}

ApiError invalid(const std::string& param, const std::string& message) {
  return {400, "invalid_request_error", message, param};
}

ApiError to_api_error(const Error& e) {
  switch (e.code()) {
    case ErrorCode::kInvalidArgument:
      return invalid(param_of(e.what()), e.what());
    case ErrorCode::kUnsupported:
      return {400, "invalid_request_error", e.what(), {}, "unsupported"};
    default:
      return {500, "server_error", e.what()};
  }
}

Json parse_body(const std::string& body) {
  bool too_deep = false;
  const auto limit = [&](int depth, Json::parse_event_t, Json&) {
    too_deep = too_deep || depth > kMaxDepth;
    return !too_deep;
  };
  Json json = Json::parse(body, limit, false);
  if (too_deep) throw invalid("", fmt::format("the body is nested more than {} deep; flatten it", kMaxDepth));
  if (json.is_discarded()) throw invalid("", "the body is not valid JSON (UTF-8)");
  if (!json.is_object()) throw invalid("", fmt::format("the body is a JSON {}; it must be an object", type_of(json)));
  return json;
}

std::string to_text(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

const Json* Fields::find(const std::string& name) const {
  const auto it = object_.find(name);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool Fields::flag(const std::string& name, bool otherwise) const {
  const Json* j = find(name);
  if (j == nullptr) return otherwise;
  if (!j->is_boolean())
    throw invalid(path(name), fmt::format("{} is a {}; it must be true or false", path(name), type_of(*j)));
  return j->get<bool>();
}

int64_t Fields::integer(const std::string& name, int64_t otherwise, int64_t low, int64_t high) const {
  const Json* j = find(name);
  if (j == nullptr) return otherwise;
  const bool fits = j->is_number_integer() && !(j->is_number_unsigned() && j->get<uint64_t>() > INT64_MAX);
  if (!fits || j->get<int64_t>() < low || j->get<int64_t>() > high) {
    throw invalid(path(name),
                  fmt::format("{} is {:.40}; it must be an integer in [{}, {}]", path(name), to_text(*j), low, high));
  }
  return j->get<int64_t>();
}

double Fields::number(const std::string& name, double otherwise, double low, double high) const {
  const Json* j = find(name);
  if (j == nullptr) return otherwise;
  const double value = j->is_number() ? j->get<double>() : NAN;
  if (!(value >= low && value <= high)) {
    throw invalid(path(name),
                  fmt::format("{} is {:.40}; it must be a number in [{}, {}]", path(name), to_text(*j), low, high));
  }
  return value;
}

std::optional<std::string> Fields::text(const std::string& name) const {
  const Json* j = find(name);
  if (j == nullptr) return std::nullopt;
  if (!j->is_string())
    throw invalid(path(name), fmt::format("{} is a {}; it must be a string", path(name), type_of(*j)));
  return j->get<std::string>();
}

std::string Fields::required_text(const std::string& name) const {
  auto value = text(name);
  if (!value) throw invalid(path(name), fmt::format("{} is missing; it must be a string", path(name)));
  return *value;
}

std::vector<int32_t> Fields::tokens(const std::string& name, int64_t vocab) const {
  const Json* j = find(name);
  return j == nullptr ? std::vector<int32_t>() : read_tokens(*j, path(name), vocab);
}

std::vector<int32_t> read_tokens(const Json& array, const std::string& param, int64_t vocab) {
  if (!array.is_array())
    throw invalid(param, fmt::format("{} is a {}; it must be an array of token ids", param, type_of(array)));
  std::vector<int32_t> ids;
  ids.reserve(array.size());
  for (const Json& id : array) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab)) {
      throw invalid(param,
                    fmt::format("{} holds {:.40}; token ids are integers in [0, {})", param, to_text(id), vocab));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace isobit::server
