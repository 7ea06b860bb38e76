#pragma once
// The write of q, k, v as attention reads them: what rope_cache.cu and the GEMM that rotates its outputs share.
#include <cstdint>

#include "numerics/rope.h"
#include "ops/cuda/device_math.h"
#include "ops/rope.h"

namespace isobit::cuda {

// Whether both elements are finite; one that is not becomes +0 where `replace` asks for it.
__device__ inline bool check_finite(uint32_t& packed, uint32_t exponent, bool replace) {
  const bool low = (packed & exponent) != exponent, high = (packed & exponent << 16) != exponent << 16;
  if (replace && !low) packed &= 0xffff0000;
  if (replace && !high) packed &= 0x0000ffff;
  return low && high;
}

// Where a token's heads lie in the cache: elements from the start.
struct CachePlace {
  int64_t first, head_stride;
};
__device__ inline CachePlace cache_place(const KvCacheView& c, int64_t slot) {
  const uint32_t page_size = static_cast<uint32_t>(c.page_size), page = static_cast<uint32_t>(slot) / page_size;
  const uint32_t offset = static_cast<uint32_t>(slot) - page * page_size;
  const int64_t stride = static_cast<int64_t>(c.page_size) * c.head_dim;
  return {page * c.kv_heads * stride + static_cast<int64_t>(offset) * c.head_dim, stride};
}

// The engine lets neither a slot past the cache nor a position past the tables through; a request that had them ends.
__device__ inline bool in_bounds(const RopeCacheArgs& a, int64_t slot, int64_t position) {
  return slot < a.cache.pages * a.cache.page_size && (a.cos == nullptr || (position >= 0 && position < a.max_position));
}

// Outputs that are q, k and v (rules N9, N21): pairs of the rotation are neighbours, so a thread holds both.
struct TokenPlace {
  int64_t slot = -1, position = 0;  // slot < 0: padding
  bool in_bounds = false;
};
__device__ inline TokenPlace token_place(const RopeCacheArgs& a, int row) {
  TokenPlace t;
  t.slot = a.slots[row], t.position = a.positions[row];
  t.in_bounds = in_bounds(a, t.slot, t.position);
  return t;
}
// Where a pair of columns of q, k or v goes, and how it turns. The tables and the place are the step's inputs.
struct RotatedPair {
  uint16_t* to = nullptr;  // null: a slot or position out of bounds
  bool is_q = false, turns = false;
  numerics::RopeEntry turn = {1.0f, 0.0f};
};
__device__ inline RotatedPair rotated_pair(const RopeCacheArgs& a, const TokenPlace& t, int row, int column) {
  RotatedPair r;
  if (!t.in_bounds) return r;
  const int dim = a.cache.head_dim, head = column / dim, e = column - head * dim;
  const int rotated = a.q_heads + a.cache.kv_heads;
  r.is_q = head < a.q_heads;
  r.turns = head < rotated && a.cos != nullptr && e < a.rope_dim;
  if (r.turns) {
    const int64_t entry = t.position * (a.rope_dim / 2) + e / 2;
    r.turn = {a.cos[entry], a.sin[entry]};
  }
  if (r.is_q) {
    r.to = a.q + (static_cast<int64_t>(row) * a.q_heads + head) * dim + e;
  } else {
    const bool is_k = head < rotated;
    const CachePlace place = cache_place(a.cache, t.slot);
    r.to = static_cast<uint16_t*>(is_k ? a.cache.k : a.cache.v) + place.first +
           (head - (is_k ? a.q_heads : rotated)) * place.head_stride + e;
  }
  return r;
}
__device__ inline void store_rotated(const RopeCacheArgs& a, const RotatedPair& r, int row, float x0, float x1) {
  if (r.to == nullptr) {
    a.nonfinite[row] = 1;
    return;
  }
  if (r.turns) {
    const numerics::Rotated turned = numerics::rope_rotate(x0, x1, r.turn);
    x0 = turned.x0, x1 = turned.x1;
  }
  const bool half = a.type == DType::kF16;
  uint32_t v = half ? pack_f16(x0, x1) : pack_bf16(x0, x1);
  if (!check_finite(v, half ? 0x7c00 : 0x7f80, !r.is_q)) a.nonfinite[row] = 1;
  *reinterpret_cast<uint32_t*>(r.to) = v;
}

}  // namespace isobit::cuda
