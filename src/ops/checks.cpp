// Argument checks of every operator, in one place: messages name the argument, its value and its limit.
#include <cmath>

#include "base/error.h"
#include "numerics/contract.h"
#include "ops/backend.h"

namespace isobit {
namespace {

void check_pointer(const char* op, const char* name, const void* p) {
  require(p != nullptr, "{}: {} is null", op, name);
}

void check_count(const char* op, const char* name, int64_t value) {
  require(value >= 0, "{}: {} is {}; it must not be negative", op, name, value);
}

void check_float_type(const char* op, DType t) {
  require(t == DType::kBF16 || t == DType::kF16, "{}: type is {}; it must be BF16 or F16", op, dtype_info(t).name);
}

void check_cache(const char* op, const KvCacheView& c) {
  check_pointer(op, "cache.k", c.k);
  check_pointer(op, "cache.v", c.v);
  require(c.kv_heads > 0, "{}: cache.kv_heads is {}; it must be positive", op, c.kv_heads);
  require(c.page_size > 0, "{}: cache.page_size is {}; it must be positive", op, c.page_size);
  require(c.pages > 0, "{}: cache.pages is {}; it must be positive", op, c.pages);
  require(c.head_dim > 0 && c.head_dim % 16 == 0 && c.head_dim <= 1024,
          "{}: head_dim is {}; it must be a multiple of 16 up to 1024", op, c.head_dim);
  require(c.type == DType::kBF16 || c.type == DType::kF16 || c.type == DType::kF8E4M3,
          "{}: cache.type is {}; it must be BF16, F16 or F8_E4M3", op, dtype_info(c.type).name);
  require(c.type != DType::kF8E4M3 || (c.k_scale != nullptr && c.v_scale != nullptr),
          "{}: an F8_E4M3 cache needs k_scale and v_scale", op);
}

}  // namespace

void EmbedArgs::check() const {
  check_count("embed", "count", count);
  if (count == 0) return;
  check_pointer("embed", "table", table);
  check_pointer("embed", "tokens", tokens);
  check_pointer("embed", "out", out);
  require(table->form() == LinearForm::kStacked, "embed: the table is a gated pair; it must be stacked");
}

void RmsNormArgs::check() const {
  check_count("rms_norm", "count", count);
  require(n > 0, "rms_norm: n is {}; it must be positive", n);
  check_float_type("rms_norm", out_type);
  if (count == 0) return;
  check_pointer("rms_norm", "x", x);
  check_pointer("rms_norm", "weight", weight);
  if (add_to == nullptr) check_pointer("rms_norm", "out", out);
}

void SoftCapArgs::check() const {
  check_count("soft_cap", "count", count);
  require(std::isfinite(cap) && cap > 0.0f, "soft_cap: cap is {}; it must be positive and finite", cap);
  if (count > 0) check_pointer("soft_cap", "x", x);
}

void GemmArgs::check() const {
  check_count("gemm", "m", m);
  check_pointer("gemm", "w", w);
  check_float_type("gemm", type);
  const bool gated = epilogue == Epilogue::kSiluMul || epilogue == Epilogue::kGeluMul;
  require(gated == (w->form() == LinearForm::kGated),
          "gemm: a gated epilogue needs a gated weight pair, and a gated pair a gated epilogue");
  require(!gated || bias == nullptr, "gemm: a gated epilogue takes no bias");
  if (m == 0) return;
  check_pointer("gemm", "x", x);
  check_pointer("gemm", "out", out);
}

void RopeCacheArgs::check() const {
  check_count("rope_cache", "count", count);
  check_cache("rope_cache", cache);
  check_float_type("rope_cache", type);
  require(q_heads > 0 && q_heads % cache.kv_heads == 0,
          "rope_cache: q_heads is {}; it must be a multiple of kv_heads {}", q_heads, cache.kv_heads);
  require((cos == nullptr) == (sin == nullptr), "rope_cache: cos and sin must be given together");
  require(cos == nullptr || (rope_dim > 0 && rope_dim % 2 == 0 && rope_dim <= cache.head_dim),
          "rope_cache: rope_dim is {}; it must be even and at most head_dim {}", rope_dim, cache.head_dim);
  if (count == 0) return;
  check_pointer("rope_cache", "qkv", qkv);
  check_pointer("rope_cache", "positions", positions);
  check_pointer("rope_cache", "slots", slots);
  check_pointer("rope_cache", "q", q);
}

void AttentionArgs::check() const {
  check_count("attention", "tokens", tokens);
  check_count("attention", "requests", requests);
  check_cache("attention", cache);
  check_float_type("attention", type);
  require(q_heads > 0 && q_heads % cache.kv_heads == 0,
          "attention: q_heads is {}; it must be a multiple of kv_heads {}", q_heads, cache.kv_heads);
  require(std::isfinite(scale) && scale > 0.0f, "attention: scale is {}; it must be positive and finite", scale);
  require(std::isfinite(soft_cap) && soft_cap >= 0.0f, "attention: soft_cap is {}; it must be 0 (off) or positive",
          soft_cap);
  require(window >= 0, "attention: window is {}; it must be 0 (off) or positive", window);
  require(mask == nullptr || mask_stride > 0, "attention: mask_stride is {}; it must be positive", mask_stride);
  require(tree_parent == nullptr || causal, "attention: a tree needs causal = true");
  if (tokens == 0 || requests == 0) return;
  require(table_stride > 0, "attention: table_stride is {}; it must be positive", table_stride);
  require(static_cast<int64_t>(table_stride) * cache.page_size >= max_kv,
          "attention: max_kv is {}, but a page table of {} pages of {} holds {}", max_kv, table_stride, cache.page_size,
          static_cast<int64_t>(table_stride) * cache.page_size);
  check_pointer("attention", "q", q);
  check_pointer("attention", "query_start", query_start);
  check_pointer("attention", "kv_len", kv_len);
  check_pointer("attention", "page_table", page_table);
  check_pointer("attention", "out", out);
}

void SamplingParams::check(int64_t vocab) const {
  require(temperature >= 0.0f && std::isfinite(temperature), "temperature is {}; it must be finite and at least 0",
          temperature);
  require(top_k >= -1, "top_k is {}; it must be -1 or 0 (off) or positive", top_k);
  require(top_p > 0.0f && top_p <= 1.0f, "top_p is {}; it must be above 0 and at most 1 (off)", top_p);
  require(min_p >= 0.0f && min_p < 1.0f, "min_p is {}; it must be at least 0 (off) and below 1", min_p);
  require(repetition_penalty > 0.0f && std::isfinite(repetition_penalty),
          "repetition_penalty is {}; it must be finite and above 0", repetition_penalty);
  require(presence_penalty >= -2.0f && presence_penalty <= 2.0f, "presence_penalty is {}; it must be in [-2, 2]",
          presence_penalty);
  require(frequency_penalty >= -2.0f && frequency_penalty <= 2.0f, "frequency_penalty is {}; it must be in [-2, 2]",
          frequency_penalty);
  require(top_logprobs >= -1 && top_logprobs <= kMaxTopLogprobs,
          "top_logprobs is {}; it must be in [0, {}], or -1 for none", top_logprobs, kMaxTopLogprobs);
  for (const auto& [token, bias] : logit_bias) {
    require(token >= 0 && token < vocab, "logit_bias names token {}; the vocabulary has {}", token, vocab);
    require(std::isfinite(bias) && bias >= -100.0f && bias <= 100.0f,
            "logit_bias of token {} is {}; it must be in [-100, 100]", token, bias);
  }
}

void SampleArgs::check() const {
  check_count("sample", "rows", rows);
  require(vocab > 0 && vocab <= numerics::kMaxVocabulary, "sample: vocab is {}; it must be in [1, {}]", vocab,
          numerics::kMaxVocabulary);
  require((top_ids == nullptr) == (top_logprobs == nullptr), "sample: top_ids and top_logprobs must be given together");
  if (rows == 0) return;
  check_pointer("sample", "logits", logits);
  check_pointer("sample", "slots", slots);
  check_pointer("sample", "positions", positions);
  check_pointer("sample", "tokens", tokens);
  check_pointer("sample", "status", status);
  check_count("sample", "drafts.requests", drafts.requests);
  if (drafts.requests > 0) {
    check_pointer("sample", "drafts.first_row", drafts.first_row);
    check_pointer("sample", "drafts.parents", drafts.parents);
    check_pointer("sample", "drafts.tokens", drafts.tokens);
    check_pointer("sample", "drafts.accepted", drafts.accepted);
    check_pointer("sample", "drafts.bonus", drafts.bonus);
    check_pointer("sample", "drafts.path", drafts.path);
  }
  if (allowed == nullptr) return;
  require(allowed_stride >= (vocab + 31) / 32,
          "sample: allowed_stride is {} words; a row of {} tokens needs at least {}", allowed_stride, vocab,
          (vocab + 31) / 32);
}

void LogProbArgs::check() const {
  check_count("log_probs", "rows", rows);
  require(vocab > 0 && vocab <= numerics::kMaxVocabulary, "log_probs: vocab is {}; it must be in [1, {}]", vocab,
          numerics::kMaxVocabulary);
  if (rows == 0) return;
  check_pointer("log_probs", "logits", logits);
  check_pointer("log_probs", "targets", targets);
  check_pointer("log_probs", "out", out);
  check_pointer("log_probs", "status", status);
}

}  // namespace isobit
