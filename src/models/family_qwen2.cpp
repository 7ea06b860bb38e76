// Qwen 2 and 2.5: biases on q, k and v.
#include "models/family.h"

namespace isobit {

constinit const Family kQwen2{.name = "Qwen2", .gguf = "qwen2", .model_type = "qwen2", .qkv_bias = true};

}  // namespace isobit
