// The scheduler under a fake model: random arrivals, priorities, cancellations, drafts, steps ahead of their results
// and far too few pages, with every invariant checked at every step. ISOBIT_SIM_STEPS sets how many steps (a million
// takes about a minute).
#include "engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <set>

#include "numerics/testing.h"

namespace isobit::test {
namespace {

using isobit::testing::Random;

constexpr int32_t kTinyVocab = 3;  // so that drafts are often right

uint64_t mix(uint64_t state, int32_t token) {
  state = (state ^ static_cast<uint64_t>(token)) * 0x9e3779b97f4a7c15ULL;
  return state ^ state >> 29;
}

// The fake model's keys: what a position's entry must hold is a hash of all tokens up to it.
uint64_t prefix_hash(std::span<const int32_t> tokens) {
  uint64_t h = 1;
  for (const int32_t t : tokens) h = mix(h, t);
  return h;
}

int32_t next_token(std::span<const int32_t> tokens) { return static_cast<int32_t>(prefix_hash(tokens) % kTinyVocab); }

class Simulation {
 public:
  explicit Simulation(Random& random)
      : random_(random), options_(draw(random)), ahead_(random.below(2) == 0), scheduler_(options_) {
    cache_.resize(static_cast<size_t>(options_.pages * options_.page_size), 0);
    window_cache_.resize(static_cast<size_t>(options_.window_pages * options_.page_size), 0);
  }

  void step() {
    if (random_.below(3) == 0) arrive();
    if (random_.below(20) == 0 && !alive_.empty()) cancel();
    if (random_.below(200) == 0) scheduler_.flush();
    retire();
    const auto parts = scheduler_.plan([&](Sequence& s, int32_t most, bool) { return guess(s, most); });
    check_plan(parts);
    run(parts);
    retire();
    check_pages();
    clock_++;
  }

  void drain() {
    for (int i = 0; i < 100000 && !alive_.empty(); i++) {
      retire();
      run(scheduler_.plan());
      retire();
      clock_++;
    }
    EXPECT_TRUE(alive_.empty()) << alive_.size() << " requests never end";
    land(std::exchange(flight_, {}));
    scheduler_.flush();
    EXPECT_EQ(scheduler_.pool().free(), options_.pages) << "pages leaked";
    if (options_.window_pages > 0) {
      EXPECT_EQ(scheduler_.window_pool()->free(), options_.window_pages) << "window pages leaked";
    }
  }

  const SchedulerOptions& options() const { return options_; }
  bool ahead() const { return ahead_; }
  const SchedulerStats& stats() const { return scheduler_.stats(); }
  int64_t finished() const { return finished_; }
  int64_t accepted() const { return accepted_; }

 private:
  struct Known {
    int64_t arrived = 0, bound = 0;  // steps
    int32_t length = 0;              // prompt and answer
    Sequence* sequence = nullptr;
    int64_t rank = 0;
  };

  static SchedulerOptions draw(Random& random) {
    SchedulerOptions o;
    o.running = 1 + random.below(6);
    o.tokens_per_step = o.running + random.below(30);
    o.chunk = random.below(2) == 0 ? 0 : 1 + random.below(8);
    o.page_size = 1 + random.below(6);
    o.pages = (kContext + o.page_size - 1) / o.page_size;
    o.pages += random.below(2 * o.pages);
    o.prefix_cache = random.below(4) != 0;
    o.priority_steps = random.below(20);
    o.draft_rows = random.below(2) == 0 ? 0 : random.below(o.tokens_per_step - o.running + 1);
    if (random.below(2) == 0) return o;
    o.window = 1 + random.below(20);
    o.window_pages = least_window_pages(o);
    o.window_pages += random.below(o.window_pages);
    return o;
  }

