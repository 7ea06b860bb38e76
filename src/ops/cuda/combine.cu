// The weighted sum of experts' outputs (rule N23). Memory-bound: `top` rows read and one written a token, so a thread
// has eight neighbouring columns and asks for all slots' values before it adds the first.
#include <algorithm>

#include "numerics/convert.h"
#include "numerics/moe.h"
#include "ops/cuda/device_math.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/moe.h"

namespace isobit::cuda {
namespace {

constexpr int kCombineThreads = 128, kCombineColumns = 8;
constexpr int kSlots = 8;  // in flight

__device__ float widen(uint32_t bits, DType type) {
  const auto h = static_cast<uint16_t>(bits);
  return type == DType::kBF16 ? numerics::bf16_to_f32(h) : numerics::f16_to_f32(h);
}

// A thread's columns of a row of x: as many as exist, or, where `whole`, all of them in words of 16 bytes.
struct Columns {
  uint32_t bits[kCombineColumns];  // f32, or pairs of 16 bits in the first four
};
__device__ Columns load_columns(const CombineArgs& a, int64_t at, int count, bool whole) {
  Columns c = {};
  const bool wide = a.x_type == DType::kF32;
  const auto* words = static_cast<const uint32_t*>(a.x);
  const auto* halves = static_cast<const uint16_t*>(a.x);
  if (whole) {
    *reinterpret_cast<uint4*>(c.bits) = *reinterpret_cast<const uint4*>(wide ? words + at : words + at / 2);
    if (wide) *reinterpret_cast<uint4*>(c.bits + 4) = *reinterpret_cast<const uint4*>(words + at + 4);
    return c;
  }
#pragma unroll
  for (int i = 0; i < kCombineColumns; i++) {
    if (i >= count) break;
    if (wide) {
      c.bits[i] = words[at + i];
    } else {
      c.bits[i / 2] |= static_cast<uint32_t>(halves[at + i]) << (i % 2 * 16);
    }
  }
  return c;
}
__device__ float column(const Columns& c, int i, DType type) {
  return type == DType::kF32 ? __uint_as_float(c.bits[i]) : widen(c.bits[i / 2] >> (i % 2 * 16), type);
}

__device__ void store_columns(const CombineArgs& a, int64_t at, int count, bool whole,
                              const float (&v)[kCombineColumns]) {
  if (a.out_type == DType::kF32) {
    float* out = static_cast<float*>(a.out) + at;
    float sum[kCombineColumns];
#pragma unroll
    for (int i = 0; i < kCombineColumns; i++) sum[i] = a.add && i < count ? numerics::fadd(out[i], v[i]) : v[i];
    if (whole) {
#pragma unroll
      for (int i = 0; i < kCombineColumns; i += 4) {
        *reinterpret_cast<float4*>(out + i) = make_float4(sum[i], sum[i + 1], sum[i + 2], sum[i + 3]);
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kCombineColumns; i++) {
      if (i < count) out[i] = sum[i];
    }
    return;
  }
  uint32_t packed[kCombineColumns / 2];
#pragma unroll
  for (int i = 0; i < kCombineColumns; i += 2) {
    packed[i / 2] = a.out_type == DType::kBF16 ? pack_bf16(v[i], v[i + 1]) : pack_f16(v[i], v[i + 1]);
  }
  uint16_t* out = static_cast<uint16_t*>(a.out) + at;
  if (whole) {
    *reinterpret_cast<uint4*>(out) = make_uint4(packed[0], packed[1], packed[2], packed[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kCombineColumns; i++) {
    if (i < count) out[i] = static_cast<uint16_t>(packed[i / 2] >> (i % 2 * 16));
  }
}

// aligned: every thread's columns of x and of out stand at 16 bytes and all exist.
__global__ __launch_bounds__(kCombineThreads) void combine_kernel(CombineArgs a, bool aligned) {
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  const int64_t j = (static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x) * kCombineColumns;
  if (j >= a.n) return;
  const int count = static_cast<int>(min(static_cast<int64_t>(kCombineColumns), a.n - j));
  for (int64_t token = blockIdx.y; token < a.count; token += gridDim.y) {
    float acc[kCombineColumns] = {};
    for (int64_t first = 0; first < a.top; first += kSlots) {
      Columns v[kSlots];
      float weight[kSlots];
      bool there[kSlots];
#pragma unroll
      for (int s = 0; s < kSlots; s++) {
        const int64_t slot = token * a.top + first + s;
        const int64_t row = first + s < a.top ? __ldg(a.row + slot) : -1;
        there[s] = row >= 0 && row < a.rows;
        weight[s] = there[s] ? __ldg(a.weight + slot) : 0.0f;
        v[s] = there[s] ? load_columns(a, row * a.n + j, count, aligned) : Columns{};
      }
#pragma unroll
      for (int s = 0; s < kSlots; s++) {
        if (!there[s]) continue;
#pragma unroll
        for (int i = 0; i < kCombineColumns; i++) {
          acc[i] = numerics::combine_slot(acc[i], weight[s], column(v[s], i, a.x_type));
        }
      }
    }
    store_columns(a, token * a.n + j, count, aligned, acc);
  }
}

}  // namespace

void launch_combine(const CombineArgs& a, const KernelContext& context) {
  if (a.count == 0) return;
  const auto stands = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  constexpr int64_t kColumns = int64_t{kCombineColumns} * kCombineThreads;
  LaunchShape shape;
  shape.block = dim3(kCombineThreads);
  shape.grid = dim3(static_cast<unsigned>((a.n + kColumns - 1) / kColumns),
                    static_cast<unsigned>(std::min<int64_t>(a.count, 32768)));
  launch("combine", combine_kernel, shape, context.stream, a,
         a.n % kCombineColumns == 0 && stands(a.x) && stands(a.out));
}

}  // namespace isobit::cuda
