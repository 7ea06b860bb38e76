// gpt-oss: sinks, a window in every other layer, biases, yarn. Its attention runs; its experts (N23) are not built yet,
// so that only files with a dense FFN do.
#include "models/family.h"

namespace isobit {

constinit const Family kGptOss{.name = "gpt-oss",
                               .gguf = "gpt-oss",
                               .model_type = "gpt_oss",
                               .gguf_ffn_norm = "post_attention_norm",
                               .sinks = true,
                               .yarn_whole_range = false,
                               .full_attention_every = 2,
                               .default_window = 128};

}  // namespace isobit
