#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "base/error.h"

namespace isobit {
namespace {

constexpr int32_t kDefaultContext = 4096;
constexpr float kNoLogprob = std::numeric_limits<float>::quiet_NaN();

int32_t pages_for(int64_t tokens, int32_t page_size) {
  return static_cast<int32_t>((tokens + page_size - 1) / page_size);
}

}  // namespace

std::string_view finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "running";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

struct Engine::Sequence {
  RequestId id = 0;
  Request request;
  std::vector<int32_t> tokens;  // prompt, then what was sampled
  int32_t computed = 0;         // tokens whose keys and values are in the pages
  int32_t scored = 0;           // positions whose logits were handed out (prompt_logprobs, on_logits)
  std::vector<PageId> pages;
  int32_t shared = 0;  // leading pages that are the prefix tree's
  int32_t slot = -1;
  bool cancelled = false;
  bool done = false;
  Result result;

  int32_t size() const { return static_cast<int32_t>(tokens.size()); }
  int32_t pending() const { return size() - computed; }
  bool wants_all_logits() const { return request.prompt_logprobs || request.on_logits; }
};

struct Engine::Part {
  Sequence* sequence = nullptr;
  int32_t first_row = 0, count = 0;
  int32_t sample_row = -1;  // index among the step's sampled rows

