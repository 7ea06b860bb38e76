#pragma once
// --draft-tokens, --draft-topk, --draft-model, --draft-requests: tokens guessed ahead; the answers are the same.
#include <CLI/CLI.hpp>
#include <string>

#include "engine/engine.h"

namespace isobit::cli {

struct SpeculationFlags {
  int32_t tokens = 0, branches = EngineOptions().draft_branches, requests = EngineOptions().draft_requests;
  std::string model;
  // many: the command answers several requests at once.
  void add(CLI::App& app, bool many);
  // Opens the draft model. Throws Error where there is none.
  void apply(EngineOptions& options) const;
};

}  // namespace isobit::cli
