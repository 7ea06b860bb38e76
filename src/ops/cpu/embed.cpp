#include <algorithm>
#include <vector>

#include "base/error.h"
#include "numerics/convert.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/f16_linear.h"
#include "ops/cpu/packed_linear.h"

namespace isobit::cpu {
namespace {

void read_row(const Linear& table, int64_t row, uint16_t* scratch, float* out) {
  const int64_t n = table.k();
  if (const auto* packed = dynamic_cast<const PackedLinear*>(&table)) {
    packed->row(row, scratch);
    for (int64_t i = 0; i < n; i++) out[i] = numerics::bf16_to_f32(scratch[i]);
    return;
  }
  dynamic_cast<const F16Linear&>(table).row(row, scratch);
  for (int64_t i = 0; i < n; i++) out[i] = numerics::f16_to_f32(scratch[i]);
}

}  // namespace

void embed(const Cpu& cpu, const EmbedArgs& a) {
  const int64_t hidden = a.table->k();
  cpu.pool.parallel_for(a.count, [&](int, int64_t i) {
    const int64_t token = a.tokens[i];
    float* out = a.out + i * hidden;
    if (token < 0) {
      std::fill_n(out, hidden, 0.0f);
      return;
    }
    require(token < a.table->n(), "embed: token {} at {}; the vocabulary has {}", token, i, a.table->n());
    std::vector<uint16_t> scratch(static_cast<size_t>(hidden));
    read_row(*a.table, token, scratch.data(), out);
    for (int64_t j = 0; j < hidden; j++) {
      out[j] = numerics::canonical(a.scale == 1.0f ? out[j] : numerics::fmul(out[j], a.scale));
    }
  });
}

}  // namespace isobit::cpu
