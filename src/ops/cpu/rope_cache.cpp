// Rotation and the cache's write: few elements, scalar.
#include "base/error.h"
#include "numerics/norm.h"
#include "numerics/quantize.h"
#include "numerics/rope.h"
#include "ops/cpu/cpu_ops.h"

namespace isobit::cpu {
namespace {

using namespace numerics;

uint16_t round_to(DType type, float x) { return type == DType::kBF16 ? f32_to_bf16(x) : f32_to_f16(x); }

bool is_finite_16(DType type, uint16_t h) {
  const uint16_t exponent = type == DType::kBF16 ? 0x7f80 : 0x7c00;
  return (h & exponent) != exponent;
}

void normalise(const float* x, const float* weight, int dim, float eps, float* out) {
  if (weight == nullptr) {
    std::copy_n(x, dim, out);
    return;
  }
  const float scale = rms_scale(sum_of_squares(x, dim), dim, eps);
  for (int i = 0; i < dim; i++) out[i] = rms_value(x[i], scale, weight[i]);
}

void rotate(const RopeCacheArgs& a, int64_t position, float* x) {
  if (a.cos == nullptr) return;
  const int half = a.rope_dim / 2;
  const float* cos = a.cos + position * half;
  const float* sin = a.sin + position * half;
  const bool interleaved = a.layout == RopeLayout::kInterleaved;
  for (int i = 0; i < half; i++) {
    float& x0 = x[interleaved ? 2 * i : i];
    float& x1 = x[interleaved ? 2 * i + 1 : i + half];
    const Rotated r = rope_rotate(x0, x1, {cos[i], sin[i]});
    x0 = r.x0;
    x1 = r.x1;
  }
}

// One head of k or v into its cache slot. Returns whether every element was finite.
bool store(const KvCacheView& cache, void* base, const float* scales, int64_t slot, int head, const float* x) {
  const int64_t page = slot / cache.page_size, offset = slot % cache.page_size;
  const int64_t first = ((page * cache.kv_heads + head) * cache.page_size + offset) * cache.head_dim;
  bool finite = true;
  for (int i = 0; i < cache.head_dim; i++) {
    if (cache.type == DType::kF8E4M3) {
      const uint8_t e = e4m3_value(x[i], scales[head]);
      const bool ok = std::isfinite(x[i]) && (e & 0x7f) != 0x7f;
      static_cast<uint8_t*>(base)[first + i] = ok ? e : 0;
      finite &= ok;
    } else {
      const uint16_t h = round_to(cache.type, x[i]);
      const bool ok = is_finite_16(cache.type, h);
      static_cast<uint16_t*>(base)[first + i] = ok ? h : 0;
      finite &= ok;
    }
  }
  return finite;
}

void one_token(const RopeCacheArgs& a, int64_t t) {
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
    normalise(x, a.q_norm, dim, a.norm_eps, head);
    rotate(a, position, head);
    uint16_t* q = a.q + (t * a.q_heads + h) * dim;
    for (int i = 0; i < dim; i++) {
      q[i] = round_to(a.type, head[i]);
      finite &= is_finite_16(a.type, q[i]);
    }
  }
  for (int h = 0; h < cache.kv_heads; h++, x += dim) {
    normalise(x, a.k_norm, dim, a.norm_eps, head);
    rotate(a, position, head);
    finite &= store(cache, cache.k, cache.k_scale, slot, h, head);
  }
  for (int h = 0; h < cache.kv_heads; h++, x += dim) finite &= store(cache, cache.v, cache.v_scale, slot, h, x);
  if (!finite && a.nonfinite != nullptr) a.nonfinite[t] = 1;
}

}  // namespace

void rope_cache(const Cpu& cpu, const RopeCacheArgs& a) {
  cpu.pool.parallel_for(a.count, [&](int, int64_t t) { one_token(a, t); });
}

}  // namespace isobit::cpu