  bool samples() const { return sequence->computed + count == sequence->size(); }
};

Engine::Engine(std::unique_ptr<Backend> backend, std::shared_ptr<const Checkpoint> file, const EngineOptions& options)
    : options_(options), file_(std::move(file)), config_(read_config(*file_)), backend_(std::move(backend)) {
  EngineOptions& o = options_;
  require(o.context >= 0, "context is {}; it must be positive, or 0 for the default", o.context);
  require(o.context <= config_.context, "context is {}; {} was trained for {} tokens: ask for at most that", o.context,
          config_.name, config_.context);
  require(o.max_requests > 0 && o.max_requests <= 4096, "max_requests is {}; it must be in [1, 4096]", o.max_requests);
  require(o.tokens_per_step >= o.max_requests, "tokens_per_step is {}; it must be at least max_requests, {}",
          o.tokens_per_step, o.max_requests);
  require(o.chunk >= 0, "chunk is {}; it must be positive, or 0 for no limit", o.chunk);
  require(o.page_size > 0 && o.page_size <= 1024, "page_size is {}; it must be in [1, 1024]", o.page_size);
  if (o.context == 0) o.context = static_cast<int32_t>(std::min<int64_t>(kDefaultContext, config_.context));
  const int32_t whole = pages_for(o.context, o.page_size);
  if (o.pages == 0) {
    const size_t page_bytes = config_.kv_bytes_per_token() * static_cast<size_t>(o.page_size);
    const auto affordable = static_cast<int64_t>(backend_->info().memory_free / 4 / page_bytes);
    o.pages =
        static_cast<int32_t>(std::clamp<int64_t>(affordable, whole, static_cast<int64_t>(whole) * o.max_requests));
  }
  require(o.pages >= whole,
          "pages is {}; one context of {} tokens takes {} pages of {}: allow more pages or ask for a shorter context",
          o.pages, o.context, whole, o.page_size);
  StepLimits limits;
  limits.tokens = backend_->bucket(o.tokens_per_step);
  limits.requests = backend_->bucket(o.max_requests);
  limits.logit_rows = std::max(limits.requests, std::min<int32_t>(64, limits.tokens));
  limits.table_stride = whole;
  limits.positions = o.context;
  decoder_ = std::make_unique<Decoder>(*backend_, *file_, config_, limits, o.progress);
  pages_ = std::make_unique<KvPages>(*backend_, config_, o.pages, o.page_size);
  pool_ = std::make_unique<PagePool>(o.pages);
  tree_ = std::make_unique<PrefixTree>(*pool_, o.page_size);
  slots_ = backend_->make_sampler(o.max_requests, config_.vocab);
  for (int32_t i = o.max_requests - 1; i >= 0; i--) free_slots_.push_back(i);
  const auto rows = static_cast<size_t>(limits.logit_rows);
  sample_.slots = backend_->allocate(rows * 4, "sampling");
  sample_.positions = backend_->allocate(rows * 4, "sampling");
  sample_.tokens = backend_->allocate(rows * 4, "sampling");
  sample_.logprobs = backend_->allocate(rows * 4, "sampling");
  sample_.top_ids = backend_->allocate(rows * 4 * kMaxTopLogprobs, "sampling");
  sample_.top_logprobs = backend_->allocate(rows * 4 * kMaxTopLogprobs, "sampling");
  sample_.status = backend_->allocate(rows * 4, "sampling");
  sample_.targets = backend_->allocate(rows * 4, "scoring");
  sample_.best = backend_->allocate(rows * 4, "scoring");
  sample_.scores = backend_->allocate(rows * 4, "scoring");
}

Engine::~Engine() {
  for (auto& s : running_) {
    for (PageId p : s->pages) pool_->release(p);
  }
}

RequestId Engine::submit(Request request) {
  require(!request.prompt.empty(), "the prompt is empty; give at least one token");
  const auto length = static_cast<int64_t>(request.prompt.size());
  require(length < options_.context || (length == options_.context && request.max_tokens == 0),
          "the prompt has {} tokens and the context holds {}, answer included: shorten the prompt or ask for a longer "
          "context (the "
          "model's limit is {})",
          length, options_.context, config_.context);
  for (int32_t t : request.prompt)
    require(t >= 0 && t < config_.vocab, "token {} is outside the vocabulary of {}", t, config_.vocab);
  require(request.max_tokens >= -1, "max_tokens is {}; it must be at least 0, or -1 for no limit", request.max_tokens);
  request.sampling.check(config_.vocab);
  auto s = std::make_unique<Sequence>();
  s->id = next_id_++;
  s->tokens = request.prompt;
  s->request = std::move(request);
  s->result.request = s->id;
  const RequestId id = s->id;
  const auto place = std::find_if(waiting_.begin(), waiting_.end(),
                                  [&](const auto& w) { return w->request.priority < s->request.priority; });
  waiting_.insert(place, std::move(s));
  return id;
}

void Engine::cancel(RequestId id) {
  for (auto& s : running_) {
    if (s->id == id) s->cancelled = true;
  }
  for (auto& s : waiting_) {
    if (s->id == id) s->cancelled = true;
  }
}

std::optional<Result> Engine::take(RequestId id) {
  const auto it = finished_.find(id);
  if (it == finished_.end()) return std::nullopt;
  Result r = std::move(it->second);
  finished_.erase(it);
  return r;
}

void Engine::run_until_idle() {
  while (step()) {
  }
}

void Engine::flush_prefix_cache() { tree_->clear(); }

EngineStats Engine::stats() const {
  EngineStats s = stats_;
  s.running = static_cast<int32_t>(running_.size());
  s.waiting = static_cast<int32_t>(waiting_.size());
  s.pages_total = pool_->total();
  s.pages_free = pool_->free();
  s.pages_cached = static_cast<int32_t>(tree_->pages());
  for (const auto& q : running_) s.pages_used += static_cast<int32_t>(q->pages.size()) - q->shared;
  return s;
}

bool Engine::step() {
  admit();
  retire();
  const std::vector<Part> parts = schedule();
  if (parts.empty() && !running_.empty()) {
    // The oldest sequence may take every page that others hold; a step without work would repeat for ever.
    throw fail(ErrorCode::kInternal, "no page for request {}: {} of {} pages are free, {} cached", running_.front()->id,
               pool_->free(), pool_->total(), tree_->pages());
  }
  if (parts.empty()) return !waiting_.empty();
  run(parts);
  retire();
  return !running_.empty() || !waiting_.empty();
}

void Engine::admit() {
  for (auto it = waiting_.begin(); it != waiting_.end();) {
    Sequence& s = **it;
    if (s.cancelled) {
      finish(s, FinishReason::kCancelled);
      finished_.emplace(s.id, std::move(s.result));
      it = waiting_.erase(it);
      continue;
    }
    if (static_cast<int32_t>(running_.size()) >= options_.max_requests || (s.slot < 0 && free_slots_.empty())) {
      ++it;
      continue;
    }
    if (s.slot < 0) {
      s.slot = free_slots_.back();
      free_slots_.pop_back();
      slots_->assign(s.slot, s.request.sampling, s.request.prompt);
    }
    if (s.computed == 0) attach_prefix(s);
    running_.push_back(std::move(*it));
    it = waiting_.erase(it);
  }
  std::ranges::sort(running_, {}, [](const auto& s) { return s->id; });
}

void Engine::attach_prefix(Sequence& s) {
  // Log-probabilities of the prompt need every logit; otherwise all but the last token may come from the cache.
  if (!options_.prefix_cache || (s.request.prompt_logprobs && s.scored < s.size() - 1)) return;
  s.pages = tree_->match(std::span(s.tokens).first(s.tokens.size() - 1));
  s.shared = static_cast<int32_t>(s.pages.size());
  s.computed = s.shared * options_.page_size;
  if (s.result.tokens.empty()) s.result.cached_tokens = s.computed;
  stats_.cached_tokens += s.computed;
}

bool Engine::reserve(Sequence& s, int32_t tokens) {
  const int32_t needed = pages_for(tokens, options_.page_size);
  while (static_cast<int32_t>(s.pages.size()) < needed) {
    const PageId page = pool_->allocate();
    if (page >= 0) {
      s.pages.push_back(page);
    } else if (!make_room(s)) {
      return false;
    }
  }
  return true;
}

// Frees a page: from the cache if it can, else from the youngest sequence other than the one that wants it.
bool Engine::make_room(const Sequence& wanting) {
  if (const int32_t freed = tree_->evict(1); freed > 0) {
    stats_.evicted_pages += freed;
    return true;
  }
  for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
    if (it->get() == &wanting || (*it)->id < wanting.id || (*it)->pages.empty() || (*it)->done) continue;
    preempt(**it);
    return true;
  }
  return false;
}

