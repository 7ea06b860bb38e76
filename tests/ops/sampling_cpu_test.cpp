// Sampling and log-probabilities on the CPU against rules N12 to N17 applied one by one to a fully sorted row.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>

#include "base/error.h"
#include "numerics/philox.h"
#include "numerics/sampling.h"
#include "ops/cpu_testing.h"

namespace isobit::testing {
namespace {

using namespace numerics;

constexpr float kMinus = -std::numeric_limits<float>::infinity();

struct Context {
  std::vector<int32_t> prompt, output;
};

struct Expected {
  int32_t token = -1, status = kNotFinite;
  float logprob = 0.0f;
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
};

std::vector<float> processed(const std::vector<float>& y, const SamplingParams& p, const Context& c) {
  std::vector<float> z(y.size());
  const Penalties penalties{p.repetition_penalty, p.presence_penalty, p.frequency_penalty};
  const float inv = p.temperature > 0.0f ? fdiv(1.0f, p.temperature) : 1.0f;
  for (size_t i = 0; i < y.size(); i++) {
    const auto id = static_cast<int32_t>(i);
    float bias = 0.0f;
    for (const auto& [token, b] : p.logit_bias) bias = token == id ? b : bias;
    const auto count = static_cast<int>(std::count(c.output.begin(), c.output.end(), id));
    const bool seen = count > 0 || std::count(c.prompt.begin(), c.prompt.end(), id) > 0;
    z[i] = process_logit(y[i], bias, penalties, seen, count, inv);
  }
  return z;
}

// Ids in the contract's order: larger value first, then lower id.
std::vector<int32_t> ranked(const std::vector<float>& z) {
  std::vector<int32_t> ids(z.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(),
                   [&](int32_t a, int32_t b) { return z[static_cast<size_t>(a)] > z[static_cast<size_t>(b)]; });
  return ids;
}

enum class Defect {
  kNone,
  kTiesToHigherId,
  kTopPBeforeTopK,  // top-p applied to the unfiltered mass
  kNoiseByRank,
  kMinPOfTotal,
  kTiesOverSelected,  // top-k keeps all that equal the k-th
  kLastTieTakesAll,   // the last tied survivor is given all the ties' mass: the others are never drawn
  kArgmaxFallback,    // top-p by tries, argmax when they fail
  kArgmaxOfEqual,     // the same of equal logits with k 100
  kSixtyFour,         // candidates capped at 64
  kGreedyWhenCold,    // temperature 1e-6 taken for 0: of equals the first, always
};

std::vector<int32_t> survivors(const std::vector<float>& z, const SamplingParams& p, Defect defect = Defect::kNone) {
  std::vector<int32_t> ids = ranked(z);
  const float zmax = z[static_cast<size_t>(ids[0])];
  const auto of = [&](int32_t id) { return mass(z[static_cast<size_t>(id)], zmax); };
  if (defect == Defect::kTiesToHigherId) {
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) {
      const float x = z[static_cast<size_t>(a)], y = z[static_cast<size_t>(b)];
      return x > y || (x == y && a > b);
    });
  }
  const auto top_k = [&] {
    if (p.top_k <= 0 || static_cast<size_t>(p.top_k) >= ids.size()) return;
    auto kept = static_cast<size_t>(p.top_k);
    while (defect == Defect::kTiesOverSelected && kept < ids.size() &&
           z[static_cast<size_t>(ids[kept])] == z[static_cast<size_t>(ids[kept - 1])]) {
      kept++;
    }
    ids.resize(kept);
  };
  const auto top_p = [&] {
    if (p.top_p >= 1.0f) return;
    uint64_t total = 0, before = 0;
    for (const int32_t id : ids) total += of(id);
    size_t kept = 0;
    while (kept < ids.size() && top_p_keeps(before, top_p_threshold(p.top_p), total)) before += of(ids[kept++]);
    ids.resize(kept);
  };
  if (defect == Defect::kTopPBeforeTopK) {
    top_p();
    top_k();
  } else {
    top_k();
    top_p();
  }
  if (defect == Defect::kSixtyFour && ids.size() > 64) ids.resize(64);
  if (defect == Defect::kArgmaxFallback || defect == Defect::kArgmaxOfEqual) ids.resize(1);
  if (defect == Defect::kLastTieTakesAll) {
    const float last = z[static_cast<size_t>(ids.back())];
    const int32_t keep = ids.back();
    std::erase_if(ids, [&](int32_t id) { return z[static_cast<size_t>(id)] == last && id != keep; });
  }
  if (p.min_p > 0.0f) {
    const float threshold =
        defect == Defect::kMinPOfTotal ? min_p_threshold(std::min(0.999f, p.min_p * 1.5f)) : min_p_threshold(p.min_p);
    std::erase_if(ids, [&](int32_t id) { return !min_p_keeps(z[static_cast<size_t>(id)], zmax, threshold); });
  }
  return ids;
}

