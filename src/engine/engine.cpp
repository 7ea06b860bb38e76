#include "engine/engine.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "engine/memory_fit.h"

namespace isobit {
namespace {

constexpr int32_t kDefaultContext = 4096;
constexpr int32_t kMostDrafts = 64;   // a sequence and step
constexpr int32_t kMostBranches = 8;  // ways on from one token
constexpr double kBranchPrice = 0.1;  // of a row of a tree's other paths, in steps
constexpr int32_t kWindowShare = 8;   // see EngineOptions::window_pages
constexpr float kNoLogprob = std::numeric_limits<float>::quiet_NaN();

// Drafts in a step, of all sequences together: not more than leave room for everybody's next token.
int32_t draft_rows(const EngineOptions& o) {
  return std::min(o.draft_tokens * o.max_requests, o.tokens_per_step - o.max_requests);
}

std::string no_token_fits(int32_t position) {
  return fmt::format("no token of the vocabulary fits the request's grammar at position {}; loosen the grammar",
                     position);
}

std::string not_finite(int32_t token) {
  return fmt::format(
      "the logits after token {} hold a NaN or no finite value: the model's weights are damaged or overflow", token);
}

std::string not_finite_keys(int32_t token) {
  return fmt::format(
      "the keys or values of token {} are not finite: the model's weights hold NaN or infinity, or overflow", token);
}

std::vector<float> downloaded(Backend& backend, const float* from, int64_t first, int64_t rows, int64_t columns) {
  std::vector<float> values(static_cast<size_t>(rows * columns));
  backend.download(values.data(), from + first * columns, values.size() * sizeof(float));
  return values;
}

void for_each_row(const std::vector<float>& values, int64_t columns, int32_t position,
                  const std::function<void(int32_t position, std::span<const float> row)>& visit) {
  const auto size = static_cast<size_t>(columns);
  for (size_t at = 0; at < values.size(); at += size) visit(position++, std::span(values).subspan(at, size));
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
    case FinishReason::kDeadline:
      return "deadline";
    case FinishReason::kError:
      return "error";
  }
  return "?";
}

// What sampling needs to know of a step's drafts (DraftTrees): each sampled sequence is a tree.
struct Engine::DraftRows {
  std::vector<int32_t> first_row, parent, token;
  Buffer first_rows, parents, tokens, accepted, bonus, path;

  DraftRows(Backend& backend, size_t requests, size_t rows)
      : first_rows(backend.allocate((requests + 1) * 4, "drafts")) {
    for (Buffer* b : {&accepted, &bonus}) *b = backend.allocate(requests * 4, "drafts");
    for (Buffer* b : {&parents, &tokens, &path}) *b = backend.allocate(rows * 4, "drafts");
  }

  void add_uploads(const std::vector<Part>& parts, int32_t requests, int32_t rows, std::vector<Upload>& uploads) {
    first_row.assign(static_cast<size_t>(requests) + 1, 0);
    parent.assign(static_cast<size_t>(rows), -1);
    token.assign(static_cast<size_t>(rows), -1);
    size_t count = 0;
    int32_t row = 0;
    for (const Part& p : parts) {
      if (p.sample_row < 0) continue;
      const Drafts& drafts = p.sequence->drafts;
      for (size_t i = 0; i < static_cast<size_t>(p.drafts); i++) {
        const size_t at = static_cast<size_t>(row) + i + 1;
        parent[at] = row + 1 + drafts.parents[i];
        token[at] = drafts.tokens[i];
      }
      row += p.sampled();
      first_row[++count] = row;
    }
    std::fill(first_row.begin() + static_cast<long>(count), first_row.end(), row);
    const auto all = [](const Buffer& to, const auto& v) { return Upload{to.data(), v.data(), v.size() * 4}; };
    uploads.insert(uploads.end(), {all(first_rows, first_row), all(parents, parent), all(tokens, token)});
  }
  DraftTrees trees(int32_t requests) const {
    DraftTrees d;
    d.requests = requests;
    d.first_row = first_rows.data<int32_t>();
    d.parents = parents.data<int32_t>();
    d.tokens = tokens.data<int32_t>();
    d.accepted = accepted.data<int32_t>();
    d.bonus = bonus.data<int32_t>();
    d.path = path.data<int32_t>();
    return d;
  }
};

// A step's sampling, on the host.
struct Engine::Sampled {
  std::vector<int32_t> token, status, nonfinite, top_ids;
  std::vector<float> logprob, top_logprobs;

