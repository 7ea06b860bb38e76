#include "numerics/convert.h"
#include "ops/cuda/dequantize.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/linear_cuda.h"

namespace isobit::cuda {
namespace {

using numerics::fadd, numerics::fmul, numerics::fsub;

// Blocks of 18 to 210 bytes stand at any even address, or any address at all in a damaged file: bytes alone.
__device__ uint32_t load_u16(const uint8_t* p) { return p[0] | static_cast<uint32_t>(p[1]) << 8; }
__device__ uint32_t load_u32(const uint8_t* p) { return load_u16(p) | load_u16(p + 2) << 16; }
__device__ float load_scale(const uint8_t* p) { return numerics::f16_to_f32(static_cast<uint16_t>(load_u16(p))); }
__device__ int nibble(const uint8_t* q, int i) { return i < 16 ? q[i] & 15 : q[i - 16] >> 4; }
__device__ int with_fifth_bit(int low, uint32_t high, int i) { return low | static_cast<int>(high >> i & 1) << 4; }

// Element i of a block; the formats are described in weights/dequantize.cpp.
template <DType type>
__device__ float element(const uint8_t* b, int i) {
  if constexpr (type == DType::kF32) {
    return numerics::from_bits(load_u32(b));
  } else if constexpr (type == DType::kF16) {
    return load_scale(b);
  } else if constexpr (type == DType::kBF16) {
    return numerics::bf16_to_f32(static_cast<uint16_t>(load_u16(b)));
  } else if constexpr (type == DType::kQ4_0) {
    return fmul(load_scale(b), static_cast<float>(nibble(b + 2, i) - 8));
  } else if constexpr (type == DType::kQ4_1) {
    return fadd(fmul(load_scale(b), static_cast<float>(nibble(b + 4, i))), load_scale(b + 2));
  } else if constexpr (type == DType::kQ5_0) {
    return fmul(load_scale(b), static_cast<float>(with_fifth_bit(nibble(b + 6, i), load_u32(b + 2), i) - 16));
  } else if constexpr (type == DType::kQ5_1) {
    const int q = with_fifth_bit(nibble(b + 8, i), load_u32(b + 4), i);
    return fadd(fmul(load_scale(b), static_cast<float>(q)), load_scale(b + 2));
  } else if constexpr (type == DType::kQ8_0) {
    return fmul(load_scale(b), static_cast<float>(static_cast<int8_t>(b[2 + i])));
  } else if constexpr (type == DType::kQ4_K || type == DType::kQ5_K) {
    const int group = i / 32, in_group = i % 32;
    const uint8_t* p = b + 4;
    const int sc = group < 4 ? p[group] & 63 : (p[group + 4] & 15) | (p[group - 4] >> 6 << 4);
    const int mn = group < 4 ? p[group + 4] & 63 : (p[group + 4] >> 4) | (p[group] >> 6 << 4);
    const uint8_t* low = b + (type == DType::kQ4_K ? 16 : 48);
    int q = low[group / 2 * 32 + in_group] >> ((group & 1) * 4) & 15;
    if (type == DType::kQ5_K) q |= (b[16 + in_group] >> group & 1) << 4;
    const float scale = fmul(load_scale(b), static_cast<float>(sc));
    return fsub(fmul(scale, static_cast<float>(q)), fmul(load_scale(b + 2), static_cast<float>(mn)));
  } else {
    static_assert(type == DType::kQ6_K);
    const int group = i / 32, in_group = i % 32, half = group / 4, g = group % 4;
    const int low = b[half * 64 + (g & 1) * 32 + in_group] >> (g / 2 * 4) & 15;
    const int high = b[128 + half * 32 + in_group] >> (g * 2) & 3;
    const auto sc = static_cast<int8_t>(b[192 + group * 2 + in_group / 16]);
    const float scale = fmul(load_scale(b + 208), static_cast<float>(sc));
    return fmul(scale, static_cast<float>((low | high << 4) - 32));
  }
}

template <DType type>
__global__ void dequantize_kernel(DequantizeRows a) {
  constexpr DTypeInfo info = dtype_info(type);
  const int64_t row_bytes = a.cols / info.block_elements * info.block_bytes;
  for (int64_t r = blockIdx.y; r < a.rows; r += gridDim.y) {
    const auto* row = reinterpret_cast<const uint8_t*>(a.packed) + r * row_bytes;
    const int64_t i = a.first + r;
    const int64_t to = a.gated ? i / 8 * 16 + a.part * 8 + i % 8 : i;
    for (int64_t c = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; c < a.cols;
         c += static_cast<int64_t>(gridDim.x) * blockDim.x) {
      const int64_t block = c / info.block_elements;
      const float v = element<type>(row + block * info.block_bytes, static_cast<int>(c - block * info.block_elements));
      a.out[CudaLinear::place(a.out_rows, to, c)] =
          a.to == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v);
    }
  }
}

template <DType type>
void launch_type(const DequantizeRows& a, cudaStream_t stream) {
  LaunchShape shape;
  shape.block = dim3(256);
  shape.grid =
      dim3(static_cast<unsigned>((a.cols + 255) / 256), static_cast<unsigned>(a.rows < 65535 ? a.rows : 65535));
  shape.programmatic = false;
  launch("dequantize", dequantize_kernel<type>, shape, stream, a);
}

}  // namespace

bool can_dequantize(DType from) {
  switch (from) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ4_0:
    case DType::kQ4_1:
    case DType::kQ5_0:
    case DType::kQ5_1:
    case DType::kQ8_0:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
      return true;
    default:
      return false;
  }
}

void launch_dequantize(const DequantizeRows& a, cudaStream_t stream) {
  if (a.rows == 0 || a.cols == 0) return;
  switch (a.from) {
    case DType::kF32:
      return launch_type<DType::kF32>(a, stream);
    case DType::kF16:
      return launch_type<DType::kF16>(a, stream);
    case DType::kBF16:
      return launch_type<DType::kBF16>(a, stream);
    case DType::kQ4_0:
      return launch_type<DType::kQ4_0>(a, stream);
    case DType::kQ4_1:
      return launch_type<DType::kQ4_1>(a, stream);
    case DType::kQ5_0:
      return launch_type<DType::kQ5_0>(a, stream);
    case DType::kQ5_1:
      return launch_type<DType::kQ5_1>(a, stream);
    case DType::kQ8_0:
      return launch_type<DType::kQ8_0>(a, stream);
    case DType::kQ4_K:
      return launch_type<DType::kQ4_K>(a, stream);
    case DType::kQ5_K:
      return launch_type<DType::kQ5_K>(a, stream);
    case DType::kQ6_K:
      return launch_type<DType::kQ6_K>(a, stream);
    default:
      throw_invalid("load_linear: " + std::string(dtype_info(a.from).name) + " is not a weight's type");
  }
}

}  // namespace isobit::cuda
