#pragma once
// Models of published shapes with random weights: for benchmarks and tests of shapes whose files are not at hand.
#include <memory>
#include <string>
#include <string_view>

#include "weights/checkpoint.h"

namespace isobit {

struct SyntheticShape {
  std::string_view name;
  int64_t layers, hidden, ffn, vocab, context;
  int32_t q_heads, kv_heads, head_dim;
  float rope_theta;
  bool tied;
};

// llama-1b (Llama 3.2 1B), llama-8b (Llama 3.1 8B), tiny (a megabyte, for tests). Throws Error naming the known shapes.
const SyntheticShape& synthetic_shape(std::string_view name);

// A llama-architecture checkpoint of that shape in BF16: matrices uniform in ±0.035, norms 1, from the seed. Matrices
// are views of one random block, so that it costs the memory of the largest. Its tokenizer knows bytes; the other
// tokens have names only. fp8: the layers' matrices are block-scaled.
std::shared_ptr<const Checkpoint> synthetic_checkpoint(const SyntheticShape& shape, uint64_t seed, bool fp8 = false);

// Such a model by name, wherever a model's name or path is taken: random:SHAPE[-fp8][:SEED], such as random:llama-8b or
// random:llama-1b-fp8:7; without a seed it is 1. Throws Error naming what is wrong with the name.
bool names_synthetic(std::string_view name);
std::shared_ptr<const Checkpoint> synthetic_checkpoint(std::string_view name);

}  // namespace isobit
