#include <algorithm>
#include <iostream>
#include <memory>

#include "cli/cli.h"
#include "engine/receipt.h"

namespace isobit::cli {
namespace {

struct ReplayFlags {
  ModelFlags model;
  std::string receipt;
};

int replay_receipt(ReplayFlags& f) {
  const Receipt receipt = read_receipt(read_file(f.receipt));
  EngineOptions engine;
  engine.max_requests = 1;
  engine.prefix_cache = false;
  const auto needed = static_cast<int64_t>(receipt.prompt.size() + receipt.tokens.size());
  if (f.model.context == 0) f.model.context = static_cast<int32_t>(std::max(needed, receipt.least_context));
  if (f.model.dtype == "auto") f.model.dtype = receipt.compute;
  if (f.model.kv_cache_dtype == "auto") f.model.kv_cache_dtype = receipt.kv_cache;
  const auto session = open_session(f.model, engine);
  const auto grammar = receipt.constraint ? session->grammar(*receipt.constraint) : nullptr;
  const auto difference = replay(session->engine(), receipt, grammar);
  if (!difference) {
    std::cout << fmt::format("Equal: {} tokens, made on {}, have the same bits on {} ({}).\n", receipt.tokens.size(),
                             receipt.device.empty() ? "another machine" : receipt.device, session->device(),
                             receipt.contract);
    return kOk;
  }
  std::cout << fmt::format("DIFFERENT: the {} of answer token {} (position {}): {} in the receipt, {} here.\n",
                           difference->what, difference->index, receipt.prompt.size() + difference->index,
                           difference->expected, difference->found);
  return kDifferent;
}

}  // namespace

void add_replay(CLI::App& app, Command& command) {
  auto f = std::make_shared<ReplayFlags>();
  CLI::App* sub = app.add_subcommand("replay", "Make an answer again from its receipt and compare the bits");
  sub->add_option("receipt", f->receipt, "The receipt, a JSON file; - reads stdin")->required();
  f->model.add(*sub);
  sub->footer(R"(Examples:
  isobit replay receipt.json
  isobit replay receipt.json --model ./model.gguf --device cpu)");
  sub->callback([f, &command] { command.run = [f] { return replay_receipt(*f); }; });
}

}  // namespace isobit::cli
