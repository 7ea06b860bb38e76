#pragma once
// A model's matrices to block-scaled FP8, as DeepSeek publishes: a folder of config.json with a quantization_config,
// safetensors whose linear layers are e4m3 with "…_scale_inv" (f32, a scale for each 128 × 128), the tokenizer's files.
#include <functional>
#include <string>
#include <vector>

#include "weights/checkpoint.h"

namespace isobit {

struct ModelConfig;

struct Fp8Options {
  // Matrices that stay as they are: those whose module's name (transformers', "model.layers.3.mlp.down_proj") has one
  // of these parts between its points, as "self_attn", "layers.0" or "mlp.down_proj".
  std::vector<std::string> keep;
  std::function<void(size_t done, size_t total)> progress;
};

// What small models lose too much by. Rounding to e4m3 costs SmolLM2-135M 3.3% of perplexity, of which attention (a
// quarter of the weights) has more than a third and the outer layers' FFN most of the rest; so models narrower than
// 1024 keep attention and a fifth of the layers at either end. Wider ones keep nothing.
std::vector<std::string> default_kept_modules(const ModelConfig& config);

// Matrices of the layers are quantised by rule N18's scale over each block of 128 × 128 of their bf16 values;
// embedding, head, norms and what `keep` names stay as they are (of a GGUF file: as bf16). q, k and v, and gate and up,
// stay or go together. `folder` must be new or empty. Of GGUF files: plain Llama-like models with a byte-level
// tokenizer (Llama, SmolLM2, Mistral, Qwen2, Qwen3 without rope scaling); others from their folder. Throws Error
// kUnsupported naming what is in the way, kInvalidArgument for a model that is block-scaled already or where `keep`
// parts what is multiplied together, kIo.
void quantize_to_fp8(const Checkpoint& from, const std::string& folder, const Fp8Options& options = {});

}  // namespace isobit
