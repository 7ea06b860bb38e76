#include <algorithm>

#include "base/error.h"
#include "numerics/convert.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/reference_linear.h"

namespace isobit::cpu {

void embed(const Cpu& cpu, const EmbedArgs& a) {
  const auto& table = dynamic_cast<const ReferenceLinear&>(*a.table);
  const int64_t hidden = table.k();
  cpu.pool.parallel_for(a.count, [&](int, int64_t i) {
    const int64_t token = a.tokens[i];
    float* out = a.out + i * hidden;
    if (token < 0) {
      std::fill_n(out, hidden, 0.0f);
      return;
    }
    require(token < table.n(), "embed: token {} at {}; the vocabulary has {}", token, i, table.n());
    const uint16_t* row = table.row(token);
    for (int64_t j = 0; j < hidden; j++) {
      const float x = numerics::bf16_to_f32(row[j]);
      out[j] = numerics::canonical(a.scale == 1.0f ? x : numerics::fmul(x, a.scale));
    }
  });
}

}  // namespace isobit::cpu
