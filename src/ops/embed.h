#pragma once
#include "ops/linear.h"

namespace isobit {

// out[t, :] = f32(table[tokens[t], :]), times scale where it is not 1. A negative token is padding: its row is 0.
struct EmbedArgs {
  const Linear* table = nullptr;    // [vocab, hidden], stacked
  const int32_t* tokens = nullptr;  // [count]
  int64_t count = 0;
  float scale = 1.0f;
  float* out = nullptr;  // [count, hidden]

  void check() const;
};

}  // namespace isobit
