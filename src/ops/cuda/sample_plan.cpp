#include "ops/cuda/sample_plan.h"

namespace isobit::cuda {

int sample_cluster(int64_t rows, int64_t vocab, int sm_count) {
  const int64_t groups = (vocab + 3) / 4;
  for (const int size : {16, 8, 6, 5, 4, 2}) {
    const int64_t usable = int64_t{sm_count} * (size > 4 ? 5 : 8) / 4;
    const bool idle_threads = groups < int64_t{size} * kSampleThreads;
    if (rows * size <= usable && !idle_threads) return size;
  }
  return 1;
}

}  // namespace isobit::cuda
