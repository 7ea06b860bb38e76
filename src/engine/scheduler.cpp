#include "engine/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace isobit {
namespace {

void insert_in_order(Scheduler::Sequences& into, std::unique_ptr<Sequence> s) {
  const auto place = std::ranges::find_if(into, [&](const auto& other) { return s->ahead_of(*other); });
  into.insert(place, std::move(s));
}

// Whole pages before a page's first token that this token may see.
int32_t window_reach(const SchedulerOptions& o) { return std::max(0, window_pages_held(o.window, o.page_size) - 1); }

std::optional<PagePool> make_window_pool(const SchedulerOptions& o) {
  if (o.window_pages == 0) return std::nullopt;
  require(o.window > 0 && o.window_pages >= least_window_pages(o),
          "window_pages is {}; a window of {} tokens with {} tokens a step and {} a page takes {}", o.window_pages,
          o.window, o.tokens_per_step, o.page_size, least_window_pages(o));
  return PagePool(o.window_pages);
}

}  // namespace

int32_t window_pages_held(int32_t window, int32_t page_size) {
  return window > 0 ? pages_for(window - 1, page_size) + 1 : 0;
}

int32_t least_window_pages(const SchedulerOptions& o) {
  const int32_t chunk = o.chunk > 0 ? std::min(o.chunk + o.draft_rows, o.tokens_per_step) : o.tokens_per_step;
  return window_pages_held(o.window, o.page_size) + pages_for(2 * chunk, o.page_size) + 1;
}

Scheduler::Scheduler(const SchedulerOptions& options)
    : options_(options),
      pool_(options.pages),
      window_pool_(make_window_pool(options)),
      tree_(pool_, options.page_size, {window_pool_ ? &*window_pool_ : nullptr, window_reach(options)}) {
  for (int32_t i = options_.running - 1; i >= 0; i--) free_slots_.push_back(i);
}

Scheduler::~Scheduler() {  // NOLINT(bugprone-exception-escape): pages are released that are held
  for (auto& s : running_) release_pages(*s);
}

void Scheduler::add(std::unique_ptr<Sequence> sequence) {
  sequence->rank = step_ - int64_t{options_.priority_steps} * sequence->request.priority;
  insert_in_order(waiting_, std::move(sequence));
}

void Scheduler::cancel(RequestId id) {
  for (Sequences* all : {&running_, &waiting_}) {
    for (auto& s : *all) {
      if (s->id == id) s->cancelled = true;
    }
  }
}

int32_t Scheduler::pages_used() const {
  int32_t used = 0;
  for (const auto& s : running_) used += static_cast<int32_t>(s->pages.size()) - s->shared;
  return used;
}

int32_t Scheduler::window_pages_used() const {
  int32_t used = 0;
  for (const auto& s : running_) {
    used += static_cast<int32_t>(s->window_pages.size()) - std::max(s->shared, s->window_begin);
  }
  return window_pool_ ? used : 0;
}

// While places are free, and then while one behind in the order holds a place that it can leave.
void Scheduler::start_waiting() {
  while (!waiting_.empty()) {
    if (free_slots_.empty()) {
      Sequence& last = *running_.back();
      if (!waiting_.front()->ahead_of(last) || !last.can_leave_slot()) return;
      leave_slot(last);
    }
    std::unique_ptr<Sequence> s = std::move(waiting_.front());
    waiting_.erase(waiting_.begin());
    s->slot = free_slots_.back();
    free_slots_.pop_back();
    insert_in_order(running_, std::move(s));
  }
}

// The last of the running waits again, for a place.
void Scheduler::leave_slot(Sequence& s) {
  if (!s.pages.empty()) preempt(s);
  free_slots_.push_back(std::exchange(s.slot, -1));
  s.slot_is_set = false;
  std::unique_ptr<Sequence> moved = std::move(running_.back());
  running_.pop_back();
  insert_in_order(waiting_, std::move(moved));
}

// Log-probabilities of the prompt need every logit; otherwise all but the last token may come from the cache.
bool Scheduler::may_share(const Sequence& s) const {
  return options_.prefix_cache && s.computed == 0 && s.pages.empty() &&
         !(s.request.prompt_logprobs && s.scored < s.size() - 1);
}