Expected rule(const std::vector<float>& y, const SamplingParams& p, const Context& c, int position,
              Defect defect = Defect::kNone) {
  Expected e;
  const std::vector<float> z = processed(y, p, c);
  float zmax = kMinus;
  for (const float v : z) {
    if (is_nan(v) || bits(v) == kInf32) return e;
    zmax = std::max(zmax, v);
  }
  if (zmax == kMinus) return e;
  e.status = kSampled;
  if (p.temperature == 0.0f || (defect == Defect::kGreedyWhenCold && p.temperature < 1e-3f)) {
    e.token = ranked(z)[0];
  } else {
    double best = -std::numeric_limits<double>::infinity();
    const std::vector<int32_t> ids = survivors(z, p, defect);
    for (size_t i = 0; i < ids.size(); i++) {
      const auto word = static_cast<uint32_t>(defect == Defect::kNoiseByRank ? static_cast<int32_t>(i) : ids[i]);
      const double score =
          gumbel_score(z[static_cast<size_t>(ids[i])],
                       noise_bits(p.seed, word, static_cast<uint32_t>(position), NoisePurpose::kSample, p.choice));
      if (score > best || (score == best && ids[i] < e.token)) best = score, e.token = ids[i];
    }
  }
  if (p.top_logprobs < 0) return e;
  const std::vector<float>& v = p.processed_logprobs ? z : y;
  const std::vector<int32_t> order = ranked(v);
  const float vmax = v[static_cast<size_t>(order[0])];
  uint64_t total = 0;
  for (const float x : v) total += mass(x, vmax);
  e.logprob = log_probability(v[static_cast<size_t>(e.token)], vmax, total);
  for (size_t i = 0; i < kMaxTopLogprobs; i++) {
    const bool has = i < static_cast<size_t>(p.top_logprobs) && i < order.size();
    e.top_ids.push_back(has ? order[i] : -1);
    e.top_logprobs.push_back(has ? log_probability(v[static_cast<size_t>(order[i])], vmax, total) : kMinus);
  }
  return e;
}

std::vector<float> random_row(Random& random, int64_t vocab) {
  std::vector<float> y(static_cast<size_t>(vocab));
  const int kind = random.below(7);
  for (float& x : y) {
    switch (kind) {
      case 0:
        x = random.normal(3.0f);
        break;
      case 1:  // ties
        x = static_cast<float>(random.below(6));
        break;
      case 2:  // flat
        x = 1.0f + 1e-3f * random.normal();
        break;
      case 3:  // far apart
        x = std::ldexp(random.normal(), random.below(20) - 5);
        break;
      case 4:
        x = random.below(3) == 0 ? kMinus : random.normal(5.0f);
        break;
      case 5:
        x = random.below(2) == 0 ? 0.0f : -0.0f;
        break;
      default:
        x = random.normal(8.0f) - 20.0f;
    }
  }
  if (kind == 4) y[random.bits() % y.size()] = 2.0f;
  return y;
}

SamplingParams random_params(Random& random, int64_t vocab) {
  SamplingParams p;
  p.temperature = pick(random, {0.0f, 0.7f, 1.0f, 1.0f, 1.3f, 5.0f, 1e-6f, 0.01f});
  p.top_k = pick(random, {0, -1, 0, 1, 2, 40, 64, 65, 127, 128, static_cast<int>(vocab) - 1, static_cast<int>(vocab),
                          static_cast<int>(vocab) + 1});
  p.top_p = pick(random, {1.0f, 1.0f, 0.95f, 0.5f, 1e-12f, 0.999999f, 0.25f});
  p.min_p = pick(random, {0.0f, 0.0f, 0.05f, 0.5f, 0.999f, 1e-30f});
  if (random.below(3) == 0) {
    p.repetition_penalty = pick(random, {0.5f, 1.1f, 1.3f});
    p.presence_penalty = pick(random, {0.0f, 0.5f, -1.0f, 2.0f});
    p.frequency_penalty = pick(random, {0.0f, 0.2f, -2.0f});
  }
  for (int i = random.below(4); i > 0; i--) {
    p.logit_bias.emplace_back(random.below(static_cast<int>(vocab)), pick(random, {-100.0f, 100.0f, 0.5f, 0.0f}));
  }
  p.seed = random.bits();
  p.choice = static_cast<uint32_t>(random.below(3));
  p.top_logprobs = pick(random, {-1, -1, 0, 1, 5, 20});
  p.processed_logprobs = random.below(2) == 0;
  return p;
}

