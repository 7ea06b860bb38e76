#pragma once
#include <optional>
#include <string>

#include "text/tokenizer.h"
#include "weights/checkpoint.h"

namespace isobit {

// The tokenizer as a GGUF file describes it (tokenizer.ggml.*). Throws Error kBadFile for keys that are missing or
// malformed, kUnsupported for a kind of tokenizer that isobit does not have.
TokenizerSpec read_tokenizer_spec(const Metadata& meta);
// The same of a model of any format: a folder's tokenizer.json, with what tokenizer_config.json, generation_config.json
// and config.json say of the tokens that begin and end a text.
TokenizerSpec read_tokenizer_spec(const Checkpoint& file);

// The model's chat template: tokenizer.chat_template; chat_template.jinja, or what tokenizer_config.json has (of
// several the one called "default"). Nothing where there is none.
std::optional<std::string> read_chat_template(const Checkpoint& file);

}  // namespace isobit
