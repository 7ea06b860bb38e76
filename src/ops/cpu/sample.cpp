// Sampling and log-probabilities, a row at a time; passes over the vocabulary are in vocabulary.cpp.
#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "base/error.h"
#include "ops/cpu/candidates.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/cpu/sampler_slots.h"
#include "ops/cpu/vocabulary.h"

namespace isobit::cpu {
namespace {

using namespace numerics;

const float kNaN = from_bits(kNaN32);
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The values that a slot samples from, and what is known about them.
struct Processed {
  const float* z = nullptr;
  VocabularyScan scan;
};

// `drafted`: tokens to count as output besides the slot's own. `allowed`: a bit a token, or null.
Processed process(int64_t simd, const SamplerSlot& slot, const std::vector<int32_t>& drafted, const float* y,
                  const uint32_t* allowed, int64_t n, std::vector<float>& scratch) {
  Processed p;
  const bool plain = slot.touched.empty() && drafted.empty() && allowed == nullptr;
  if (plain && slot.inv_temperature == 1.0f) {
    p.z = y;
    p.scan = scan_logits(simd, y, n, 1.0f, nullptr);
    return p;
  }
  scratch.resize(static_cast<size_t>(n));
  p.z = scratch.data();
  p.scan = scan_logits(simd, y, n, slot.inv_temperature, scratch.data());
  if (plain) return p;
  for (const auto& [token, touched] : slot.touched) {
    scratch[static_cast<size_t>(token)] = slot.process(y[token], touched);
  }
  for (const int32_t token : drafted) {
    const auto at = slot.touched.find(token);
    SamplerSlot::Touched touched = at != slot.touched.end() ? at->second : SamplerSlot::Touched{};
    touched.in_context = true;
    touched.output_count += static_cast<int32_t>(std::count(drafted.begin(), drafted.end(), token));
    scratch[static_cast<size_t>(token)] = slot.process(y[token], touched);
  }
  for (int64_t i = 0; allowed != nullptr && i < n; i++) {
    if (((allowed[i / 32] >> (i % 32)) & 1) == 0) scratch[static_cast<size_t>(i)] = kMinusInfinity;
  }
  p.scan = scan_logits(simd, p.z, n, 1.0f, nullptr);
  return p;
}

// Σ mass over a row. One that is alone in its call is shared out among the threads: sums of u64 have no order.
uint64_t row_masses(const Cpu& cpu, int64_t rows, const float* z, int64_t n, float largest) {
  constexpr int64_t kWorthAThread = 1 << 14;  // values
  const int64_t parts = rows > 1 ? 1 : std::clamp<int64_t>(n / kWorthAThread, 1, cpu.pool.size());
  std::vector<uint64_t> sums(static_cast<size_t>(parts));
  cpu.pool.parallel_for(parts, [&](int, int64_t i) {
    const int64_t begin = n * i / parts, end = n * (i + 1) / parts;
    sums[static_cast<size_t>(i)] = sum_masses(cpu.simd, z + begin, end - begin, largest);
  });
  return std::accumulate(sums.begin(), sums.end(), uint64_t{0});
}

// Rule N15 over a few tokens. Keys are candidate_key, in any order.
int32_t sample_among(const std::vector<uint64_t>& keys, const float* z, const Noise& noise) {
  int32_t best = -1;
  double best_score = -std::numeric_limits<double>::infinity();
  for (const uint64_t key : keys) {
    const int32_t id = candidate_id(key);
    const double score = gumbel_score(
        z[id], noise_bits(noise.seed, static_cast<uint32_t>(id), noise.position, noise.purpose, noise.choice));
    if (score > best_score || (score == best_score && id < best)) best_score = score, best = id;
  }
  return best;
}

int32_t sample_filtered(const Cpu& cpu, const SamplingParams& params, const Processed& p, const SampleArgs& a,
                        const Noise& noise, std::vector<float>& filtered) {
  const float largest = p.scan.largest;
  const int64_t n = a.vocab;
  const bool has_k = params.top_k > 0 && params.top_k < n, has_p = params.top_p<1.0f, has_min = params.min_p> 0.0f;
  if (!has_k && !has_p && !has_min) return sample_gumbel(cpu.simd, p.z, n, largest, noise);
  const float min_log2 = has_min ? min_p_threshold(params.min_p) : 0.0f;
  if (has_k) {
    std::vector<uint64_t> keys = Candidates(p.z, n, largest).top(params.top_k);
    if (has_p) keys.resize(top_p_count(keys, p.z, largest, params.top_p));
    if (has_min) {
      std::erase_if(keys, [&](uint64_t key) { return !min_p_keeps(p.z[candidate_id(key)], largest, min_log2); });
    }
    return sample_among(keys, p.z, noise);
  }
  uint64_t cutoff = 0;
  if (has_p) cutoff = Candidates(p.z, n, largest).top_p_cutoff(params.top_p, row_masses(cpu, a.rows, p.z, n, largest));
  filtered.resize(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; i++) {
    const bool keep = candidate_key(p.z[i], static_cast<uint32_t>(i)) >= cutoff &&
                      (!has_min || min_p_keeps(p.z[i], largest, min_log2));
    filtered[static_cast<size_t>(i)] = keep ? p.z[i] : -std::numeric_limits<float>::infinity();
  }
  return sample_gumbel(cpu.simd, filtered.data(), n, largest, noise);
}

void write_logprobs(const Cpu& cpu, const SamplingParams& params, const float* values, float largest, int32_t token,
                    const SampleArgs& a, int64_t row) {
  const uint64_t z = row_masses(cpu, a.rows, values, a.vocab, largest);
  if (a.logprobs != nullptr) a.logprobs[row] = log_probability(values[token], largest, z);
  if (a.top_ids == nullptr) return;
  const int64_t count = std::min<int64_t>(params.top_logprobs, a.vocab);
  if (count == 0) return;
  const std::vector<uint64_t> keys = Candidates(values, a.vocab, largest).top(count);
  for (int64_t i = 0; i < count; i++) {
    const int32_t id = candidate_id(keys[static_cast<size_t>(i)]);
    a.top_ids[row * kMaxTopLogprobs + i] = id;
    a.top_logprobs[row * kMaxTopLogprobs + i] = log_probability(values[id], largest, z);
  }
}

// The drafted tokens from the root to the row, itself included; false where they are no path.
bool drafted_before(const SampleArgs& a, int64_t row, std::vector<int32_t>& drafted) {
  int32_t at = static_cast<int32_t>(row);
  for (int32_t parent = a.drafts.parents[at]; parent != -1; at = parent, parent = a.drafts.parents[at]) {
    const int32_t token = a.drafts.tokens[at];
    if (parent < 0 || parent >= at || token < 0 || token >= a.vocab) return false;
    if (drafted.size() == kMaxDraftDepth) return false;
    drafted.push_back(token);
  }
  return true;
}

void one_row(const Cpu& cpu, const CpuSamplerSlots& slots, SamplerScratch& scratch, const SampleArgs& a, int64_t row) {
  const SamplerSlot& slot = slots.at(a.slots[row]);
  const SamplingParams& params = slot.params;
  const float* y = a.logits + row * a.vocab;
  const bool wants_logprobs = params.top_logprobs >= 0;
  if (wants_logprobs && a.logprobs != nullptr) a.logprobs[row] = kNaN;
  if (wants_logprobs && a.top_ids != nullptr) {
    std::fill_n(a.top_ids + row * kMaxTopLogprobs, kMaxTopLogprobs, -1);
    std::fill_n(a.top_logprobs + row * kMaxTopLogprobs, kMaxTopLogprobs, -std::numeric_limits<float>::infinity());
  }
  const uint32_t* allowed = a.allowed != nullptr ? a.allowed + row * a.allowed_stride : nullptr;
  a.tokens[row] = -1;
  scratch.drafted.clear();
  if (a.drafts.requests > 0 && slot.counts() && !drafted_before(a, row, scratch.drafted)) {
    a.status[row] = kBadDraft;
    return;
  }
  const Processed p = process(cpu.simd, slot, scratch.drafted, y, allowed, a.vocab, scratch.processed);
  a.status[row] = p.scan.ok ? kSampled : kNotFinite;
  if (!p.scan.ok) return;
  const Noise noise{params.seed, static_cast<uint32_t>(a.positions[row]), params.choice,
                    a.draft_noise ? NoisePurpose::kDraft : NoisePurpose::kSample};
  const int32_t token = params.temperature > 0.0f ? sample_filtered(cpu, params, p, a, noise, scratch.filtered)
                                                  : find_first(cpu.simd, p.z, a.vocab, p.scan.largest);
  a.tokens[row] = token;
  if (!wants_logprobs) return;
  const float* values = params.processed_logprobs ? p.z : y;
  const VocabularyScan scan = values == p.z ? p.scan : scan_logits(cpu.simd, y, a.vocab, 1.0f, nullptr);
  if (scan.ok) write_logprobs(cpu, params, values, scan.largest, token, a, row);
}

// Walks request i from its root along the drafts that were sampled.
void walk_path(const SampleArgs& a, int64_t i) {
  const DraftTrees& d = a.drafts;
  const int32_t first = d.first_row[i], last = d.first_row[i + 1];
  d.accepted[i] = d.bonus[i] = -1;
  if (first >= last) return;
  std::fill(d.path + first, d.path + last, -1);
  int32_t at = first, length = 0;
  d.path[first + length++] = at;
  for (int32_t row = first + 1; row < last && a.status[at] == kSampled; row++) {
    if (d.parents[row] != at || d.tokens[row] != a.tokens[at]) continue;
    at = row;
    d.path[first + length++] = at;
  }
  d.accepted[i] = length - 1;
  if (a.status[at] == kSampled) d.bonus[i] = a.tokens[at];
}

void count_row(CpuSamplerSlots& slots, const SampleArgs& a, int64_t row) {
  if (a.slots[row] >= 0 && a.status[row] == kSampled) slots.count_output(a.slots[row], a.tokens[row]);
}

}  // namespace

std::unique_ptr<SamplerSlots> make_sampler(int slots, int64_t vocab) {
  return std::make_unique<CpuSamplerSlots>(slots, vocab);
}

void sample(const Cpu& cpu, SamplerSlots& pool, const SampleArgs& a) {
  auto& slots = dynamic_cast<CpuSamplerSlots&>(pool);
  require(slots.vocab() == a.vocab, "sample: logits of {} tokens; the sampler was made for {}", a.vocab, slots.vocab());
  std::vector<SamplerScratch>& scratch = slots.scratch(cpu.pool.size());
  cpu.pool.parallel_for(a.rows, [&](int thread, int64_t row) {
    if (a.slots[row] >= 0) one_row(cpu, slots, scratch[static_cast<size_t>(thread)], a, row);
  });
  const DraftTrees& d = a.drafts;
  for (int64_t i = 0; i < d.requests; i++) walk_path(a, i);
  if (!a.count_output) return;
  if (d.requests == 0) {
    for (int64_t row = 0; row < a.rows; row++) count_row(slots, a, row);
    return;
  }
  for (int64_t i = 0; i < d.requests; i++) {
    for (int32_t n = 0; n <= d.accepted[i]; n++) count_row(slots, a, d.path[d.first_row[i] + n]);
  }
}

void log_probs(const Cpu& cpu, const LogProbArgs& a) {
  cpu.pool.parallel_for(a.rows, [&](int, int64_t row) {
    const int32_t target = a.targets[row];
    if (target < 0) return;
    require(target < a.vocab, "log_probs: target {} in row {}; the vocabulary has {}", target, row, a.vocab);
    const float* y = a.logits + row * a.vocab;
    const VocabularyScan scan = scan_logits(cpu.simd, y, a.vocab, 1.0f, nullptr);
    a.status[row] = scan.ok ? kSampled : kNotFinite;
    a.out[row] = kNaN;
    if (a.best != nullptr) a.best[row] = -1;
    if (!scan.ok) return;
    a.out[row] = log_probability(y[target], scan.largest, row_masses(cpu, a.rows, y, a.vocab, scan.largest));
    if (a.best != nullptr) a.best[row] = find_first(cpu.simd, y, a.vocab, scan.largest);
  });
}

}  // namespace isobit::cpu
