#include "server/completion_request.h"

#include <limits>
#include <random>

namespace isobit::server {
namespace {

constexpr size_t kMaxStops = 16, kMaxStopBytes = 1024;
constexpr size_t kMaxMessages = 100'000;
constexpr double kLargest = std::numeric_limits<float>::max();

// A string, or a list of parts of type text.
std::string read_content(const Json& content, const std::string& param) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) throw invalid(param, fmt::format("{} must be a string or an array of text parts", param));
  std::string text;
  for (const Json& part : content) {
    if (!part.is_object()) throw invalid(param, fmt::format("{}: a part must be an object with type and text", param));
    const Fields fields(part, param + "[].");
    const std::string type = fields.required_text("type");
    if (type != "text")
      throw invalid(param, fmt::format("{}: a part is of type '{:.40}'; this model reads text only", param, type));
    text += fields.required_text("text");
  }
  return text;
}

Message read_message(const Json& json, size_t index) {
  const std::string at = fmt::format("messages[{}]", index);
  if (!json.is_object()) throw invalid(at, fmt::format("{} must be an object with role and content", at));
  const Fields fields(json, at + ".");
  Message message;
  message.role = fields.required_text("role");
  if (const Json* content = fields.find("content")) message.content = read_content(*content, fields.path("content"));
  Json rest = json;
  rest.erase("role");
  rest.erase("content");
  if (!rest.empty()) message.extra_json = to_text(rest);
  return message;
}

std::string read_tools(const Fields& fields) {
  const Json* choice = fields.find("tool_choice");
  const std::string wanted = choice == nullptr ? "auto" : choice->is_string() ? choice->get<std::string>() : "named";
  if (wanted != "auto" && wanted != "none")
    throw invalid(
        "tool_choice",
        "tool_choice must be \"auto\" or \"none\"; a forced call is not supported; response_format can ask for "
        "its arguments");
  const Json* tools = fields.find("tools");
  if (tools == nullptr || wanted == "none") return {};
  if (!tools->is_array()) throw invalid("tools", "tools must be an array of tool definitions");
  return tools->empty() ? std::string() : to_text(*tools);
}

std::vector<std::vector<int32_t>> read_prompts(const Fields& fields, const Session& session) {
  const Json* prompt = fields.find("prompt");
  if (prompt == nullptr)
    throw invalid("prompt", "prompt is missing; it must be a string, or an array of strings or ids");
  const int64_t vocab = session.tokenizer().vocab_size();
  if (prompt->is_string()) return {session.text_prompt(prompt->get<std::string>())};
  if (!prompt->is_array() || prompt->empty())
    throw invalid("prompt", "prompt must be a string, or a non-empty array of strings, token ids or arrays of them");
  if (prompt->front().is_number()) return {read_tokens(*prompt, "prompt", vocab)};
  std::vector<std::vector<int32_t>> all;
  for (const Json& one : *prompt) {
    all.push_back(one.is_string() ? session.text_prompt(one.get<std::string>()) : read_tokens(one, "prompt", vocab));
  }
  return all;
}

uint64_t draw_seed() {
  std::random_device device;
  return (static_cast<uint64_t>(device()) << 32 | device()) >> 1;  // fits a client's signed integer
}

void read_sampling(const Fields& fields, const Session& session, CompletionRequest& r) {
  SamplingParams& p = r.sampling;
  const int64_t vocab = session.tokenizer().vocab_size();
  p = session.sampling_defaults().over({});
  read_filters(fields, p);
  const auto seed = read_seed(fields, "seed");
  p.seed = seed ? *seed : draw_seed();
  read_bias(fields, vocab, p);
  read_stops(fields, r);
  r.stop_tokens = fields.tokens("stop_token_ids", vocab);
  r.ignore_eos = fields.flag("ignore_eos", false);
}

void read_logprobs(const Fields& fields, CompletionRequest& r) {
  if (r.kind == CompletionKind::kText) {
    r.sampling.top_logprobs = static_cast<int32_t>(fields.integer("logprobs", -1, 0, kMaxTopLogprobs));
    return;
  }
  const bool wanted = fields.flag("logprobs", false);
  const int64_t top = fields.integer("top_logprobs", 0, 0, kMaxTopLogprobs);
  if (top > 0 && !wanted) throw invalid("top_logprobs", "top_logprobs needs logprobs to be true");
  r.sampling.top_logprobs = wanted ? static_cast<int32_t>(top) : -1;
}

void refuse_unsupported(const Fields& fields) {
  for (const char* name : {"suffix", "functions", "audio"}) {
    if (fields.find(name) != nullptr) throw invalid(name, fmt::format("{} is not supported", name));
  }
}

}  // namespace

void read_stops(const Fields& fields, CompletionRequest& r) {
  const Json* stop = fields.find("stop");
  if (stop == nullptr) return;
  const Json list = stop->is_array() ? *stop : Json::array({*stop});
  if (list.size() > kMaxStops)
    throw invalid("stop", fmt::format("stop has {} strings; at most {} are allowed", list.size(), kMaxStops));
  for (const Json& s : list) {
    if (!s.is_string() || s.get_ref<const std::string&>().empty() ||
        s.get_ref<const std::string&>().size() > kMaxStopBytes)
      throw invalid("stop", fmt::format("stop must be one or more strings of 1 to {} bytes", kMaxStopBytes));
    r.stop.push_back(s.get<std::string>());
  }
}

