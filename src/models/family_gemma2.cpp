// Gemma 2: norms before and after each sublayer, soft caps on scores and logits, a window in every other layer.
#include "models/family.h"

namespace isobit {

constinit const Family kGemma2{
    .name = "Gemma 2",
    .gguf = "gemma2",
    .model_type = "gemma2",
    .activation = GatedActivation::kGelu,
    .post_norms = true,
    .scaled_embedding = true,
    .hf_weights_less_one = true,
    .full_attention_every = 2,
    .default_window = 4096,
    .attention_soft_cap = 50.0f,
    .logit_soft_cap = 30.0f,
    .scale_by_hidden_layers = 46,  // 27B
};

}  // namespace isobit