// A batch with guards around every output.
struct Batch {
  std::vector<float> logits, logprobs, top_logprobs;
  std::vector<int32_t> slots, positions, tokens, top_ids, status;
  int64_t vocab;
  std::vector<uint32_t> allowed;
  int64_t allowed_stride = 0;

  explicit Batch(int64_t v) : vocab(v) {}
  void add(const std::vector<float>& y, int slot, int position) {
    logits.insert(logits.end(), y.begin(), y.end());
    slots.push_back(slot);
    positions.push_back(position);
  }
  void run(Backend& backend, SamplerSlots& pool, bool with_logprobs = true) {
    const size_t n = slots.size();
    tokens.assign(n, 12345);
    status.assign(n, 12345);
    logprobs.assign(n, 9e9f);
    top_ids.assign(n * kMaxTopLogprobs, 12345);
    top_logprobs.assign(n * kMaxTopLogprobs, 9e9f);
    const std::vector<float> before = logits;
    SampleArgs a;
    a.logits = logits.data();
    a.slots = slots.data();
    a.positions = positions.data();
    a.rows = static_cast<int64_t>(n);
    a.vocab = vocab;
    a.tokens = tokens.data();
    a.status = status.data();
    a.allowed = allowed.empty() ? nullptr : allowed.data();
    a.allowed_stride = allowed_stride;
    if (with_logprobs) {
      a.logprobs = logprobs.data();
      a.top_ids = top_ids.data();
      a.top_logprobs = top_logprobs.data();
    }
    backend.sample(pool, a);
    EXPECT_FALSE(first_difference(before, logits)) << "the logits were changed";
  }
};

TEST(SamplingCpu, RandomBatchesEqualTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (int round = 0; round < 150; round++) {
    const int64_t vocab = random.below(3) == 0 ? 1024 : log_uniform(random, 1, 5000);
    const int rows = 1 + random.below(8);
    Backend& backend = backends.random(random);
    SCOPED_TRACE(fmt::format("round {} vocab {} {}", round, vocab, backends.last()));
    const auto pool = backend.make_sampler(8, vocab);
    std::vector<SamplingParams> params;
    std::vector<Context> contexts(static_cast<size_t>(rows));
    for (int r = 0; r < rows; r++) {
      params.push_back(random_params(random, vocab));
      for (int i = random.below(30); i > 0; i--) {
        contexts[static_cast<size_t>(r)].prompt.push_back(random.below(static_cast<int>(vocab)));
      }
      pool->assign(7 - r, params.back(), contexts[static_cast<size_t>(r)].prompt);
    }
    for (int step = 0; step < 3; step++) {
      Batch batch(vocab);
      std::vector<std::vector<float>> ys;
      for (int r = 0; r < rows; r++) {
        ys.push_back(random_row(random, vocab));
        if (random.below(20) == 0) ys.back()[random.bits() % ys.back().size()] = pick(random, {NAN, INFINITY});
        batch.add(ys.back(), random.below(10) == 0 ? -1 : 7 - r, 100 + step);
      }
      batch.run(backend, *pool);
      for (size_t r = 0; r < static_cast<size_t>(rows); r++) {
        SCOPED_TRACE(fmt::format("row {} step {} k {} p {} min {} T {}", r, step, params[r].top_k, params[r].top_p,
                                 params[r].min_p, params[r].temperature));
        if (batch.slots[r] < 0) {
          ASSERT_EQ(batch.tokens[r], 12345);
          ASSERT_EQ(batch.status[r], 12345);
          continue;
        }
        const Expected e = rule(ys[r], params[r], contexts[r], 100 + step);
        ASSERT_EQ(batch.status[r], e.status);
        ASSERT_EQ(batch.tokens[r], e.token);
        if (e.status != kSampled) continue;
        contexts[r].output.push_back(e.token);
        if (params[r].top_logprobs < 0) {
          ASSERT_EQ(batch.logprobs[r], 9e9f);
          ASSERT_EQ(batch.top_ids[r * kMaxTopLogprobs], 12345);
          continue;
        }
        ASSERT_EQ(bits(batch.logprobs[r]), bits(e.logprob));
        for (size_t i = 0; i < kMaxTopLogprobs; i++) {
          ASSERT_EQ(batch.top_ids[r * kMaxTopLogprobs + i], e.top_ids[i]);
          ASSERT_EQ(bits(batch.top_logprobs[r * kMaxTopLogprobs + i]), bits(e.top_logprobs[i]));
        }
      }
    }
  }
}

