// Embedding: a gather of 16-bit rows into the f32 residual stream. Bytes: 2 read and 4 written an element; no flops.
#include "numerics/convert.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/linear_cuda.h"

namespace isobit::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kGroup = 8;  // elements of one 16-byte load; slices of stored rows are whole ones

struct EmbedParams {
  const uint16_t* table;
  int64_t vocab, hidden;
  const int32_t* tokens;
  float scale;
  float* out;
};

template <bool kHalf>
__device__ float value(uint16_t bits, float scale) {
  const float x = kHalf ? numerics::f16_to_f32(bits) : numerics::bf16_to_f32(bits);
  return numerics::canonical(scale == 1.0f ? x : numerics::fmul(x, scale));
}

// A CTA a token. An id past the vocabulary (the engine lets none through) gives NaN, which ends its request.
template <bool kHalf>
__global__ __launch_bounds__(kMaxThreads) void embed_kernel(EmbedParams p) {
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  const int64_t token = p.tokens[blockIdx.x];
  float* out = p.out + static_cast<int64_t>(blockIdx.x) * p.hidden;
  const bool known = token >= 0 && token < p.vocab;
  const float filler = token < 0 ? 0.0f : numerics::from_bits(numerics::kNaN32);
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kGroup; i < p.hidden; i += blockDim.x * kGroup) {
    float v[kGroup];
    for (float& x : v) x = filler;
    if (known) {
      const uint4 packed = *reinterpret_cast<const uint4*>(p.table + CudaLinear::place(p.vocab, token, i));
      const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
      for (int j = 0; j < kGroup; j++) {
        v[j] = value<kHalf>(static_cast<uint16_t>(words[j / 2] >> (16 * (j % 2))), p.scale);
      }
    }
    if (p.hidden % kGroup == 0) {
      *reinterpret_cast<float4*>(out + i) = make_float4(v[0], v[1], v[2], v[3]);
      *reinterpret_cast<float4*>(out + i + 4) = make_float4(v[4], v[5], v[6], v[7]);
    } else {
#pragma unroll
      for (int j = 0; j < kGroup; j++) {
        if (i + j < p.hidden) out[i + j] = v[j];
      }
    }
  }
}

}  // namespace

void launch_embed(const EmbedArgs& args, const KernelContext& context) {
  if (args.count == 0) return;
  const CudaLinear& table = as_cuda(args.table, "embed");
  const EmbedParams p{table.data(), table.n(), table.k(), args.tokens, args.scale, args.out};
  const int64_t groups = (p.hidden + kGroup - 1) / kGroup;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(args.count));
  // The step's first kernel waits for its inputs before it starts, so that those after it may read them at once.
  shape.programmatic = false;
  shape.block = dim3(static_cast<unsigned>(groups < kMaxThreads ? (groups + 31) / 32 * 32 : kMaxThreads));
  if (table.type() == DType::kF16) {
    launch("embed", embed_kernel<true>, shape, context.stream, p);
  } else {
    launch("embed", embed_kernel<false>, shape, context.stream, p);
  }
}

}  // namespace isobit::cuda
