#pragma once
// How many CTAs share one row of logits. Free of the contract: every choice gives the same bits.
#include <cstdint>

#include "ops/cuda/row_plan.h"

namespace isobit::cuda {

constexpr int kSampleThreads = kRowThreads;
constexpr int kMaxSampleCluster = 16;

// The largest cluster of which all rows' fit the GPU at once, two CTAs on an SM; with clusters of more than four, that
// leave some of an SM group's places empty, about one on an SM: so many leave places for the next kernel's CTAs, which
// then start while these end.
int sample_cluster(int64_t rows, int64_t vocab, int sm_count);

}  // namespace isobit::cuda