  void arrive() {
    auto s = std::make_unique<Sequence>();
    s->id = next_id_++;
    const int32_t prompt = 1 + random_.below(kContext - 2);
    // Few different prompts, so that prefixes are shared.
    Request r;
    const uint64_t family = random_.bits() % 4;
    for (int32_t i = 0; i < prompt; i++) r.prompt.push_back(static_cast<int32_t>(mix(family, i / 7) % kTinyVocab));
    r.max_tokens = 1 + random_.below(kContext - prompt);
    r.priority = random_.below(4) == 0 ? random_.below(5) - 2 : 0;
    r.sampling.presence_penalty = random_.below(3) == 0 ? 0.5f : 0.0f;
    s->tokens = r.prompt;
    s->longest = prompt + r.max_tokens;
    s->request = std::move(r);
    const int32_t late = ahead_ ? 1 : 0;
    Known k{.arrived = clock_, .bound = 0, .length = s->longest + late, .sequence = s.get(), .rank = 0};
    Sequence& added = *s;
    scheduler_.add(std::move(s));
    k.rank = added.rank;
    // The stated bound: those ahead, those that run now, and itself; later, those that arrive ahead.
    k.bound = k.length + 1;
    int32_t lost = 0;  // whoever is overtaken may have to compute again what it has, and others wait for it
    for (auto& [id, other] : alive_) lost += added.ahead_of(*other.sequence) ? other.sequence->computed : 0;
    for (auto& [id, other] : alive_) {
      if (other.sequence->ahead_of(added) || other.sequence->slot >= 0) k.bound += other.length;
      if (added.ahead_of(*other.sequence)) other.bound += k.length + lost;
    }
    alive_[added.id] = k;
  }

  void cancel() {
    auto it = alive_.begin();
    std::advance(it, random_.below(static_cast<int>(alive_.size())));
    scheduler_.cancel(it->first);
  }

  // Mostly right, sometimes wrong.
  Drafts guess(Sequence& s, int32_t most) {
    if (!s.knows_all()) return {};
    std::vector<int32_t> text = s.tokens, drafts;
    most = std::min(most, s.request.max_tokens - static_cast<int32_t>(s.result.tokens.size()) - 1);
    for (int32_t i = random_.below(std::max(1, most + 1)); i > 0; i--) {
      drafts.push_back(random_.below(5) == 0 ? random_.below(kTinyVocab) : next_token(text));
      text.push_back(drafts.back());
    }
    return Drafts::chain(std::move(drafts));
  }

  void check_plan(const std::vector<Part>& parts) {
    int32_t rows = 0, drafts = 0;
    std::set<const Sequence*> planned;
    std::set<int32_t> slots;
    for (const Part& p : parts) {
      EXPECT_GE(p.count, 1);
      EXPECT_EQ(p.first_row, rows);
      rows += p.rows();
      drafts += p.drafts;
      EXPECT_TRUE(planned.insert(p.sequence).second) << "twice in one step";
      EXPECT_GE(static_cast<int32_t>(p.sequence->pages.size()) * options_.page_size, p.sequence->computed + p.rows());
      if (options_.chunk > 0) {
        EXPECT_LE(p.count, options_.chunk);
      }
    }
    EXPECT_LE(rows, options_.tokens_per_step);
    EXPECT_LE(drafts, options_.draft_rows);
    const auto running = scheduler_.running();
    EXPECT_LE(running.size(), static_cast<size_t>(options_.running));
    for (const auto& s : running) EXPECT_TRUE(s->slot >= 0 && slots.insert(s->slot).second);
    for (const auto& s : scheduler_.waiting()) EXPECT_TRUE(s->slot < 0 && s->pages.empty() && s->computed == 0);
    if (!running.empty()) {
      const Sequence& first = *running.front();
      EXPECT_TRUE(planned.contains(&first) || first.only_waits())
          << "the first in order stands still: request " << first.id << ", " << first.computed << " of " << first.size()
          << " computed, " << first.pages.size() << " pages, " << scheduler_.pool().free() << " free";
    }
    for (size_t i = 1; i < running.size(); i++) EXPECT_TRUE(running[i - 1]->ahead_of(*running[i]));
    for (size_t i = 1; i < scheduler_.waiting().size(); i++)
      EXPECT_TRUE(scheduler_.waiting()[i - 1]->ahead_of(*scheduler_.waiting()[i]));
  }

