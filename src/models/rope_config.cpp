#include "models/rope_config.h"

#include "base/error.h"
#include "numerics/rope_scaling.h"

namespace isobit {
namespace {

std::vector<double> divided(std::vector<double> frequencies, const std::vector<float>& factors) {
  for (size_t i = 0; i < frequencies.size(); i++) frequencies[i] = numerics::rope_long(frequencies[i], factors[i]);
  return frequencies;
}

}  // namespace

RopeConfig make_rope(int32_t dim, RopeLayout layout, double theta, const RopeScaling& s) {
  using Kind = RopeScaling::Kind;
  RopeConfig rope;
  rope.dim = dim;
  rope.layout = layout;
  rope.magnitude = s.magnitude;
  for (int i = 0; i < dim / 2; i++) rope.frequencies.push_back(numerics::rope_frequency(i, dim, theta));
  const numerics::YarnRange range = s.kind == Kind::kYarn ? numerics::yarn_range(s.beta_fast, s.beta_slow, dim, theta,
                                                                                 s.original_context, s.whole_range)
                                                          : numerics::YarnRange{};
  for (int i = 0; i < dim / 2; i++) {
    double& f = rope.frequencies[static_cast<size_t>(i)];
    if (s.kind == Kind::kLinear) f = numerics::rope_linear(f, s.factor);
    if (s.kind == Kind::kLlama3) f = numerics::rope_llama3(f, s.factor, s.low, s.high, s.original_context);
    if (s.kind == Kind::kYarn) f = numerics::rope_yarn(f, i, s.factor, range);
  }
  if (s.kind != Kind::kFactors) return rope;
  if (!s.long_factors.empty()) {
    rope.long_frequencies = divided(rope.frequencies, s.long_factors);
    rope.original_context = static_cast<int64_t>(s.original_context);
  }
  rope.frequencies = divided(std::move(rope.frequencies), s.factors);
  return rope;
}

}  // namespace isobit
