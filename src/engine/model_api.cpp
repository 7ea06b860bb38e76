// The public API over Session.
#include "engine/receipt.h"
#include "engine/session.h"
#include "isobit/isobit.h"

namespace isobit {

struct Model::State {
  std::unique_ptr<Session> session;
};

namespace {

GenerateOptions options_of(const GenerateSettings& s) {
  GenerateOptions o;
  o.sampling.temperature = s.temperature;
  o.sampling.top_k = s.top_k;
  o.sampling.top_p = s.top_p;
  o.sampling.min_p = s.min_p;
  o.sampling.seed = s.seed;
  o.max_tokens = s.max_tokens;
  o.stop = s.stop;
  o.on_text = s.on_text;
  return o;
}

}  // namespace

Model::Model(std::unique_ptr<State> state) : state_(std::move(state)) {}
Model::~Model() = default;
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;

Model Model::load(const std::string& path, const LoadSettings& settings) {
  EngineOptions engine;
  engine.max_requests = 1;
  engine.context = settings.context;
  auto state = std::make_unique<State>();
  state->session = std::make_unique<Session>(path, DeviceOptions{settings.device, settings.threads, {}}, engine);
  return Model(std::move(state));
}

std::string Model::fingerprint() const { return isobit::fingerprint(state_->session->engine()); }

std::vector<int32_t> Model::tokenize(std::string_view text) const { return state_->session->text_prompt(text); }

Generated Model::chat(const std::vector<ChatMessage>& messages, const GenerateSettings& settings) {
  std::vector<Message> given;
  given.reserve(messages.size());
  for (const ChatMessage& m : messages) given.push_back({m.role, m.content, {}});
  return generate(state_->session->chat_prompt(given), settings);
}

Generated Model::generate(std::vector<int32_t> prompt, const GenerateSettings& settings) {
  Answer answer = state_->session->generate(std::move(prompt), options_of(settings));
  Generated g;
  g.text = std::move(answer.text);
  for (const TokenOutput& t : answer.tokens) {
    g.tokens.push_back(t.token);
    g.logprobs.push_back(t.logprob);
  }
  g.finish_reason = finish_reason_name(answer.reason);
  g.bits = answer.digest;
  return g;
}

std::vector<float> Model::score(const std::vector<int32_t>& tokens) {
  return state_->session->score(tokens).prompt_logprobs;
}

}  // namespace isobit
