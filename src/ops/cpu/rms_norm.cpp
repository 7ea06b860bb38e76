#include <algorithm>

#include "numerics/norm.h"
#include "ops/cpu/cpu_ops.h"

namespace isobit::cpu {

void rms_norm(const Cpu& cpu, const RmsNormArgs& a) {
  using namespace numerics;
  cpu.pool.parallel_for(a.count, [&](int, int64_t i) {
    const int64_t row = a.rows != nullptr ? a.rows[i] : i;
    uint16_t* out = a.out + i * a.n;
    if (row < 0) {
      std::fill_n(out, a.n, uint16_t{0});
      return;
    }
    const float* x = a.x + row * a.n;
    const float scale = rms_scale(sum_of_squares(x, a.n), a.n, a.eps);
    for (int64_t j = 0; j < a.n; j++) {
      const float y = rms_value(x[j], scale, a.weight[j]);
      out[j] = a.out_type == DType::kBF16 ? f32_to_bf16(y) : f32_to_f16(y);
    }
  });
}

}  // namespace isobit::cpu
