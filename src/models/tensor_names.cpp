#include "models/tensor_names.h"

namespace isobit {

TensorNames TensorNames::hugging_face(const std::string& prefix, bool post_norms) {
  TensorNames n;
  n.embedding = prefix + "embed_tokens";
  n.output_norm = prefix + "norm";
  n.head = "lm_head";
  n.layer = prefix + "layers.";
  n.attention_norm = "input_layernorm";
  n.q = "self_attn.q_proj";
  n.k = "self_attn.k_proj";
  n.v = "self_attn.v_proj";
  n.qkv = "self_attn.qkv_proj";
  n.out = "self_attn.o_proj";
  n.q_norm = "self_attn.q_norm";
  n.k_norm = "self_attn.k_norm";
  n.sinks = "self_attn.sinks";
  // The name tells the place, not the use: after attention comes the FFN's norm, or attention's own second one.
  n.attention_post_norm = "post_attention_layernorm";
  n.ffn_norm = post_norms ? "pre_feedforward_layernorm" : "post_attention_layernorm";
  n.ffn_post_norm = "post_feedforward_layernorm";
  n.gate = "mlp.gate_proj";
  n.up = "mlp.up_proj";
  n.gate_up = "mlp.gate_up_proj";
  n.down = "mlp.down_proj";
  return n;
}

}  // namespace isobit
