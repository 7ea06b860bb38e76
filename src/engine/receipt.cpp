#include "engine/receipt.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "numerics/contract.h"

namespace isobit {
namespace {

constexpr int kReceiptFormat = 1;
using ReceiptJson = nlohmann::ordered_json;

// Every setting that can move a token; floats as the shortest decimal that is the same float.
ReceiptJson sampling_json(const SamplingParams& p) {
  return {{"temperature", p.temperature},
          {"top_k", p.top_k},
          {"top_p", p.top_p},
          {"min_p", p.min_p},
          {"repetition_penalty", p.repetition_penalty},
          {"presence_penalty", p.presence_penalty},
          {"frequency_penalty", p.frequency_penalty},
          {"seed", p.seed},
          {"choice", p.choice},
          {"logit_bias", p.logit_bias}};
}

SamplingParams read_sampling(const ReceiptJson& j) {
  SamplingParams p;
  j.at("temperature").get_to(p.temperature);
  j.at("top_k").get_to(p.top_k);
  j.at("top_p").get_to(p.top_p);
  j.at("min_p").get_to(p.min_p);
  j.at("repetition_penalty").get_to(p.repetition_penalty);
  j.at("presence_penalty").get_to(p.presence_penalty);
  j.at("frequency_penalty").get_to(p.frequency_penalty);
  j.at("seed").get_to(p.seed);
  j.at("choice").get_to(p.choice);
  j.at("logit_bias").get_to(p.logit_bias);
  return p;
}

int64_t least_context(const Engine& engine) { return engine.config().least_context(engine.options().context); }

std::string hex(uint64_t digest) { return fmt::format("{:016x}", digest); }

}  // namespace

std::string compute_name(const Engine& engine) { return engine.config().type == DType::kF16 ? "f16" : "bf16"; }

std::string kv_cache_name(const Engine& engine) { return engine.config().fp8_cache ? "fp8" : "auto"; }

std::string fingerprint(const Engine& engine) {
  return fmt::format("{}/{}/{}{}{}", numerics::kContractVersion, engine.file().digest(), compute_name(engine),
                     engine.config().fp8_cache ? "/kv-fp8" : "", least_context(engine) > 0 ? "/long" : "");
}

Receipt make_receipt(const Engine& engine, const Request& request, const std::vector<TokenOutput>& tokens) {
  Receipt r;
  r.contract = numerics::kContractVersion;
  r.model = engine.config().name;
  r.model_digest = engine.file().digest();
  r.compute = compute_name(engine);
  r.kv_cache = kv_cache_name(engine);
  r.least_context = least_context(engine);
  r.prompt = request.prompt;
  r.sampling = request.sampling;
  if (request.grammar) r.constraint = request.grammar->constraint();
  for (const TokenOutput& t : tokens) {
    r.tokens.push_back(t.token);
    r.logits.push_back(hex(t.logits_digest));
  }
  return r;
}

std::string receipt_json(const Receipt& r) {
  ReceiptJson j = {{"isobit_receipt", kReceiptFormat},
                   {"contract", r.contract},
                   {"model", r.model},
                   {"model_digest", r.model_digest},
                   {"compute", r.compute},
                   {"kv_cache", r.kv_cache},
                   {"device", r.device},
                   {"sampling", sampling_json(r.sampling)},
                   {"prompt", r.prompt},
                   {"tokens", r.tokens},
                   {"logits", r.logits}};
  if (r.constraint) j["constraint"] = {{"kind", constraint_name(r.constraint->kind)}, {"text", r.constraint->text}};
  if (r.least_context > 0) j["least_context"] = r.least_context;
  return j.dump(-1, ' ', false, ReceiptJson::error_handler_t::replace);
}

Receipt read_receipt(const std::string& json) {
  Receipt r;
  try {
    const ReceiptJson j = ReceiptJson::parse(json);
    const int format = j.at("isobit_receipt").get<int>();
    require(format == kReceiptFormat, "the receipt is of format {}; this isobit reads {}", format, kReceiptFormat);
    j.at("contract").get_to(r.contract);
    j.at("model").get_to(r.model);
    j.at("model_digest").get_to(r.model_digest);
    j.at("compute").get_to(r.compute);
    r.kv_cache = j.value("kv_cache", std::string("auto"));
    r.least_context = j.value("least_context", int64_t{0});
    j.at("device").get_to(r.device);
    j.at("prompt").get_to(r.prompt);
    j.at("tokens").get_to(r.tokens);
    j.at("logits").get_to(r.logits);
    r.sampling = read_sampling(j.at("sampling"));
    if (j.contains("constraint")) {
      const ReceiptJson& c = j["constraint"];
      r.constraint = {parse_constraint_kind(c.at("kind").get<std::string>()), c.at("text").get<std::string>()};
    }
  } catch (const ReceiptJson::exception& e) {
    throw fail(ErrorCode::kInvalidArgument, "not a receipt: {}", e.what());
  }
  require(r.logits.size() == r.tokens.size(), "the receipt has {} tokens and {} digests of logits", r.tokens.size(),
          r.logits.size());
  return r;
}

std::optional<ReceiptDifference> replay(Engine& engine, const Receipt& receipt,
                                        std::shared_ptr<const Grammar> grammar) {
  require(grammar != nullptr || !receipt.constraint, "the receipt's answer follows a {}; give its grammar",
          constraint_name(receipt.constraint ? receipt.constraint->kind : Constraint::Kind::kJsonObject));
  require(receipt.contract == numerics::kContractVersion, "the receipt is of contract {}; this isobit keeps {}",
          receipt.contract, numerics::kContractVersion);
  require(receipt.model_digest == engine.file().digest(),
          "the receipt is of model '{}' with digest {}; this file has {}: name the same file with --model",
          receipt.model, receipt.model_digest, engine.file().digest());
  require(receipt.compute == compute_name(engine),
          "the receipt was computed in {}, this engine computes in {}: use --dtype {}", receipt.compute,
          compute_name(engine), receipt.compute);
  require(receipt.kv_cache == kv_cache_name(engine),
          "the receipt's keys and values were cached as '{}', this engine's are as '{}': use --kv-cache-dtype {}",
          receipt.kv_cache, kv_cache_name(engine), receipt.kv_cache);
  require(receipt.least_context == least_context(engine),
          "the receipt was made with LongRoPE's {} frequencies, a context of {} takes the others: use --context {}",
          receipt.least_context > 0 ? "long" : "short", engine.options().context,
          receipt.least_context > 0 ? receipt.least_context : least_context(engine) - 1);
  Request request;
  request.prompt = receipt.prompt;
  request.sampling = receipt.sampling;
  request.grammar = std::move(grammar);
  request.max_tokens = static_cast<int32_t>(receipt.tokens.size());
  request.digest_logits = true;
  const RequestId id = engine.submit(std::move(request));
  engine.run_until_idle();
  const Result result = engine.take(id).value();
  if (result.reason == FinishReason::kError) throw Error(ErrorCode::kNumerical, result.error);
  for (size_t i = 0; i < result.tokens.size(); i++) {
    const TokenOutput& t = result.tokens[i];
    if (hex(t.logits_digest) != receipt.logits[i])
      return ReceiptDifference{i, "logits", receipt.logits[i], hex(t.logits_digest)};
    if (t.token != receipt.tokens[i])
      return ReceiptDifference{i, "token", std::to_string(receipt.tokens[i]), std::to_string(t.token)};
  }
  return std::nullopt;
}

}  // namespace isobit