void Scheduler::attach_prefix(Sequence& s) {
  PrefixTree::Match found = tree_.match(std::span(s.tokens).first(s.tokens.size() - 1));
  s.pages = std::move(found.pages);
  s.window_pages = std::move(found.window);
  s.shared = static_cast<int32_t>(s.pages.size());
  if (window_pool_) s.window_begin = std::max(0, s.shared - window_reach(options_));
  s.computed = s.settled = s.shared * options_.page_size;
  if (s.result.tokens.empty()) s.result.cached_tokens = s.computed;
  stats_.cached_tokens += s.computed;
}

// Somebody ahead is computing pages that this sequence can share: choices of one request, or a system prompt that
// arrived twice. What is waited for is ahead in the order, so it goes on.
bool Scheduler::waits_for_prefix(const Sequence& s) const {
  const auto usable = std::span(s.tokens).first(s.tokens.size() - 1);
  const int64_t known = tree_.matched(usable);
  for (const auto& other : running_) {
    if (other.get() == &s) return false;
    if (other->done) continue;
    const auto theirs = std::span(other->tokens);
    const auto common = std::ranges::mismatch(usable, theirs).in1 - usable.begin();
    const int64_t pages = common / options_.page_size;
    if (pages > known && other->settled < pages * options_.page_size) return true;
  }
  return false;
}

bool Scheduler::reserve(Sequence& s, int32_t tokens) {
  const auto needed = static_cast<size_t>(pages_for(tokens, options_.page_size));
  for (const bool in_window : {false, true}) {
    if (in_window && !window_pool_) break;
    std::vector<PageId>& pages = in_window ? s.window_pages : s.pages;
    while (pages.size() < needed) {
      const PageId page = in_window ? window_pool_->allocate() : pool_.allocate();
      if (page >= 0) {
        pages.push_back(page);
      } else if (!make_room(s, in_window)) {
        return false;
      }
    }
  }
  return true;
}

// Frees a page: from the cache if it can, else from the last sequence behind the one that wants it.
bool Scheduler::make_room(const Sequence& wanting, bool in_window) {
  const int32_t freed = in_window ? tree_.evict_window(1) : tree_.evict(1);
  (in_window ? stats_.evicted_window_pages : stats_.evicted_pages) += freed;
  if (freed > 0) return true;
  for (auto it = running_.rbegin(); it != running_.rend() && it->get() != &wanting; ++it) {
    if ((*it)->pages.empty() || (*it)->done) continue;
    preempt(**it);
    return true;
  }
  return false;
}

void Scheduler::release_pages(Sequence& s) {
  for (const PageId p : s.pages) pool_.release(p);
  for (size_t i = static_cast<size_t>(s.window_begin); i < s.window_pages.size(); i++) {
    window_pool_->release(s.window_pages[i]);
  }
  s.pages.clear();
  s.window_pages.clear();
  s.shared = s.window_begin = 0;
}

// Gives up a sequence's pages; it will be computed again, to the same bits.
void Scheduler::preempt(Sequence& s) {
  release_pages(s);
  s.computed = s.settled = s.drafted_to = 0;
  s.result.preemptions++;
  stats_.preemptions++;
}

// Decodes first, one token each; then prefill chunks, in order, while the step has room. Who is preempted on the way
// for somebody's decode is a prefill from then on, behind those ahead of it.
std::vector<Part> Scheduler::choose() {
  std::vector<Part> parts;
  int32_t budget = options_.tokens_per_step;
  for (const bool decodes : {true, false}) {
    for (auto& s : running_) {
      if (budget == 0) return parts;
      if (s->done || s->only_waits() || (s->pending() == 1) != decodes) continue;
      if (may_share(*s)) {
        if (waits_for_prefix(*s)) continue;
        attach_prefix(*s);
      }
      int32_t count = std::min(s->pending(), budget);
      if (options_.chunk > 0) count = std::min(count, options_.chunk);
      const bool reserved = reserve(*s, s->computed + count);
      // Making room may have preempted somebody behind who is already in the step, in vain or not.
      std::erase_if(parts, [](const Part& p) { return p.sequence->pages.empty(); });
      if (reserved) {
        parts.push_back(
            {.sequence = s.get(), .start = s->computed, .preemptions = s->result.preemptions, .count = count});
      }
      budget = options_.tokens_per_step;
      for (const Part& p : parts) budget -= p.count;
    }
  }
  return parts;
}

