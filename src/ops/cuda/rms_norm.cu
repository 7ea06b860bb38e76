// RMSNorm, rule N8. Bytes: 4 read and 2 written an element (the weights stay in cache); three f32 operations an element
// are nothing beside them.
//
// A CTA a row. Thread t of 256 owns the sum's lanes 4t to 4t+3, which are the float4 at 4t of every 1024 elements: the
// tree's first two levels lie in a thread, five in a warp, three between the eight warps. Every level adds two partial
// sums of which either order gives the same bits, so all threads can take part and all end with the sum.
#include "numerics/norm.h"
#include "ops/cuda/device_math.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"

namespace isobit::cuda {
namespace {

using numerics::fadd;
using numerics::ffma;

constexpr int kThreads = 256, kWarps = kThreads / 32;
static_assert(4 * kThreads == numerics::kSumLanes);

struct RmsNormParams {
  const float* x;
  const int32_t* rows;
  const float* weight;
  int64_t n;
  float eps;
  bool half;
  uint16_t* out;
  float* add_to;
};

__device__ float4 load(const float* p, int64_t i, int64_t n, bool aligned) {
  if (aligned) return i < n ? *reinterpret_cast<const float4*>(p + i) : make_float4(0, 0, 0, 0);
  return make_float4(i < n ? p[i] : 0.0f, i + 1 < n ? p[i + 1] : 0.0f, i + 2 < n ? p[i + 2] : 0.0f,
                     i + 3 < n ? p[i + 3] : 0.0f);
}

__device__ void add(float* to, int64_t i, int64_t n, float4 y, bool aligned) {
  const float4 x = load(to, i, n, aligned);
  const float4 sum = make_float4(fadd(x.x, y.x), fadd(x.y, y.y), fadd(x.z, y.z), fadd(x.w, y.w));
  if (aligned) {
    *reinterpret_cast<float4*>(to + i) = sum;
    return;
  }
  to[i] = sum.x;
  if (i + 1 < n) to[i + 1] = sum.y;
  if (i + 2 < n) to[i + 2] = sum.z;
  if (i + 3 < n) to[i + 3] = sum.w;
}

// Four values of output row `row`.
__device__ void store(const RmsNormParams& p, int64_t row, int64_t i, float4 x, float4 w, float scale, bool aligned) {
  if (i >= p.n) return;
  using numerics::rms_value;
  const float v0 = rms_value(x.x, scale, w.x), v1 = rms_value(x.y, scale, w.y);
  const float v2 = rms_value(x.z, scale, w.z), v3 = rms_value(x.w, scale, w.w);
  if (p.add_to != nullptr) return add(p.add_to + row * p.n, i, p.n, make_float4(v0, v1, v2, v3), aligned);
  uint16_t* out = p.out + row * p.n;
  const uint2 packed =
      p.half ? make_uint2(pack_f16(v0, v1), pack_f16(v2, v3)) : make_uint2(pack_bf16(v0, v1), pack_bf16(v2, v3));
  if (aligned) {
    *reinterpret_cast<uint2*>(out + i) = packed;
    return;
  }
  out[i] = static_cast<uint16_t>(packed.x);
  if (i + 1 < p.n) out[i + 1] = static_cast<uint16_t>(packed.x >> 16);
  if (i + 2 < p.n) out[i + 2] = static_cast<uint16_t>(packed.y);
  if (i + 3 < p.n) out[i + 3] = static_cast<uint16_t>(packed.y >> 16);
}

__device__ float tree(const float4& lanes) {
  __shared__ float warps[kWarps];
  float a = fadd(fadd(lanes.x, lanes.y), fadd(lanes.z, lanes.w));
#pragma unroll
  for (int h = 1; h < 32; h *= 2) a = fadd(a, __shfl_xor_sync(0xffffffff, a, h));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = a;
  __syncthreads();
  return fadd(fadd(fadd(warps[0], warps[1]), fadd(warps[2], warps[3])),
              fadd(fadd(warps[4], warps[5]), fadd(warps[6], warps[7])));
}

__device__ void accumulate(float4& lanes, const float4& x) {
  lanes.x = ffma(x.x, x.x, lanes.x);
  lanes.y = ffma(x.y, x.y, lanes.y);
  lanes.z = ffma(x.z, x.z, lanes.z);
  lanes.w = ffma(x.w, x.w, lanes.w);
}

// kKept: float4s of the row that a thread keeps in registers; a longer row is read twice.
template <int kKept>
__global__ __launch_bounds__(kThreads) void rms_norm_kernel(RmsNormParams p) {
  hopper::launch_dependents();
  const bool aligned = p.n % 4 == 0;
  const int first = static_cast<int>(threadIdx.x) * 4;
  float4 w[kKept], x[kKept];
#pragma unroll
  for (int v = 0; v < kKept; v++) w[v] = load(p.weight, first + v * numerics::kSumLanes, p.n, aligned);
  hopper::wait_for_predecessors();
  const int64_t i = blockIdx.x, row = p.rows != nullptr ? p.rows[i] : i;
  if (row < 0) {
    for (int64_t j = threadIdx.x; j < p.n && p.add_to == nullptr; j += kThreads) p.out[i * p.n + j] = 0;
    return;
  }
  const float* in = p.x + row * p.n;
#pragma unroll
  for (int v = 0; v < kKept; v++) x[v] = load(in, first + v * numerics::kSumLanes, p.n, aligned);
  float4 lanes = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int v = 0; v < kKept; v++) accumulate(lanes, x[v]);
  const int64_t rest = first + int64_t{kKept} * numerics::kSumLanes;
  for (int64_t j = rest; j < p.n; j += numerics::kSumLanes) accumulate(lanes, load(in, j, p.n, aligned));
  const float scale = numerics::rms_scale(tree(lanes), p.n, p.eps);
#pragma unroll
  for (int v = 0; v < kKept; v++) store(p, i, first + v * numerics::kSumLanes, x[v], w[v], scale, aligned);
  for (int64_t j = rest; j < p.n; j += numerics::kSumLanes) {
    store(p, i, j, load(in, j, p.n, aligned), load(p.weight, j, p.n, aligned), scale, aligned);
  }
}

constexpr int kRowWarps = 8;
constexpr int kChunks = numerics::kSumLanes / 128;

// Many short rows: a warp a row of at most 1024. Lane l holds the float4 at 4l of every 128 elements; the tree's last
// three levels lie between the chunks of 128.
__global__ __launch_bounds__(kRowWarps * 32) void rms_norm_short_kernel(RmsNormParams p, int64_t count) {
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / 32;
  if (i >= count) return;
  const int64_t row = p.rows != nullptr ? p.rows[i] : i;
  if (row < 0) {
    for (int64_t j = lane; j < p.n && p.add_to == nullptr; j += 32) p.out[i * p.n + j] = 0;
    return;
  }
  const bool aligned = p.n % 4 == 0;
  const float* in = p.x + row * p.n;
  float4 x[kChunks];
  float sum[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; c++) x[c] = load(in, c * 128 + lane * 4, p.n, aligned);
#pragma unroll
  for (int c = 0; c < kChunks; c++) {
    float4 lanes = make_float4(0, 0, 0, 0);
    accumulate(lanes, x[c]);
    sum[c] = fadd(fadd(lanes.x, lanes.y), fadd(lanes.z, lanes.w));
  }
#pragma unroll
  for (int h = 1; h < 32; h *= 2) {
#pragma unroll
    for (int c = 0; c < kChunks; c++) sum[c] = fadd(sum[c], __shfl_xor_sync(0xffffffff, sum[c], h));
  }
  static_assert(kChunks == 8);
  const float all =
      fadd(fadd(fadd(sum[0], sum[1]), fadd(sum[2], sum[3])), fadd(fadd(sum[4], sum[5]), fadd(sum[6], sum[7])));
  const float scale = numerics::rms_scale(all, p.n, p.eps);
#pragma unroll
  for (int c = 0; c < kChunks; c++) {
    const int j = c * 128 + lane * 4;
    store(p, i, j, x[c], load(p.weight, j, p.n, aligned), scale, aligned);
  }
}

// Enough rows that a warp each fills the GPU.
bool many_short_rows(const RmsNormArgs& args, int sm_count) {
  return args.n <= numerics::kSumLanes && args.count >= int64_t{kRowWarps} * sm_count;
}

}  // namespace

void launch_rms_norm(const RmsNormArgs& args, const KernelContext& context) {
  if (args.count == 0) return;
  const RmsNormParams p{args.x,   args.rows,  args.weight, args.n, args.eps, args.out_type == DType::kF16,
                        args.out, args.add_to};
  LaunchShape shape;
  if (many_short_rows(args, context.sm_count)) {
    shape.grid = dim3(static_cast<unsigned>((args.count + kRowWarps - 1) / kRowWarps));
    shape.block = dim3(kRowWarps * 32);
    launch("rms_norm", rms_norm_short_kernel, shape, context.stream, p, args.count);
    return;
  }
  shape.grid = dim3(static_cast<unsigned>(args.count));
  shape.block = dim3(kThreads);
  const int64_t vectors = (args.n + numerics::kSumLanes - 1) / numerics::kSumLanes;
  auto* kernel = vectors <= 1   ? rms_norm_kernel<1>
                 : vectors <= 2 ? rms_norm_kernel<2>
                 : vectors <= 4 ? rms_norm_kernel<4>
                                : rms_norm_kernel<8>;
  launch("rms_norm", kernel, shape, context.stream, p);
}

}  // namespace isobit::cuda
