#pragma once
// The attention kernels, each for its part of the shapes; attention.cpp chooses (attention_plan.h).
#include "numerics/kv_cache.h"
#include "ops/cuda/attention_plan.h"
#include "ops/cuda/kernels.h"

namespace isobit::cuda {

// numerics::AttentionScale with its divisions done once. With a soft cap a score is cap·log2 e·tanh(dot·inner) and the
// factor is 1.
struct ScoreScale {
  float factor = 0.0f;  // takes a score to powers of two
  float inner = 0.0f;   // scale / cap; 0: no cap
  float cap = 0.0f;     // cap·log2 e
};
ISOBIT_HD ScoreScale score_scale(const numerics::AttentionScale& s) {
  if (s.soft_cap <= 0.0f) return {s.factor(), 0.0f, 0.0f};
  return {s.factor(), numerics::fdiv(s.scale, s.soft_cap), numerics::fmul(s.soft_cap, numerics::kLog2E)};
}
// Over a cache without scales.
inline ScoreScale score_scale(const AttentionArgs& args) {
  return score_scale(numerics::AttentionScale{args.scale, args.soft_cap});
}

// Takes everything; of the requests those of at least so many rows.
void launch_attention_generic(const AttentionArgs& args, const KernelContext& context, int least_rows = 0);
// The requests of up to kAttentionDecodeRows rows.
void launch_attention_decode(const AttentionArgs& args, const AttentionPlan& plan, const KernelContext& context);
namespace decode {
// The same over caches of one head_dim and type; instantiated in attention_decode_<head_dim>_<type>.cu, so that they
// compile side by side.
template <int kHeadDim, bool kFp8>
void launch_dim(const AttentionArgs& args, const AttentionPlan& plan, const KernelContext& context);
}  // namespace decode
// The others; all, where the plan has no decode part.
void launch_attention_prefill(const AttentionArgs& args, const AttentionPlan& plan, const KernelContext& context);

}  // namespace isobit::cuda
