#pragma once
// The text files of a model's folder, for a model that comes from a GGUF file.
#include <map>
#include <string>

#include "models/config.h"
#include "weights/checkpoint.h"

namespace isobit {

// config.json, generation_config.json, tokenizer.json and tokenizer_config.json, by name. Throws Error kUnsupported for
// what they would not say as the GGUF file means it: families and tokenizers of other kinds, rope scaling.
std::map<std::string, std::string> hf_documents(const Checkpoint& file, const ModelConfig& config);

}  // namespace isobit
