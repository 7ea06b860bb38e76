#pragma once
// What a model is, as data: the decoder reads this and never asks for a family's name.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "models/tensor_names.h"
#include "ops/gemm.h"
#include "ops/rope.h"
#include "weights/checkpoint.h"

namespace isobit {

enum class GatedActivation : uint8_t { kSilu, kGelu };

// What a model computes in: its own type (f16 where most of its matrices are, else bf16), or one asked for.
enum class ComputeType : uint8_t { kAuto, kBF16, kF16 };
// "auto", "bf16", "f16". Throws Error(kInvalidArgument) for anything else.
ComputeType parse_compute_type(std::string_view name);

// What keys and values are cached in: what the model computes in (which may be named), or FP8, e4m3 with scales (N21).
enum class KvCacheType : uint8_t { kAuto, kBF16, kF16, kFp8 };
// "auto", "bf16", "f16", "fp8" or "fp8_e4m3". Throws Error(kInvalidArgument) for anything else.
KvCacheType parse_kv_cache_type(std::string_view name);

// One rotary table; frequencies already hold whatever scaling the file asks for (N25).
struct RopeConfig {
  int32_t dim = 0;  // leading elements of a head that turn
  RopeLayout layout = RopeLayout::kInterleaved;
  std::vector<double> frequencies;  // [dim/2], radians a position
  double magnitude = 1.0;           // factor on cos and sin
  // LongRoPE: the frequencies of an engine whose context is longer than `original_context`. Empty: always the above.
  std::vector<double> long_frequencies;
  int64_t original_context = 0;

  bool is_long(int64_t context) const { return !long_frequencies.empty() && context > original_context; }
  bool operator==(const RopeConfig&) const = default;
};

struct LayerConfig {
  int32_t q_heads = 0, kv_heads = 0, head_dim = 0;
  int64_t ffn = 0;
  int32_t window = 0;  // a token sees itself and the window - 1 before it; 0: all before it
  int32_t rope = 0;    // index of ModelConfig::ropes; -1: no rotation
  float attention_scale = 1.0f;
  std::vector<float> k_scale, v_scale;  // of an FP8 cache, a KV head each

  int64_t q_columns() const { return static_cast<int64_t>(q_heads) * head_dim; }
  int64_t kv_columns() const { return static_cast<int64_t>(kv_heads) * head_dim; }
  int64_t qkv_columns() const { return q_columns() + 2 * kv_columns(); }
  bool operator==(const LayerConfig&) const = default;
};

struct ModelConfig {
  std::string architecture, name;  // architecture: as the file has it
  std::string family;              // for people: "Gemma 3"
  int64_t hidden = 0, vocab = 0, context = 0;
  std::vector<LayerConfig> layers;
  std::vector<RopeConfig> ropes;
  float norm_eps = 1e-5f;
  float embedding_scale = 1.0f;
  float attention_soft_cap = 0.0f, logit_soft_cap = 0.0f;  // 0: none
  GatedActivation activation = GatedActivation::kSilu;
  bool qkv_bias = false, output_bias = false;  // of the attention's projections
  bool qk_norm = false;
  bool post_norms = false;     // norms of the attention's and the FFN's outputs, before they join the residual stream
  bool sinks = false;          // a logit a head that joins the attention's sum
  bool fused_qkv = false;      // q, k and v are one tensor of the file
  bool fused_gate_up = false;  // so are gate and up
  bool weights_less_one = false;  // norm weights are stored as their difference from 1
  bool tied = false;              // the LM head is the embedding table
  DType type = DType::kBF16;
  bool fp8_cache = false;
  TensorNames names;

  int64_t layer_count() const { return static_cast<int64_t>(layers.size()); }
  DType cache_type() const { return fp8_cache ? DType::kF8E4M3 : type; }
  size_t kv_bytes_per_token() const { return kv_bytes(false); }
  int32_t longest_window() const;  // of all layers; 0: none has one
  // Of kv_bytes_per_token(), those of layers with a window.
  size_t window_kv_bytes_per_token() const { return kv_bytes(true); }
  // The shortest context whose engine has the bits of one with the context `engines`: 0 unless LongRoPE's long
  // frequencies are in use (N25).
  int64_t least_context(int64_t engines) const;

 private:
  size_t kv_bytes(bool windowed_only) const;
};

// Reads a file's metadata (GGUF) or config.json. Throws Error kUnsupported for an architecture that no family describes
// (naming those that are) and for what no family runs, kBadFile for values that are missing or contradict the tensors.
ModelConfig read_config(const Checkpoint& file, ComputeType type = ComputeType::kAuto,
                        KvCacheType cache = KvCacheType::kAuto);

// "llama, qwen2, …"
std::string supported_architectures();

}  // namespace isobit
