// Sampling on the GPU against rules N12 to N17, by bytes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <memory>
#include <thread>

#include "ops/cuda/kernels.h"
#include "ops/cuda/sample_plan.h"
#include "ops_cuda/gpu_memory.h"
#include "ops_cuda/sampling_reference.h"

namespace isobit::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

cuda::KernelContext context(cudaStream_t stream = nullptr) {
  cuda::KernelContext c;
  c.stream = stream;
  c.sm_count = 132;
  return c;
}

template <typename T>
T choose(std::mt19937_64& random, std::initializer_list<T> of) {
  return of.begin()[random() % of.size()];
}

enum class Logits { kNormal, kPeaked, kFlat, kEqual, kTies, kMasked, kOneFinite, kHuge, kTiny, kBad, kCount };

std::vector<float> draw_logits(Logits kind, int64_t vocab, std::mt19937_64& random) {
  std::normal_distribution<float> normal;
  std::vector<float> y(static_cast<size_t>(vocab));
  for (float& v : y) {
    v = normal(random);
    switch (kind) {
      case Logits::kNormal:
        v *= 3.0f;
        break;
      case Logits::kPeaked:
        v = v * 6.0f;
        break;
      case Logits::kFlat:
        v *= 0.01f;
        break;
      case Logits::kEqual:
        v = 1.25f;
        break;
      case Logits::kTies:
        v = std::round(v * 2.0f) * 0.5f * (random() % 16 == 0 ? -0.0f : 1.0f);
        break;
      case Logits::kMasked:
        v = random() % 8 != 0 ? -kInfinity : v * 3.0f;
        break;
      case Logits::kOneFinite:
        v = -kInfinity;
        break;
      case Logits::kHuge:
        v *= 1e30f;
        break;
      case Logits::kTiny:
        v *= 1e-40f;
        break;
      default:
        break;
    }
  }
  const size_t at = random() % y.size();
  if (kind == Logits::kOneFinite) y[at] = -3.5f;
  if (kind == Logits::kBad) y[at] = choose(random, {kInfinity, std::nanf(""), -std::nanf("")});
  return y;
}

SamplingParams draw_params(int64_t vocab, std::mt19937_64& random) {
  SamplingParams p;
  const auto v = static_cast<int32_t>(vocab);
  p.seed = random();
  p.choice = static_cast<uint32_t>(random() % 3);
  p.temperature = choose(random, {0.0f, 1.0f, 0.8f, 0.8f, 1.3f, 1e-6f, 30.0f});
  p.top_k = choose(random, {0, 0, -1, 1, 2, 20, 40, 64, 65, 127, 128, 300, 1000, 5000, v - 1, v, v + 7});
  p.top_k = std::max(p.top_k, -1);
  p.top_p = choose(random, {1.0f, 1.0f, 0.95f, 0.9f, 0.5f, 0.1f, 1e-9f, 0.9999f, 0.99999994f});
  p.min_p = choose(random, {0.0f, 0.0f, 0.05f, 0.001f, 0.9f});
  if (random() % 3 == 0) p.repetition_penalty = choose(random, {1.2f, 0.7f});
  if (random() % 3 == 0) p.presence_penalty = 0.5f;
  if (random() % 3 == 0) p.frequency_penalty = choose(random, {0.3f, -0.2f});
  if (random() % 3 == 0) {
    const int count = 1 + static_cast<int>(random() % 40);
    for (int i = 0; i < count; i++) {
      p.logit_bias.emplace_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)),
                                choose(random, {-100.0f, 3.0f, 0.0f, 100.0f, 0.25f}));
    }
  }
  if (random() % 2 == 0) p.top_logprobs = choose(random, {0, 1, 5, 20});
  p.processed_logprobs = random() % 2 == 0;
  return p;
}

