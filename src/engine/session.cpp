#include "engine/session.h"

#include <chrono>

#include "base/digest.h"
#include "base/error.h"
#include "engine/answer_text.h"
#include "models/synthetic.h"
#include "models/tokenizer_spec.h"
#include "weights/load.h"

namespace isobit {
namespace {

using Clock = std::chrono::steady_clock;

// ChatML where the vocabulary has it; else the model was not made for turns and goes on with the text itself.
ChatTemplate default_template(const Tokenizer& tokenizer) {
  return tokenizer.find("<|im_start|>") ? ChatTemplate::chatml() : ChatTemplate::plain();
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

}  // namespace

std::shared_ptr<const Checkpoint> open_checkpoint(const std::string& path) {
  if (names_synthetic(path)) return synthetic_checkpoint(path);
  return std::make_shared<const Checkpoint>(load_checkpoint(path));
}

double Answer::tokens_per_second() const {
  const double decoding = total_s - first_token_s;
  return tokens.size() > 1 && decoding > 0 ? static_cast<double>(tokens.size() - 1) / decoding : 0.0;
}

Session::Session(const std::string& model_path, const DeviceOptions& device, const EngineOptions& options) {
  const auto start = Clock::now();
  auto file = open_checkpoint(model_path);
  tokenizer_ = Tokenizer::create(read_tokenizer_spec(*file));
  const auto source = read_chat_template(*file);
  template_ =
      source ? std::make_unique<ChatTemplate>(*source) : std::make_unique<ChatTemplate>(default_template(*tokenizer_));
  sampling_defaults_ = read_sampling_defaults(*file);
  file->release_header_pages();  // what is needed of the vocabulary, the tokenizer has
  engine_ = std::make_unique<Engine>(make_backend(device), std::move(file), options);
  for (int32_t id = 0; id < tokenizer_->vocab_size(); id++) {
    if (tokenizer_->is_eog(id)) stop_tokens_.push_back(id);
  }
  grammars_ = std::make_unique<GrammarCompiler>(*tokenizer_, stop_tokens_);
  device_ = engine_->backend().info().name;
  load_s_ = seconds_since(start);
}

std::vector<int32_t> Session::text_prompt(std::string_view text) const { return tokenizer_->encode(text, {}); }

std::vector<int32_t> Session::chat_prompt(const std::vector<Message>& messages, ChatContext context) const {
  const auto name = [&](std::optional<int32_t> id) { return id ? tokenizer_->token_name(*id) : std::string(); };
  context.bos_token = name(tokenizer_->bos_id());
  context.eos_token = name(tokenizer_->eos_id());
  // The template writes the special tokens itself, BOS included.
  return tokenizer_->encode(template_->render(messages, context), {.add_special = false, .parse_special = true});
}

Answer Session::generate(std::vector<int32_t> prompt, const GenerateOptions& options) {
  const auto start = Clock::now();
  Answer answer;
  Digest digest;
  AnswerText text(*tokenizer_, options.stop, options.ignore_eos);
  RequestId id = 0;
  const auto show = [&](const std::string& shown) {
    if (shown.empty()) return;
    answer.text += shown;
    if (options.on_text) options.on_text(shown);
  };
  Request request;
  answer.prompt_tokens = static_cast<int32_t>(prompt.size());
  request.prompt = std::move(prompt);
  request.sampling = options.sampling;
  request.sampling.top_logprobs = std::max(0, request.sampling.top_logprobs);
  if (options.constraint) request.grammar = grammar(*options.constraint);
  request.max_tokens = options.max_tokens;
  request.digest_logits = options.digest_logits;
  if (!options.ignore_eos) request.stop_tokens = stop_tokens_;
  request.on_token = [&](const TokenOutput& out) {
    if (answer.first_token_s == 0) answer.first_token_s = seconds_since(start);
    digest.add(&out.token, sizeof out.token);
    digest.add(&out.logprob, sizeof out.logprob);
    show(text.push(out.token));
    if (text.stopped() || (options.cancel != nullptr && options.cancel->load())) engine_->cancel(id);
  };
  id = engine_->submit(std::move(request));
  std::optional<Result> result;
  while (!result) {
    engine_->step();
    result = engine_->take(id);
    if (options.cancel != nullptr && options.cancel->load()) engine_->cancel(id);
  }
  show(text.flush());
  if (result->reason == FinishReason::kError) throw Error(ErrorCode::kNumerical, result->error);
  answer.reason = text.stopped() ? FinishReason::kStop : result->reason;
  answer.tokens = std::move(result->tokens);
  answer.cached_tokens = result->cached_tokens;
  answer.total_s = seconds_since(start);
  answer.digest = digest.hex();
  return answer;
}

Result Session::score(std::vector<int32_t> tokens) {
  Request request;
  request.prompt = std::move(tokens);
  request.max_tokens = 0;
  request.prompt_logprobs = true;
  request.sampling.temperature = 0;
  const RequestId id = engine_->submit(std::move(request));
  engine_->run_until_idle();
  Result result = engine_->take(id).value();
  if (result.reason == FinishReason::kError) throw Error(ErrorCode::kNumerical, result.error);
  return result;
}

}  // namespace isobit
