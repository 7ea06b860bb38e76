// Llama 2 and 3.x, SmolLM2, TinyLlama and the many that took over the architecture.
#include "models/family.h"

namespace isobit {

// GGUF stores q and k with their rows reordered for interleaved pairs.
constinit const Family kLlama{
    .name = "Llama", .gguf = "llama", .model_type = "llama", .gguf_rope = RopeLayout::kInterleaved};

}  // namespace isobit