// Gives up a sequence's pages; it will be computed again, to the same bits.
void Engine::preempt(Sequence& s) {
  for (PageId p : s.pages) pool_->release(p);
  s.pages.clear();
  s.shared = 0;
  s.computed = 0;
  stats_.preemptions++;
}

// Decodes first, one token each; then prefill chunks, oldest first, while the step has room.
std::vector<Engine::Part> Engine::schedule() {
  std::vector<Part> parts;
  int32_t budget = options_.tokens_per_step;
  std::vector<Sequence*> order;
  for (auto& s : running_) {
    if (!s->done && s->pending() == 1) order.push_back(s.get());
  }
  for (auto& s : running_) {
    if (!s->done && s->pending() > 1) order.push_back(s.get());
  }
  for (Sequence* s : order) {
    if (budget == 0) break;
    if (s->computed == 0 && s->pages.empty()) attach_prefix(*s);
    int32_t count = std::min(s->pending(), budget);
    if (options_.chunk > 0) count = std::min(count, options_.chunk);
    const bool reserved = reserve(*s, s->computed + count);
    // Making room may have preempted a younger sequence that is already in the step, in vain or not.
    std::erase_if(parts, [](const Part& p) { return p.sequence->pages.empty(); });
    if (reserved) parts.push_back({.sequence = s, .count = count});
    budget = options_.tokens_per_step;
    for (const Part& p : parts) budget -= p.count;
  }
  int32_t row = 0, sampled = 0;
  for (Part& p : parts) {
    p.first_row = row;
    row += p.count;
    if (p.samples()) p.sample_row = sampled++;
  }
  return parts;
}

