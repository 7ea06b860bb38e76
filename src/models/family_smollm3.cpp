// SmolLM3: Llama in which every fourth layer does not rotate. GGUF reorders q and k as for Llama.
#include "models/family.h"

namespace isobit {

constinit const Family kSmolLM3{.name = "SmolLM3",
                                .gguf = "smollm3",
                                .model_type = "smollm3",
                                .gguf_rope = RopeLayout::kInterleaved,
                                .no_rope_every = 4};

}  // namespace isobit
