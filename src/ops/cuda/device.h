#pragma once
// One GPU as the backend found it: what it is, its errors as isobit::Error, and tensor maps for the copy engine.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace isobit::cuda {

// No include of base/error.h here: nvcc does not take fmt's headers.

// Throws Error(kDevice), or kOutOfMemory, naming `what` and CUDA's own words.
void check(cudaError_t status, std::string_view what);
// Throw Error(kUnsupported) and Error(kInvalidArgument), for .cu files.
[[noreturn]] void throw_unsupported(const std::string& message);
[[noreturn]] void throw_invalid(const std::string& message);

// 0 on a machine without a GPU or driver; `why_none`, if given, then says why.
int device_count(std::string* why_none = nullptr);

struct Device {
  int id = 0;
  std::string name;
  int sm_count = 0;
  size_t shared_bytes_per_block = 0;  // what a kernel can ask for
  size_t l2_bytes = 0;
  int driver_version = 0;  // 13000 is CUDA 13.0
};

// Checks that device `id` exists, is sm_90 and has a driver that this build can use, and makes it current. Throws
// Error(kDevice) that says what was found and what is needed.
Device open_device(int id);

// Raises the limit of `kernel` on the current device to the dynamic shared memory that its static part leaves. Any
// threads at once; after a thread's first call for a kernel and device it costs a look-up.
void allow_most_shared_memory(std::string_view name, const void* kernel);

// A row-major matrix [rows, columns] of 16-bit elements, read or written in boxes of box_rows × box_columns. The base
// must be aligned to 16 bytes and row_bytes a multiple of 16; box_columns·2 ≤ 128 bytes when swizzled.
struct MatrixMap {
  const void* base = nullptr;
  int64_t rows = 0, columns = 0;
  int64_t row_bytes = 0;
  int box_rows = 0, box_columns = 0;
  bool swizzle = true;  // 128-byte swizzle
};
CUtensorMap matrix_map(const MatrixMap& m);

// The general form: rank 2 to 5, innermost dimension first; strides_bytes has rank - 1 entries.
CUtensorMap tensor_map(CUtensorMapDataType type, int rank, const void* base, const uint64_t* dims,
                       const uint64_t* strides_bytes, const uint32_t* box, CUtensorMapSwizzle swizzle);

}  // namespace isobit::cuda
