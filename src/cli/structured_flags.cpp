#include "cli/structured_flags.h"

#include <nlohmann/json.hpp>

#include "cli/cli.h"

namespace isobit::cli {

void StructuredFlags::add(CLI::App& app) {
  app.add_option("--json-schema", schema_file, "The answer is JSON that satisfies the schema in this file; -: stdin");
  app.add_option("--grammar", grammar_file, "The answer follows the EBNF grammar in this file, from its rule `root`");
  app.add_option("--regex", regex, "The answer matches all of this regular expression");
  app.add_option("--choice", choices, "The answer is one of these, may be repeated")->allow_extra_args(false);
}

std::optional<Constraint> StructuredFlags::constraint() const {
  const int given = static_cast<int>(!schema_file.empty()) + static_cast<int>(!grammar_file.empty()) +
                    static_cast<int>(!regex.empty()) + static_cast<int>(!choices.empty());
  require(given <= 1, "only one of --json-schema, --grammar, --regex and --choice can hold for an answer");
  if (!schema_file.empty()) return Constraint{Constraint::Kind::kJsonSchema, read_file(schema_file)};
  if (!grammar_file.empty()) return Constraint{Constraint::Kind::kGrammar, read_file(grammar_file)};
  if (!regex.empty()) return Constraint{Constraint::Kind::kRegex, regex};
  if (!choices.empty()) return Constraint{Constraint::Kind::kChoice, json_text(choices, -1)};
  return std::nullopt;
}

}  // namespace isobit::cli
