#pragma once
// What a model's keys and values are cached in (N21).
#include <cstdint>
#include <string_view>

#include "models/config.h"
#include "weights/checkpoint.h"

namespace isobit {

// Sets what `type` asks for in `config`, whose type is settled; for FP8 with the scales that the file has (a number for
// a layer, or one a KV head), 1 where it has none. Throws Error(kInvalidArgument) for a 16-bit type that the model does
// not compute in, kBadFile for scales of another shape or outside [2^-64, 2^64].
void set_kv_cache(const Checkpoint& file, KvCacheType type, ModelConfig& config);

// Whether a tensor holds such scales.
bool is_kv_scale(std::string_view tensor);

}  // namespace isobit