// Whole vocabularies, where the bound on the noise decides what is looked at and a row alone is shared out among
// threads: every draw and its log-probability are the rule's.
TEST(SamplingCpu, LargeVocabulariesEqualTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  constexpr int64_t kVocab = 49152;
  const std::vector<float> y = random_row(random, kVocab);
  for (const std::string& target : backends.targets()) {
    Backend& backend = backends.get(target, 3);
    const auto pool = backend.make_sampler(1, kVocab);
    for (int i = 0; i < 6; i++) {
      SamplingParams p;
      p.top_logprobs = 0;
      p.seed = random.bits();
      p.temperature = pick(random, {1.0f, 0.3f, 3.0f});
      if (i == 4) p.top_p = 0.9f;
      if (i == 5) p.top_k = 50;
      pool->assign(0, p, {});
      Batch batch(kVocab);
      batch.add(y, 0, i);
      batch.run(backend, *pool);
      const Expected e = rule(y, p, {}, i);
      ASSERT_EQ(batch.tokens[0], e.token) << target << " draw " << i;
      ASSERT_EQ(bits(batch.logprobs[0]), bits(e.logprob)) << target << " draw " << i;
    }
  }
}

// 10^5 draws of one row against the probabilities that the filters leave.
double chi_square(Backend& backend, const std::vector<float>& y, SamplingParams p, int draws, int& cells) {
  const auto vocab = static_cast<int64_t>(y.size());
  const auto pool = backend.make_sampler(1, vocab);
  pool->assign(0, p, {});
  constexpr int kRows = 500;
  Batch batch(vocab);
  for (int i = 0; i < kRows; i++) batch.add(y, 0, i);
  std::vector<int> hits(y.size());
  for (int done = 0; done < draws; done += kRows) {
    for (int i = 0; i < kRows; i++) batch.positions[static_cast<size_t>(i)] = done + i;
    batch.run(backend, *pool, false);
    for (const int32_t t : batch.tokens) hits[static_cast<size_t>(t)]++;
  }
  const std::vector<float> z = processed(y, p, {});
  const std::vector<int32_t> ids = survivors(z, p);
  const double zmax = z[static_cast<size_t>(ids[0])];
  double total = 0, sum = 0, rest_expected = 0, rest_hits = 0;
  for (const int32_t id : ids) total += std::exp(z[static_cast<size_t>(id)] - zmax);
  cells = 0;
  int counted = 0;
  for (const int32_t id : ids) {
    const double expected = draws * std::exp(z[static_cast<size_t>(id)] - zmax) / total;
    const int seen = hits[static_cast<size_t>(id)];
    counted += seen;
    if (expected < 8) {
      rest_expected += expected;
      rest_hits += seen;
      continue;
    }
    sum += (seen - expected) * (seen - expected) / expected;
    cells++;
  }
  EXPECT_EQ(counted, draws) << "a token outside the filters was drawn";
  if (rest_expected > 8) {
    sum += (rest_hits - rest_expected) * (rest_hits - rest_expected) / rest_expected;
    cells++;
  }
  return sum;
}

TEST(SamplingCpu, DrawsFollowTheDistribution) {
  Random random;
  SCOPED_TRACE(random.note());
  const auto backend = make_cpu_backend({2, ""});
  std::vector<float> y(1024);
  for (float& x : y) x = random.normal(1.5f);
  SamplingParams filters[6];
  filters[1].top_k = 40;
  filters[1].top_p = 0.9f;
  filters[2].top_p = 0.8f;
  filters[3].min_p = 0.05f;
  filters[4].temperature = 0.6f;
  filters[4].top_k = 128;
  filters[4].min_p = 0.01f;
  filters[5].top_p = 0.95f;
  filters[5].min_p = 0.01f;
  for (SamplingParams& p : filters) {
    p.seed = random.bits();
    int cells = 0;
    const double x = chi_square(*backend, y, p, testing::cases(100000), cells);
    const double freedom = cells - 1;
    // Wilson-Hilferty: the cube root is nearly normal. Five deviations: one false alarm in millions.
    const double deviate = (std::cbrt(x / freedom) - (1 - 2 / (9 * freedom))) / std::sqrt(2 / (9 * freedom));
    EXPECT_LT(std::abs(deviate), 5.0) << "chi square " << x << " of " << freedom << " degrees";
  }
}

