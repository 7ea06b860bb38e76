#include "ops/cuda/device.h"

#include <array>
#include <set>
#include <utility>

#include "base/error.h"
#include "ops/cuda/device_messages.h"

namespace isobit::cuda {
namespace {

constexpr int kMajor = 9, kMinor = 0;

std::string version_text(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver is reached through the runtime, so that the program starts on machines without one.
EncodeTiled encode_tiled() {
  static const EncodeTiled function = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found),
          "looking up cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) {
      throw fail(ErrorCode::kUnsupported, "the CUDA driver has no cuTensorMapEncodeTiled; install driver 525 or newer");
    }
    return reinterpret_cast<EncodeTiled>(f);
  }();
  return function;
}

}  // namespace

void check(cudaError_t status, std::string_view what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears it where it does not stick
  const ErrorCode code = status == cudaErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kDevice;
  throw fail(code, "{}: {} ({})", what, cudaGetErrorString(status), cudaGetErrorName(status));
}

void throw_unsupported(const std::string& message) { throw Error(ErrorCode::kUnsupported, message); }
void throw_invalid(const std::string& message) { throw Error(ErrorCode::kInvalidArgument, message); }

int device_count(std::string* why_none) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return count;
  cudaGetLastError();
  if (why_none == nullptr) return 0;
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  *why_none = why_no_device(status, driver);
  return 0;
}

std::string why_no_device(cudaError_t status, int driver_version) {
  if (driver_version == 0) {
    return "no NVIDIA driver is loaded; install one that supports CUDA " + version_text(CUDART_VERSION);
  }
  if (status == cudaErrorInsufficientDriver) {
    return fmt::format("the NVIDIA driver supports CUDA {}, this build needs {}; update the driver",
                       version_text(driver_version), version_text(CUDART_VERSION));
  }
  if (status == cudaSuccess || status == cudaErrorNoDevice) {
    return "no NVIDIA GPU is visible; check nvidia-smi and CUDA_VISIBLE_DEVICES";
  }
  return fmt::format("{} ({})", cudaGetErrorString(status), cudaGetErrorName(status));
}

Device open_device(int id) {
  std::string why;
  const int count = device_count(&why);
  if (count == 0) throw fail(ErrorCode::kDevice, "cuda: {}", why);
  if (id < 0 || id >= count) {
    throw fail(ErrorCode::kDevice, "cuda:{}: there {} GPU{}; use cuda:0 to cuda:{}", id,
               count == 1 ? "is 1" : fmt::format("are {}", count), count == 1 ? "" : "s", count - 1);
  }
  cudaDeviceProp properties = {};
  check(cudaGetDeviceProperties(&properties, id), fmt::format("cuda:{}: reading its properties", id));
  if (properties.major != kMajor || properties.minor != kMinor) {
    throw fail(ErrorCode::kDevice,
               "cuda:{} is a {} (sm_{}{}); this build has kernels for sm_90 alone (H100, H200): use another GPU or the "
               "cpu device",
               id, properties.name, properties.major, properties.minor);
  }
  Device d;
  d.id = id;
  d.name = properties.name;
  d.sm_count = properties.multiProcessorCount;
  d.shared_bytes_per_block = properties.sharedMemPerBlockOptin;
  d.l2_bytes = static_cast<size_t>(properties.l2CacheSize);
  check(cudaDriverGetVersion(&d.driver_version), "reading the driver's version");
  check(cudaSetDevice(id), fmt::format("cuda:{}: opening it (is another process using it exclusively?)", id));
  return d;
}

void allow_most_shared_memory(std::string_view name, const void* kernel) {
  // Per thread, so that none waits for another: who comes second sets what is set.
  thread_local std::set<std::pair<const void*, int>> done;
  int device = 0;
  check(cudaGetDevice(&device), name);
  if (done.contains({kernel, device})) return;
  int most = 0;
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), name);
  cudaFuncAttributes attributes = {};
  check(cudaFuncGetAttributes(&attributes, kernel), name);
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             most - static_cast<int>(attributes.sharedSizeBytes)),
        name);
  done.emplace(kernel, device);
}

CUtensorMap tensor_map(CUtensorMapDataType type, int rank, const void* base, const uint64_t* dims,
                       const uint64_t* strides_bytes, const uint32_t* box, CUtensorMapSwizzle swizzle) {
  CUtensorMap map = {};
  const std::array<uint32_t, 5> ones = {1, 1, 1, 1, 1};
  std::array<cuuint64_t, 5> dim64 = {}, stride64 = {};
  for (int i = 0; i < rank; i++) dim64[static_cast<size_t>(i)] = dims[i];
  for (int i = 0; i + 1 < rank; i++) stride64[static_cast<size_t>(i)] = strides_bytes[i];
  // Boxes are 128 bytes wide. Asked to fetch 256 at once the L2 streams weights at 3.9 TB/s instead of 4.1.
  const CUresult status = encode_tiled()(&map, type, static_cast<cuuint32_t>(rank), const_cast<void*>(base),
                                         dim64.data(), stride64.data(), box, ones.data(), CU_TENSOR_MAP_INTERLEAVE_NONE,
                                         swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw fail(ErrorCode::kInternal, "tensor map of rank {}, {} x {}, box {} x {}, base {}: CUDA error {}", rank,
               dims[0], dims[1], box[0], box[1], base, static_cast<int>(status));
  }
  return map;
}

CUtensorMap matrix_map(const MatrixMap& m) {
  const uint64_t dims[2] = {static_cast<uint64_t>(m.columns), static_cast<uint64_t>(m.rows)};
  const uint64_t strides[1] = {static_cast<uint64_t>(m.row_bytes)};
  const uint32_t box[2] = {static_cast<uint32_t>(m.box_columns), static_cast<uint32_t>(m.box_rows)};
  return tensor_map(CU_TENSOR_MAP_DATA_TYPE_UINT16, 2, m.base, dims, strides, box,
                    m.swizzle ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE);
}

}  // namespace isobit::cuda
