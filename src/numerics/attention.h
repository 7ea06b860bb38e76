#pragma once
// N10. Attention of one query over its keys. Keys go in blocks of B at absolute multiples of B, blocks in super-blocks
// of S = 2048 at absolute multiples of S. Inside a super-block the maximum runs and the sums are rescaled where it
// grows; super-blocks are folded in ascending order. A block with no allowed key changes nothing.
#include <limits>

#include "numerics/activation.h"
#include "numerics/contract.h"
#include "numerics/dot.h"

namespace isobit::numerics {

struct AttentionScale {
  float scale = 1.0f;     // of the score, e.g. 1/√head_dim
  float soft_cap = 0.0f;  // 0: none; else scores become cap·tanh(score/cap)
  float value = 1.0f;     // of the values (N21)

  // Without a cap the dot product itself is the score and `factor` = scale·log2 e takes it to powers of two. With one
  // the capped score is already in powers of two and the factor is 1.
  ISOBIT_HD float factor() const { return soft_cap > 0.0f ? 1.0f : fmul(scale, kLog2E); }
  ISOBIT_HD float score(float dot) const {
    if (soft_cap <= 0.0f) return dot;
    return fmul(fmul(soft_cap, kLog2E), tanh(fmul(dot, fdiv(scale, soft_cap))));
  }
  // What takes a sum over values of mass l to the output.
  ISOBIT_HD float inverse(float l) const { return fdiv(value, l); }
};

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// The running state of one super-block: maximum R (in powers of two), four partial row sums.
struct AttentionSums {
  float r = kMinusInf;
  float l[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  ISOBIT_HD float total() const { return fadd(fadd(l[0], l[1]), fadd(l[2], l[3])); }
};

// Takes a block's largest score; returns the factor α for everything summed so far (1: nothing to rescale).
ISOBIT_HD float attention_grow(AttentionSums& s, float block_max, float factor) {
  const float b = fmul(block_max, factor);
  if (!(b > s.r)) return 1.0f;
  const float alpha = ex2(fsub(s.r, b));
  s.r = b;
  return alpha;
}

// A key's unrounded probability, relative to 2^R.
ISOBIT_HD float attention_p(float score, float factor, float r) {
  return ex2(ffma(score, factor, r == kMinusInf ? 0.0f : -r));
}

// Adds 16 probabilities to the row sum. Pairs: w_j = v_j + v_{j+8}, u_x = w_{2x} + w_{2x+1}, l_x = fma(l_x, α, u_x); α
// is the block's for its first group and 1 after.
ISOBIT_HD void attention_add_16(AttentionSums& s, const float* v, float alpha) {
  for (int x = 0; x < 4; x++) {
    const float u = fadd(fadd(v[2 * x], v[2 * x + 8]), fadd(v[2 * x + 1], v[2 * x + 9]));
    s.l[x] = ffma(s.l[x], alpha, u);
  }
}

// The fold of two super-blocks: {r, l} and each O become fma(later, b, earlier·a).
struct AttentionFold {
  float r, a, b;
};
ISOBIT_HD AttentionFold attention_fold(float r, float r_later) {
  const float m = fmax(r, r_later);
  return {m, ex2(fsub(r, m)), ex2(fsub(r_later, m))};
}
ISOBIT_HD float attention_fold_value(float x, float later, const AttentionFold& f) {
  return ffma(later, f.b, fmul(x, f.a));
}

// The sink, a logit that joins the sum after the fold.
ISOBIT_HD float attention_sink(float l, float sink, float r) { return fadd(l, ex2(fsub(fmul(sink, kLog2E), r))); }

// The output before rounding. Adding +0 makes a zero positive, so that skipped blocks leave no trace.
ISOBIT_HD float attention_out(float o, float inv_l) { return fadd(fmul(o, inv_l), 0.0f); }

// Keys per block and per super-block: the contract's, but for tools/attention_error.cpp, which weighs others.
struct AttentionBlocks {
  int block;
  int64_t super;
};
constexpr AttentionBlocks attention_blocks(int head_dim) { return {attention_block(head_dim), kAttentionSuperBlock}; }

// N3's step as the rule has it. What gives the same bits sooner may stand in its place.
template <Operand kind>
struct RuleStep {
  static float dot(float c, const uint16_t* a, const uint16_t* b) { return dot16<kind>(c, a, b); }
};

// One query, scalar, whole. query[head_dim]; key(j), value(j): pointers to head_dim elements of position j, read only
// where allowed(j), sixteen values at a time; n: positions 0..n-1 exist. A query with no allowed key gives +0. Rounds
// to the type of `kind`.
template <Operand kind, typename Step = RuleStep<kind>, typename Key, typename Value, typename Allowed>
void attention_row(const uint16_t* query, int head_dim, int64_t n, const Key& key, const Value& value,
                   const Allowed& allowed, const AttentionScale& scale, const float* sink, uint16_t* out,
                   const AttentionBlocks& blocks) {
  constexpr int kMaxDim = 1024, kMaxBlock = 128;
  const auto round = [](float x) { return kind == Operand::kBF16 ? f32_to_bf16(x) : f32_to_f16(x); };
  const auto [block, super_block] = blocks;
  const float factor = scale.factor();
  float folded_r = kMinusInf, folded_l = 0.0f;
  float folded[kMaxDim], o[kMaxDim];
  for (int d = 0; d < head_dim; d++) folded[d] = 0.0f;
  for (int64_t super = 0; super < n; super += super_block) {
    AttentionSums sums;
    for (int d = 0; d < head_dim; d++) o[d] = 0.0f;
    for (int64_t start = super; start < n && start < super + super_block; start += block) {
      float score[kMaxBlock], largest = kMinusInf;
      for (int j = 0; j < block; j++) {
        const int64_t position = start + j;
        score[j] = kMinusInf;
        if (position >= n || !allowed(position)) continue;
        float s = 0.0f;
        const uint16_t* k = key(position);
        for (int d = 0; d < head_dim; d += 16) s = Step::dot(s, query + d, k + d);
        score[j] = scale.score(s);
        largest = fmax(largest, score[j]);
      }
      const float alpha = attention_grow(sums, largest, factor);
      for (int d = 0; d < head_dim; d++) o[d] = fmul(o[d], alpha);
      for (int group = 0; group < block; group += 16) {
        float p[16];
        uint16_t rounded[16];
        for (int i = 0; i < 16; i++) {
          p[i] = attention_p(score[group + i], factor, sums.r);
          rounded[i] = round(p[i]);
        }
        attention_add_16(sums, p, group == 0 ? alpha : 1.0f);
        const uint16_t* values[16] = {};
        for (int i = 0; i < 16; i++) {
          const int64_t position = start + group + i;
          if (position < n && allowed(position)) values[i] = value(position);
        }
        for (int d = 0; d < head_dim; d++) {
          uint16_t v[16];
          for (int i = 0; i < 16; i++) v[i] = values[i] != nullptr ? values[i][d] : uint16_t{0};
          o[d] = Step::dot(o[d], rounded, v);
        }
      }
    }
    if (sums.r == kMinusInf) continue;
    if (folded_r == kMinusInf) {
      folded_r = sums.r;
      folded_l = sums.total();
      for (int d = 0; d < head_dim; d++) folded[d] = o[d];
      continue;
    }
    const AttentionFold f = attention_fold(folded_r, sums.r);
    folded_r = f.r;
    folded_l = attention_fold_value(folded_l, sums.total(), f);
    for (int d = 0; d < head_dim; d++) folded[d] = attention_fold_value(folded[d], o[d], f);
  }
  if (folded_r == kMinusInf) {
    for (int d = 0; d < head_dim; d++) out[d] = 0;
    return;
  }
  if (sink != nullptr) folded_l = attention_sink(folded_l, *sink, folded_r);
  const float inv = scale.inverse(folded_l);
  for (int d = 0; d < head_dim; d++) out[d] = round(attention_out(folded[d], inv));
}

template <Operand kind, typename Step = RuleStep<kind>, typename Key, typename Value, typename Allowed>
void attention_row(const uint16_t* query, int head_dim, int64_t n, const Key& key, const Value& value,
                   const Allowed& allowed, const AttentionScale& scale, const float* sink, uint16_t* out) {
  attention_row<kind, Step>(query, head_dim, n, key, value, allowed, scale, sink, out, attention_blocks(head_dim));
}

}  // namespace isobit::numerics