// What the step's operators read, padding up to its shape included.
void Engine::fill_inputs(const std::vector<Part>& parts, const StepShape& shape, int32_t logit_rows) {
  const StepInputs& in = decoder_->inputs();
  const auto tokens = static_cast<size_t>(shape.tokens), requests = static_cast<size_t>(shape.requests),
             rows = static_cast<size_t>(logit_rows), stride = static_cast<size_t>(decoder_->limits().table_stride);
  std::vector<int32_t> token(tokens, -1), position(tokens, 0), start(requests + 1, 0), kv(requests, 0), row(rows, -1),
      slot(rows, -1), at(rows, 0), table(parts.size() * stride, 0);
  std::vector<int64_t> place(tokens, -1);
  step_rows_.clear();
  size_t t = 0, b = 0;
  for (const Part& p : parts) {
    const Sequence& s = *p.sequence;
    for (int32_t i = 0; i < p.count; i++, t++) {
      const int32_t pos = s.computed + i;
      token[t] = s.tokens[static_cast<size_t>(pos)];
      position[t] = pos;
      place[t] = static_cast<int64_t>(s.pages[static_cast<size_t>(pos / options_.page_size)]) * options_.page_size +
                 pos % options_.page_size;
      step_rows_.push_back({s.id, pos});
    }
    std::ranges::copy(s.pages, table.begin() + static_cast<long>(b * stride));
    kv[b] = s.computed + p.count;
    start[++b] = static_cast<int32_t>(t);
    if (p.sample_row >= 0) {
      const auto r = static_cast<size_t>(p.sample_row);
      row[r] = p.first_row + p.count - 1;
      slot[r] = s.slot;
      at[r] = s.size();
    }
  }
  std::fill(start.begin() + static_cast<long>(b), start.end(), static_cast<int32_t>(t));
  const auto all = [](const Buffer& to, const auto& v) { return Upload{to.data(), v.data(), v.size() * sizeof(v[0])}; };
  const Upload uploads[] = {all(in.tokens, token),      all(in.positions, position), all(in.slots, place),
                            all(in.query_start, start), all(in.kv_len, kv),          all(in.page_table, table),
                            all(in.logit_rows, row),    all(sample_.slots, slot),    all(sample_.positions, at)};
  backend_->upload_all(uploads);
}

void Engine::run(const std::vector<Part>& parts) {
  StepShape shape;
  int32_t sampled = 0, longest = 1, largest = 1;
  bool observed = false;
  for (const Part& p : parts) {
    shape.tokens += p.count;
    longest = std::max(longest, p.count);
    largest = std::max(largest, p.sequence->computed + p.count);
    sampled += p.sample_row >= 0 ? 1 : 0;
    observed = observed || p.sequence->wants_all_logits();
  }
  shape.tokens = std::min(backend_->bucket(shape.tokens), decoder_->limits().tokens);
  shape.requests = std::min(backend_->bucket(static_cast<int32_t>(parts.size())), decoder_->limits().requests);
  shape.max_query = std::min(backend_->bucket(longest), shape.tokens);
  shape.max_kv = std::min(backend_->bucket(largest), decoder_->limits().table_stride * options_.page_size);
  const int32_t rows = std::min(backend_->bucket(sampled), decoder_->limits().logit_rows);
  fill_inputs(parts, shape, rows);
  const StepKey key{shape.tokens, shape.requests, rows, shape.max_query, shape.max_kv, 0};
  const auto operators = [&] {
    decoder_->forward(shape, *pages_);
    if (rows == 0) return;
    decoder_->head(rows);
    SampleArgs a;
    a.logits = decoder_->logits();
    a.slots = sample_.slots.data<int32_t>();
    a.positions = sample_.positions.data<int32_t>();
    a.rows = rows;
    a.vocab = config_.vocab;
    a.tokens = sample_.tokens.data<int32_t>();
    a.logprobs = sample_.logprobs.data<float>();
    a.top_ids = sample_.top_ids.data<int32_t>();
    a.top_logprobs = sample_.top_logprobs.data<float>();
    a.status = sample_.status.data<int32_t>();
    backend_->sample(*slots_, a);
  };
  backend_->run_step(key, operators);
  stats_.steps++;
  collect(parts);
  if (observed) observe_logits(parts);
  for (const Part& p : parts) {
    Sequence& s = *p.sequence;
    s.computed += p.count;
    stats_.computed_tokens += p.count;
    cache_pages(s);
  }
}