  size_t place(const std::vector<PageId>& pages, int32_t position) const {
    return static_cast<size_t>(pages[static_cast<size_t>(position / options_.page_size)] * options_.page_size +
                               position % options_.page_size);
  }

  // The entry of a token that is computed now, or what such a token sees.
  void visit(uint64_t& entry, uint64_t value, bool writes, const Sequence& s, int32_t position) {
    if (writes) {
      entry = value;
    } else {
      EXPECT_EQ(entry, value) << "request " << s.id << " reads another text's entry at " << position;
    }
  }

  // A part of a step that was started, and what it has sampled.
  struct Flown {
    Part part;
    std::vector<int32_t> sampled;
  };

  // Starts a step and sees the results of the one before, or of both.
  void run(const std::vector<Part>& parts) {
    std::vector<Flown> step;
    bool at_once = !ahead_;
    for (const Part& p : parts) {
      step.push_back(compute(p));
      at_once = at_once || p.drafts > 0;
      scheduler_.launched(p);
    }
    land(std::exchange(flight_, std::move(step)));
    if (at_once) land(std::exchange(flight_, {}));
    if (flight_.empty()) ended_.clear();
  }

  // One part of a step, as the device runs it: writes its entries, reads all before them, samples.
  Flown compute(const Part& p) {
    Flown f{p, {}};
    Sequence& s = *p.sequence;
    std::vector<int32_t> text(s.tokens.begin(), s.tokens.begin() + p.start + p.count);
    if (text.back() == kUnknownToken) text.back() = drawn_.at(s.id);
    text.insert(text.end(), s.drafts.tokens.begin(), s.drafts.tokens.begin() + p.drafts);
    uint64_t h = 1;
    for (int32_t i = 0; i < p.start + p.rows(); i++) {
      h = mix(h, text[static_cast<size_t>(i)]);
      visit(cache_[place(s.pages, i)], h, i >= p.start, s, i);
      if (options_.window_pages > 0 && i > p.start - options_.window)
        visit(window_cache_[place(s.window_pages, i)], h, i >= p.start, s, i);
    }
    text.resize(static_cast<size_t>(p.start + p.count));
    for (int32_t i = 0; i < p.sampled(); i++) {
      f.sampled.push_back(next_token(text));
      text.push_back(f.sampled.back());
      if (i == p.drafts || f.sampled.back() != s.drafts.tokens[static_cast<size_t>(i)]) break;
    }
    if (!f.sampled.empty()) drawn_[s.id] = f.sampled.back();
    return f;
  }

  // What the host makes of a step's results. Some answers end early, as by a stop token.
  void land(std::vector<Flown> step) {
    for (Flown& f : step) {
      Sequence& s = *f.part.sequence;
      if (s.done) continue;
      for (size_t i = 0; i < f.sampled.size() && !s.done; i++) {
        const int32_t position = f.part.start + f.part.count + static_cast<int32_t>(i);
        s.put(position, f.sampled[i]);
        if (position + 1 == s.size()) s.unknown_row = -1;
        s.result.tokens.emplace_back().token = f.sampled[i];
        s.done = position + 1 == s.longest || random_.below(60) == 0;
        if (i > 0) f.part.path.push_back(static_cast<int32_t>(i) - 1), accepted_++;
      }
      scheduler_.settle(f.part);
    }
  }

  void retire() {
    for (const auto all : {scheduler_.running(), scheduler_.waiting()}) {
      for (const auto& s : all) s->done = s->done || s->cancelled;
    }
    for (auto& s : scheduler_.take_done()) {
      EXPECT_TRUE(s->pages.empty() && s->slot < 0);
      const Known& k = alive_.at(s->id);
      EXPECT_LE(clock_ - k.arrived, k.bound) << "request " << s->id << " was starved";
      alive_.erase(s->id);
      finished_++;
      ended_.push_back(std::move(s));  // the step under way may still hold it
    }
  }

