#include "cli/speculation_flags.h"

#include "engine/session.h"
#include "models/registry.h"

namespace isobit::cli {

void SpeculationFlags::add(CLI::App& app, bool many) {
  app.add_option("--draft-tokens,--speculative-num-draft-tokens", tokens,
                 "Speculation: tokens guessed from the text itself, a sequence and step; the answers are the same")
      ->capture_default_str();
  app.add_option("--draft-topk,--speculative-eagle-topk", branches,
                 "Speculation: ways on from one token, at most, where --draft-tokens leaves room: guesses form a tree; "
                 "1: a chain")
      ->capture_default_str();
  app.add_option("--draft-model,--speculative-draft-model-path", model,
                 "Speculation: a smaller model of the same vocabulary guesses where the text does not; with "
                 "--draft-tokens");
  if (!many) return;
  app.add_option("--draft-requests", requests, "Speculation pauses while more sequences than this are computed")
      ->capture_default_str();
}

void SpeculationFlags::apply(EngineOptions& options) const {
  options.draft_tokens = tokens;
  options.draft_branches = branches;
  options.draft_requests = requests;
  if (!model.empty()) options.draft_file = open_checkpoint(resolve_model(model));
}

}  // namespace isobit::cli
