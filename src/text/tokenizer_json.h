#pragma once
// tokenizer.json as Hugging Face's tokenizers writes it, for BPE: byte-level (GPT-2's alphabet) and SentencePiece-style
// (characters with byte fallback). What a file asks for beyond that is refused by name, not ignored.
#include <string>
#include <string_view>

#include "text/tokenizer.h"

namespace isobit {

// `name` (a path) opens messages. Throws Error kBadFile for what is broken, kUnsupported for what is not built.
TokenizerSpec read_tokenizer_json(std::string_view text, std::string_view name);

}  // namespace isobit
