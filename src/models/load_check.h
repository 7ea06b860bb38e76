#pragma once
#include "models/config.h"
#include "weights/checkpoint.h"

namespace isobit {

// Throws what loading the decoder would: Error kBadFile for a tensor that is missing or of the wrong shape,
// kUnsupported for a type that cannot run or a tensor that nothing would use. Takes no memory for the weights.
void check_loads(const Checkpoint& file, const ModelConfig& config);

}  // namespace isobit
