#include "cli/step_floor.h"

#include <algorithm>

namespace isobit::cli {
namespace {

constexpr double kBytesPerUs = 4.3e6, kFlopsPerUs = 790e6;

}  // namespace

StepFloor::StepFloor(const ModelConfig& c, bool fp8)
    : fp8_(fp8),
      head_(static_cast<double>(c.hidden) * static_cast<double>(c.vocab)),
      key_bytes_(static_cast<double>(c.kv_bytes_per_token())) {
  for (const LayerConfig& l : c.layers) {
    body_ += static_cast<double>(c.hidden) * static_cast<double>(l.qkv_columns() + l.q_columns() + 3 * l.ffn);
    heads_ += static_cast<double>(l.q_columns());
  }
}

double StepFloor::us(const StepWork& w) const {
  const double bytes = body_ * (fp8_ ? 1 : 2) + (w.sampled > 0 ? head_ * 2 : 0) + w.keys * key_bytes_;
  const double flops = 2 * w.tokens * body_ / (fp8_ ? 2 : 1) + 2 * w.sampled * head_ + 4 * w.pairs * heads_;
  return std::max(bytes / kBytesPerUs, flops / kFlopsPerUs);
}

}  // namespace isobit::cli
