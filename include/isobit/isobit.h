#pragma once
// The public API of isobit: load a model, generate, score. Everything here is plain C++20 and hides the engine, so that
// a program built against one version keeps working with the next.
//
//   auto model = isobit::Model::load("SmolLM2-135M-Instruct.Q4_1.gguf", {});
//   isobit::Generated a = model.chat({{"user", "Why is the sky blue?"}}, {.seed = 7});
//
// Errors are exceptions derived from std::runtime_error whose text names the value, the limit and the remedy.
// A Model is used by one thread at a time; several may live in one process.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace isobit {

struct LoadSettings {
  std::string device = "auto";  // auto, cpu, cuda, cuda:N
  int threads = 0;              // CPU; 0: one per hardware thread
  int32_t context = 0;          // longest sequence in tokens; 0: 4096 or the model's limit
};

struct GenerateSettings {
  float temperature = 1.0f;  // 0: the likeliest token
  int32_t top_k = 0;         // 0: off
  float top_p = 1.0f;        // 1: off
  float min_p = 0.0f;        // 0: off
  uint64_t seed = 0;
  int32_t max_tokens = -1;  // -1: until the model stops or the context is full
  std::vector<std::string> stop;
  std::function<void(std::string_view text)> on_text;  // whole characters, as they come
};

struct ChatMessage {
  std::string role, content;  // role: system, user, assistant
};

struct Generated {
  std::string text;
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;  // natural logarithms, of the raw distribution
  std::string finish_reason;    // stop, length
  std::string bits;             // digest of tokens and log-probabilities: equal on every machine
};

class Model {
 public:
  // path: a GGUF file.
  static Model load(const std::string& path, const LoadSettings& settings);
  ~Model();
  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;

  // The contract's version, the model's digest and what it is computed in: what an answer's bits depend on besides the
  // request.
  std::string fingerprint() const;

  std::vector<int32_t> tokenize(std::string_view text) const;
  Generated chat(const std::vector<ChatMessage>& messages, const GenerateSettings& settings);
  Generated generate(std::vector<int32_t> prompt, const GenerateSettings& settings);
  // Log-probabilities of tokens 1, 2, … given those before them: [tokens - 1].
  std::vector<float> score(const std::vector<int32_t>& tokens);

 private:
  struct State;
  explicit Model(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace isobit
