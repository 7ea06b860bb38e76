#pragma once
// Text in, text out over one Engine: tokenizer, chat template, stop strings, streaming, timing.
#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/device.h"
#include "engine/engine.h"
#include "models/sampling_defaults.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace isobit {

struct GenerateOptions {
  SamplingParams sampling;
  std::optional<Constraint> constraint;  // what the text must be
  int32_t max_tokens = -1;
  std::vector<std::string> stop;
  bool ignore_eos = false;
  bool digest_logits = false;                          // for a receipt
  const std::atomic<bool>* cancel = nullptr;           // looked at between tokens
  std::function<void(std::string_view text)> on_text;  // whole characters, as they come
};

struct Answer {
  std::string text;
  FinishReason reason = FinishReason::kNone;
  std::vector<TokenOutput> tokens;
  int32_t prompt_tokens = 0, cached_tokens = 0;
  double first_token_s = 0, total_s = 0;  // from the call
  std::string digest;                     // of every token's id and log-probability bits

  double tokens_per_second() const;  // after the first token
};

class Session {
 public:
  Session(const std::string& model_path, const DeviceOptions& device, const EngineOptions& options);

  Engine& engine() { return *engine_; }
  const Engine& engine() const { return *engine_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  const EngineOptions& options() const { return engine_->options(); }
  double load_seconds() const { return load_s_; }

  // The prompt of a conversation by the model's chat template (ChatML where the file has none), ready to be answered.
  // Of the context all but the tokens' names is the caller's. Safe to call from several threads, as text_prompt is.
  std::vector<int32_t> chat_prompt(const std::vector<Message>& messages, ChatContext context = {}) const;
  std::vector<int32_t> text_prompt(std::string_view text) const;

  // Throws Error for what the engine refuses, or when the request fails.
  Answer generate(std::vector<int32_t> prompt, const GenerateOptions& options);
  // Log-probabilities of tokens 1, 2, … given those before them.
  Result score(std::vector<int32_t> tokens);
  // Any thread; see GrammarCompiler.
  std::shared_ptr<const Grammar> grammar(const Constraint& constraint,
                                         std::chrono::milliseconds time = kGrammarTime) const {
    return grammars_->compile(constraint, time);
  }

  // As the model's publisher states them.
  const SamplingDefaults& sampling_defaults() const { return sampling_defaults_; }
  // The tokens that end an answer.
  const std::vector<int32_t>& stop_tokens() const { return stop_tokens_; }
  const std::string& device() const { return device_; }

 private:
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> template_;
  std::unique_ptr<GrammarCompiler> grammars_;
  SamplingDefaults sampling_defaults_;
  std::vector<int32_t> stop_tokens_;
  std::string device_;
  double load_s_ = 0;
};

// Opens a model file of any format isobit reads, or makes one of random weights (models/synthetic.h).
std::shared_ptr<const Checkpoint> open_checkpoint(const std::string& path);

}  // namespace isobit
