#include <fstream>
#include <iostream>
#include <memory>

#include "cli/cli.h"
#include "cli/speculation_flags.h"
#include "cli/structured_flags.h"
#include "engine/receipt.h"
#include "models/registry.h"

namespace isobit::cli {
namespace {

struct RunFlags {
  ModelFlags model;
  SamplingFlags sampling;
  StructuredFlags structured;
  SpeculationFlags speculation;
  std::vector<std::string> words;  // [MODEL] PROMPT
  std::string system, file, receipt;
  bool raw = false, json = false;
};

// One word is the prompt, two are the model and the prompt; without a prompt, --file or stdin has it.
std::string settle_prompt(RunFlags& f) {
  require(f.words.size() <= 2, "{} words were given; quote the prompt: isobit run \"…\"", f.words.size());
  if (f.words.size() == 2) f.model.model = f.words[0];
  const bool only_model = f.words.size() == 1 && (!f.file.empty() || !stdin_is_terminal()) && names_model(f.words[0]);
  if (only_model) f.model.model = f.words[0];
  std::string prompt = f.words.empty() || only_model ? "" : f.words.back();
  if (!f.file.empty()) {
    require(prompt.empty(), "both a prompt and --file were given; give one of them");
    prompt = read_file(f.file);
  } else if (prompt.empty() && (f.words.empty() || only_model)) {
    require(!stdin_is_terminal(), "no prompt: write it after `isobit run`, name a --file, or pipe it in");
    prompt = read_file("-");
  } else if (prompt == "-") {
    prompt = read_file("-");
  }
  require(prompt.find_first_not_of(" \t\r\n") != std::string::npos, "the prompt is empty; write some text");
  return prompt;
}

// What `isobit replay` makes the answer from again.
void write_receipt(const std::string& path, const Session& session, const std::vector<int32_t>& prompt,
                   const GenerateOptions& options, const Answer& answer) {
  Request request;
  request.prompt = prompt;
  request.sampling = options.sampling;
  if (options.constraint) request.grammar = session.grammar(*options.constraint);
  Receipt receipt = make_receipt(session.engine(), request, answer.tokens);
  receipt.device = session.device();
  std::ofstream out(path);
  out << receipt_json(receipt) << "\n";
  if (!out.flush()) throw fail(ErrorCode::kIo, "{}: the receipt cannot be written; check the path and the disk", path);
}

int run_prompt(RunFlags& f) {
  const std::string prompt = settle_prompt(f);
  (void)f.sampling.options();  // refuse malformed values before the model loads
  const auto constraint = f.structured.constraint();
  Interrupt interrupt;
  EngineOptions engine;
  engine.max_requests = 1;
  f.speculation.apply(engine);
  const auto session = open_session(f.model, engine);
  GenerateOptions o = f.sampling.options(session->sampling_defaults());
  std::vector<int32_t> tokens;
  if (f.raw) {
    tokens = session->text_prompt(prompt);
  } else {
    std::vector<Message> messages;
    if (!f.system.empty()) messages.push_back({"system", f.system});
    messages.push_back({"user", prompt});
    tokens = session->chat_prompt(messages);
  }
  o.constraint = constraint;
  o.cancel = &interrupt.flag();
  if (!f.json) o.on_text = [](std::string_view text) { std::cout << text << std::flush; };
  o.digest_logits = !f.receipt.empty();
  const Answer answer = session->generate(tokens, o);
  if (interrupt.raised()) std::cout.clear();  // Ctrl-C may have cut a write short
  if (f.json) {
    std::cout << answer_json(answer, o, *session) << "\n";
  } else {
    std::cout << "\n" << std::flush;
    std::cerr << summary(answer, o, *session) << "\n";
  }
  if (!f.receipt.empty()) write_receipt(f.receipt, *session, tokens, o, answer);
  return answer.reason == FinishReason::kCancelled ? kInterrupted : kOk;
}

}  // namespace

void add_run(CLI::App& app, Command& command) {
  auto f = std::make_shared<RunFlags>();
  CLI::App* sub = app.add_subcommand("run", "Answer one prompt, streaming");
  sub->add_option("words", f->words, "[MODEL] PROMPT; - reads stdin")->type_name("[MODEL] PROMPT");
  f->model.add(*sub);
  f->sampling.add(*sub);
  f->structured.add(*sub);
  f->speculation.add(*sub, false);
  sub->add_option("--system", f->system, "System message");
  sub->add_option("-f,--file", f->file, "Read the prompt from a file; -: stdin");
  sub->add_flag("--raw", f->raw, "The prompt as it is, without the chat template");
  sub->add_option("--receipt", f->receipt, "Write a receipt of the answer's bits to this file, for `isobit replay`");
  sub->add_flag("--json", f->json, "Print one JSON object instead of streaming");
  sub->footer(R"(Examples:
  isobit run "Why is the sky blue?"
  isobit run ./model.gguf "Write a haiku" --temp 0 -n 64
  git diff | isobit run --system "Write a commit message." --seed 7)");
  sub->callback([f, &command] { command.run = [f] { return run_prompt(*f); }; });
}

}  // namespace isobit::cli