  TopLogprobs top(size_t row) const {
    TopLogprobs found;
    for (size_t k = row * kMaxTopLogprobs; k < (row + 1) * kMaxTopLogprobs && top_ids[k] >= 0; k++)
      found.emplace_back(top_ids[k], top_logprobs[k]);
    return found;
  }
};

// A step that was started and whose results have not been seen.
struct Engine::Flight {
  std::vector<Part> parts;
  Sampled sampled;  // filled by `arrive`
  std::function<void()> arrive;
  Scheduler::Sequences ended;  // since it was started: the parts still point to them
};

Engine::Engine(std::unique_ptr<Backend> backend, std::shared_ptr<const Checkpoint> file, const EngineOptions& options)
    : options_(options),
      file_(std::move(file)),
      config_(read_config(*file_, options.compute, options.kv_cache)),
      backend_(std::move(backend)) {
  EngineOptions& o = options_;
  require(o.context >= 0, "context is {}; it must be positive, or 0 for the default", o.context);
  require(o.context <= config_.context, "context is {}; {} was trained for {} tokens: ask for at most that", o.context,
          config_.name, config_.context);
  require(o.max_requests > 0 && o.max_requests <= 4096, "max_requests is {}; it must be in [1, 4096]", o.max_requests);
  require(o.tokens_per_step >= o.max_requests, "tokens_per_step is {}; it must be at least max_requests, {}",
          o.tokens_per_step, o.max_requests);
  require(o.chunk >= 0, "chunk is {}; it must be positive, or 0 for no limit", o.chunk);
  require(o.priority_steps >= 0, "priority_steps is {}; it must be at least 0", o.priority_steps);
  require(o.draft_tokens >= 0 && o.draft_tokens <= kMostDrafts, "draft_tokens is {}; it must be in [0, {}]",
          o.draft_tokens, kMostDrafts);
  require(o.draft_branches > 0 && o.draft_branches <= kMostBranches, "draft_branches is {}; it must be in [1, {}]",
          o.draft_branches, kMostBranches);
  require(o.draft_requests > 0, "draft_requests is {}; it must be positive (draft_tokens 0 turns drafts off)",
          o.draft_requests);
  require(o.draft_file == nullptr || o.draft_tokens > 0, "a draft model without draft_tokens drafts nothing; set both");
  require(o.window_pages >= 0, "window_pages is {}; it must be positive, or 0 for the default", o.window_pages);
  require(o.page_size > 0 && o.page_size <= 1024, "page_size is {}; it must be in [1, 1024]", o.page_size);
  if (o.context == 0) o.context = static_cast<int32_t>(std::min<int64_t>(kDefaultContext, config_.context));
  const int32_t whole = pages_for(o.context, o.page_size);
  size_cache(whole);
  require(o.pages >= whole,
          "pages is {}; one context of {} tokens takes {} pages of {}: allow more pages or ask for a shorter context",
          o.pages, o.context, whole, o.page_size);
  StepLimits limits;
  limits.tokens = backend_->bucket(o.tokens_per_step);
  limits.requests = backend_->bucket(o.max_requests);
  limits.logit_rows = std::max(backend_->bucket(o.max_requests + draft_rows(o)), std::min<int32_t>(64, limits.tokens));
  limits.table_stride = whole;
  limits.positions = o.context;
  load(limits);
  o.ahead = o.ahead.value_or(backend_->runs_by_itself());
  if (o.draft_file) {
    draft_model_ =
        std::make_unique<DraftModel>(*backend_, *o.draft_file, config_, limits, o.pages, o.page_size, o.draft_branches);
  }
  scheduler_ = std::make_unique<Scheduler>(scheduler_options());
  slots_ = backend_->make_sampler(o.max_requests, config_.vocab);
  masks_ = std::make_unique<StepMasks>(limits.logit_rows, config_.vocab);
  make_buffers();
  publish();
}

Engine::~Engine() = default;

// The model and its cache. Where memory does not suffice, the error says what would fit.
void Engine::load(const StepLimits& limits) {
  const EngineOptions& o = options_;
  const size_t free_before = backend_->info().memory_free;
  std::string fits;
  try {
    fits = model_that_fits(weight_bytes_on_device(*file_), free_before);
    decoder_ = std::make_unique<Decoder>(*backend_, *file_, config_, limits, o.progress);
    const auto page = static_cast<size_t>(o.page_size);
    const size_t apart = o.window_pages > 0 ? config_.window_kv_bytes_per_token() : 0;
    const size_t free = backend_->info().memory_free, windows = apart * page * static_cast<size_t>(o.window_pages);
    fits = cache_that_fits({o.context, o.max_requests, o.page_size, (config_.kv_bytes_per_token() - apart) * page},
                           free - std::min(free, windows));
    pages_ = std::make_unique<KvPages>(*backend_, config_, o.pages, o.page_size, o.window_pages);
  } catch (const Error& e) {
    if (e.code() != ErrorCode::kOutOfMemory) throw;
    throw fail(ErrorCode::kOutOfMemory, "{}; {}", e.what(), fits);
  }
}

SchedulerOptions Engine::scheduler_options() const {
  SchedulerOptions s;
  s.running = options_.max_requests;
  s.tokens_per_step = options_.tokens_per_step;
  s.chunk = options_.chunk;
  s.page_size = options_.page_size;
  s.pages = options_.pages;
  s.window = config_.longest_window();
  s.window_pages = options_.window_pages;
  s.prefix_cache = options_.prefix_cache;
  s.priority_steps = options_.priority_steps;
  s.draft_rows = draft_rows(options_);
  return s;
}

// Pages for whole contexts, as far as a quarter of the memory goes; and for the layers with a window their own, where
// that is less.
void Engine::size_cache(int32_t whole) {
  EngineOptions& o = options_;
  const int64_t wanted = int64_t{whole} * o.max_requests;
  const int32_t window = config_.longest_window();
  const size_t apart = window > 0 ? config_.window_kv_bytes_per_token() : 0;
  if (o.pages == 0) {
    const size_t drafting = o.draft_file ? read_config(*o.draft_file).kv_bytes_per_token() : 0;
    // Per page with its share of the windows' pages.
    const size_t per_token = config_.kv_bytes_per_token() + drafting - apart + apart / kWindowShare;
    const auto affordable =
        static_cast<int64_t>(backend_->info().memory_free / 4 / (per_token * static_cast<size_t>(o.page_size)));
    o.pages = static_cast<int32_t>(std::clamp<int64_t>(affordable, whole, wanted));
  }
  if (window == 0) {
    o.window_pages = 0;
  } else if (o.window_pages == 0) {
    const int64_t others = int64_t{o.max_requests - 1} * (window_pages_held(window, o.page_size) + 1);
    const int64_t running = least_window_pages(scheduler_options()) + others;
    o.window_pages =
        static_cast<int32_t>(std::min<int64_t>(std::max(2 * running, int64_t{o.pages} / kWindowShare), o.pages));
  }
  if (o.window_pages >= o.pages) o.window_pages = 0;
}

void Engine::make_buffers() {
  const auto rows = static_cast<size_t>(decoder_->limits().logit_rows);
  for (Buffer* b : {&sample_.slots, &sample_.positions, &sample_.logprobs, &sample_.status})
    *b = backend_->allocate(rows * 4, "sampling");
  for (Buffer* b : {&sample_.top_ids, &sample_.top_logprobs})
    *b = backend_->allocate(rows * 4 * kMaxTopLogprobs, "sampling");
  for (Buffer* b : {&sample_.targets, &sample_.best, &sample_.scores}) *b = backend_->allocate(rows * 4, "scoring");
  if (options_.draft_tokens > 0) {
    drafts_ = std::make_unique<DraftRows>(*backend_, static_cast<size_t>(decoder_->limits().requests), rows);
  }
  arrays_ = std::make_unique<StepArrays>(*decoder_, sample_.slots, sample_.positions, options_.page_size);
}

void Engine::check(const Request& request) const {
  require(!request.prompt.empty(), "the prompt is empty; give at least one token");
  const auto length = static_cast<int64_t>(request.prompt.size());
  require(length < options_.context || (length == options_.context && request.max_tokens == 0),
          "the prompt has {} tokens and the context holds {}, answer included: shorten the prompt or ask for a longer "
          "context (the model's limit is {})",
          length, options_.context, config_.context);
  for (int32_t t : request.prompt)
    require(t >= 0 && t < config_.vocab, "token {} is outside the vocabulary of {}", t, config_.vocab);
  require(request.max_tokens >= -1, "max_tokens is {}; it must be at least 0, or -1 for no limit", request.max_tokens);
  require(request.priority >= -kMaxPriority && request.priority <= kMaxPriority,
          "priority is {}; it must be in [-{}, {}]", request.priority, kMaxPriority, kMaxPriority);
  request.sampling.check(config_.vocab);
}

RequestId Engine::submit(Request request) {
  check(request);
  auto s = std::make_unique<Sequence>();
  const RequestId id = s->id = next_id_++;
  s->tokens = request.prompt;
  const int64_t longest = request.max_tokens >= 0 ? s->size() + int64_t{request.max_tokens} : options_.context;
  s->longest = static_cast<int32_t>(std::min<int64_t>(longest, options_.context));
  if (request.grammar) s->mask = request.grammar->start();
  s->request = std::move(request);
  s->result.request = id;
  const std::lock_guard lock(mutex_);
  arrivals_.push_back(std::move(s));
  return id;
}

void Engine::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  cancels_.push_back(id);
}

