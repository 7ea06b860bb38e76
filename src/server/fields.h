#pragma once
// Reads a request's JSON field by field; what is out of range is refused by name, in OpenAI's shape.
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/error.h"

namespace isobit::server {

using Json = nlohmann::ordered_json;

// An error to the client: HTTP status, and OpenAI's error object.
class ApiError : public std::runtime_error {
 public:
  ApiError(int status, std::string type, const std::string& message, std::string param = {}, std::string code = {})
      : std::runtime_error(message),
        status_(status),
        type_(std::move(type)),
        param_(std::move(param)),
        code_(std::move(code)) {}
  int status() const { return status_; }
  Json body() const;

 private:
  int status_;
  std::string type_, param_, code_;
};

// status 400, param named.
[[nodiscard]] ApiError invalid(const std::string& param, const std::string& message);
// What the rest of the program throws, as an ApiError; `params` are the names that a message may begin with.
[[nodiscard]] ApiError to_api_error(const Error& error);

// The whole body: an object, nested kMaxDepth deep at most. Throws ApiError.
Json parse_body(const std::string& body);
std::string to_text(const Json& json);  // on one line; bytes that are not UTF-8 become U+FFFD

// Fields of one object; absent and null are the same.
class Fields {
 public:
  explicit Fields(const Json& object, std::string prefix = {}) : object_(object), prefix_(std::move(prefix)) {}

  const Json* find(const std::string& name) const;
  std::string path(const std::string& name) const { return prefix_ + name; }

  bool flag(const std::string& name, bool otherwise) const;
  int64_t integer(const std::string& name, int64_t otherwise, int64_t low, int64_t high) const;
  double number(const std::string& name, double otherwise, double low, double high) const;
  std::optional<std::string> text(const std::string& name) const;
  std::string required_text(const std::string& name) const;
  // An array of token ids below `vocab`.
  std::vector<int32_t> tokens(const std::string& name, int64_t vocab) const;

 private:
  const Json& object_;
  std::string prefix_;
};

std::vector<int32_t> read_tokens(const Json& array, const std::string& param, int64_t vocab);

}  // namespace isobit::server