// A step's arrays on the GPU.
class Step {
 public:
  Step(int64_t rows, int64_t vocab)
      : rows_(rows),
        vocab_(vocab),
        logits_(static_cast<size_t>(rows * vocab)),
        slots_(static_cast<size_t>(rows)),
        positions_(static_cast<size_t>(rows)),
        tokens_(static_cast<size_t>(rows)),
        status_(static_cast<size_t>(rows)),
        top_ids_(static_cast<size_t>(rows * kMaxTopLogprobs)),
        logprobs_(static_cast<size_t>(rows)),
        top_logprobs_(static_cast<size_t>(rows * kMaxTopLogprobs)) {}

  void set(const std::vector<std::vector<float>>& logits, const std::vector<int32_t>& slots,
           const std::vector<int32_t>& positions) {
    std::vector<float> all;
    for (const auto& row : logits) all.insert(all.end(), row.begin(), row.end());
    logits_.set(all);
    slots_.set(slots);
    positions_.set(positions);
    tokens_.poison(), status_.poison(), top_ids_.poison(), logprobs_.poison(), top_logprobs_.poison();
    cuda::check(cudaDeviceSynchronize(), "poison");  // the tests' streams do not wait for it
  }

  SampleArgs args(bool count_output) const {
    SampleArgs a;
    a.logits = logits_.data(), a.slots = slots_.data(), a.positions = positions_.data();
    a.rows = rows_, a.vocab = vocab_, a.count_output = count_output;
    a.tokens = tokens_.data(), a.logprobs = logprobs_.data(), a.status = status_.data();
    a.top_ids = top_ids_.data(), a.top_logprobs = top_logprobs_.data();
    a.check();
    return a;
  }

  std::vector<SampledRow> results() const {
    EXPECT_TRUE(tokens_.guards_intact() && status_.guards_intact() && top_ids_.guards_intact() &&
                logprobs_.guards_intact() && top_logprobs_.guards_intact());
    const auto token = tokens_.get(), status = status_.get(), ids = top_ids_.get();
    const auto logprob = logprobs_.get(), tops = top_logprobs_.get();
    std::vector<SampledRow> rows(static_cast<size_t>(rows_));
    for (size_t i = 0; i < rows.size(); i++) {
      rows[i].token = token[i], rows[i].status = status[i], rows[i].logprob = numerics::bits(logprob[i]);
      for (size_t j = 0; j < kMaxTopLogprobs; j++) {
        rows[i].top_ids[j] = ids[i * kMaxTopLogprobs + j];
        rows[i].top_logprobs[j] = numerics::bits(tops[i * kMaxTopLogprobs + j]);
      }
    }
    return rows;
  }

 private:
  int64_t rows_, vocab_;
  GpuArray<float> logits_;
  GpuArray<int32_t> slots_, positions_, tokens_, status_, top_ids_;
  GpuArray<float> logprobs_, top_logprobs_;
};

std::vector<SampledRow> references(const std::vector<SlotState>& states, const std::vector<int32_t>& slots,
                                   const std::vector<std::vector<float>>& logits,
                                   const std::vector<int32_t>& positions) {
  std::vector<SampledRow> rows(logits.size());
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); t++) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < rows.size(); i = next++) {
        if (slots[i] < 0) {
          rows[i].token = rows[i].status = static_cast<int32_t>(0xcdcdcdcd);
          continue;
        }
        rows[i] = reference_row(states[static_cast<size_t>(slots[i])], logits[i], static_cast<uint32_t>(positions[i]));
      }
    });
  }
  for (std::thread& t : threads) t.join();
  return rows;
}

std::string text(const SamplingParams& p) {
  return fmt::format("T {} k {} p {} min {} rep {} pres {} freq {} bias {} logprobs {} processed {} seed {}",
                     p.temperature, p.top_k, p.top_p, p.min_p, p.repetition_penalty, p.presence_penalty,
                     p.frequency_penalty, p.logit_bias.size(), p.top_logprobs, p.processed_logprobs, p.seed);
}