// Drafts take what the step has left, in tokens and in free pages; nobody gives up anything for them. Trees only where
// nobody computes more than one token: their attention goes token by token, which is dear for a prompt.
void Scheduler::add_drafts(std::vector<Part>& parts, const Propose& propose) {
  int32_t left = options_.tokens_per_step;
  for (const Part& p : parts) left -= p.count;
  left = std::min(left, options_.draft_rows);
  const bool branches = std::ranges::all_of(parts, [](const Part& p) { return p.count == 1; });
  for (Part& p : parts) {
    Sequence& s = *p.sequence;
    s.drafts = {};
    if (!propose || left <= 0 || !p.samples() || !s.request.speculate) continue;
    const int32_t free = window_pool_ ? std::min(pool_.free(), window_pool_->free()) : pool_.free();
    const auto room = static_cast<int32_t>(s.pages.size()) + free;
    const int32_t most = std::min(left, room * options_.page_size - s.size());
    if (most <= 0) continue;
    s.drafts = propose(s, most, branches);
    p.drafts = s.drafts.size();
    if (p.drafts == 0) continue;
    reserve(s, s.size() + p.drafts);
    left -= p.drafts;
  }
}

std::vector<Part> Scheduler::plan(const Propose& propose) {
  step_++;
  start_waiting();
  std::vector<Part> parts = choose();
  add_drafts(parts, propose);
  int32_t row = 0, sampled = 0;
  for (Part& p : parts) {
    p.first_row = row;
    row += p.rows();
    if (!p.samples()) continue;
    p.sample_row = sampled;
    sampled += 1 + p.drafts;
  }
  return parts;
}

void Scheduler::launched(const Part& part) {
  Sequence& s = *part.sequence;
  s.computed += part.count;
  if (part.sample_row < 0 || s.size() >= s.longest) return;  // the end of a prompt that is only to be scored
  s.tokens.push_back(kUnknownToken);
  s.unknown_row = part.sample_row;
}

void Scheduler::settle(const Part& part) {
  Sequence& s = *part.sequence;
  const int32_t end = part.start + part.kept();
  if (part.preemptions != s.result.preemptions) return;  // its pages have gone
  s.computed = std::max(s.computed, end);
  s.settled = end;
  if (options_.prefix_cache && s.result.reason != FinishReason::kError) share_pages(s);
  if (window_pool_) leave_window(s);
}

void Scheduler::share_pages(Sequence& s) {
  const int32_t whole = s.settled / options_.page_size;
  if (whole <= s.shared) return;
  const auto count = static_cast<size_t>(whole);
  const auto tokens = std::span(s.tokens).first(count * static_cast<size_t>(options_.page_size));
  tree_.share(tokens, std::span(s.pages).first(count), std::span(s.window_pages).first(window_pool_ ? count : 0));
  s.shared = whole;
}

// Gives up the pages before the first key that the next token sees. A step under way comes before whoever gets them.
void Scheduler::leave_window(Sequence& s) {
  const int32_t first = std::max(0, s.settled - options_.window + 1) / options_.page_size;
  for (; s.window_begin < first; s.window_begin++) {
    window_pool_->release(std::exchange(s.window_pages[static_cast<size_t>(s.window_begin)], -1));
  }
}

Scheduler::Sequences Scheduler::take_done() {
  Sequences done;
  for (Sequences* all : {&running_, &waiting_}) {
    for (auto& s : *all) {
      if (!s->done) continue;
      release_pages(*s);
      if (s->slot >= 0) free_slots_.push_back(std::exchange(s->slot, -1));
      done.push_back(std::move(s));
    }
    std::erase(*all, nullptr);
  }
  return done;
}

Scheduler::Sequences Scheduler::take_all() {
  for (Sequences* all : {&running_, &waiting_}) {
    for (auto& s : *all) s->done = true;
  }
  return take_done();
}

}  // namespace isobit
