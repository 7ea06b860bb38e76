#pragma once
// Parts of gemm_fp8_thin.cu. One row of x quantised into shared memory (rule N18, behind RMSNorm N8 and N18), a warp a
// block of 128; and the multiplying warpgroup's loop over the ring, where w's rows are the wgmma's M side, 64 at once,
// and x its N side of eight columns.
#include "ops/cuda/gemm_fp8_plan.h"
#include "ops/cuda/hopper/tma.h"
#include "ops/cuda/hopper/wgmma_e4m3.h"
#include "ops/cuda/quantize_device.cuh"
#include "ops/cuda/ring.h"

namespace isobit::cuda::thin {

constexpr int kMakers = 256, kMakerWarps = kMakers / 32;  // threads that bring x; the first 128 multiply
constexpr int kThreads = kMakers + 32;                    // and a warp that fills the ring
constexpr int kSlices = kGemmFp8ThinSlices, kColumns = kGemmFp8ThinRows;
constexpr uint32_t kWSlice = 64 * 128, kWStage = kSlices * kWSlice, kXRow = 128;  // a block's bytes, of x a row's

// x's rows as the wgmma's N side: no swizzle, 16 bytes of each row behind each other, so that the eight rows that the
// tensor cores read for each 16 of K are the m that exist and, of no consequence, what follows. A block takes m ·
// kXRow.
__device__ inline uint64_t x_descriptor(const uint8_t* x, int m) {
  return static_cast<uint64_t>((hopper::shared_address(x) & 0x3ffff) >> 4) | static_cast<uint64_t>(m) << 16 |
         uint64_t{1} << 32;  // 16 · m bytes to the next 16 of K; another eight rows there are not
}

// Where quantised blocks [first, first + count) of a single row go: block b's bytes at x + (b - first) · kXRow, its
// scale at scale[(b - first) · scale_step].
struct RowPlace {
  uint8_t* x;
  float* scale;
  int scale_step, first, count;

  __device__ void put(int block, int lane, uint32_t bytes, float s) const {
    *reinterpret_cast<uint32_t*>(x + static_cast<uint32_t>(block - first) * kXRow + lane * 4) = bytes;
    if (lane == 0) scale[(block - first) * scale_step] = s;
  }
  __device__ bool has(int block) const { return block >= first && block < first + count; }
};

// One row of 16-bit values. n: a multiple of 4. kMakers threads call.
__device__ inline void quantize_row(const uint16_t* row, int n, DType type, const RowPlace& to) {
  constexpr int kAtOnce = 2;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  for (int block = to.first + warp; block < to.first + to.count; block += kAtOnce * kMakerWarps) {
    uint2 v[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int b = block + i * kMakerWarps, at = b * 128 + lane * 4;
      v[i] = to.has(b) && at < n ? *reinterpret_cast<const uint2*>(row + at) : make_uint2(0, 0);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      if (!to.has(block + i * kMakerWarps)) break;
      float scale;
      const uint32_t bytes = quantize_four(make_float4(widen(v[i].x & 0xffff, type), widen(v[i].x >> 16, type),
                                                       widen(v[i].y & 0xffff, type), widen(v[i].y >> 16, type)),
                                           scale);
      to.put(block + i * kMakerWarps, lane, bytes, scale);
    }
  }
}

// One row behind RMSNorm: its weights are asked for before the wait for the kernels before, the row after it.
// kMakers threads call; warp w has block 8v + w of every 1024 values, which are N8's lanes 128w to 128w + 127.
struct NormedRow {
  static constexpr int kKept = kFp8NormedRow / numerics::kSumLanes;  // float4s of a thread
  float4 weight[kKept];

