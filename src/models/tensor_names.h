#pragma once
#include <fmt/format.h>

#include <string>
#include <string_view>

namespace isobit {

// What a file calls the decoder's tensors. The defaults are GGUF's; matrices and norms carry ".weight" after the name,
// biases ".bias", sinks nothing.
struct TensorNames {
  std::string embedding = "token_embd", output_norm = "output_norm", head = "output";
  std::string layer = "blk.";  // then the layer's number, a dot and one of these:
  std::string attention_norm = "attn_norm", attention_post_norm = "post_attention_norm";
  std::string q = "attn_q", k = "attn_k", v = "attn_v", qkv = "attn_qkv", out = "attn_output";
  std::string q_norm = "attn_q_norm", k_norm = "attn_k_norm", sinks = "attn_sinks.weight";
  std::string ffn_norm = "ffn_norm", ffn_post_norm = "post_ffw_norm";
  std::string gate = "ffn_gate", up = "ffn_up", down = "ffn_down", gate_up = "ffn_up";

  std::string of_layer(int64_t i, std::string_view name) const { return fmt::format("{}{}.{}", layer, i, name); }

  // Those of transformers' decoders; `prefix` is "model." but for models with other parts.
  static TensorNames hugging_face(const std::string& prefix, bool post_norms);
};

}  // namespace isobit
