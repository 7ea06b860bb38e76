// Mistral 7B and its kin: Llama with a window in every layer (version 0.1). In GGUF they are "llama".
#include "models/family.h"

namespace isobit {

constinit const Family kMistral{.name = "Mistral", .model_type = "mistral"};

}  // namespace isobit