void expect_equal(const std::vector<SampledRow>& got, const std::vector<SampledRow>& want,
                  const std::vector<SlotState>& states, const std::vector<int32_t>& slots) {
  int shown = 0;
  for (size_t i = 0; i < got.size() && shown < 4; i++) {
    if (got[i] == want[i]) continue;
    shown++;
    const bool padding = slots[i] < 0;
    ADD_FAILURE() << fmt::format(
        "row {}: token {} want {}, status {} want {}, logprob {:08x} want {:08x}, top {} {}; {}", i, got[i].token,
        want[i].token, got[i].status, want[i].status, got[i].logprob, want[i].logprob,
        got[i].top_ids == want[i].top_ids ? "=" : "ids differ",
        got[i].top_logprobs == want[i].top_logprobs ? "=" : "values differ",
        padding ? "padding" : text(states[static_cast<size_t>(slots[i])].params));
  }
}

// Several steps of random rows in random slots, counts going on, slots ending and being used again. Returns how many
// rows were compared.
int run_mixture(int64_t vocab, int rows, int steps, std::mt19937_64& random, bool graph) {
  const int pool = rows + 3;
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  const auto slots = cuda::make_sampler_slots(pool, vocab, context(stream));
  std::vector<SlotState> states(static_cast<size_t>(pool));
  const auto assign = [&](int slot) {
    SlotState& s = states[static_cast<size_t>(slot)];
    s = SlotState{draw_params(vocab, random), {}, {}};
    // Mostly few tokens, now and then most of the vocabulary: more than a CTA has a list for.
    for (uint64_t i = random() % 5 == 0 ? static_cast<uint64_t>(vocab) : random() % 60; i > 0; i--) {
      s.prompt.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
    }
    slots->assign(slot, s.params, s.prompt);
  };
  for (int i = 0; i < pool; i++) assign(i);
  Step step(rows, vocab);
  cudaGraphExec_t replay = nullptr;
  for (int n = 0; n < steps; n++) {
    std::vector<int32_t> order(static_cast<size_t>(pool)), positions(static_cast<size_t>(rows));
    for (size_t i = 0; i < order.size(); i++) order[i] = static_cast<int32_t>(i);
    std::shuffle(order.begin(), order.end(), random);
    order.resize(static_cast<size_t>(rows));
    for (int32_t& slot : order) slot = random() % 20 == 0 ? -1 : slot;
    for (int32_t& p : positions) p = static_cast<int32_t>(random() % 100000);
    std::vector<std::vector<float>> logits;
    for (int i = 0; i < rows; i++) {
      const auto kind = static_cast<Logits>(random() % 3 == 0 ? random() % static_cast<uint64_t>(Logits::kCount) : 0);
      logits.push_back(draw_logits(kind, vocab, random));
    }
    step.set(logits, order, positions);
    if (graph && replay == nullptr) {
      cudaGraph_t captured = nullptr;
      cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
      launch_sample(*slots, step.args(true), context(stream));
      cuda::check(cudaStreamEndCapture(stream, &captured), "capture");
      cuda::check(cudaGraphInstantiate(&replay, captured, 0), "capture");
      cudaGraphDestroy(captured);
    }
    if (graph) {
      cuda::check(cudaGraphLaunch(replay, stream), "replay");
    } else {
      launch_sample(*slots, step.args(true), context(stream));
    }
    cuda::check(cudaStreamSynchronize(stream), "sample");
    const std::vector<SampledRow> got = step.results(), want = references(states, order, logits, positions);
    expect_equal(got, want, states, order);
    for (size_t i = 0; i < order.size(); i++) {
      if (order[i] >= 0 && want[i].status == kSampled) states[static_cast<size_t>(order[i])].count(want[i].token);
    }
    for (int i = 0; i < 2; i++) assign(static_cast<int>(random() % static_cast<uint64_t>(pool)));
  }
  if (replay != nullptr) cudaGraphExecDestroy(replay);
  cudaStreamDestroy(stream);
  return rows * steps;
}

class GpuSampling : public ::testing::TestWithParam<int64_t> {};