TEST(SamplingCpu, PlantedDefectsAreSeen) {
  Random random;
  SCOPED_TRACE(random.note());
  const auto backend = make_cpu_backend({1, ""});
  for (const Defect defect :
       {Defect::kTiesToHigherId, Defect::kTopPBeforeTopK, Defect::kNoiseByRank, Defect::kMinPOfTotal,
        Defect::kTiesOverSelected, Defect::kLastTieTakesAll, Defect::kArgmaxFallback, Defect::kArgmaxOfEqual,
        Defect::kSixtyFour, Defect::kGreedyWhenCold}) {
    int differs = 0;
    const auto pool = backend->make_sampler(1, 200);
    for (int i = 0; i < 200; i++) {
      SamplingParams p;
      p.seed = random.bits();
      p.temperature = 2.0f;
      p.top_k = defect == Defect::kMinPOfTotal ? 0 : 20;
      p.top_p = defect == Defect::kTopPBeforeTopK ? 0.5f : 1.0f;
      p.min_p = defect == Defect::kMinPOfTotal ? 0.2f : 0.0f;
      if (defect == Defect::kArgmaxFallback) p.top_p = i % 2 == 0 ? 0.1f : 0.2f;
      if (defect == Defect::kArgmaxOfEqual) p.top_k = 100;
      if (defect == Defect::kSixtyFour) p.top_k = pick(random, {65, 127, 128});
      if (defect == Defect::kGreedyWhenCold) p.temperature = 1e-6f;
      std::vector<float> y(200);
      for (float& x : y) x = static_cast<float>(defect == Defect::kArgmaxOfEqual ? 1 : random.below(5));
      pool->assign(0, p, {});
      Batch batch(200);
      batch.add(y, 0, i);
      batch.run(*backend, *pool);
      ASSERT_EQ(batch.tokens[0], rule(y, p, {}, i).token);
      differs += batch.tokens[0] != rule(y, p, {}, i, defect).token ? 1 : 0;
    }
    EXPECT_GT(differs, 0) << "defect " << static_cast<int>(defect);
  }
}

// Defects that a row alone does not show: what they would make of a batch's rows.
enum class BatchDefect {
  kNoiseByBatchRow,
  kSeedIgnoredWithLogprobs,
  kNeighboursTemperature,  // greedy rows perturbed by the row before
  kNeighboursMinP,         // a neighbour's min-p cuts tokens of a row that has none
  kSharedRetryBudget,      // from the third row on the tries are spent: argmax
  kPromptCounted,          // presence and frequency count the prompt
  kOldCountsKept,          // a reused slot goes on with the last sequence's output
  kBiasAfterTemperature,   // the bias is added at the wrong place
  kDeadRowYieldsZero,      // a row without a finite logit gives token 0
  kFirstTieTakesAll,       // tied values resolved by value: the lowest id takes all their mass
};

struct BatchRow {
  SamplingParams params;
  Context context, before;  // `before`: of the slot's last sequence
  std::vector<float> y;
  int position;
};

int32_t with_defect(const std::vector<BatchRow>& rows, size_t i, BatchDefect defect) {
  const BatchRow& row = rows[i];
  SamplingParams p = row.params;
  Context c = row.context;
  std::vector<float> y = row.y;
  int position = row.position;
  const SamplingParams& neighbour = rows[i == 0 ? 0 : i - 1].params;
  if (defect == BatchDefect::kNoiseByBatchRow) position += static_cast<int>(i);
  if (defect == BatchDefect::kSeedIgnoredWithLogprobs && p.top_logprobs >= 0) p.seed = 0;
  if (defect == BatchDefect::kNeighboursTemperature) p.temperature = neighbour.temperature;
  if (defect == BatchDefect::kNeighboursMinP) p.min_p = neighbour.min_p;
  if (defect == BatchDefect::kSharedRetryBudget && i >= 2) p.temperature = 0.0f;
  if (defect == BatchDefect::kPromptCounted) c.output.insert(c.output.end(), c.prompt.begin(), c.prompt.end());
  if (defect == BatchDefect::kOldCountsKept) {
    c.output.insert(c.output.end(), row.before.output.begin(), row.before.output.end());
  }
  if (defect == BatchDefect::kBiasAfterTemperature) {
    for (const auto& [token, bias] : p.logit_bias) y[static_cast<size_t>(token)] += bias * (p.temperature - 1.0f);
  }
  if (defect == BatchDefect::kFirstTieTakesAll) {
    for (size_t j = 1; j < y.size(); j++) {
      if (std::find(y.begin(), y.begin() + static_cast<std::ptrdiff_t>(j), y[j]) !=
          y.begin() + static_cast<std::ptrdiff_t>(j)) {
        y[j] = kMinus;
      }
    }
  }
  const int32_t token = rule(y, p, c, position).token;
  return defect == BatchDefect::kDeadRowYieldsZero && token < 0 ? 0 : token;
}

