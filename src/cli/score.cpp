#include <cmath>
#include <cstdint>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/digest.h"
#include "cli/cli.h"
#include "numerics/contract.h"

namespace isobit::cli {
namespace {

struct ScoreFlags {
  ModelFlags model;
  std::vector<std::string> words;  // [MODEL] FILE
  std::string tokens;
  bool json = false;
};

// Windows of the context's length, each starting afresh; a token is scored once, given those before it in its window.
struct Scored {
  std::vector<int32_t> tokens, best;
  std::vector<float> logprobs;
  int windows = 0;
};

Scored score_windows(Session& session, const std::vector<int32_t>& tokens) {
  const auto context = static_cast<size_t>(session.engine().options().context);
  Scored all;
  for (size_t start = 0; start + 1 < tokens.size(); start += context) {
    const size_t end = std::min(tokens.size(), start + context);
    if (end - start < 2) break;
    const Result r =
        session.score({tokens.begin() + static_cast<long>(start), tokens.begin() + static_cast<long>(end)});
    all.tokens.insert(all.tokens.end(), tokens.begin() + static_cast<long>(start) + 1,
                      tokens.begin() + static_cast<long>(end));
    all.best.insert(all.best.end(), r.prompt_best.begin(), r.prompt_best.end());
    all.logprobs.insert(all.logprobs.end(), r.prompt_logprobs.begin(), r.prompt_logprobs.end());
    all.windows++;
  }
  return all;
}

std::vector<int32_t> read_tokens(const ScoreFlags& f, const Session& session, const std::string& path) {
  if (f.tokens.empty()) {
    const std::string text = read_file(path);
    require(!text.empty(), "{}: the file is empty", path);
    return session.text_prompt(text);
  }
  const auto parsed = nlohmann::json::parse(read_file(f.tokens), nullptr, false);
  require(parsed.is_array(), "{}: not a JSON array of token ids", f.tokens);
  std::vector<int32_t> ids;
  for (const auto& id : parsed) {
    const bool fits = id.is_number_integer() && id.is_number_unsigned() && id.get<uint64_t>() <= INT32_MAX;
    require(fits, "{}: {} is not a token id", f.tokens, id.dump());
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

int score(ScoreFlags& f) {
  require(f.words.size() <= 2, "{} names were given; the command takes [MODEL] FILE", f.words.size());
  require(f.words.size() >= (f.tokens.empty() ? 1U : 0U), "no text: name a file, - for stdin, or --tokens FILE");
  if (f.words.size() == 2) f.model.model = f.words[0];
  EngineOptions engine;
  engine.max_requests = 1;
  engine.prefix_cache = false;
  const auto session = open_session(f.model, engine);
  const std::vector<int32_t> tokens = read_tokens(f, *session, f.words.empty() ? "" : f.words.back());
  require(tokens.size() >= 2, "the text has {} tokens; at least 2 are needed", tokens.size());
  const Scored s = score_windows(*session, tokens);
  double sum = 0;
  size_t right = 0;
  Digest digest;
  for (size_t i = 0; i < s.logprobs.size(); i++) {
    sum += static_cast<double>(s.logprobs[i]);
    right += s.best[i] == s.tokens[i] ? 1U : 0U;
    digest.add(&s.logprobs[i], sizeof(float));
  }
  const auto count = static_cast<double>(s.logprobs.size());
  if (f.json) {
    nlohmann::json j = {{"model", session->engine().config().name},
                        {"contract", numerics::kContractVersion},
                        {"windows", s.windows},
                        {"tokens", s.tokens},
                        {"logprobs", s.logprobs},
                        {"argmax", s.best},
                        {"mean_logprob", sum / count},
                        {"perplexity", std::exp(-sum / count)},
                        {"bits", digest.hex()}};
    std::cout << json_text(j) << "\n";
  } else {
    std::cout << fmt::format(
        "{} tokens scored in {} window(s) of {}\nmean log-probability {:.6f}, perplexity {:.4f}, argmax right "
        "{:.2f}%\n{}, bits {}\n",
        s.logprobs.size(), s.windows, session->engine().options().context, sum / count, std::exp(-sum / count),
        100.0 * static_cast<double>(right) / count, numerics::kContractVersion, digest.hex());
  }
  return kOk;
}

}  // namespace

void add_score(CLI::App& app, Command& command) {
  auto f = std::make_shared<ScoreFlags>();
  CLI::App* sub = app.add_subcommand("score", "Log-probabilities and perplexity of a text");
  sub->add_option("words", f->words, "[MODEL] FILE; - reads stdin")->type_name("[MODEL] FILE");
  f->model.add(*sub);
  sub->add_option("--tokens", f->tokens, "Score a JSON array of token ids instead of a text");
  sub->add_flag("--json", f->json, "Every token's log-probability as JSON");
  sub->footer(R"(Examples:
  isobit score article.txt
  isobit score article.txt -c 2048 --json > scores.json)");
  sub->callback([f, &command] { command.run = [f] { return score(*f); }; });
}

}  // namespace isobit::cli