TEST_P(GpuSampling, AnyMixtureEqualsTheRules) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(fmt::format("seed {} vocabulary {}", seed, GetParam()));
  std::mt19937_64 random(seed);
  const bool large = GetParam() > 20000;
  int compared = 0;
  for (const int rows : {1, 3, 12, 30, 40, 80, 140}) {  // clusters of every size
    SCOPED_TRACE(fmt::format("{} rows", rows));
    compared += run_mixture(GetParam(), rows, large ? (rows < 30 ? 3 : 1) : 4, random, rows % 3 == 0);
  }
  RecordProperty("cases", compared);
}
INSTANTIATE_TEST_SUITE_P(Vocabularies, GpuSampling,
                         ::testing::Values(1, 2, 7, 513, 1000, 4093, 32768, 49152, 50257, 128256, 151936, 262147));

TEST(GpuSampling, CountsAndReusedSlots) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  run_mixture(64, 5, 60, random, true);  // few tokens: counts matter at once
  run_mixture(64, 5, 60, random, false);
}

TEST(GpuSampling, ARowDoesNotDependOnItsNeighbours) {
  const int64_t vocab = 151936;
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const auto slots = cuda::make_sampler_slots(70, vocab, context());
  for (int i = 0; i < 70; i++) slots->assign(i, draw_params(vocab, random), {});
  std::vector<std::vector<float>> logits;
  std::vector<int32_t> ids, positions;
  for (int i = 0; i < 70; i++) {
    logits.push_back(draw_logits(static_cast<Logits>(random() % 9), vocab, random));
    ids.push_back(i);
    positions.push_back(static_cast<int32_t>(random() % 1000));
  }
  const auto run = [&](size_t first, size_t count) {
    const auto part = [&](const auto& v) {
      return std::decay_t<decltype(v)>(v.begin() + static_cast<std::ptrdiff_t>(first),
                                       v.begin() + static_cast<std::ptrdiff_t>(first + count));
    };
    Step step(static_cast<int64_t>(count), vocab);
    step.set(part(logits), part(ids), part(positions));
    launch_sample(*slots, step.args(false), context());
    cuda::check(cudaDeviceSynchronize(), "sample");
    return step.results();
  };
  const std::vector<SampledRow> all = run(0, 70);
  for (size_t i = 0; i < 70; i++) {
    EXPECT_TRUE(run(i, 1)[0] == all[i]) << "row " << i << " alone";
    if (i % 8 != 0) continue;
    EXPECT_TRUE(run(i, std::min<size_t>(20, 70 - i))[0] == all[i]) << "row " << i << " with others";
  }
}

TEST(GpuSampling, StructuredOutputMasksInTheSamePass) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const int64_t vocab : {7, 1000, 4093, 50257, 151936}) {
    constexpr int kRows = 20;
    const int64_t stride = (vocab + 31) / 32 + 2;
    const auto slots = cuda::make_sampler_slots(kRows, vocab, context());
    std::vector<SlotState> states(kRows);
    std::vector<std::vector<float>> logits;
    std::vector<int32_t> ids, positions;
    std::vector<uint32_t> masks(static_cast<size_t>(kRows * stride), 0xffffffff);
    for (int i = 0; i < kRows; i++) {
      SlotState& s = states[static_cast<size_t>(i)];
      s.params = draw_params(vocab, random);
      for (int n = 0; n < 30; n++) s.prompt.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
      slots->assign(i, s.params, s.prompt);
      logits.push_back(
          draw_logits(static_cast<Logits>(random() % static_cast<uint64_t>(Logits::kCount)), vocab, random));
      ids.push_back(i);
      positions.push_back(i * 7);
      // From all allowed to a handful, and in one row none: that one fails.
      const uint64_t share = i == 3 ? 0 : choose<uint64_t>(random, {1, 20, 500, 990, 1000});
      for (int64_t t = 0; t < vocab; t++) {
        if (random() % 1000 >= share) masks[static_cast<size_t>(i * stride + t / 32)] &= ~(1u << (t % 32));
      }
    }
    Step step(kRows, vocab);
    step.set(logits, ids, positions);
    const GpuArray<uint32_t> allowed(masks);
    SampleArgs a = step.args(false);
    a.allowed = allowed.data();
    a.allowed_stride = stride;
    a.check();
    launch_sample(*slots, a, context());
    cuda::check(cudaDeviceSynchronize(), "sample");
    std::vector<SampledRow> want;
    for (size_t i = 0; i < kRows; i++) {
      want.push_back(reference_row(states[i], logits[i], static_cast<uint32_t>(positions[i]),
                                   &masks[i * static_cast<size_t>(stride)]));
    }
    EXPECT_EQ(want[3].status, kNotFinite);
    expect_equal(step.results(), want, states, ids);
  }
}