// Sampled tokens and errors of a step, to their sequences.
void Engine::collect(const std::vector<Part>& parts) {
  size_t sampled = 0, rows = 0;
  bool top = false;
  for (const Part& p : parts) {
    sampled += p.sample_row >= 0 ? 1U : 0U;
    rows += static_cast<size_t>(p.count);
    top = top || (p.sample_row >= 0 && p.sequence->request.sampling.top_logprobs > 0);
  }
  std::vector<int32_t> token(sampled), status(sampled), flags(rows), ids(top ? sampled * kMaxTopLogprobs : 0);
  std::vector<float> logprob(sampled), best(ids.size());
  const auto all = [](auto& v, const Buffer& from) { return Download{v.data(), from.data(), v.size() * sizeof(v[0])}; };
  const Download downloads[] = {{flags.data(), decoder_->nonfinite(), rows * 4},
                                all(token, sample_.tokens),
                                all(status, sample_.status),
                                all(logprob, sample_.logprobs),
                                all(ids, sample_.top_ids),
                                all(best, sample_.top_logprobs)};
  backend_->download_all(downloads);
  if (std::ranges::any_of(flags, [](int32_t f) { return f != 0; })) {
    const std::vector<int32_t> none(rows, 0);
    backend_->upload(decoder_->nonfinite(), none.data(), rows * 4);
  }
  for (const Part& p : parts) {
    Sequence& s = *p.sequence;
    const auto own = std::span(flags).subspan(static_cast<size_t>(p.first_row), static_cast<size_t>(p.count));
    if (const auto bad = std::ranges::find_if(own, [](int32_t f) { return f != 0; }); bad != own.end()) {
      finish(s, FinishReason::kError,
             fmt::format(
                 "the keys or values of token {} are not finite: the model's weights hold NaN or infinity, or overflow",
                 s.computed + (bad - own.begin())));
      continue;
    }
    if (p.sample_row < 0) continue;
    const auto r = static_cast<size_t>(p.sample_row);
    if (status[r] != kSampled) {
      finish(s, FinishReason::kError,
             fmt::format(
                 "the logits after token {} hold a NaN or no finite value: the model's weights are damaged or overflow",
                 s.size() - 1));
      continue;
    }
    if (s.request.max_tokens == 0) continue;  // scoring only
    TokenOutput out;
    out.request = s.id;
    out.position = s.size();
    out.token = token[r];
    const int32_t wanted = s.request.sampling.top_logprobs;
    out.logprob = wanted >= 0 ? logprob[r] : kNoLogprob;
    for (int32_t i = 0; i < wanted && ids[r * kMaxTopLogprobs + static_cast<size_t>(i)] >= 0; i++) {
      const size_t k = r * kMaxTopLogprobs + static_cast<size_t>(i);
      out.top.emplace_back(ids[k], best[k]);
    }
    accept_token(s, out);
  }
}

void Engine::accept_token(Sequence& s, const TokenOutput& out) {
  s.tokens.push_back(out.token);
  s.result.tokens.push_back(out);
  stats_.sampled_tokens++;
  if (s.request.on_token) s.request.on_token(out);
  const auto generated = static_cast<int32_t>(s.result.tokens.size());
  if (std::ranges::find(s.request.stop_tokens, out.token) != s.request.stop_tokens.end()) {
    finish(s, FinishReason::kStop);
  } else if ((s.request.max_tokens >= 0 && generated >= s.request.max_tokens) || s.size() >= options_.context) {
    finish(s, FinishReason::kLength);
  }
}

// The logits of every row of sequences that asked for them, a few rows at a time. s.computed is still the step's start.
void Engine::observe_logits(const std::vector<Part>& parts) {
  const int32_t limit = decoder_->limits().logit_rows;
  for (const Part& p : parts) {
    Sequence& s = *p.sequence;
    if (!s.wants_all_logits() || s.result.reason == FinishReason::kError) continue;
    for (int32_t first = std::max(0, s.scored - s.computed); first < p.count; first += limit) {
      const int32_t rows = std::min(limit, p.count - first);
      std::vector<int32_t> index(static_cast<size_t>(limit), -1);
      for (int32_t i = 0; i < rows; i++) index[static_cast<size_t>(i)] = p.first_row + first + i;
      backend_->upload(decoder_->inputs().logit_rows.data(), index.data(), index.size() * 4);
      decoder_->head(rows);
      if (s.request.prompt_logprobs) score_prompt(p, decoder_->logits(), first, rows);
      if (!s.request.on_logits) continue;
      std::vector<float> logits(static_cast<size_t>(rows) * static_cast<size_t>(config_.vocab));
      backend_->download(logits.data(), decoder_->logits(), logits.size() * sizeof(float));
      for (int32_t i = 0; i < rows; i++) {
        s.request.on_logits(s.computed + first + i, std::span(logits).subspan(static_cast<size_t>(i * config_.vocab),
                                                                              static_cast<size_t>(config_.vocab)));
      }
    }
    s.scored = std::max(s.scored, s.computed + p.count);
  }
}

