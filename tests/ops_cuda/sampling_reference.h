#pragma once
// Rules N12 to N17 in their plainest form, for comparing a row at a time.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <vector>

#include "numerics/philox.h"
#include "numerics/sampling.h"
#include "ops/sampling.h"

namespace isobit::test {

struct SlotState {  // what a slot remembers
  SamplingParams params;
  std::vector<int32_t> prompt;
  std::map<int32_t, int> outputs;

  void count(int32_t token) { outputs[token]++; }
};

struct SampledRow {
  int32_t token = -1, status = kNotFinite;
  uint32_t logprob = 0xcdcdcdcd;  // bits; as poisoned where none is written
  std::vector<int32_t> top_ids = std::vector<int32_t>(kMaxTopLogprobs, static_cast<int32_t>(0xcdcdcdcd));
  std::vector<uint32_t> top_logprobs = std::vector<uint32_t>(kMaxTopLogprobs, 0xcdcdcdcd);
  bool operator==(const SampledRow&) const = default;
};

inline std::vector<float> processed(const SlotState& s, const std::vector<float>& y) {
  const SamplingParams& p = s.params;
  const float inverse = p.temperature > 0.0f ? numerics::fdiv(1.0f, p.temperature) : 1.0f;
  const numerics::Penalties penalties{p.repetition_penalty, p.presence_penalty, p.frequency_penalty};
  std::vector<float> bias(y.size(), 0.0f);
  for (const auto& [token, b] : p.logit_bias) bias[static_cast<size_t>(token)] = b;
  std::vector<bool> context(y.size());
  for (const int32_t t : s.prompt) context[static_cast<size_t>(t)] = true;
  std::vector<int> counts(y.size());
  for (const auto& [token, n] : s.outputs) {
    context[static_cast<size_t>(token)] = true;
    counts[static_cast<size_t>(token)] = n;
  }
  std::vector<float> z(y.size());
  for (size_t i = 0; i < y.size(); i++) {
    z[i] = numerics::process_logit(y[i], bias[i], penalties, context[i], counts[i], inverse);
  }
  return z;
}

struct RowFacts {
  float largest = -std::numeric_limits<float>::infinity();
  bool ok = true;
};
inline RowFacts facts(const std::vector<float>& z) {
  RowFacts f;
  for (const float v : z) {
    f.ok = f.ok && !std::isnan(v) && v != std::numeric_limits<float>::infinity();
    if (v > f.largest) f.largest = v;
  }
  f.ok = f.ok && std::isfinite(f.largest);
  return f;
}

inline std::vector<uint64_t> sorted_keys(const std::vector<float>& z) {
  std::vector<uint64_t> keys(z.size());
  for (size_t i = 0; i < z.size(); i++) keys[i] = numerics::candidate_key(z[i], static_cast<uint32_t>(i));
  std::sort(keys.begin(), keys.end(), std::greater<>());
  return keys;
}
inline size_t id_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

inline int32_t pick(const SlotState& s, const std::vector<float>& z, float largest, uint32_t position) {
  const SamplingParams& p = s.params;
  const bool has_k = p.top_k > 0 && p.top_k < static_cast<int64_t>(z.size());
  const bool has_p = p.top_p<1.0f, has_min = p.min_p> 0.0f;
  std::vector<uint64_t> keys;
  if (p.temperature == 0.0f || has_k || has_p) {
    keys = sorted_keys(z);
  } else {
    for (size_t i = 0; i < z.size(); i++) keys.push_back(numerics::candidate_key(z[i], static_cast<uint32_t>(i)));
  }
  if (p.temperature == 0.0f) return static_cast<int32_t>(id_of(keys[0]));
  if (has_k) keys.resize(static_cast<size_t>(p.top_k));
  if (has_p) {
    uint64_t total = 0, before = 0;
    for (const uint64_t k : keys) total += numerics::mass(z[id_of(k)], largest);
    const uint64_t threshold = numerics::top_p_threshold(p.top_p);
    size_t kept = 0;
    for (; kept < keys.size() && numerics::top_p_keeps(before, threshold, total); kept++) {
      before += numerics::mass(z[id_of(keys[kept])], largest);
    }
    keys.resize(kept);
  }
  if (has_min) {
    const float threshold = numerics::min_p_threshold(p.min_p);
    std::erase_if(keys, [&](uint64_t k) { return !numerics::min_p_keeps(z[id_of(k)], largest, threshold); });
  }
  double best_score = -std::numeric_limits<double>::infinity();
  int64_t best = -1;
  for (const uint64_t k : keys) {
    const auto id = static_cast<int64_t>(id_of(k));
    const float v = z[static_cast<size_t>(id)];
    const double score = numerics::gumbel_score(v, numerics::noise_bits(p.seed, static_cast<uint32_t>(id), position,
                                                                        numerics::NoisePurpose::kSample, p.choice));
    if (score > best_score || (score == best_score && id < best)) best_score = score, best = id;
  }
  return static_cast<int32_t>(best);
}

// allowed: a bit a token, or null.
inline SampledRow reference_row(const SlotState& s, const std::vector<float>& y, uint32_t position,
                                const uint32_t* allowed = nullptr) {
  SampledRow row;
  const SamplingParams& p = s.params;
  std::vector<float> z = processed(s, y);
  for (size_t i = 0; i < z.size() && allowed != nullptr; i++) {
    if (((allowed[i / 32] >> (i % 32)) & 1) == 0) z[i] = -std::numeric_limits<float>::infinity();
  }
  const RowFacts f = facts(z);
  if (p.top_logprobs >= 0) {
    row.logprob = numerics::kNaN32;
    std::fill(row.top_ids.begin(), row.top_ids.end(), -1);
    std::fill(row.top_logprobs.begin(), row.top_logprobs.end(), 0xff800000u);
  }
  if (!f.ok) return row;
  row.status = kSampled;
  row.token = pick(s, z, f.largest, position);
  if (p.top_logprobs < 0) return row;
  const std::vector<float>& values = p.processed_logprobs ? z : y;
  const float largest = facts(values).largest;
  if (!facts(values).ok) return row;
  uint64_t sum = 0;
  for (const float v : values) sum += numerics::mass(v, largest);
  const auto logprob = [&](size_t id) { return numerics::bits(numerics::log_probability(values[id], largest, sum)); };
  row.logprob = logprob(static_cast<size_t>(row.token));
  const size_t top = std::min(static_cast<size_t>(p.top_logprobs), values.size());
  if (top == 0) return row;
  const std::vector<uint64_t> keys = sorted_keys(values);
  for (size_t i = 0; i < top; i++) {
    row.top_ids[i] = static_cast<int32_t>(id_of(keys[i]));
    row.top_logprobs[i] = logprob(id_of(keys[i]));
  }
  return row;
}

}  // namespace isobit::test
