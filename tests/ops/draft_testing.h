#pragma once
// Random draft trees over a target whose logits depend on all tokens before, and what plain decoding says of them.
#include <fmt/format.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "numerics/philox.h"
#include "numerics/testing.h"
#include "ops/backend.h"

namespace isobit::testing {

// Logits that a whole context decides.
class ToyTarget {
 public:
  ToyTarget(int64_t vocab, uint64_t key) : vocab_(vocab), key_(key) {}
  int64_t vocab() const { return vocab_; }
  std::vector<float> logits(const std::vector<int32_t>& context) const {
    uint64_t h = key_;
    for (const int32_t t : context) h = (h ^ static_cast<uint64_t>(t + 1)) * 0x9e3779b97f4a7c15U + 0x7f4a7c15;
    std::vector<float> y(static_cast<size_t>(vocab_));
    for (size_t i = 0; i < y.size(); i++) {
      const uint32_t r = numerics::philox4x32(h, {{static_cast<uint32_t>(i), 0, 0, 0}}).w[0];
      y[i] = static_cast<float>(r >> 24) * (1.0f / 32);  // of 256 values, so that some are equal; e^8 apart at most
    }
    return y;
  }

 private:
  int64_t vocab_;
  uint64_t key_;
};

// The arrays of one step. Every request's last token is its root's input; its trees' rows stand one after the other.
struct DraftStep {
  std::vector<float> logits;
  std::vector<int32_t> slots, positions, first_row = {0}, parents, tokens;

  void add_row(const ToyTarget& target, int slot, const std::vector<int32_t>& context, int32_t parent, int32_t token) {
    const std::vector<float> y = target.logits(context);
    logits.insert(logits.end(), y.begin(), y.end());
    slots.push_back(slot);
    positions.push_back(static_cast<int32_t>(context.size()));
    parents.push_back(parent);
    tokens.push_back(token);
  }
  // A tree of up to `most` drafts behind the context: a chain or of any form, its tokens as likely as not the target's
  // favourites.
  void add_tree(Random& random, const ToyTarget& target, int slot, const std::vector<int32_t>& context, int most) {
    const auto root = static_cast<int32_t>(slots.size());
    const bool chain = random.below(3) == 0;
    std::vector<std::vector<int32_t>> paths = {context};
    add_row(target, slot, context, -1, random.below(2) == 0 ? -7 : 0);  // a root's token is not read
    for (int n = random.below(most + 1); n > 0; n--) {
      const int at = chain ? static_cast<int>(paths.size()) - 1 : random.below(static_cast<int>(paths.size()));
      std::vector<int32_t> path = paths[static_cast<size_t>(at)];
      const std::vector<float> y = target.logits(path);
      const bool favourite = random.below(2) == 0;
      path.push_back(favourite ? static_cast<int32_t>(std::max_element(y.begin(), y.end()) - y.begin())
                               : random.below(static_cast<int>(target.vocab())));
      add_row(target, slot, path, root + at, path.back());
      paths.push_back(std::move(path));
    }
    first_row.push_back(static_cast<int32_t>(slots.size()));
  }
  int64_t rows() const { return static_cast<int64_t>(slots.size()); }
  int64_t requests() const { return static_cast<int64_t>(first_row.size()) - 1; }
  // A request's rows as a step of their own.
  DraftStep alone(int64_t request) const {
    const int32_t first = first_row[static_cast<size_t>(request)], end = first_row[static_cast<size_t>(request) + 1];
    const auto part = [&](const auto& v) {
      const auto each = static_cast<std::ptrdiff_t>(v.size() / slots.size());
      return std::decay_t<decltype(v)>(v.begin() + first * each, v.begin() + end * each);
    };
    DraftStep s{part(logits), part(slots), part(positions), {0, end - first}, part(parents), part(tokens)};
    for (int32_t& parent : s.parents) parent = parent == -1 ? -1 : parent - first;
    return s;
  }
};

struct DraftResult {
  std::vector<int32_t> tokens, status, accepted, bonus, path, top_ids;
  std::vector<float> logprobs, top_logprobs;  // of slots that ask for them