TEST(GpuSampling, RowsOfOneSlotSeeTheSameCounts) {
  const int64_t vocab = 512;
  std::mt19937_64 random(fresh_seed());
  SlotState state;
  state.params.temperature = 1.0f, state.params.frequency_penalty = 2.0f, state.params.seed = random();
  const auto slots = cuda::make_sampler_slots(1, vocab, context());
  slots->assign(0, state.params, {});
  Step step(16, vocab);
  for (int n = 0; n < 10; n++) {
    std::vector<std::vector<float>> logits;
    std::vector<int32_t> positions;
    for (int i = 0; i < 16; i++) {
      logits.push_back(draw_logits(Logits::kTies, vocab, random));
      positions.push_back(n * 16 + i);
    }
    const std::vector<int32_t> ids(16, 0);
    step.set(logits, ids, positions);
    launch_sample(*slots, step.args(true), context());
    cuda::check(cudaDeviceSynchronize(), "sample");
    const auto want = references({state}, ids, logits, positions);
    expect_equal(step.results(), want, {state}, ids);
    for (const SampledRow& r : want) state.count(r.token);
  }
}

// A seed gives the same tokens eagerly and by a captured graph, with log-probabilities and without; each route decodes
// from the start. A defect is what a sampler with that fault would have been handed.
enum class RouteDefect { kNone, kSeedIgnoredWithLogprobs, kPositionsAsCaptured, kCountsOfCaptureKept };

std::vector<int32_t> tokens_by_route(bool graph, bool logprobs, uint64_t seed, RouteDefect defect) {
  constexpr int64_t kVocab = 5003;
  constexpr int kRows = 12, kSteps = 5;
  std::mt19937_64 random(seed);
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  const auto slots = cuda::make_sampler_slots(kRows, kVocab, context(stream));
  std::vector<int32_t> ids(kRows), positions(kRows), tokens;
  std::vector<SamplingParams> params;
  for (size_t i = 0; i < ids.size(); i++) {
    ids[i] = static_cast<int32_t>(i);
    SamplingParams p = draw_params(kVocab, random);
    p.frequency_penalty = 1.5f;
    p.top_logprobs = logprobs ? static_cast<int32_t>(i) : -1;
    if (defect == RouteDefect::kSeedIgnoredWithLogprobs && logprobs) p.seed = 0;
    params.push_back(p);
    slots->assign(ids[i], p, {});
  }
  Step step(kRows, kVocab);
  cudaGraphExec_t replay = nullptr;
  for (int n = 0; n < kSteps; n++) {
    std::vector<std::vector<float>> logits;
    for (int i = 0; i < kRows; i++)
      logits.push_back(draw_logits(i % 2 == 0 ? Logits::kNormal : Logits::kFlat, kVocab, random));
    const bool captured = graph && defect == RouteDefect::kPositionsAsCaptured && n > 0;
    for (int i = 0; i < kRows && !captured; i++) positions[static_cast<size_t>(i)] = 100 * i + n;
    step.set(logits, ids, positions);
    if (graph && replay == nullptr) {
      if (defect == RouteDefect::kCountsOfCaptureKept) {
        launch_sample(*slots, step.args(true), context(stream));
        cuda::check(cudaStreamSynchronize(stream), "sample");
      }
      cudaGraph_t recorded = nullptr;
      cuda::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
      launch_sample(*slots, step.args(true), context(stream));
      cuda::check(cudaStreamEndCapture(stream, &recorded), "capture");
      cuda::check(cudaGraphInstantiate(&replay, recorded, 0), "capture");
      cudaGraphDestroy(recorded);
    }
    if (graph) {
      cuda::check(cudaGraphLaunch(replay, stream), "replay");
    } else {
      launch_sample(*slots, step.args(true), context(stream));
    }
    cuda::check(cudaStreamSynchronize(stream), "sample");
    for (const SampledRow& r : step.results()) tokens.push_back(r.token);
  }
  if (replay != nullptr) cudaGraphExecDestroy(replay);
  cudaStreamDestroy(stream);
  return tokens;
}

