// gpu_bench [--list] [filter ...]: one JSON row a case whose "op case" contains a filter (all without filters).
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

#include "gpu_bench.h"
#include "ops/cuda/device.h"

namespace isobit::bench {
namespace {

__global__ void fill_bf16(uint16_t* p, size_t n, uint64_t seed) {
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < n;
       i += static_cast<size_t>(gridDim.x) * blockDim.x) {
    uint64_t h = (i + seed) * 0x9e3779b97f4a7c15ull;
    h ^= h >> 32;
    h *= 0xd6e8feb86659fd93ull;
    h ^= h >> 32;
    const float u = static_cast<float>(static_cast<int>(h & 0xffffff) - (1 << 23)) / static_cast<float>(1 << 23);
    p[i] = static_cast<uint16_t>(__float_as_uint(u) >> 16);
  }
}

}  // namespace

std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

double floor_us(double flops, double bytes) { return std::max(flops / 790e6, bytes / 4.3e6); }

Timing graph_timing(int calls, const std::function<void(int, cudaStream_t)>& call, int repetitions, Replays replays) {
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreate(&stream), "stream");
  for (int i = 0; i < calls; i++) call(i, stream);
  cuda::check(cudaStreamSynchronize(stream), "warm-up");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; i++) call(i, stream);
  cuda::check(cudaStreamEndCapture(stream, &graph), "capture");
  cuda::check(cudaGraphInstantiate(&executable, graph, 0), "graph");
  cudaEvent_t begin = nullptr, end = nullptr;
  cuda::check(cudaEventCreate(&begin), "event");
  cuda::check(cudaEventCreate(&end), "event");
  const double least_us = replays == Replays::kUntilClocksRise ? 20e3 : 0;
  std::vector<double> times;
  double warm_us = 0, read_us = 0;
  for (int warm = 0; static_cast<int>(times.size()) < repetitions || (read_us < least_us && times.size() < 400);) {
    cuda::check(cudaEventRecord(begin, stream), "event");
    cuda::check(cudaGraphLaunch(executable, stream), "replay");
    cuda::check(cudaEventRecord(end, stream), "event");
    cuda::check(cudaStreamSynchronize(stream), "replay");
    float ms = 0;
    cuda::check(cudaEventElapsedTime(&ms, begin, end), "event");
    const double us = static_cast<double>(ms) * 1e3;
    if (warm < 2 || warm_us < least_us) {
      warm++;
      warm_us += us + 1;
      continue;
    }
    read_us += us;
    times.push_back(us / calls);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
  std::sort(times.begin(), times.end());
  return {times[times.size() / 2], times[times.size() * 19 / 20]};
}

double graph_us(int calls, const std::function<void(int, cudaStream_t)>& call, int repetitions, Replays replays) {
  return graph_timing(calls, call, repetitions, replays).us;
}

DeviceBuffer::DeviceBuffer(size_t bytes) : bytes_(bytes) { cuda::check(cudaMalloc(&data_, bytes), "benchmark memory"); }
DeviceBuffer::~DeviceBuffer() { cudaFree(data_); }
void DeviceBuffer::fill_random_bf16(uint64_t seed) {
  fill_bf16<<<2048, 256>>>(data<uint16_t>(), bytes_ / 2, seed);
  cuda::check(cudaGetLastError(), "fill");
}
void DeviceBuffer::poison() { cuda::check(cudaMemset(data_, 0xff, bytes_), "poison"); }

int rotated_copies(size_t bytes) {
  return static_cast<int>(std::clamp<size_t>(400'000'000 / std::max<size_t>(bytes, 1) + 1, 2, 24));
}

}  // namespace isobit::bench

int main(int argc, char** argv) {
  using isobit::bench::Case;
  bool failed = false;
  const bool list = argc > 1 && std::strcmp(argv[1], "--list") == 0;
  for (const Case& c : isobit::bench::cases()) {
    const std::string full = c.op + " " + c.name;
    bool wanted = argc <= (list ? 2 : 1);
    for (int i = list ? 2 : 1; i < argc; i++) wanted = wanted || full.find(argv[i]) != std::string::npos;
    if (!wanted) continue;
    if (list) {
      std::printf("%s\n", full.c_str());
      continue;
    }
    try {
      const isobit::bench::Timing t = c.run();
      std::printf("{\"op\": \"%s\", \"case\": \"%s\", \"us\": %.2f, ", c.op.c_str(), c.name.c_str(), t.us);
      if (t.p95_us != 0) std::printf("\"p95_us\": %.2f, ", t.p95_us);
      std::printf("\"floor_us\": %.1f}\n", c.floor_us);
    } catch (const std::exception& e) {
      std::printf("{\"op\": \"%s\", \"case\": \"%s\", \"error\": \"%s\"}\n", c.op.c_str(), c.name.c_str(), e.what());
      failed = true;
    }
    std::fflush(stdout);
  }
  return failed ? 1 : 0;
}
