#include "ops/cuda/step_graphs.h"

#include <algorithm>

#include "base/error.h"
#include "base/log.h"
#include "ops/cuda/device.h"

namespace isobit::cuda {

StepGraphs::~StepGraphs() {
  for (const auto& [key, step] : steps_) {
    if (step.graph != nullptr) cudaGraphExecDestroy(step.graph);
  }
}

size_t StepGraphs::recorded() const {
  return static_cast<size_t>(
      std::count_if(steps_.begin(), steps_.end(), [](const auto& s) { return s.second.graph != nullptr; }));
}

void StepGraphs::run(const StepKey& key, const std::function<void()>& operators) {
  const auto found = steps_.find(key);
  if (found == steps_.end()) {
    operators();  // also sets up whatever a kernel sets up at its first launch
    if (steps_.size() >= kMostGraphs) forget_oldest();
    steps_[key].last_use = ++uses_;
    return;
  }
  Step& step = found->second;
  step.last_use = ++uses_;
  if (step.graph == nullptr && !step.eager) {
    step.graph = record(key, operators);
    step.eager = step.graph == nullptr;
  }
  if (step.eager) {
    operators();
    return;
  }
  check(cudaGraphLaunch(step.graph, stream_), "replaying a step");
}

cudaGraphExec_t StepGraphs::record(const StepKey& key, const std::function<void()>& operators) {
  const auto give_up = [&](std::string_view why) {
    spdlog::warn("the step of {} tokens, {} requests runs without a CUDA graph (slower, same bits): {}", key.tokens,
                 key.requests, why);
  };
  cudaGraph_t graph = nullptr;
  cudaError_t status = cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal);
  if (status != cudaSuccess) {
    cudaGetLastError();
    give_up(cudaGetErrorString(status));
    return nullptr;
  }
  recording_ = true;
  std::string error;
  try {
    operators();
  } catch (const Error& e) {
    error = e.what();
  } catch (...) {
    recording_ = false;
    cudaStreamEndCapture(stream_, &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  recording_ = false;
  status = cudaStreamEndCapture(stream_, &graph);
  if (status != cudaSuccess || !error.empty()) {
    cudaGetLastError();
    if (graph != nullptr) cudaGraphDestroy(graph);
    give_up(error.empty() ? cudaGetErrorString(status) : error);
    return nullptr;
  }
  cudaGraphExec_t executable = nullptr;
  status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  if (status != cudaSuccess) {
    cudaGetLastError();
    give_up(cudaGetErrorString(status));
    return nullptr;
  }
  return executable;
}

void StepGraphs::forget_oldest() {
  const auto oldest = std::min_element(
      steps_.begin(), steps_.end(), [](const auto& a, const auto& b) { return a.second.last_use < b.second.last_use; });
  if (oldest->second.graph != nullptr) {
    check(cudaStreamSynchronize(stream_), "waiting for a step");
    cudaGraphExecDestroy(oldest->second.graph);
  }
  steps_.erase(oldest);
}

}  // namespace isobit::cuda
