#pragma once
#include <string>

#include "weights/checkpoint.h"

namespace isobit {

// A model of any format that isobit reads: a GGUF file, or a folder as Hugging Face's transformers writes it. Throws
// Error as load_gguf and load_hf_folder do.
Checkpoint load_checkpoint(const std::string& path);

}  // namespace isobit
