#include "engine/device.h"

#include <charconv>

#include "base/error.h"
#include "base/log.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/simd_target.h"
#ifdef ISOBIT_HAS_CUDA
#include "ops/cuda/cuda_backend.h"
#endif

namespace isobit {
namespace {

std::unique_ptr<Backend> make_cpu(const DeviceOptions& o) {
  CpuOptions cpu;
  cpu.threads = o.threads;
  cpu.simd_target = o.simd;
  return make_cpu_backend(cpu);
}

#ifdef ISOBIT_HAS_CUDA
std::unique_ptr<Backend> make_cuda(int index) {
  CudaOptions cuda;
  cuda.device = index;
  return make_cuda_backend(cuda);
}
#endif

int gpu_index(const std::string& device) {
  if (device == "cuda") return 0;
  int index = -1;
  const char* first = device.data() + 5;
  const char* last = device.data() + device.size();
  const auto [end, error] = std::from_chars(first, last, index);
  require(error == std::errc() && end == last && index >= 0, "device '{}' is not known; use auto, cpu, cuda or cuda:N",
          device);
  return index;
}

}  // namespace

std::unique_ptr<Backend> make_backend(const DeviceOptions& o) {
  require(o.threads >= 0 && o.threads <= 1024,
          "threads is {}; it must be in [1, 1024], or 0 for one per hardware thread", o.threads);
  if (o.device == "cpu") return make_cpu(o);
  if (o.device == "auto") {
#ifdef ISOBIT_HAS_CUDA
    if (cuda_device_count() > 0) {
      try {
        return make_cuda(0);
      } catch (const Error& e) {
        spdlog::warn("the GPU cannot be used, running on the CPU: {}", e.what());
      }
    }
#endif
    return make_cpu(o);
  }
  require(o.device.starts_with("cuda") && (o.device.size() == 4 || o.device[4] == ':'),
          "device '{}' is not known; use auto, cpu, cuda or cuda:N", o.device);
  const int index = gpu_index(o.device);
#ifdef ISOBIT_HAS_CUDA
  return make_cuda(index);
#else
  throw fail(
      ErrorCode::kDevice,
      "device 'cuda:{}': this isobit was built without CUDA; build it where nvcc is installed, or use --device cpu",
      index);
#endif
}

std::vector<std::string> cpu_simd_targets() { return cpu::simd_target_names(); }

}  // namespace isobit
