// Qwen 3: a norm on each head of q and k before they turn.
#include "models/family.h"

namespace isobit {

constinit const Family kQwen3{.name = "Qwen3", .gguf = "qwen3", .model_type = "qwen3", .qk_norm = true};

}  // namespace isobit