TEST(GpuSampling, ASeedGivesTheSameTokensByEveryRoute) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  const std::vector<int32_t> plain = tokens_by_route(false, false, seed, RouteDefect::kNone);
  for (const bool graph : {false, true}) {
    for (const bool logprobs : {false, true}) {
      EXPECT_EQ(tokens_by_route(graph, logprobs, seed, RouteDefect::kNone), plain) << graph << logprobs;
    }
  }
  for (const RouteDefect planted :
       {RouteDefect::kSeedIgnoredWithLogprobs, RouteDefect::kPositionsAsCaptured, RouteDefect::kCountsOfCaptureKept}) {
    EXPECT_NE(tokens_by_route(true, true, seed, planted), plain) << "defect " << static_cast<int>(planted);
  }
}

TEST(GpuLogProbs, EqualTheRule) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const int64_t vocab : {1, 5, 1000, 49152, 50257, 151936}) {
    for (const int rows : {1, 20, 150}) {
      std::vector<std::vector<float>> logits;
      std::vector<int32_t> targets;
      std::vector<float> all;
      for (int i = 0; i < rows; i++) {
        const auto kind = random() % 3 == 0 ? random() % static_cast<uint64_t>(Logits::kCount) : 0;
        logits.push_back(draw_logits(static_cast<Logits>(kind), vocab, random));
        all.insert(all.end(), logits.back().begin(), logits.back().end());
        targets.push_back(i % 9 == 8 ? -1 : static_cast<int32_t>(random() % static_cast<uint64_t>(vocab)));
      }
      const GpuArray<float> gpu_logits(all), out(targets.size());
      const GpuArray<int32_t> gpu_targets(targets), best(targets.size()), status(targets.size());
      LogProbArgs a;
      a.logits = gpu_logits.data(), a.targets = gpu_targets.data(), a.rows = rows, a.vocab = vocab;
      a.out = out.data(), a.best = best.data(), a.status = status.data();
      a.check();
      launch_log_probs(a, context());
      cuda::check(cudaDeviceSynchronize(), "log_probs");
      const auto got = out.get();
      const auto got_best = best.get(), got_status = status.get();
      int wrong = 0;
      for (size_t i = 0; i < targets.size(); i++) {
        uint32_t want = 0xcdcdcdcd;
        auto want_best = static_cast<int32_t>(0xcdcdcdcd), want_status = want_best;
        if (targets[i] >= 0) {
          const RowFacts f = facts(logits[i]);
          want_status = f.ok ? kSampled : kNotFinite;
          want = numerics::kNaN32, want_best = -1;
          if (f.ok) {
            uint64_t sum = 0;
            for (const float v : logits[i]) sum += numerics::mass(v, f.largest);
            const float y = logits[i][static_cast<size_t>(targets[i])];
            want = numerics::bits(numerics::log_probability(y, f.largest, sum));
            want_best =
                static_cast<int32_t>(std::find(logits[i].begin(), logits[i].end(), f.largest) - logits[i].begin());
          }
        }
        wrong += numerics::bits(got[i]) != want || got_best[i] != want_best || got_status[i] != want_status ? 1 : 0;
      }
      EXPECT_EQ(wrong, 0) << vocab << " x " << rows;
      EXPECT_TRUE(out.guards_intact() && best.guards_intact() && status.guards_intact());
    }
  }
}

}  // namespace
}  // namespace isobit::test