  explicit DraftResult(const DraftStep& s)
      : tokens(s.slots.size(), 777),
        status(s.slots.size(), 777),
        accepted(s.first_row.size() - 1, 777),
        bonus(accepted),
        path(s.slots.size(), 777),
        top_ids(s.slots.size() * kMaxTopLogprobs, 777),
        logprobs(s.slots.size(), 777.0f),
        top_logprobs(s.slots.size() * kMaxTopLogprobs, 777.0f) {}
};

// The arguments of the step, of arrays wherever they lie.
struct DraftPointers {
  const float* logits;
  const int32_t *slots, *positions, *first_row, *parents, *drafted;
  int32_t *tokens, *status, *accepted, *bonus, *path, *top_ids;
  float *logprobs, *top_logprobs;
};
inline SampleArgs draft_args(const DraftStep& s, const DraftPointers& p, int64_t vocab) {
  SampleArgs a;
  a.logits = p.logits, a.slots = p.slots, a.positions = p.positions;
  a.rows = s.rows(), a.vocab = vocab;
  a.drafts = {s.requests(), p.first_row, p.parents, p.drafted, p.accepted, p.bonus, p.path};
  a.tokens = p.tokens, a.status = p.status;
  a.logprobs = p.logprobs, a.top_ids = p.top_ids, a.top_logprobs = p.top_logprobs;
  a.check();
  return a;
}
inline DraftResult run_on_host(Backend& backend, SamplerSlots& pool, const DraftStep& s, int64_t vocab) {
  DraftResult r(s);
  backend.sample(pool,
                 draft_args(s,
                            {s.logits.data(), s.slots.data(), s.positions.data(), s.first_row.data(), s.parents.data(),
                             s.tokens.data(), r.tokens.data(), r.status.data(), r.accepted.data(), r.bonus.data(),
                             r.path.data(), r.top_ids.data(), r.logprobs.data(), r.top_logprobs.data()},
                            vocab));
  return r;
}

// One token by plain decoding.
inline int32_t decode_one(Backend& backend, SamplerSlots& pool, int slot, const ToyTarget& target,
                          const std::vector<int32_t>& context) {
  const std::vector<float> y = target.logits(context);
  const auto position = static_cast<int32_t>(context.size()), id = static_cast<int32_t>(slot);
  int32_t token = -1, status = -1;
  SampleArgs a;
  a.logits = y.data(), a.slots = &id, a.positions = &position, a.rows = 1, a.vocab = target.vocab();
  a.tokens = &token, a.status = &status;
  backend.sample(pool, a);
  EXPECT_EQ(status, kSampled);
  return token;
}

// The path that the tree has for these tokens: rows, the root's first.
inline std::vector<int32_t> path_in_tree(const DraftStep& s, int64_t request, const std::vector<int32_t>& tokens) {
  const auto i = static_cast<size_t>(request);
  std::vector<int32_t> path = {s.first_row[i]};
  for (const int32_t token : tokens) {
    int32_t child = -1;
    for (int32_t row = s.first_row[i + 1] - 1; row > s.first_row[i]; row--) {
      const auto r = static_cast<size_t>(row);
      if (s.parents[r] == path.back() && s.tokens[r] == token) child = row;
    }
    if (child < 0) break;
    path.push_back(child);
  }
  return path;
}

inline SamplingParams draft_params(Random& random, int64_t vocab) {
  const auto one_of = [&](std::initializer_list<float> v) {
    return v.begin()[random.below(static_cast<int>(v.size()))];
  };
  SamplingParams p;
  p.seed = random.bits();
  p.temperature = one_of({0.0f, 0.5f, 1.0f, 1.0f, 2.0f});
  p.top_k = random.below(3) == 0 ? 1 + random.below(static_cast<int>(vocab)) : 0;
  p.top_p = one_of({1.0f, 1.0f, 0.9f, 0.5f});
  p.min_p = one_of({0.0f, 0.0f, 0.1f});
  if (random.below(2) == 0) {
    p.repetition_penalty = one_of({1.0f, 1.3f, 0.8f});
    p.presence_penalty = one_of({0.0f, 0.7f, -0.5f});
    p.frequency_penalty = one_of({0.0f, 0.4f, 1.5f});
  }
  if (random.below(4) == 0) p.logit_bias.emplace_back(random.below(static_cast<int>(vocab)), 2.0f);
  return p;
}

// Sequences that grow by verified trees and, in a pool of their own, token by token: the same tokens, step after step.
// `run` verifies one step with the pool under test. Returns how many trees were compared.
template <typename Run>
int compare_trees(Random& random, Backend& plain, SamplerSlots& pool, SamplerSlots& plain_pool, const ToyTarget& target,
                  int steps, int most_drafts, Run&& run) {
  struct Sequence {
    std::vector<int32_t> context;
  };
  std::vector<Sequence> sequences(static_cast<size_t>(pool.slots()));
  const auto start = [&](size_t i) {
    sequences[i].context.clear();
    for (int n = random.below(4); n >= 0; n--) {
      sequences[i].context.push_back(random.below(static_cast<int>(target.vocab())));
    }
    const SamplingParams p = draft_params(random, target.vocab());
    pool.assign(static_cast<int>(i), p, sequences[i].context);
    plain_pool.assign(static_cast<int>(i), p, sequences[i].context);
  };
  for (size_t i = 0; i < sequences.size(); i++) start(i);
  int compared = 0;
  for (int n = 0; n < steps; n++) {
    DraftStep step;
    for (size_t i = 0; i < sequences.size(); i++) {
      step.add_tree(random, target, static_cast<int>(i), sequences[i].context, random.below(4) == 0 ? 0 : most_drafts);
    }
    step.first_row.push_back(step.first_row.back());  // a request that is padding
    const DraftResult got = run(step);
    EXPECT_EQ(got.accepted.back(), -1);
    EXPECT_EQ(got.bonus.back(), -1);
    for (size_t i = 0; i < sequences.size(); i++) {
      std::vector<int32_t>& context = sequences[i].context;
      const auto first = static_cast<size_t>(step.first_row[i]);
      std::vector<int32_t> fresh, path = {step.first_row[i]};
      do {  // as long as plain decoding stays in the tree
        fresh.push_back(decode_one(plain, plain_pool, static_cast<int>(i), target, context));
        context.push_back(fresh.back());
        path = path_in_tree(step, static_cast<int64_t>(i), fresh);
      } while (path.size() == fresh.size() + 1);
      bool equal = got.accepted[i] == static_cast<int32_t>(fresh.size()) - 1 && got.bonus[i] == fresh.back();
      for (size_t j = first; j < static_cast<size_t>(step.first_row[i + 1]); j++) {
        const size_t at = j - first;
        equal = equal && got.path[j] == (at < path.size() ? path[at] : -1);
        if (equal && at < path.size()) equal = got.tokens[static_cast<size_t>(path[at])] == fresh[at];
      }
      EXPECT_TRUE(equal) << fmt::format("step {} request {}: accepted {} want {}, bonus {} want {}", n, i,
                                        got.accepted[i], fresh.size() - 1, got.bonus[i], fresh.back());
      if (!equal) return compared;
      compared++;
      if (context.size() > 40 || random.below(12) == 0) start(i);  // the slot's counts begin anew
    }
  }
  return compared;
}

// What a step gave one request; rows counted from its root, floats by their bits.
struct RequestResult {
  int32_t accepted, bonus;
  std::vector<int32_t> tokens, status, path, top_ids;
  std::vector<uint32_t> logprobs, top_logprobs;
  bool operator==(const RequestResult&) const = default;

