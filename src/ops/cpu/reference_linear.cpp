#include "ops/cpu/reference_linear.h"

#include "numerics/activation.h"
#include "numerics/dequantize.h"
#include "numerics/gemm.h"
#include "ops/cpu/packed_linear.h"

namespace isobit::cpu {

std::unique_ptr<Linear> load_reference(std::span<const WeightPart> parts, LinearForm form, DType type) {
  const int64_t n = check_parts(parts, form), k = parts[0].cols;
  std::vector<uint16_t> data(static_cast<size_t>(n * k));
  uint16_t* to = data.data();
  std::vector<float> wide(static_cast<size_t>(k));
  for (const WeightPart& p : parts) {
    const size_t stride = dtype_bytes(p.dtype, static_cast<size_t>(k));
    for (int64_t r = 0; r < p.rows; r++, to += k) {
      if (type == DType::kBF16) {
        numerics::dequantize_row_bf16(p.dtype, p.data + static_cast<size_t>(r) * stride, k, to);
        continue;
      }
      numerics::dequantize_row_f32(p.dtype, p.data + static_cast<size_t>(r) * stride, k, wide.data());
      for (int64_t i = 0; i < k; i++) to[i] = numerics::f32_to_f16(wide[static_cast<size_t>(i)]);
    }
  }
  return std::make_unique<ReferenceLinear>(n, k, form, type, std::move(data));
}

namespace {

using namespace numerics;

float dot(const GemmArgs& a, const ReferenceLinear& w, int64_t m, int64_t n) {
  const int64_t k = w.k(), chunk = gemm_chunk_k(w.n(), k);
  const uint16_t* x = a.x + m * k;
  return a.type == DType::kBF16 ? gemm_dot<Operand::kBF16>(x, w.row(n), k, chunk)
                                : gemm_dot<Operand::kF16>(x, w.row(n), k, chunk);
}

void one_output(const GemmArgs& a, const ReferenceLinear& w, int64_t m, int64_t n) {
  const auto round = [&](float x) { return a.type == DType::kBF16 ? f32_to_bf16(x) : f32_to_f16(x); };
  const int64_t outputs = w.outputs(), at = m * outputs + n;
  const float acc = dot(a, w, m, n);
  const float y = a.bias != nullptr ? fadd(acc, a.bias[n]) : acc;
  switch (a.epilogue) {
    case Epilogue::kStoreF32:
      static_cast<float*>(a.out)[at] = canonical(y);
      break;
    case Epilogue::kStoreRounded:
      static_cast<uint16_t*>(a.out)[at] = round(y);
      break;
    case Epilogue::kAddResidual: {
      float& r = static_cast<float*>(a.out)[at];
      r = canonical(fadd(r, y));
      break;
    }
    case Epilogue::kSiluMul:
    case Epilogue::kGeluMul: {
      const float up = dot(a, w, m, n + outputs);
      const float gate = a.epilogue == Epilogue::kSiluMul ? silu(acc) : gelu_tanh(acc);
      static_cast<uint16_t*>(a.out)[at] = round(fmul(gate, up));
      break;
    }
  }
}

}  // namespace

void gemm_reference(const Cpu& cpu, const GemmArgs& a) {
  const auto& w = dynamic_cast<const ReferenceLinear&>(*a.w);
  cpu.pool.parallel_for(w.outputs(), [&](int, int64_t n) {
    for (int64_t m = 0; m < a.m; m++) one_output(a, w, m, n);
  });
}

}  // namespace isobit::cpu
