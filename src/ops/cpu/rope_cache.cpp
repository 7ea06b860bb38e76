// Rotation and the cache's write. A single token's is no work to share, so the other threads wait for it: vectors.
#include <algorithm>

#include "base/error.h"
#include "numerics/kv_cache.h"
#include "numerics/norm.h"
#include "numerics/rope.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/rope_cache.cpp"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Once for each target:
#include "ops/cpu/norm-inl.h"
#include "ops/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {
namespace {

using namespace numerics;

// The exponent of infinities and NaNs.
uint16_t InfiniteExponent(DType type) { return type == DType::kBF16 ? 0x7f80 : 0x7c00; }

// To 16 bits. Returns whether all are finite.
bool RoundRow(DType type, const float* x, size_t n, uint16_t* out) {
  const F32 d;
  const U32Of<F32> du;
  const uint16_t infinite = InfiniteExponent(type);
  auto exponents = hn::Zero(du);
  size_t i = 0;
  for (; type == DType::kBF16 && i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {
    const auto v = hn::LoadU(d, x + i);
    StoreBF16(d, v, out + i);
    exponents = hn::Max(exponents, hn::And(RoundBF16(d, v), hn::Set(du, infinite)));
  }
  bool finite = hn::AllTrue(du, hn::Ne(exponents, hn::Set(du, infinite)));
  for (; i < n; i++) {
    out[i] = type == DType::kBF16 ? f32_to_bf16(x[i]) : f32_to_f16(x[i]);
    finite &= (out[i] & infinite) != infinite;
  }
  return finite;
}

void Normalise(const float* x, const float* weight, int dim, float eps, float* out) {
  if (weight == nullptr) {
    std::copy_n(x, dim, out);
    return;
  }
  const F32 d;
  const auto n = static_cast<size_t>(dim);
  const float scale = rms_scale(SumOfSquares(x, n), dim, eps);
  size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) {  // rms_value
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale)), hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < n; i++) out[i] = rms_value(x[i], scale, weight[i]);
}

void Rotate(const RopeCacheArgs& a, int64_t position, float* x) {
  if (a.cos == nullptr) return;
  const F32 d;
  const int half = a.rope_dim / 2, lanes = static_cast<int>(hn::Lanes(d));
  const float* cos = a.cos + position * half;
  const float* sin = a.sin + position * half;
  const bool interleaved = a.layout == RopeLayout::kInterleaved;
  int i = 0;
  for (; !interleaved && i + lanes <= half; i += lanes) {  // rope_rotate
    const auto x0 = hn::LoadU(d, x + i), x1 = hn::LoadU(d, x + half + i);
    const auto c = hn::LoadU(d, cos + i), s = hn::LoadU(d, sin + i);
    hn::StoreU(Fma(d, x0, c, hn::Neg(hn::Mul(x1, s))), d, x + i);
    hn::StoreU(Fma(d, x1, c, hn::Mul(x0, s)), d, x + half + i);
  }
  for (; i < half; i++) {
    float& x0 = x[interleaved ? 2 * i : i];
    float& x1 = x[interleaved ? 2 * i + 1 : i + half];
    const Rotated r = rope_rotate(x0, x1, {cos[i], sin[i]});
    x0 = r.x0;
    x1 = r.x1;
  }
}

// One head of k or v into its cache slot; what is not finite as zero. Returns whether every element was finite.
bool StoreHead(const KvCacheView& cache, void* base, const float* scales, int64_t slot, int head, const float* x) {
  const int64_t page = slot / cache.page_size, offset = slot % cache.page_size;
  const int64_t first = ((page * cache.kv_heads + head) * cache.page_size + offset) * cache.head_dim;
  bool finite = true;
  if (cache.type == DType::kF8E4M3) {
    for (int i = 0; i < cache.head_dim; i++) {
      static_cast<uint8_t*>(base)[first + i] = cache_e4m3(x[i], scales[head], finite);
    }
    return finite;
  }
  uint16_t* to = static_cast<uint16_t*>(base) + first;
  finite = RoundRow(cache.type, x, static_cast<size_t>(cache.head_dim), to);
  const uint16_t exponent = InfiniteExponent(cache.type);
  for (int i = 0; !finite && i < cache.head_dim; i++) to[i] = (to[i] & exponent) == exponent ? uint16_t{0} : to[i];
  return finite;
}

}  // namespace

void RopeCacheToken(const RopeCacheArgs& a, int64_t t) {
  const KvCacheView& cache = a.cache;
  const int dim = cache.head_dim;
  const int64_t slot = a.slots[t];
  if (slot < 0) return;
  require(slot < cache.pages * cache.page_size, "rope_cache: slot {} of token {}; the cache has {} slots", slot, t,
          cache.pages * cache.page_size);
  const int64_t position = a.positions[t];
  require(a.cos == nullptr || (position >= 0 && position < a.max_position),
          "rope_cache: position {} of token {}; the rotation tables hold {}", position, t, a.max_position);
  const float* x = a.qkv + t * (a.q_heads + 2 * cache.kv_heads) * dim;
  float head[1024];
  bool finite = true;
  for (int h = 0; h < a.q_heads; h++, x += dim) {
    Normalise(x, a.q_norm, dim, a.norm_eps, head);
    Rotate(a, position, head);
    finite &= RoundRow(a.type, head, static_cast<size_t>(dim), a.q + (t * a.q_heads + h) * dim);
  }
  for (int h = 0; h < cache.kv_heads; h++, x += dim) {
    Normalise(x, a.k_norm, dim, a.norm_eps, head);
    Rotate(a, position, head);
    finite &= StoreHead(cache, cache.k, cache.k_scale, slot, h, head);
  }
  for (int h = 0; h < cache.kv_heads; h++, x += dim) finite &= StoreHead(cache, cache.v, cache.v_scale, slot, h, x);
  if (!finite && a.nonfinite != nullptr) a.nonfinite[t] = 1;
}

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isobit::cpu {

HWY_EXPORT(RopeCacheToken);

void rope_cache(const Cpu& cpu, const RopeCacheArgs& a) {
  const auto one_token = for_target(HWY_DISPATCH_TABLE(RopeCacheToken), cpu.simd);
  cpu.pool.parallel_for(a.count, [&](int, int64_t t) { one_token(a, t); });
}

}  // namespace isobit::cpu
#endif
