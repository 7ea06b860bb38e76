#pragma once
// A model's folder as Hugging Face's transformers writes it: config.json, safetensors in one file or in shards with an
// index, and the tokenizer's files, which become documents of the Checkpoint.
#include <string>

#include "weights/checkpoint.h"

namespace isobit {

struct HfFolderLimits {
  static constexpr size_t kMaxShards = 4096;
  static constexpr size_t kMaxDocumentBytes = size_t{128} << 20;
};

// The text files that are read where they are there.
inline constexpr std::string_view kHfDocuments[] = {"config.json", "generation_config.json", "tokenizer_config.json",
                                                    "tokenizer.json", "chat_template.jinja"};

// Maps the folder's files and reads the shards' headers, several at a time. Throws Error kNotFound (no config.json, no
// weights, a shard that the index names is missing), kUnsupported (only PyTorch's own format), kBadFile (a file that is
// damaged, an index that does not agree with its shards), naming the file.
Checkpoint load_hf_folder(const std::string& folder);

}  // namespace isobit
