#pragma once
// How an architecture differs from the plain pre-norm, gated decoder. A new family is a file family_<name>.cpp with one
// Family, its line in family.cpp, and a test.
#include <span>
#include <string_view>

#include "models/config.h"

namespace isobit {

struct Family {
  std::string_view name;                       // for people
  std::string_view gguf;                       // general.architecture; "": GGUF has no such architecture
  std::string_view model_type;                 // config.json's; "": not from there
  RopeLayout gguf_rope = RopeLayout::kHalves;  // transformers always pairs halves
  std::string_view gguf_ffn_norm = "ffn_norm";
  GatedActivation activation = GatedActivation::kSilu;
  bool qkv_bias = false;  // though config.json does not say so
  bool qk_norm = false;
  bool post_norms = false;
  bool sinks = false;
  bool fused_gate_up = false;
  bool scaled_embedding = false;     // by the root of the hidden size
  bool hf_weights_less_one = false;  // norm weights in safetensors
  bool yarn_whole_range = true;      // N25: yarn's range goes to whole indices, unless config.json says otherwise
  // Of layers with and without a window, where a file does not list them: layer i sees everything if i + 1 is a
  // multiple of this. 0: no layer does; so do all where there is no window.
  int32_t full_attention_every = 0;
  int32_t no_rope_every = 0;       // the same for layers without rotation; 0: all rotate
  float window_rope_theta = 0.0f;  // base of the layers with a window, which are not scaled; 0: as the others
  int32_t default_window = 0;
  float attention_soft_cap = 0.0f, logit_soft_cap = 0.0f;  // where the file does not say
  // Layers of the one size whose scores are scaled by 1/√(hidden / heads) rather than 1/√head: GGUF does not say it.
  int64_t scale_by_hidden_layers = 0;
};

// The families, each in a file of its own.
extern const Family kLlama, kMistral, kQwen2, kQwen3, kGemma2, kGemma3, kPhi3, kSmolLM3, kGptOss;

std::span<const Family* const> families();
const Family* find_gguf_family(std::string_view architecture);
const Family* find_hf_family(std::string_view model_type);

}  // namespace isobit