  RequestResult(const DraftStep& s, const DraftResult& r, int64_t request)
      : accepted(r.accepted[static_cast<size_t>(request)]), bonus(r.bonus[static_cast<size_t>(request)]) {
    const int32_t first = s.first_row[static_cast<size_t>(request)];
    for (int32_t i = first; i < s.first_row[static_cast<size_t>(request) + 1]; i++) {
      const auto row = static_cast<size_t>(i);
      tokens.push_back(r.tokens[row]);
      status.push_back(r.status[row]);
      path.push_back(r.path[row] < 0 ? r.path[row] : r.path[row] - first);
      logprobs.push_back(numerics::bits(r.logprobs[row]));
      for (size_t j = row * kMaxTopLogprobs; j < (row + 1) * kMaxTopLogprobs; j++) {
        top_ids.push_back(r.top_ids[j]);
        top_logprobs.push_back(numerics::bits(r.top_logprobs[j]));
      }
    }
  }
};

// Steps that mix requests whose prompt has just ended (one sample each), requests that decode, and requests that verify
// drafts of differing numbers, each of any settings and all in one launch: every request gets the bytes that it gets
// alone, step after step, so that the counts kept are the same, too. `run(pool, step)` is the operator.
struct MixedSteps {
  int prefills = 0, decodes = 0, verifies = 0;
  int planted = 0;  // requests that differ where the noise is keyed by the row in the batch
};
template <typename Run>
MixedSteps compare_with_solo(Random& random, SamplerSlots& pool, SamplerSlots& solo, SamplerSlots& by_batch_row,
                             const ToyTarget& target, int steps, Run&& run) {
  MixedSteps seen;
  std::vector<std::vector<int32_t>> contexts(static_cast<size_t>(pool.slots()));
  std::vector<int> order(contexts.size());
  std::iota(order.begin(), order.end(), 0);
  const auto start = [&](int slot, std::vector<int32_t>& prompt) {
    prompt.clear();
    for (int n = 1 + random.below(20); n > 0; n--) prompt.push_back(random.below(static_cast<int>(target.vocab())));
    SamplingParams p = draft_params(random, target.vocab());
    p.top_logprobs = random.below(2) == 0 ? -1 : random.below(kMaxTopLogprobs + 1);
    p.processed_logprobs = random.below(2) == 0;
    for (SamplerSlots* slots : {&pool, &solo, &by_batch_row}) slots->assign(slot, p, prompt);
  };
  for (int n = 0; n < steps; n++) {
    DraftStep step;
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random.bits() % i]);
    for (const int slot : order) {
      std::vector<int32_t>& context = contexts[static_cast<size_t>(slot)];
      int most_drafts = 0;
      if (context.empty() || random.below(4) == 0) {
        start(slot, context);
        seen.prefills++;
      } else if (random.below(2) == 0) {
        most_drafts = 1 + random.below(12);
        seen.verifies++;
      } else {
        seen.decodes++;
      }
      step.add_tree(random, target, slot, context, most_drafts);
    }
    const DraftResult all = run(pool, step);
    for (int64_t i = 0; i < step.requests(); i++) {
      DraftStep alone = step.alone(i);
      const RequestResult got(step, all, i), want(alone, run(solo, alone), 0);
      EXPECT_TRUE(got == want) << fmt::format("step {} request {} of {} rows: bonus {} alone {}", n, i, alone.rows(),
                                              got.bonus, want.bonus);
      if (!(got == want)) return seen;
      for (int32_t& position : alone.positions) position += step.first_row[static_cast<size_t>(i)];
      seen.planted += got == RequestResult(alone, run(by_batch_row, alone), 0) ? 0 : 1;
      std::vector<int32_t>& context = contexts[static_cast<size_t>(alone.slots[0])];
      for (const int32_t row : want.path) {
        if (row >= 0 && want.bonus >= 0) context.push_back(want.tokens[static_cast<size_t>(row)]);
      }
    }
  }
  return seen;
}

}  // namespace isobit::testing
