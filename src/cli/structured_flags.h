#pragma once
// --json-schema, --regex, --grammar, --choice: what an answer's text must be.
#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "grammar/grammar.h"

namespace isobit::cli {

struct StructuredFlags {
  std::string schema_file, grammar_file, regex;
  std::vector<std::string> choices;
  void add(CLI::App& app);
  // Reads the file named. Throws Error where it cannot, or where two of the flags were given.
  std::optional<Constraint> constraint() const;
};

}  // namespace isobit::cli
