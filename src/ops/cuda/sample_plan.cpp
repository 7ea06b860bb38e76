#include "ops/cuda/sample_plan.h"

namespace isobit::cuda {

int sample_cluster(int64_t rows, int64_t vocab, int sm_count) {
  const int64_t places = int64_t{2} * sm_count;
  const int64_t groups = (vocab + 3) / 4;
  for (int size = kMaxSampleCluster; size > 1; size /= 2) {
    const int64_t usable = size >= 8 ? places * 9 / 10 : places;
    const bool idle_threads = groups < int64_t{size} * kSampleThreads && size > 1;
    if (rows * size <= usable && !idle_threads) return size;
  }
  return 1;
}

}  // namespace isobit::cuda
