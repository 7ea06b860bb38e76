#include "ops/cpu/moe.h"

#include <algorithm>
#include <array>
#include <vector>

#include "numerics/convert.h"
#include "numerics/moe.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/reference_linear.h"

namespace isobit::cpu {
namespace {

std::unique_ptr<Linear> expert_matrix(const Cpu& cpu, const GroupedGemmArgs& a, int64_t expert, WeightArena& arena) {
  WeightPart part;
  part.dtype = a.type;
  part.rows = a.n;
  part.cols = a.k;
  part.data = reinterpret_cast<const std::byte*>(a.w + expert * a.n * a.k);
  const std::array parts = {part};
  if (a.type != DType::kBF16) return load_reference(parts, LinearForm::kStacked, a.type);
  return pack_linear(cpu.pool, parts, LinearForm::kStacked, Storage::kCompact, arena);
}

float combine_value(const void* x, DType t, int64_t at) {
  if (t == DType::kF32) return static_cast<const float*>(x)[at];
  const uint16_t h = static_cast<const uint16_t*>(x)[at];
  return t == DType::kBF16 ? numerics::bf16_to_f32(h) : numerics::f16_to_f32(h);
}

void store_combined(const CombineArgs& a, int64_t at, float v) {
  if (a.out_type == DType::kF32) {
    float& out = static_cast<float*>(a.out)[at];
    out = numerics::canonical(a.add ? numerics::fadd(out, v) : v);
    return;
  }
  static_cast<uint16_t*>(a.out)[at] = a.out_type == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v);
}

}  // namespace

void grouped_gemm(const Cpu& cpu, const GroupedGemmArgs& a) {
  WeightArena arena;
  const auto element = static_cast<int64_t>(dtype_info(a.out_type).block_bytes);
  for (int64_t e = 0; e < a.experts; e++) {
    const bool masked = a.capacity > 0;
    const int64_t first = masked ? e * a.capacity : std::clamp<int64_t>(a.rows[e], 0, a.m);
    const int64_t end =
        masked ? first + std::clamp<int64_t>(a.rows[e], 0, a.capacity) : std::clamp<int64_t>(a.rows[e + 1], 0, a.m);
    if (end <= first) continue;
    const std::unique_ptr<Linear> w = expert_matrix(cpu, a, e, arena);
    GemmArgs g;
    g.x = a.x + first * a.k;
    g.m = end - first;
    g.w = w.get();
    g.type = a.type;
    g.epilogue = a.out_type == DType::kF32 ? Epilogue::kStoreF32 : Epilogue::kStoreRounded;
    g.out = static_cast<std::byte*>(a.out) + first * a.n * element;
    (a.type == DType::kBF16 ? gemm : gemm_reference)(cpu, g);
  }
}

void combine(const Cpu& cpu, const CombineArgs& a) {
  cpu.pool.parallel_for(a.count, [&](int, int64_t token) {
    std::vector<float> acc(static_cast<size_t>(a.n), 0.0f);
    for (int64_t s = token * a.top; s < (token + 1) * a.top; s++) {
      if (a.row[s] < 0 || a.row[s] >= a.rows) continue;
      const int64_t from = a.row[s] * a.n;
      for (int64_t j = 0; j < a.n; j++) {
        float& sum = acc[static_cast<size_t>(j)];
        sum = numerics::combine_slot(sum, a.weight[s], combine_value(a.x, a.x_type, from + j));
      }
    }
    for (int64_t j = 0; j < a.n; j++) store_combined(a, token * a.n + j, acc[static_cast<size_t>(j)]);
  });
}

}  // namespace isobit::cpu