  __device__ static float4 load(const float* p, int n, int v) {
    const int at = v * numerics::kSumLanes + static_cast<int>(threadIdx.x) * 4;
    return at < n ? *reinterpret_cast<const float4*>(p + at) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
  }
  __device__ void ask(const float* weights, int n) {
#pragma unroll
    for (int v = 0; v < kKept; v++) weight[v] = load(weights, n, v);
  }
  __device__ void quantize(const float* row, int n, float eps, bool half, const RowPlace& to, float* warps) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    float4 x[kKept], lanes = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int v = 0; v < kKept; v++) x[v] = load(row, n, v);
#pragma unroll
    for (int v = 0; v < kKept; v++) accumulate_squares(lanes, x[v]);
    const float sum = sum_of_lanes(lanes);
    if (lane == 0) warps[warp] = sum;
    hopper::named_barrier_sync(1, kMakers);
    const float scale = numerics::rms_scale(sum_of_warps(warps), n, eps);
#pragma unroll
    for (int v = 0; v < kKept; v++) {
      const int block = v * kMakerWarps + warp;
      if (!to.has(block)) continue;
      const auto value = [&](float a, float w) { return round_once(numerics::rms_value(a, scale, w), half); };
      const float4 w = weight[v];
      const bool there = block * 128 + lane * 4 < n;  // 0 times a scale that is infinite would be no zero
      const float4 normed = make_float4(value(x[v].x, w.x), value(x[v].y, w.y), value(x[v].z, w.z), value(x[v].w, w.w));
      float block_scale;
      const uint32_t bytes = quantize_four(there ? normed : make_float4(0.0f, 0.0f, 0.0f, 0.0f), block_scale);
      to.put(block, lane, bytes, block_scale);
    }
  }
};

// The multiplying warpgroup's side of the ring: stages of kSlices tiles of 64 rows × 128 of K.
struct Multiplier {
  uint64_t a0;             // descriptor of the ring
  uint64_t *full, *empty;  // of each stage
  int stages;
  uint32_t x_rows;  // 16 of K are 16 · x_rows bytes of x
  RingPosition next;

  __device__ int arrive() {  // waits for the next stage
    const int at = next.slot;
    hopper::mbarrier_wait(&full[at], next.phase);
    next.step(stages);
    return at;
  }
  // d[j] = tile j of the stage in slot `at` times x's block j from b on.
  __device__ void issue(float (&d)[kSlices][4], int at, uint64_t b) const {
    const uint64_t a = a0 + static_cast<uint32_t>(at) * (kWStage >> 4);
#pragma unroll
    for (int j = 0; j < kSlices; j++) hopper::pin_registers(d[j]);
    hopper::wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
      for (int j = 0; j < kSlices; j++) {
        hopper::wgmma_e4m3<8>(d[j], a + j * (kWSlice >> 4) + 2 * k, b + (8 * j + 2 * k) * x_rows, k > 0);
      }
    }
    hopper::wgmma_commit();
  }
  // `count` stages; each one's products go to fold(d, stage). Two stages at once: one is folded while the other is
  // multiplied. b: descriptor of x's first block.
  template <typename Fold>
  __device__ void run(int count, uint64_t b, const Fold& fold) {
    const auto finish = [&](float(&d)[kSlices][4], int stage, int at) {
#pragma unroll
      for (int j = 0; j < kSlices; j++) hopper::pin_registers(d[j]);
      if (threadIdx.x % 32 == 0) hopper::mbarrier_arrive(&empty[at]);
      fold(d, stage);
    };
    const auto block = [&](int stage) { return b + static_cast<uint32_t>(stage) * kSlices * 8 * x_rows; };
    int stage = 0;
    for (; stage + 1 < count; stage += 2) {
      float d[2][kSlices][4] = {};
      const int first = arrive();
      issue(d[0], first, block(stage));
      const int second = arrive();
      issue(d[1], second, block(stage + 1));
      hopper::wgmma_wait<1>();
      finish(d[0], stage, first);
      hopper::wgmma_wait<0>();
      finish(d[1], stage + 1, second);
    }
    if (stage < count) {
      float d[kSlices][4] = {};
      const int at = arrive();
      issue(d, at, block(stage));
      hopper::wgmma_wait<0>();
      finish(d, stage, at);
    }
  }
};

}  // namespace isobit::cuda::thin
