#pragma once
// A step's operators as CUDA graphs, one a StepKey: run as they are the first time, recorded at the second, replayed
// from then on.
#include <cuda_runtime_api.h>

#include <functional>
#include <map>

#include "ops/backend.h"

namespace isobit::cuda {

class StepGraphs {
 public:
  explicit StepGraphs(cudaStream_t stream) : stream_(stream) {}
  ~StepGraphs();
  StepGraphs(const StepGraphs&) = delete;
  StepGraphs& operator=(const StepGraphs&) = delete;

  void run(const StepKey& key, const std::function<void()>& operators);
  bool recording() const { return recording_; }
  size_t recorded() const;  // keys that replay

 private:
  static constexpr size_t kMostGraphs = 512;  // the least recently used one goes

  struct Step {
    cudaGraphExec_t graph = nullptr;
    bool eager = false;  // recording failed once; do not try again
    uint64_t last_use = 0;
  };
  // Null, with the reason logged, where the operators cannot be recorded.
  cudaGraphExec_t record(const StepKey& key, const std::function<void()>& operators);
  void forget_oldest();

  cudaStream_t stream_;
  std::map<StepKey, Step> steps_;
  uint64_t uses_ = 0;
  bool recording_ = false;
};

}  // namespace isobit::cuda