std::vector<BatchRow> rows_for_defects(Random& random, int64_t vocab) {
  std::vector<BatchRow> rows(6);
  for (size_t i = 0; i < rows.size(); i++) {
    BatchRow& row = rows[i];
    row.params.seed = random.bits();
    row.params.temperature = i == 3 ? 0.0f : 1.5f;
    row.params.top_p = 0.9f;
    row.params.min_p = i == 1 ? 0.5f : 0.0f;
    row.params.top_logprobs = i % 2 == 0 ? 5 : -1;
    if (i == 4) row.params.presence_penalty = 2.0f, row.params.frequency_penalty = 1.0f;
    if (i == 5) row.params.logit_bias = {{random.below(static_cast<int>(vocab)), 3.0f}};
    for (int n = 0; n < 6; n++) row.context.prompt.push_back(random.below(static_cast<int>(vocab)));
    row.position = 7;
    for (int64_t j = 0; j < vocab; j++) row.y.push_back(static_cast<float>(random.below(5)));
  }
  if (random.below(2) == 0) std::fill(rows[0].y.begin(), rows[0].y.end(), kMinus);
  return rows;
}

TEST(SamplingCpu, PlantedDefectsOfBatchesAreSeen) {
  Random random;
  SCOPED_TRACE(random.note());
  constexpr int64_t kVocab = 40;
  constexpr auto kLast = static_cast<int>(BatchDefect::kFirstTieTakesAll);
  const auto backend = make_cpu_backend({2, ""});
  const auto pool = backend->make_sampler(6, kVocab);
  std::vector<int> seen(kLast + 1);
  for (int round = 0; round < 60; round++) {
    std::vector<BatchRow> rows = rows_for_defects(random, kVocab);
    for (size_t i = 0; i < rows.size(); i++) {  // another sequence has had the slot before
      const int slot = static_cast<int>(i);
      pool->assign(slot, rows[i].params, rows[i].context.prompt);
      for (int n = 0; n < 4; n++) {
        Batch earlier(kVocab);
        earlier.add(rows_for_defects(random, kVocab)[1].y, slot, n);
        earlier.run(*backend, *pool);
        rows[i].before.output.push_back(earlier.tokens[0]);
      }
      pool->assign(slot, rows[i].params, rows[i].context.prompt);
    }
    Batch batch(kVocab);
    for (size_t i = 0; i < rows.size(); i++) batch.add(rows[i].y, static_cast<int>(i), rows[i].position);
    batch.run(*backend, *pool);
    for (size_t i = 0; i < rows.size(); i++) {
      ASSERT_EQ(batch.tokens[i], rule(rows[i].y, rows[i].params, rows[i].context, rows[i].position).token) << i;
      for (int d = 0; d <= kLast; d++) {
        const int32_t wrong = with_defect(rows, i, static_cast<BatchDefect>(d));
        seen[static_cast<size_t>(d)] += wrong != batch.tokens[i] ? 1 : 0;
      }
    }
  }
  for (int d = 0; d <= kLast; d++) EXPECT_GT(seen[static_cast<size_t>(d)], 0) << "defect " << d;
}

// Rule N15's noise has a finite reach: a token further below another survivor than that is never drawn, one within it
// is.
TEST(SamplingCpu, TheNoiseReachesAsFarAsTheRuleSays) {
  const double low = gumbel(0xffffffff), high = gumbel(0);
  EXPECT_NEAR(low, -3.130, 1e-3);
  EXPECT_NEAR(high, 22.874, 1e-3);
  const auto wins = [](float below, uint32_t noise, uint32_t best_noise) {
    return gumbel_score(-below, noise) > gumbel_score(0.0f, best_noise);
  };
  const auto reach = static_cast<float>(high - low);
  EXPECT_TRUE(wins(reach - 1e-4f, 0, 0xffffffff));
  EXPECT_FALSE(wins(reach + 1e-4f, 0, 0xffffffff));
  // By the operator: with the luckiest noise of 2000 draws a token just out of reach still never comes.
  const auto backend = make_cpu_backend({1, ""});
  const auto pool = backend->make_sampler(1, 2);
  pool->assign(0, {}, {});
  Batch batch(2);
  for (int i = 0; i < 2000; i++) batch.add({0.0f, -reach - 1e-4f}, 0, i);
  batch.run(*backend, *pool);
  EXPECT_EQ(std::count(batch.tokens.begin(), batch.tokens.end(), 0), 2000);
}

