#pragma once
// What the readers of GGUF metadata and of config.json share.
#include "models/config.h"
#include "models/family.h"

namespace isobit {

ModelConfig read_gguf_config(const Checkpoint& file);
ModelConfig read_hf_config(const Checkpoint& file);

// What follows from the family alone.
ModelConfig start_config(const Family& family);

// Whether layer i (from 0) sees everything, by the family's pattern, or the period a file gives in its place.
bool sees_everything(int64_t layer, int32_t full_attention_every);

// 1/√head, or 1/√(hidden/heads) where the family's model of this size wants it.
float default_attention_scale(const Family& family, const ModelConfig& config, const LayerConfig& layer);

// The rotary table for these frequencies in config.ropes, added if it is new.
int32_t add_rope(ModelConfig& config, RopeConfig rope);

}  // namespace isobit
