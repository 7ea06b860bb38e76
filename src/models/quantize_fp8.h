#pragma once
// A model's matrices to block-scaled FP8, as DeepSeek publishes: a folder of config.json with a quantization_config,
// safetensors whose linear layers are e4m3 with "…_scale_inv" (f32, a scale for each 128 × 128), the tokenizer's files.
#include <functional>
#include <string>

#include "weights/checkpoint.h"

namespace isobit {

// Matrices of the layers are quantised by rule N18's scale over each block of 128 × 128 of their bf16 values;
// embedding, head and norms stay as they are. `folder` must be new or empty. Of GGUF files: plain Llama-like models
// with a byte-level tokenizer (Llama, SmolLM2, Mistral, Qwen2, Qwen3 without rope scaling); others from their folder.
// Throws Error kUnsupported naming what is in the way, kInvalidArgument for a model that is block-scaled already, kIo.
void quantize_to_fp8(const Checkpoint& from, const std::string& folder,
                     const std::function<void(size_t done, size_t total)>& progress = {});

}  // namespace isobit
