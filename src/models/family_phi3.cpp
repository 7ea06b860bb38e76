// Phi-3 and Phi-4-mini: q, k, v and gate, up as one tensor each; longrope; some with a window in every layer.
#include "models/family.h"

namespace isobit {

constinit const Family kPhi3{.name = "Phi-3", .gguf = "phi3", .model_type = "phi3", .fused_gate_up = true};

}  // namespace isobit