// Takes what other threads have left since.
void Engine::receive() {
  Scheduler::Sequences arrivals;
  std::vector<RequestId> cancels;
  {
    const std::lock_guard lock(mutex_);
    published_.waiting += static_cast<int32_t>(arrivals_.size());  // so that they count during the step too
    arrivals.swap(arrivals_);
    cancels.swap(cancels_);
  }
  std::ranges::sort(arrivals, {}, [](const auto& s) { return s->id; });
  for (auto& s : arrivals) scheduler_->add(std::move(s));
  for (const RequestId id : cancels) scheduler_->cancel(id);
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

void Engine::flush_prefix_cache() {
  scheduler_->flush();
  publish();
}

EngineStats Engine::stats() const {
  const std::lock_guard lock(mutex_);
  EngineStats s = published_;
  s.waiting += static_cast<int32_t>(arrivals_.size());
  return s;
}

void Engine::publish() {
  EngineStats s = counted_;
  const SchedulerStats& of = scheduler_->stats();
  s.cached_tokens = of.cached_tokens;
  s.preemptions = of.preemptions;
  s.evicted_pages = of.evicted_pages;
  s.running = static_cast<int32_t>(scheduler_->running().size());
  s.waiting = static_cast<int32_t>(scheduler_->waiting().size());
  s.pages_total = scheduler_->pool().total();
  s.pages_free = scheduler_->pool().free();
  s.pages_cached = static_cast<int32_t>(scheduler_->tree().pages());
  s.pages_used = scheduler_->pages_used();
  if (const PagePool* window = scheduler_->window_pool()) {
    s.window_pages_total = window->total();
    s.window_pages_free = window->free();
    s.window_pages_cached = static_cast<int32_t>(scheduler_->tree().window_pages());
    s.window_pages_used = scheduler_->window_pages_used();
    s.evicted_window_pages = of.evicted_window_pages;
  }
  const std::lock_guard lock(mutex_);
  published_ = s;
}

bool Engine::step() {
  end_overdue();
  retire();
  drafting_ = drafts_pay();
  std::vector<Part> parts =
      scheduler_->plan([this](Sequence& s, int32_t most, bool branches) { return propose(s, most, branches); });
  if (parts.empty() && !flight_ && !scheduler_->running().empty()) {
    // The first in order may take every page that others hold; a step without work would repeat for ever.
    throw fail(ErrorCode::kInternal, "no page for request {}: {} of {} pages are free, {} cached",
               scheduler_->running().front()->id, scheduler_->pool().free(), scheduler_->pool().total(),
               scheduler_->tree().pages());
  }
  const bool at_once = must_land_at_once(parts);
  const std::unique_ptr<Flight> last = std::exchange(flight_, parts.empty() ? nullptr : launch(std::move(parts)));
  if (last) land(*last);
  if (flight_ && at_once) land(*std::exchange(flight_, nullptr));
  retire();
  publish();
  return flight_ || !scheduler_->running().empty() || !scheduler_->waiting().empty();
}

void Engine::end_overdue() {
  const auto now = std::chrono::steady_clock::now();
  for (const auto all : {scheduler_->running(), scheduler_->waiting()}) {
    for (const auto& s : all) {
      if (s->request.deadline && now >= *s->request.deadline) finish(*s, FinishReason::kDeadline);
    }
  }
}

// Settings of sequences that have got their slot since the last step.
void Engine::set_slots(const std::vector<Part>& parts) {
  for (const Part& p : parts) {
    Sequence& s = *p.sequence;
    if (s.slot_is_set) continue;
    slots_->assign(s.slot, s.request.sampling, s.tokens);
    s.slot_is_set = true;
  }
}

// A draft's row is cheap only in a step that the weights' bytes bound; and where nobody drafts, a step can be started
// before the last one's tokens are known.
bool Engine::drafts_pay() const {
  const int64_t known = std::ssize(scheduler_->running()) + std::ssize(scheduler_->waiting());
  return options_.draft_tokens > 0 && std::min<int64_t>(known, options_.max_requests) <= options_.draft_requests;
}

// Drafts never reach past the answer's end. The text's own repetitions cost nothing, so they go first. Behind a token
// that is not known yet there are none: the last step was started when nobody drafted.
// Rows that are to be observed stand one after the other, so such a sequence has no branches.
Drafts Engine::propose(Sequence& s, int32_t most, bool branches) {
  most = std::min({most, s.longest - s.size() - 1, options_.draft_tokens});
  s.drafted_by_model = false;
  if (!drafting_ || most <= 0 || !s.knows_all()) return {};
  const bool branch = branches && options_.draft_branches > 1 && !s.is_observed() && s.branch_worth.next();
  const int32_t ways = branch ? options_.draft_branches : 1;
  if (const int32_t length = std::min(most, s.draft_length.next()); length > 0) {
    Drafts drafts = lookup_tree(s.tokens, length, most, ways);
    if (s.mask) drafts = StepMasks::allowed(*s.mask, drafts);
    if (!drafts.empty()) return drafts;
  }
  if (!draft_model_ || s.mask) return {};
  const int32_t length = std::min(most, s.model_draft_length.next());
  if (length == 0) return {};
  s.drafted_by_model = true;
  return draft_model_->ask(s, length, most, ways);
}

// What the step's operators read, padding up to its shape included.
Engine::StepKinds Engine::fill_inputs(const std::vector<Part>& parts, const StepShape& shape, int32_t logit_rows) {
  arrays_->start(shape, logit_rows);
  step_rows_.clear();
  std::vector<int32_t> tokens;
  for (const Part& p : parts) {
    const Sequence& s = *p.sequence;
    const auto own = std::span(s.tokens).subspan(static_cast<size_t>(p.start), static_cast<size_t>(p.count));
    tokens.assign(own.begin(), own.end());
    if (tokens.back() == kUnknownToken) tokens.back() = -2 - s.unknown_row;
    tokens.insert(tokens.end(), s.drafts.tokens.begin(), s.drafts.tokens.begin() + p.drafts);
    arrays_->add_request({s.pages, s.window_pages}, p.start, tokens,
                         std::span(s.drafts.parents).first(static_cast<size_t>(p.drafts)));
    for (int32_t i = 0; i < p.rows(); i++) step_rows_.push_back({s.id, arrays_->position(p.first_row + i)});
    for (int32_t i = 0; i < p.sampled(); i++) {
      const int32_t token = p.first_row + p.count - 1 + i;
      arrays_->set_row(p.sample_row + i, token, s.slot, arrays_->position(token) + 1);
    }
  }
  std::vector<Upload> uploads = arrays_->uploads();
  StepKinds kinds;
  kinds.masked = masks_->fill(*backend_, parts, uploads);
  kinds.drafts = std::ranges::any_of(parts, [](const Part& p) { return p.drafts > 0; });
  kinds.trees = shape.trees;
  if (kinds.drafts) drafts_->add_uploads(parts, shape.requests, logit_rows, uploads);
  backend_->upload_all(uploads);
  return kinds;
}

StepShape Engine::shape_of(const std::vector<Part>& parts) const {
  StepShape shape{.tokens = 0, .requests = static_cast<int32_t>(parts.size()), .max_query = 1, .max_kv = 1};
  for (const Part& p : parts) {
    shape.tokens += p.rows();
    shape.max_query = std::max(shape.max_query, p.rows());
    shape.max_kv = std::max(shape.max_kv, p.start + p.rows());
    shape.trees = shape.trees || (p.drafts > 0 && !p.sequence->drafts.is_chain());
  }
  return padded(shape, *backend_, *decoder_, options_.page_size);
}

// What the next step is planned from, or read of this one's logits, only the host can tell.
bool Engine::must_land_at_once(const std::vector<Part>& parts) const {
  return !*options_.ahead || std::ranges::any_of(parts, [&](const Part& p) {
    const Sequence& s = *p.sequence;
    return p.drafts > 0 || s.mask || s.is_observed() || s.request.digest_logits || (drafting_ && s.request.speculate);
  });
}

std::unique_ptr<Engine::Flight> Engine::launch(std::vector<Part> parts) {
  set_slots(parts);
  if (draft_model_) draft_model_->run(*slots_);
  const StepShape shape = shape_of(parts);
  int32_t sampled = 0;
  for (const Part& p : parts) sampled += p.sampled();
  const int32_t rows = std::min(backend_->bucket(sampled), decoder_->limits().logit_rows);
  const StepKinds kinds = fill_inputs(parts, shape, rows);
  const StepKey key{shape.tokens, shape.requests, rows, shape.max_query, shape.max_kv, kinds.variant()};
  backend_->run_step(key, [&] {
    decoder_->forward(shape, *pages_);
    if (rows > 0) sample_rows(rows, shape.requests, kinds);
  });
  counted_.steps++;
  for (const Part& p : parts) scheduler_->launched(p);
  auto flight = std::make_unique<Flight>();
  flight->parts = std::move(parts);
  fetch(*flight);
  return flight;
}

SampleArgs Engine::sample_args(int32_t rows) const {
  SampleArgs a;
  a.logits = decoder_->logits();
  a.slots = sample_.slots.data<int32_t>();
  a.positions = sample_.positions.data<int32_t>();
  a.rows = rows;
  a.vocab = config_.vocab;
  a.tokens = decoder_->inputs().sampled.data<int32_t>();
  a.logprobs = sample_.logprobs.data<float>();
  a.top_ids = sample_.top_ids.data<int32_t>();
  a.top_logprobs = sample_.top_logprobs.data<float>();
  a.status = sample_.status.data<int32_t>();
  return a;
}

void Engine::sample_rows(int32_t rows, int32_t requests, StepKinds kinds) {
  decoder_->head(rows);
  SampleArgs a = sample_args(rows);
  if (kinds.masked) masks_->apply(a);
  if (kinds.drafts) a.drafts = drafts_->trees(requests);
  backend_->sample(*slots_, a);
}

// Sampled tokens and errors of a step, on their way to the host.
void Engine::fetch(Flight& flight) {
  size_t sampled = 0, rows = 0;
  bool top = false;
  for (const Part& p : flight.parts) {
    sampled += static_cast<size_t>(p.sampled());
    rows += static_cast<size_t>(p.rows());
    top = top || (p.sample_row >= 0 && p.sequence->request.sampling.top_logprobs > 0);
  }
  Sampled& s = flight.sampled;
  s.nonfinite.resize(rows);
  for (auto* v : {&s.token, &s.status}) v->resize(sampled);
  s.logprob.resize(sampled);
  s.top_ids.resize(top ? sampled * kMaxTopLogprobs : 0);
  s.top_logprobs.resize(s.top_ids.size());
  const auto all = [](auto& v, const void* from) { return Download{v.data(), from, v.size() * sizeof(v[0])}; };
  const Download downloads[] = {
      all(s.nonfinite, decoder_->nonfinite()), all(s.token, decoder_->inputs().sampled.data()),
      all(s.status, sample_.status.data()),    all(s.logprob, sample_.logprobs.data()),
      all(s.top_ids, sample_.top_ids.data()),  all(s.top_logprobs, sample_.top_logprobs.data())};
  flight.arrive = backend_->download_later(downloads);
}

// A step's results, to its sequences; those that have ended since it was started get nothing more.
void Engine::land(Flight& flight) {
  flight.arrive();
  std::erase_if(flight.parts, [](const Part& p) { return p.sequence->done; });
  for (Part& p : flight.parts) accept(p, flight.sampled);
  compact(flight.parts);
  observe(flight.parts);
  for (const Part& p : flight.parts) {
    counted_.computed_tokens += p.rows();
    scheduler_->settle(p);
  }
}

TokenOutput Engine::output(const Sequence& s, const Sampled& from, size_t row, int32_t position) const {
  TokenOutput out;
  out.request = s.id;
  out.position = position;
  out.token = from.token[row];
  const int32_t wanted = s.request.sampling.top_logprobs;
  out.logprob = wanted >= 0 ? from.logprob[row] : kNoLogprob;
  if (wanted > 0) out.top = from.top(row);
  return out;
}

// What a step gave one sequence: the token after its own, and after each draft as long as drafts are what was sampled.
// Errors count up to there, as they would have without drafts.
void Engine::accept(Part& part, const Sampled& from) {
  Sequence& s = *part.sequence;
  const auto flags =
      std::span(from.nonfinite).subspan(static_cast<size_t>(part.first_row), static_cast<size_t>(part.rows()));
  const auto own = flags.first(static_cast<size_t>(part.count));
  if (const auto bad = std::ranges::find_if(own, [](int32_t f) { return f != 0; }); bad != own.end())
    return finish(s, FinishReason::kError, not_finite_keys(part.start + static_cast<int32_t>(bad - own.begin())));
  if (part.sample_row < 0) return;
  int32_t draft = -1;  // the last one that proved right
  do {
    const int32_t row = part.sample_row + 1 + draft, position = part.start + part.kept();
    if (draft >= 0 && flags[static_cast<size_t>(part.count) + static_cast<size_t>(draft)] != 0)
      return finish(s, FinishReason::kError, not_finite_keys(position - 1));
    if (from.status[static_cast<size_t>(row)] != kSampled) {
      const bool stuck = s.mask && masks_->dead_end(row);
      return finish(s, FinishReason::kError, stuck ? no_token_fits(position) : not_finite(position - 1));
    }
    if (s.request.max_tokens == 0) return;  // scoring only
    TokenOutput out = output(s, from, static_cast<size_t>(row), position);
    if (s.request.digest_logits) digest_logits(s, out, row);
    accept_token(s, out);
    draft = s.done || part.drafts == 0 ? -1 : s.drafts.child(draft, out.token);
    if (draft >= 0) part.path.push_back(draft);
  } while (draft >= 0);
  if (part.drafts > 0) report_drafts(part);
}

// To those who decide how many drafts the next steps have.
void Engine::report_drafts(const Part& part) {
  Sequence& s = *part.sequence;
  const int32_t first = s.drafts.first_path(), accepted = part.accepted();
  int32_t in_first = 0;  // accepted ones of the first path
  while (in_first < accepted && part.path[static_cast<size_t>(in_first)] == in_first) in_first++;
  const int32_t right = std::min(accepted, first);
  if (s.drafted_by_model) {
    // The last draft's own key was not made, nor any of another path.
    s.drafted_to += std::min(in_first, first - 1);
    const auto price =
        static_cast<double>(draft_model_->weight_bytes()) / static_cast<double>(decoder_->weight_bytes());
    s.model_draft_length.report(first, right, price);
  } else {
    s.draft_length.report(first, right);
  }
  if (part.drafts > first) s.branch_worth.report(part.drafts - first, accepted - in_first, kBranchPrice);
  s.result.drafted += part.drafts;
  s.result.accepted += accepted;
  counted_.drafted_tokens += part.drafts;
  counted_.accepted_tokens += accepted;
  counted_.branched_tokens += accepted - in_first;
}

// Keys and values of accepted drafts, from where they stand in their tree to their positions.
void Engine::compact(const std::vector<Part>& parts) {
  std::vector<CacheMove> moves, in_window;
  for (const Part& p : parts) {
    const Sequence& s = *p.sequence;
    const int32_t first = p.start + p.count;
    for (int32_t i = 0; i < p.accepted(); i++) {
      const int32_t from = first + p.path[static_cast<size_t>(i)], to = first + i;
      if (from == to) continue;
      const auto move = [&](std::span<const PageId> pages) {
        return CacheMove{cache_place(pages, from, options_.page_size), cache_place(pages, to, options_.page_size)};
      };
      moves.push_back(move(s.pages));
      if (pages_->has_window_pages()) in_window.push_back(move(s.window_pages));
    }
  }
  if (!moves.empty()) pages_->move(*backend_, moves, in_window);
}

void Engine::digest_logits(Sequence& s, TokenOutput& out, int32_t row) {
  std::vector<float> logits(static_cast<size_t>(config_.vocab));
  backend_->download(logits.data(), decoder_->logits() + row * config_.vocab, logits.size() * sizeof(float));
  s.logits.add(logits.data(), logits.size() * sizeof(float));
  out.logits_digest = s.logits.value();
}

void Engine::accept_token(Sequence& s, const TokenOutput& out) {
  s.put(out.position, out.token);
  if (out.position + 1 == s.size()) s.unknown_row = -1;
  s.result.tokens.push_back(out);
  counted_.sampled_tokens++;
  if (s.request.on_token) s.request.on_token(out);
  if (s.mask && !s.mask->accept(out.token)) return finish(s, FinishReason::kError, no_token_fits(out.position));
  if ((s.mask && s.mask->finished()) ||
      std::ranges::find(s.request.stop_tokens, out.token) != s.request.stop_tokens.end()) {
    finish(s, FinishReason::kStop);
  } else if (out.position + 1 >= s.longest) {
    finish(s, FinishReason::kLength);
  }
}

// Rows of sequences that asked for them.
void Engine::observe(const std::vector<Part>& parts) {
  // The heads of other rows overwrite the logits that the step sampled from.
  std::vector<std::vector<float>> sampled(parts.size());
  for (size_t i = 0; i < parts.size(); i++) {
    const Part& p = parts[i];
    if (p.sample_row < 0 || !p.sequence->request.on_logits) continue;
    sampled[i] = downloaded(*backend_, decoder_->logits(), p.sample_row, 1 + p.accepted(), config_.vocab);
  }
  for (size_t i = 0; i < parts.size(); i++) {
    Sequence& s = *parts[i].sequence;
    if (!s.is_observed() || s.result.reason == FinishReason::kError) continue;
    if (s.request.on_residual) observe_residual(parts[i]);
    if (s.request.on_logits || s.request.prompt_logprobs) observe_logits(parts[i], sampled[i]);
    s.scored = std::max(s.scored, parts[i].start + parts[i].kept());
  }
}

void Engine::observe_residual(const Part& part) {
  const Sequence& s = *part.sequence;
  const int32_t first = std::max(0, s.scored - part.start), rows = part.kept() - first;
  if (rows <= 0) return;
  const auto values = downloaded(*backend_, decoder_->residual(), part.first_row + first, rows, config_.hidden);
  for_each_row(values, config_.hidden, part.start + first, s.request.on_residual);
}

// The rows before the sampled ones go through the head here, a few at a time.
void Engine::observe_logits(const Part& part, const std::vector<float>& of_sampled) {
  const Sequence& s = *part.sequence;
  const int32_t limit = decoder_->limits().logit_rows;
  const int32_t from = s.request.prompt_logprobs ? s.scored : std::max(s.scored, s.request.logits_from);
  const int32_t sampled_from = of_sampled.empty() ? part.kept() : part.count - 1;
  const auto hand_out = [&](const std::vector<float>& logits, int32_t first) {
    for_each_row(logits, config_.vocab, part.start + first, [&](int32_t position, std::span<const float> row) {
      if (position >= std::max(s.scored, s.request.logits_from)) s.request.on_logits(position, row);
    });
  };
  for (int32_t first = std::max(0, from - part.start); first < sampled_from; first += limit) {
    const int32_t rows = std::min(limit, sampled_from - first);
    std::vector<int32_t> index(static_cast<size_t>(limit), -1);
    std::iota(index.begin(), index.begin() + rows, part.first_row + first);
    backend_->upload(decoder_->inputs().logit_rows.data(), index.data(), index.size() * 4);
    decoder_->head(rows);
    if (s.request.prompt_logprobs) score_prompt(part, decoder_->logits(), first, rows);
    if (s.request.on_logits) hand_out(downloaded(*backend_, decoder_->logits(), 0, rows, config_.vocab), first);
  }
  if (!of_sampled.empty()) hand_out(of_sampled, sampled_from);
}

void Engine::score_prompt(const Part& part, const float* logits, int32_t first, int32_t rows) {
  Sequence& s = *part.sequence;
  const int32_t start = part.start;
  const auto prompt = static_cast<int32_t>(s.request.prompt.size());
  std::vector<int32_t> targets(static_cast<size_t>(rows), -1), best(targets.size()), status(targets.size());
  std::vector<float> scores(targets.size());
  int32_t wanted = 0;
  for (; wanted < rows && start + first + wanted + 1 < prompt; wanted++) {
    const int32_t next = start + first + wanted + 1;
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
      finish(s, FinishReason::kError, not_finite(start + first + static_cast<int32_t>(i)));
      return;
    }
    s.result.prompt_logprobs.push_back(scores[i]);
    s.result.prompt_best.push_back(best[i]);
  }
  if (s.request.sampling.top_logprobs > 0) rank_prompt(s, logits, wanted);
}