void read_bias(const Fields& fields, int64_t vocab, SamplingParams& p) {
  const Json* bias = fields.find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object()) throw invalid("logit_bias", "logit_bias must be an object of token ids and biases");
  for (const auto& [key, value] : bias->items()) {
    const bool digits = !key.empty() && key.size() <= 9 && key.find_first_not_of("0123456789") == std::string::npos;
    if (!digits || std::stol(key) >= vocab)
      throw invalid("logit_bias", fmt::format("logit_bias names token '{:.40}'; token ids are in [0, {})", key, vocab));
    if (!value.is_number() || !(std::abs(value.get<double>()) <= 100))
      throw invalid("logit_bias", fmt::format("logit_bias of token {} must be a number in [-100, 100]", key));
    p.logit_bias.emplace_back(static_cast<int32_t>(std::stol(key)), value.get<float>());
  }
}

std::optional<uint64_t> read_seed(const Fields& fields, const std::string& name) {
  const Json* seed = fields.find(name);
  if (seed == nullptr) return std::nullopt;
  const std::string path = fields.path(name);
  if (!seed->is_number_integer()) throw invalid(path, path + " must be an integer of 64 bits");
  return seed->is_number_unsigned() ? seed->get<uint64_t>() : static_cast<uint64_t>(seed->get<int64_t>());
}

void read_filters(const Fields& fields, SamplingParams& p) {
  const auto number = [&](const char* name, float otherwise, double high) {
    return static_cast<float>(fields.number(name, static_cast<double>(otherwise), 0, high));
  };
  p.temperature = number("temperature", p.temperature, 100);
  p.top_p = number("top_p", p.top_p, 1);
  p.top_k = static_cast<int32_t>(fields.integer("top_k", p.top_k, -1, INT32_MAX));
  p.min_p = number("min_p", p.min_p, 1);
  p.repetition_penalty = number("repetition_penalty", p.repetition_penalty, kLargest);
  p.presence_penalty = static_cast<float>(fields.number("presence_penalty", 0, -2, 2));
  p.frequency_penalty = static_cast<float>(fields.number("frequency_penalty", 0, -2, 2));
}

void check_choices(const CompletionRequest& r, const RequestLimits& limits) {
  if (r.prompts.size() * static_cast<size_t>(r.n) <= static_cast<size_t>(limits.choices)) return;
  throw invalid("prompt", fmt::format("{} prompts of {} choices are more than the {} choices of one request",
                                      r.prompts.size(), r.n, limits.choices));
}

void check_model(const Fields& fields, const std::string& served) {
  const auto model = fields.text("model");
  if (model && *model != served)
    throw ApiError(404, "invalid_request_error",
                   fmt::format("model '{:.100}' is not served here; '{}' is", *model, served), "model",
                   "model_not_found");
}

std::vector<int32_t> read_conversation(const Fields& fields, const Session& session) {
  const Json* messages = fields.find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty() || messages->size() > kMaxMessages)
    throw invalid("messages", "messages must be a non-empty array of objects with role and content");
  std::vector<Message> conversation;
  for (const Json& m : *messages) conversation.push_back(read_message(m, conversation.size()));
  ChatContext context;
  context.tools_json = read_tools(fields);
  context.add_generation_prompt = fields.flag("add_generation_prompt", true);
  if (const Json* extra = fields.find("chat_template_kwargs")) {
    if (!extra->is_object()) throw invalid("chat_template_kwargs", "chat_template_kwargs must be an object");
    context.extra_json = to_text(*extra);
  }
  return session.chat_prompt(conversation, context);
}

CompletionRequest read_completion(CompletionKind kind, const Json& body, const Session& session,
                                  const RequestLimits& limits) {
  const Fields fields(body);
  CompletionRequest r;
  r.kind = kind;
  const bool chat = kind == CompletionKind::kChat;
  check_model(fields, limits.model);
  refuse_unsupported(fields);
  read_sampling(fields, session, r);
  read_logprobs(fields, r);
  r.n = static_cast<int32_t>(fields.integer("n", 1, 1, limits.choices));
  if (fields.integer("best_of", r.n, 1, limits.choices) != r.n) throw invalid("best_of", "best_of must equal n");
  const int32_t context = static_cast<int32_t>(session.options().context);
  r.max_tokens = static_cast<int32_t>(fields.integer("max_tokens", chat ? -1 : 16, 0, context));
  r.max_tokens = static_cast<int32_t>(fields.integer("max_completion_tokens", r.max_tokens, 0, context));
  r.stream = fields.flag("stream", false);
  if (const Json* options = fields.find("stream_options")) {
    if (!options->is_object()) throw invalid("stream_options", "stream_options must be an object");
    r.stream_usage = Fields(*options, "stream_options.").flag("include_usage", false);
  }
  r.structured = read_structured(fields);
  r.echo = !chat && fields.flag("echo", false);
  if (r.echo && r.stream) throw invalid("echo", "echo does not go with stream; ask for one of them");
  r.prompt_logprobs = r.echo && r.wants_logprobs();
  r.receipt = fields.flag("receipt", false);
  r.speculate = fields.flag("speculate", true);
  r.priority = static_cast<int32_t>(fields.integer("priority", 0, -kMaxPriority, kMaxPriority));
  if (fields.find("timeout") != nullptr)
    r.timeout = std::chrono::milliseconds(static_cast<int64_t>(1000 * fields.number("timeout", 0, 0.001, 86400)));
  if (chat) {
    r.prompts = {read_conversation(fields, session)};
  } else {
    r.prompts = read_prompts(fields, session);
  }
  check_choices(r, limits);
  return r;
}

}  // namespace isobit::server
