#pragma once
#include "text/tokenizer.h"
#include "weights/metadata.h"

namespace isobit {

// The tokenizer as a GGUF file describes it (tokenizer.ggml.*). Throws Error kBadFile for keys that are missing or
// malformed, kUnsupported for a kind of tokenizer that isobit does not have.
TokenizerSpec read_tokenizer_spec(const Metadata& meta);

}  // namespace isobit