void Engine::score_prompt(const Part& part, const float* logits, int32_t first, int32_t rows) {
  Sequence& s = *part.sequence;
  const auto prompt = static_cast<int32_t>(s.request.prompt.size());
  std::vector<int32_t> targets(static_cast<size_t>(rows), -1), best(targets.size()), status(targets.size());
  std::vector<float> scores(targets.size());
  int32_t wanted = 0;
  for (; wanted < rows && s.computed + first + wanted + 1 < prompt; wanted++) {
    const int32_t next = s.computed + first + wanted + 1;
    targets[static_cast<size_t>(wanted)] = s.tokens[static_cast<size_t>(next)];
  }
  if (wanted == 0) return;
  backend_->upload(sample_.targets.data(), targets.data(), targets.size() * 4);
  LogProbArgs a;
  a.logits = logits;
  a.targets = sample_.targets.data<int32_t>();
  a.rows = wanted;
  a.vocab = config_.vocab;
  a.out = sample_.scores.data<float>();
  a.best = sample_.best.data<int32_t>();
  a.status = sample_.status.data<int32_t>();
  backend_->log_probs(a);
  const size_t bytes = static_cast<size_t>(wanted) * 4;
  backend_->download(scores.data(), a.out, bytes);
  backend_->download(best.data(), a.best, bytes);
  backend_->download(status.data(), a.status, bytes);
  for (size_t i = 0; i < static_cast<size_t>(wanted); i++) {
    if (status[i] != kSampled) {
      finish(s, FinishReason::kError,
             fmt::format(
                 "the logits after token {} hold a NaN or no finite value: the model's weights are damaged or overflow",
                 s.computed + first + static_cast<int32_t>(i)));
      return;
    }
    s.result.prompt_logprobs.push_back(scores[i]);
    s.result.prompt_best.push_back(best[i]);
  }
}

void Engine::cache_pages(Sequence& s) {
  if (!options_.prefix_cache || s.result.reason == FinishReason::kError) return;
  const int32_t whole = s.computed / options_.page_size;
  if (whole <= s.shared) return;
  const auto tokens = std::span(s.tokens).first(static_cast<size_t>(whole) * static_cast<size_t>(options_.page_size));
  tree_->insert(tokens, std::span(s.pages).first(static_cast<size_t>(whole)));
  // Where another sequence computed the same tokens at the same time, the tree has its pages: take those and free the
  // copies. So whoever uses a page of the tree uses all before it, and what nobody uses can always be evicted.
  const std::vector<PageId> pages = tree_->match(tokens);
  for (size_t i = 0; i < pages.size(); i++) pool_->release(std::exchange(s.pages[i], pages[i]));
  s.shared = whole;
}

void Engine::finish(Sequence& s, FinishReason reason, std::string error) {
  if (s.done) return;
  s.done = true;
  s.result.reason = reason;
  s.result.error = std::move(error);
  if (s.slot >= 0) {
    slots_->release(s.slot);
    free_slots_.push_back(s.slot);
    s.slot = -1;
  }
}

// Moves what is finished out of the running sequences.
void Engine::retire() {
  for (auto& s : running_) {
    if (s->cancelled) finish(*s, FinishReason::kCancelled);
    if (!s->done && s->request.max_tokens == 0 && s->pending() == 0) finish(*s, FinishReason::kLength);
    if (!s->done) continue;
    for (PageId p : s->pages) pool_->release(p);
    s->pages.clear();
    s->shared = 0;
    finished_.emplace(s->id, std::move(s->result));
  }
  std::erase_if(running_, [](const auto& s) { return s->done; });
}

}  // namespace isobit