TEST(SamplingCpu, NeighboursOrderAndReuseDoNotMatter) {
  Random random;
  SCOPED_TRACE(random.note());
  constexpr int64_t kVocab = 700;
  const auto backend = make_cpu_backend({3, ""});
  const auto pool = backend->make_sampler(16, kVocab);
  for (int round = 0; round < 30; round++) {
    const std::vector<float> y = random_row(random, kVocab);
    SamplingParams p = random_params(random, kVocab);
    p.repetition_penalty = 1.2f;
    p.frequency_penalty = 0.3f;
    std::vector<int32_t> tokens;
    for (int variant = 0; variant < 4; variant++) {
      // The slot is used by others in between, in a batch of any place and neighbours; its counts start anew.
      const int slot = variant * 3;
      pool->assign(slot, random_params(random, kVocab), std::vector<int32_t>{1, 2, 3, 4, 5});
      Batch dirty(kVocab);
      dirty.add(random_row(random, kVocab), slot, 0);
      dirty.run(*backend, *pool);
      p.top_logprobs = variant % 2 == 0 ? -1 : 20;
      pool->assign(slot, p, std::vector<int32_t>{7, 8});
      pool->assign(15, random_params(random, kVocab), {});
      Batch batch(kVocab);
      const int place = random.below(4);
      for (int i = 0; i < 5; i++) {
        if (i == place) {
          batch.add(y, slot, 31);
        } else {
          batch.add(random_row(random, kVocab), i % 2 == 0 ? 15 : -1, i);
        }
      }
      batch.run(*backend, *pool, variant % 2 != 0);
      tokens.push_back(batch.tokens[static_cast<size_t>(place)]);
    }
    EXPECT_EQ(std::set<int32_t>(tokens.begin(), tokens.end()).size(), 1u) << "round " << round;
  }
}

TEST(SamplingCpu, CountsFollowTheOutputOnly) {
  const auto backend = make_cpu_backend({1, ""});
  const auto pool = backend->make_sampler(1, 4);
  SamplingParams p;
  p.temperature = 0.0f;
  p.presence_penalty = 1.5f;
  pool->assign(0, p, std::vector<int32_t>{0, 0, 0});  // the prompt does not count for presence
  std::vector<int32_t> tokens;
  for (int i = 0; i < 4; i++) {
    Batch batch(4);
    batch.add({3.0f, 2.0f, 1.0f, 0.0f}, 0, i);
    batch.run(*backend, *pool);
    tokens.push_back(batch.tokens[0]);
  }
  // 3 | 1.5 2 1 0 | 1.5 .5 1 0 | 1.5 again: presence is once, however often.
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 1, 0, 0}));
  pool->release(0);
  Batch batch(4);
  batch.add({1, 2, 3, 4}, 0, 0);
  EXPECT_THROW(batch.run(*backend, *pool), Error);
  p.top_p = 0.0f;
  EXPECT_THROW(pool->assign(0, p, {}), Error);
  p.top_p = 1.0f;
  EXPECT_THROW(pool->assign(0, p, std::vector<int32_t>{4}), Error);
  EXPECT_THROW(pool->assign(1, p, {}), Error);
}

TEST(SamplingCpu, StructuredOutputMaskIsALogitOfMinusInfinity) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (int round = 0; round < 60; round++) {
    const int64_t vocab = log_uniform(random, 1, 3000), stride = (vocab + 31) / 32 + random.below(3);
    Backend& backend = backends.random(random);
    const auto pool = backend.make_sampler(2, vocab);
    SamplingParams p = random_params(random, vocab);
    p.processed_logprobs = true;
    const std::vector<float> y = random_row(random, vocab);
    std::vector<float> without = y;
    std::vector<uint32_t> allowed(static_cast<size_t>(stride), 0xffffffff);
    const int out_of_ten = random.below(11);
    for (int32_t t = 0; t < vocab; t++) {
      if (random.below(10) >= out_of_ten) continue;
      allowed[static_cast<size_t>(t / 32)] &= ~(1u << (t % 32));
      without[static_cast<size_t>(t)] = kMinus;
    }
    pool->assign(0, p, {});
    pool->assign(1, p, {});
    Batch masked(vocab), plain(vocab);
    masked.add(y, 0, 5);
    masked.allowed = allowed;
    masked.allowed_stride = stride;
    plain.add(without, 1, 5);
    masked.run(backend, *pool);
    plain.run(backend, *pool);
    EXPECT_EQ(masked.status, plain.status);
    EXPECT_EQ(masked.tokens, plain.tokens);
    EXPECT_EQ(masked.top_ids, plain.top_ids);
    EXPECT_FALSE(first_difference(masked.logprobs, plain.logprobs) && masked.status[0] == kSampled);
    EXPECT_TRUE(masked.tokens[0] < 0 ||
                ((allowed[static_cast<size_t>(masked.tokens[0] / 32)] >> (masked.tokens[0] % 32)) & 1) != 0);
  }
}

