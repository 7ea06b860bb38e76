#pragma once
#include <cstdint>

namespace isobit::cuda {

// Rows of x and out: expert e's are rows[e] to rows[e + 1], or, where capacity is not 0, rows[e] of them from
// e · capacity on.
struct ExpertTable {
  int experts = 0, capacity = 0;
  int m = 0;  // rows of x
  const int32_t* rows = nullptr;
};

}  // namespace isobit::cuda
