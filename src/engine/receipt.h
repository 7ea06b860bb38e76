#pragma once
// What an answer was made of, so that anybody can make it again and compare the bits.
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace isobit {

struct Receipt {
  std::string contract, model, model_digest;
  std::string compute;            // "bf16" or "f16", what the model was computed in: it moves bits
  std::string kv_cache = "auto";  // or "fp8": so do its keys and values
  int64_t least_context = 0;      // an engine of a shorter one has other bits; 0: any does
  std::string device;             // for people: the bits do not depend on it
  std::vector<int32_t> prompt, tokens;
  SamplingParams sampling;
  std::optional<Constraint> constraint;  // structured output
  std::vector<std::string>
      logits;  // 16 hex digits a token: digest of all rows of logits up to the one it was drawn from
};

// Of an answer that was asked for with digest_logits.
Receipt make_receipt(const Engine& engine, const Request& request, const std::vector<TokenOutput>& tokens);

// What an engine computes in, as --dtype names it.
std::string compute_name(const Engine& engine);

// What it caches keys and values in, as --kv-cache-dtype names it: "auto" where they have the compute type.
std::string kv_cache_name(const Engine& engine);

// All that an answer's bits depend on besides the request: contract version, model digest, compute type, "kv-fp8" with
// an FP8 cache, and "long" where LongRoPE's long frequencies are in use.
std::string fingerprint(const Engine& engine);

std::string receipt_json(const Receipt& receipt);
// Throws Error(kInvalidArgument) naming what is missing or malformed.
Receipt read_receipt(const std::string& json);

struct ReceiptDifference {
  size_t index = 0;  // of the answer's tokens
  std::string what;  // "logits" or "token"
  std::string expected, found;
};

// Makes the answer again. Nothing: every bit is the same. Throws Error where the receipt is another contract's or
// another model's, or the request fails. grammar: of the receipt's constraint, for this engine's vocabulary.
std::optional<ReceiptDifference> replay(Engine& engine, const Receipt& receipt,
                                        std::shared_ptr<const Grammar> grammar = nullptr);

}  // namespace isobit