  // Every page is free, cached or used, and counted as often as it is held.
  void check_pages() {
    const PagePool& pool = scheduler_.pool();
    EXPECT_EQ(pool.total(), pool.free() + scheduler_.tree().pages() + scheduler_.pages_used());
    int64_t held = scheduler_.tree().pages(), counted = 0;
    for (const auto& s : scheduler_.running()) held += static_cast<int64_t>(s->pages.size());
    for (PageId p = 0; p < pool.total(); p++) counted += pool.references(p);
    EXPECT_EQ(held, counted);
    if (options_.window_pages > 0) check_window_pages();
  }

  // Likewise; and no sequence holds more of them than its window and the steps under way take.
  void check_window_pages() {
    const PagePool& pool = *scheduler_.window_pool();
    EXPECT_EQ(pool.total(), pool.free() + scheduler_.tree().window_pages() + scheduler_.window_pages_used());
    int64_t held = scheduler_.tree().window_pages(), counted = 0;
    for (const auto& s : scheduler_.running()) {
      const int64_t own = std::ranges::count_if(s->window_pages, [](PageId p) { return p >= 0; });
      held += own;
      // Beside the window's: what it has computed since, and pages that it had reserved for a step it was not part of.
      const int32_t ahead = std::max(s->computed - s->settled, 0) + options_.tokens_per_step;
      EXPECT_LE(own, window_pages_held(options_.window, options_.page_size) + ahead / options_.page_size + 2);
    }
    for (PageId p = 0; p < pool.total(); p++) counted += pool.references(p);
    EXPECT_EQ(held, counted);
  }