// The likeliest tokens after rows of a prompt, by the sampler: what it draws there is of no use, and does not count.
void Engine::rank_prompt(Sequence& s, const float* logits, int32_t rows) {
  const auto count = static_cast<size_t>(rows);
  const std::vector<int32_t> slots(count, s.slot), positions(count, 0);
  backend_->upload(sample_.slots.data(), slots.data(), count * 4);
  backend_->upload(sample_.positions.data(), positions.data(), count * 4);
  SampleArgs a = sample_args(rows);
  a.logits = logits;
  a.count_output = false;
  backend_->sample(*slots_, a);
  Sampled ranked;
  ranked.top_ids.resize(count * kMaxTopLogprobs);
  ranked.top_logprobs.resize(ranked.top_ids.size());
  backend_->download(ranked.top_ids.data(), a.top_ids, ranked.top_ids.size() * 4);
  backend_->download(ranked.top_logprobs.data(), a.top_logprobs, ranked.top_logprobs.size() * 4);
  for (size_t i = 0; i < count; i++) s.result.prompt_top.push_back(ranked.top(i));
}

void Engine::finish(Sequence& s, FinishReason reason, std::string error) {
  if (s.done) return;
  s.done = true;
  s.result.reason = reason;
  s.result.error = std::move(error);
}

