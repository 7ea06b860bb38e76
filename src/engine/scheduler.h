#pragma once
// Who is computed in the next step, and in which pages. Knows nothing of models: tests drive it with a fake one.
//
// Requests stand in one order that never changes: by rank = (step of arrival) - priority_steps * priority, then by id.
// So a request can be overtaken only by those that arrive within priority_steps * (their priority - its own) steps.
// Waiting requests start in that order; a running one gives its place, and its pages, only to those ahead of it.
//
// Nobody starves. Of the running requests the first in order is in every step with at least one token: decodes take at
// most running - 1 of a step's tokens, pages may be taken from everybody behind, and nobody ahead is there to be waited
// for. It ends after at most (prompt + answer) steps, and the place goes to the first of those waiting. So a request
// ends after at most the sum of (prompt + answer) of those ahead of it, of those that run when it comes to the front,
// and of itself, in steps; where steps are started ahead of results, one more for each of them. One that arrives ahead
// of it later adds its own and what those it overtakes compute again. A running request behind whose count of sampled
// tokens matters (presence and frequency penalties) keeps its place, though not its pages; it is one of "those that
// run".
//
// Layers with a window can have pages of their own, of which a sequence gives up those that no token to come sees. The
// prefix tree keeps them for others while there is room; so a long sequence holds no more of them than the window and
// the steps under way take, and a prefix stays usable where its end was seen lately.
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/page_pool.h"
#include "cache/prefix_tree.h"
#include "engine/sequence.h"

namespace isobit {

struct SchedulerOptions {
  int32_t running = 8;            // sequences at once
  int32_t tokens_per_step = 512;  // at least `running`
  int32_t chunk = 0;              // longest prefill chunk; 0: as the step allows
  int32_t page_size = 16, pages = 0;
  // The longest window of the layers with one, and the pages that they have for themselves; 0: they share the others'.
  int32_t window = 0, window_pages = 0;
  bool prefix_cache = true;
  int32_t priority_steps = 100;  // steps of waiting that one level of priority is worth
  int32_t draft_rows = 0;        // drafts in a step, of all sequences together
};

struct SchedulerStats {
  int64_t cached_tokens = 0, preemptions = 0, evicted_pages = 0, evicted_window_pages = 0;
};

// Pages of a window's layers that one sequence holds at most, once its steps have ended; 0 without a window.
int32_t window_pages_held(int32_t window, int32_t page_size);
// The fewest SchedulerOptions::window_pages: what one sequence can take by itself, two steps under way.
int32_t least_window_pages(const SchedulerOptions& options);

class Scheduler {
 public:
  using Sequences = std::vector<std::unique_ptr<Sequence>>;
  // Guesses at most `most` tokens that may follow the sequence's; as a tree only where `branches`.
  using Propose = std::function<Drafts(Sequence&, int32_t most, bool branches)>;

  explicit Scheduler(const SchedulerOptions& options);
  ~Scheduler();
  Scheduler(const Scheduler&) = delete;
  Scheduler& operator=(const Scheduler&) = delete;

  void add(std::unique_ptr<Sequence> sequence);
  void cancel(RequestId id);

  // The next step: parts with their rows numbered and their pages reserved. Starts waiting sequences and preempts
  // running ones as the order says.
  std::vector<Part> plan(const Propose& propose = {});
  // A step was started: its tokens count as computed and what it samples as a token that is not known yet, so that the
  // next step can be planned before its results are seen. Drafts can not: such a step is settled first.
  void launched(const Part& part);
  // Its results were seen: full pages go to the prefix tree, unless the sequence failed.
  void settle(const Part& part);
  // Takes out the sequences that are done, their pages and slots given back.
  Sequences take_done();
  // Takes out everything.
  Sequences take_all();

  // Drops every cached prefix that no running sequence uses.
  void flush() { tree_.clear(); }

  std::span<const std::unique_ptr<Sequence>> running() const { return running_; }  // in order
  std::span<const std::unique_ptr<Sequence>> waiting() const { return waiting_; }  // in order
  const PagePool& pool() const { return pool_; }
  const PagePool* window_pool() const { return window_pool_ ? &*window_pool_ : nullptr; }
  const PrefixTree& tree() const { return tree_; }
  const SchedulerStats& stats() const { return stats_; }
  int32_t pages_used() const;  // by one running sequence alone
  int32_t window_pages_used() const;

 private:
  void start_waiting();
  void leave_slot(Sequence& s);
  void attach_prefix(Sequence& s);
  bool waits_for_prefix(const Sequence& s) const;
  bool reserve(Sequence& s, int32_t tokens);
  bool make_room(const Sequence& wanting, bool in_window);
  void share_pages(Sequence& s);
  void leave_window(Sequence& s);
  void release_pages(Sequence& s);
  void preempt(Sequence& s);
  std::vector<Part> choose();
  void add_drafts(std::vector<Part>& parts, const Propose& propose);
  bool may_share(const Sequence& s) const;

  SchedulerOptions options_;
  PagePool pool_;
  std::optional<PagePool> window_pool_;
  PrefixTree tree_;
  std::vector<int32_t> free_slots_;
  Sequences waiting_, running_;  // each in order
  SchedulerStats stats_;
  int64_t step_ = 0;
};

}  // namespace isobit