// Each is refused with the parameter's name; nothing is clamped in silence.
TEST(SamplingCpu, BadParametersAreRefusedByName) {
  const auto refused = [](auto&& change) -> std::string {
    SamplingParams p;
    change(p);
    try {
      p.check(1000);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  const auto names = [](const std::string& message, const char* name) {
    EXPECT_NE(message.find(name), std::string::npos) << message;
  };
  for (const float bad : {-0.1f, NAN, INFINITY}) {
    names(refused([&](SamplingParams& p) { p.temperature = bad; }), "temperature");
  }
  for (const float bad : {0.0f, -0.5f, 1.5f, NAN}) names(refused([&](SamplingParams& p) { p.top_p = bad; }), "top_p");
  for (const float bad : {-0.5f, 1.0f, 2.0f, NAN}) names(refused([&](SamplingParams& p) { p.min_p = bad; }), "min_p");
  names(refused([](SamplingParams& p) { p.top_k = -2; }), "top_k");
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY}) {
    names(refused([&](SamplingParams& p) { p.repetition_penalty = bad; }), "repetition_penalty");
  }
  for (const float bad : {-2.5f, 2.5f, NAN}) {
    names(refused([&](SamplingParams& p) { p.presence_penalty = bad; }), "presence_penalty");
    names(refused([&](SamplingParams& p) { p.frequency_penalty = bad; }), "frequency_penalty");
  }
  names(refused([](SamplingParams& p) { p.logit_bias = {{1000, 1.0f}}; }), "bias");
  names(refused([](SamplingParams& p) { p.logit_bias = {{-1, 1.0f}}; }), "bias");
  names(refused([](SamplingParams& p) { p.logit_bias = {{3, NAN}}; }), "bias");
  names(refused([](SamplingParams& p) { p.top_logprobs = 21; }), "logprobs");
  EXPECT_EQ(refused([](SamplingParams& p) { p.top_logprobs = 20, p.top_k = -1, p.top_p = 1.0f; }), "accepted");
}

TEST(LogProbsCpu, EqualTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (int round = 0; round < 60; round++) {
    const int64_t vocab = log_uniform(random, 1, 20000), rows = 1 + random.below(5);
    std::vector<float> logits;
    std::vector<int32_t> targets, best(static_cast<size_t>(rows), 777), status(static_cast<size_t>(rows), 777);
    for (int64_t r = 0; r < rows; r++) {
      std::vector<float> y = random_row(random, vocab);
      if (random.below(10) == 0) y[random.bits() % y.size()] = pick(random, {NAN, INFINITY});
      if (random.below(10) == 0) std::fill(y.begin(), y.end(), kMinus);
      logits.insert(logits.end(), y.begin(), y.end());
      targets.push_back(random.below(8) == 0 ? -1 : random.below(static_cast<int>(vocab)));
    }
    std::vector<float> out(static_cast<size_t>(rows), 9e9f);
    const bool wants_best = random.below(3) != 0;
    backends.random(random).log_probs(
        {logits.data(), targets.data(), rows, vocab, out.data(), wants_best ? best.data() : nullptr, status.data()});
    for (size_t r = 0; r < static_cast<size_t>(rows); r++) {
      SCOPED_TRACE(fmt::format("{} vocab {} row {}", backends.last(), vocab, r));
      if (targets[r] < 0) {
        ASSERT_EQ(out[r], 9e9f);
        continue;
      }
      const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(r) * vocab;
      const std::vector<float> y(begin, begin + vocab);
      SamplingParams greedy;
      greedy.temperature = 0.0f;
      const Expected e = rule(y, greedy, {}, 0);
      ASSERT_EQ(status[r], e.status);
      if (e.status != kSampled) continue;
      uint64_t total = 0;
      const float ymax = y[static_cast<size_t>(e.token)];
      for (const float x : y) total += mass(x, ymax);
      ASSERT_EQ(bits(out[r]), bits(log_probability(y[static_cast<size_t>(targets[r])], ymax, total)));
      ASSERT_EQ(best[r], wants_best ? e.token : 777);
    }
  }
}

}  // namespace
}  // namespace isobit::testing