// Ends what was cancelled or has been scored, and hands out what has ended.
void Engine::retire() {
  receive();
  for (const auto all : {scheduler_->running(), scheduler_->waiting()}) {
    for (const auto& s : all) {
      if (s->cancelled) finish(*s, FinishReason::kCancelled);
      if (!s->done && s->request.max_tokens == 0 && s->settled == s->size()) finish(*s, FinishReason::kLength);
      if (s->done && std::exchange(s->slot_is_set, false)) slots_->release(s->slot);
    }
  }
  deliver(scheduler_->take_done());
}

void Engine::deliver(Scheduler::Sequences ended) {
  for (auto& s : ended) {
    if (s->request.on_finish) {
      s->request.on_finish(std::move(s->result));
    } else {
      finished_.emplace(s->id, std::move(s->result));
    }
    if (flight_) flight_->ended.push_back(std::move(s));
  }
}

void Engine::fail_all(const std::string& error) {
  receive();
  for (const auto all : {scheduler_->running(), scheduler_->waiting()}) {
    for (const auto& s : all) {
      s->slot_is_set = false;  // the backend may be past being told
      finish(*s, FinishReason::kError, error);
    }
  }
  deliver(scheduler_->take_all());
  flight_.reset();
  publish();
}

}  // namespace isobit
