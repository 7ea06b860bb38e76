#pragma once
// What can be said of a model that cannot be run: read from whatever of its settings and tensors have a known name.
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "weights/checkpoint.h"

namespace isobit {

struct ModelOutline {
  std::string architecture;  // as the file has it; "": it says none
  std::optional<int64_t> layers, hidden, vocab, context;
  std::optional<int64_t> experts, experts_used;  // of a layer's FFN; by a token
  // One entry a layer if layers differ, else one; empty: not stated.
  std::vector<int64_t> q_heads, kv_heads, head_dim, value_dim, ffn;
  std::optional<size_t> kv_bytes_per_token;  // at two bytes an element; nothing where keys are not kept by heads
  std::map<std::string, size_t> bytes_by_part;
  std::vector<std::string> not_built;  // "layers with a state …: blk.0.ssm_a and 47 more tensors"
};

// Never throws for what the file says: what is missing or of another kind is left out.
ModelOutline read_outline(const Checkpoint& file);

}  // namespace isobit
