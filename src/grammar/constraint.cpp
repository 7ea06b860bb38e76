#include <algorithm>
#include <array>

#include "base/error.h"
#include "grammar/grammar.h"

namespace isobit {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"json_object", "json_schema", "regex", "grammar", "choice"};

}  // namespace

std::string_view constraint_name(Constraint::Kind kind) { return kNames[static_cast<size_t>(kind)]; }

Constraint::Kind parse_constraint_kind(std::string_view name) {
  const auto* const found = std::ranges::find(kNames, name);
  require(found != kNames.end(), "constraint '{}' is unknown; known are {}", name, fmt::join(kNames, ", "));
  return static_cast<Constraint::Kind>(found - kNames.begin());
}

}  // namespace isobit
