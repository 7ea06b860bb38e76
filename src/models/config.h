#pragma once
// What a model is, as data: the decoder reads this and never asks for a family's name.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ops/gemm.h"
#include "ops/rope.h"
#include "weights/checkpoint.h"

namespace isobit {

enum class GatedActivation : uint8_t { kSilu, kGelu };

// Rotary tables of a model; frequencies already hold whatever scaling the file asks for.
struct RopeConfig {
  int32_t dim = 0;  // leading elements of a head that turn
  RopeLayout layout = RopeLayout::kInterleaved;
  std::vector<double> frequencies;  // [dim/2], radians a position
  double magnitude = 1.0;           // factor on cos and sin
};

struct ModelConfig {
  std::string architecture, name;
  int64_t layers = 0, hidden = 0, ffn = 0, vocab = 0, context = 0;
  int32_t q_heads = 0, kv_heads = 0, head_dim = 0;
  float norm_eps = 1e-5f;
  float attention_scale = 1.0f;
  float embedding_scale = 1.0f;
  RopeConfig rope;
  GatedActivation activation = GatedActivation::kSilu;
  bool qkv_bias = false;  // blk.N.attn_{q,k,v}.bias
  bool qk_norm = false;   // blk.N.attn_{q,k}_norm.weight
  bool tied = false;      // the LM head is the embedding table
  DType type = DType::kBF16;

  int64_t qkv_columns() const { return static_cast<int64_t>(q_heads + 2 * kv_heads) * head_dim; }
  size_t kv_bytes_per_token() const {
    return static_cast<size_t>(layers) * 2 * kv_heads * head_dim * (dtype_info(type).block_bytes);
  }
};

// Reads a file's metadata. Throws Error kUnsupported for an architecture that no family describes (naming those that
// are), kBadFile for values that are missing or contradict the tensors.
ModelConfig read_config(const Checkpoint& file);

// "llama, qwen2, …"
std::string supported_architectures();

}  // namespace isobit
