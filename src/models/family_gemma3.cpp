// Gemma 3 (text): norms before and after each sublayer and on q and k; five layers with a window and a rotary base of
// their own, then one without.
#include "models/family.h"

namespace isobit {

constinit const Family kGemma3{
    .name = "Gemma 3",
    .gguf = "gemma3",
    .model_type = "gemma3_text",
    .activation = GatedActivation::kGelu,
    .qk_norm = true,
    .post_norms = true,
    .scaled_embedding = true,
    .hf_weights_less_one = true,
    .full_attention_every = 6,
    .window_rope_theta = 10000.0f,
    .default_window = 4096,
    .scale_by_hidden_layers = 62,  // 27B
};

}  // namespace isobit