  static constexpr int32_t kContext = 48;
  Random& random_;
  SchedulerOptions options_;
  bool ahead_;
  Scheduler scheduler_;
  std::vector<uint64_t> cache_, window_cache_;
  std::vector<Flown> flight_;
  Scheduler::Sequences ended_;
  std::map<RequestId, int32_t> drawn_;  // the last token that the device has sampled
  std::map<RequestId, Known> alive_;
  RequestId next_id_ = 1;
  int64_t clock_ = 0, finished_ = 0, accepted_ = 0;
};

TEST(Scheduler, Simulation) {
  Random random;
  const char* wanted = std::getenv("ISOBIT_SIM_STEPS");
  const int64_t steps = wanted != nullptr ? std::atoll(wanted) : testing::cases(60000);
  int64_t finished = 0, preempted = 0, evicted = 0, window_evicted = 0, shared = 0, accepted = 0;
  for (int64_t done = 0; done < steps;) {
    Simulation simulation(random);
    const SchedulerOptions& o = simulation.options();
    SCOPED_TRACE(
        fmt::format("{}, from step {}: running {}, {} tokens a step, chunk {}, {} pages of {}, window {} with {} "
                    "pages, cache {}, {} steps a priority, {} drafts, ahead {}",
                    random.note(), done, o.running, o.tokens_per_step, o.chunk, o.pages, o.page_size, o.window,
                    o.window_pages, o.prefix_cache, o.priority_steps, o.draft_rows, simulation.ahead()));
    for (int i = 0; i < 500 && !::testing::Test::HasFailure(); i++, done++) simulation.step();
    if (!::testing::Test::HasFailure()) simulation.drain();
    if (::testing::Test::HasFailure()) return;
    finished += simulation.finished();
    window_evicted += simulation.stats().evicted_window_pages;
    preempted += simulation.stats().preemptions;
    evicted += simulation.stats().evicted_pages;
    shared += simulation.stats().cached_tokens;
    accepted += simulation.accepted();
  }
  for (const int64_t seen : {finished, preempted, evicted, window_evicted, shared, accepted})
    EXPECT_GT(seen, steps / 200);
}

std::unique_ptr<Sequence> sequence(RequestId id, int32_t prompt, int32_t priority = 0) {
  auto s = std::make_unique<Sequence>();
  s->id = id;
  for (int32_t i = 0; i < prompt; i++) s->tokens.push_back(i);
  s->request.prompt = s->tokens;
  s->request.priority = priority;
  return s;
}

std::vector<RequestId> planned(Scheduler& scheduler) {
  std::vector<RequestId> ids;
  for (Part& p : scheduler.plan()) {
    ids.push_back(p.sequence->id);
    scheduler.launched(p);
    if (p.sample_row >= 0) p.sequence->put(p.start + p.count, 0), p.sequence->unknown_row = -1;
    scheduler.settle(p);
  }
  return ids;
}

// A sequence of any length holds the window's pages, and a prompt's end stays usable while there is room.
TEST(Scheduler, WindowPagesAreGivenUp) {
  SchedulerOptions o{.running = 2, .tokens_per_step = 16, .page_size = 4, .pages = 100, .window = 10};
  o.window_pages = least_window_pages(o) + 8;
  Scheduler scheduler(o);
  scheduler.add(sequence(1, 60));
  const Sequence& first = *scheduler.waiting().front();
  for (int step = 0; step < 4; step++) {
    planned(scheduler);
    EXPECT_EQ(first.window_begin, (std::min(16 * (step + 1), 60) - 10 + 1) / 4);
  }
  EXPECT_EQ(scheduler.window_pages_used(), 0) << "all are the tree's too";
  for (int step = 0; step < 100; step++) {
    planned(scheduler);
    EXPECT_LE(std::ranges::count_if(first.window_pages, [](PageId p) { return p >= 0; }),
              window_pages_held(o.window, o.page_size));
  }
  EXPECT_EQ(scheduler.stats().preemptions, 0);
  scheduler.add(sequence(2, 50));
  planned(scheduler);
  EXPECT_EQ(scheduler.stats().cached_tokens, 0) << "its end was given up for the first one's answer";
}

// Choices of one request: the prompt's pages are computed once, by the first.
TEST(Scheduler, AnEqualPromptIsComputedOnce) {
  Scheduler scheduler({.running = 4, .tokens_per_step = 32, .page_size = 4, .pages = 100});
  for (RequestId id = 1; id <= 3; id++) scheduler.add(sequence(id, 50));
  EXPECT_EQ(planned(scheduler), (std::vector<RequestId>{1}));
  EXPECT_EQ(planned(scheduler), (std::vector<RequestId>{1}));
  EXPECT_EQ(planned(scheduler), (std::vector<RequestId>{1, 2, 3}));
  EXPECT_EQ(scheduler.stats().cached_tokens, 2 * 48);
}

TEST(Scheduler, PriorityTakesARunningPlace) {
  Scheduler scheduler({.running = 1, .tokens_per_step = 8, .page_size = 4, .pages = 100, .prefix_cache = false});
  scheduler.add(sequence(1, 50));
  EXPECT_EQ(planned(scheduler), (std::vector<RequestId>{1}));
  scheduler.add(sequence(2, 5, 1));
  EXPECT_EQ(planned(scheduler), (std::vector<RequestId>{2}));
  EXPECT_EQ(scheduler.waiting().front()->id, 1);
  EXPECT_EQ(scheduler.waiting().front()->computed, 0);
}

// Counts of sampled tokens cannot be told to a slot again.
TEST(Scheduler, WhoseCountsMatterKeepsItsPlace) {
  Scheduler scheduler({.running = 1, .tokens_per_step = 8, .page_size = 4, .pages = 100});
  auto counting = sequence(1, 3);
  counting->request.sampling.presence_penalty = 1;
  counting->result.tokens.emplace_back();
  scheduler.add(std::move(counting));
  EXPECT_EQ(planned(scheduler), (std::vector<RequestId>{1}));
  scheduler.add(sequence(2, 5, 1));
  EXPECT_EQ(planned(scheduler), (std::vector<RequestId>{1}));
}

// A level of priority is worth priority_steps of waiting, no more.
TEST(Scheduler, WaitingOutweighsPriority) {
  Scheduler scheduler({.running = 1, .tokens_per_step = 8, .page_size = 4, .pages = 100, .priority_steps = 5});
  scheduler.add(sequence(1, 1));
  for (int i = 0; i < 6; i++) planned(scheduler);
  scheduler.add(sequence(2, 1, 1));
  EXPECT_EQ(planned(scheduler), (std::vector<RequestId>{1}));
  scheduler.add(sequence(3, 1, 2));
  EXPECT_EQ(planned(scheduler), (std::vector<RequestId>{3}));
}

}  // namespace
}  // namespace isobit::test
