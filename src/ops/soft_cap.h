#pragma once
#include <cstdint>

namespace isobit {

// x[i] = cap·tanh(x[i] / cap) in place, rule N26.
struct SoftCapArgs {
  float* x = nullptr;  // [count]
  int64_t count = 0;
  float cap = 0.0f;

  void check() const;
};

}  // namespace isobit
