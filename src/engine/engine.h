#pragma once
// Continuous batching over one model: requests come and go between steps, and none of it moves another's bits.
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "engine/draft.h"
#include "engine/draft_model.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/step_masks.h"
#include "models/decoder.h"
#include "ops/backend.h"
#include "weights/checkpoint.h"

namespace isobit {

struct EngineOptions {
  int32_t context = 0;            // tokens a sequence may have; 0: 4096 or the model's limit, whichever is less
  int32_t max_requests = 8;       // sequences running at once
  int32_t tokens_per_step = 512;  // computed in one step, decodes and prefill chunks together
  int32_t chunk = 0;              // longest prefill chunk; 0: as the step allows
  int32_t page_size = 16;
  int32_t pages = 0;  // of the KV cache; 0: enough for `max_requests` full contexts, at most 1/4 of free memory
  // Of layers with a window, for themselves; 0: twice what running sequences hold, or an eighth of `pages`, whichever
  // is more. As many as `pages`: those layers keep whole contexts like the others.
  int32_t window_pages = 0;
  bool prefix_cache = true;
  int32_t priority_steps = 100;  // steps of waiting that one level of Request::priority is worth
  int32_t draft_tokens = 0;      // speculation: drafts a sequence and step, found in its own text; 0: none
  int32_t draft_branches = 1;    // of them at most so many ways on from one token: drafts form a tree; 1: a chain
  int32_t draft_requests = 32;   // while more sequences run than that nobody drafts: the others fill the steps
  std::shared_ptr<const Checkpoint> draft_file;  // a model of the same vocabulary that drafts where the text does not
  std::optional<bool> ahead;                 // start a step before the last one's results are seen; none: where it pays
  ComputeType compute = ComputeType::kAuto;  // bf16 or f16; auto: what the model is in
  KvCacheType kv_cache = KvCacheType::kAuto;
  Progress progress;  // while weights load
};

struct EngineStats {
  int64_t steps = 0, computed_tokens = 0, sampled_tokens = 0, cached_tokens = 0, preemptions = 0, evicted_pages = 0;
  int64_t drafted_tokens = 0, accepted_tokens = 0;  // proposed by speculation, and right
  int64_t branched_tokens = 0;                      // of those right, by another path of a tree than its first
  int32_t running = 0, waiting = 0;
  // Every page is in one of three states: total = free + cached + used.
  int32_t pages_total = 0, pages_free = 0;
  int32_t pages_cached = 0;  // in the prefix tree, in use or not
  int32_t pages_used = 0;    // by one running sequence alone
  // The same for layers with a window, where they have pages of their own.
  int32_t window_pages_total = 0, window_pages_free = 0, window_pages_cached = 0, window_pages_used = 0;
  int64_t evicted_window_pages = 0;
};

// One thread at a time steps an engine and calls what is not said to be for any thread.
class Engine {
 public:
  // Throws Error for a model that cannot be run or memory that does not suffice.
  Engine(std::unique_ptr<Backend> backend, std::shared_ptr<const Checkpoint> file, const EngineOptions& options);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Any thread. Throws Error(kInvalidArgument) that names the value and the limit.
  void check(const Request& request) const;
  // Any thread. Checks; what is accepted always ends in a Result.
  RequestId submit(Request request);
  // Any thread, in whatever state the request is. It ends within the step, or at the next.
  void cancel(RequestId id);
  // Any thread: as of the end of the last step.
  EngineStats stats() const;

  // One step of the model over whatever is running. False when there is nothing left to do. A step ahead
  // (EngineOptions::ahead) starts one and ends the one before it, whose tokens the callbacks then get.
  bool step();
  void run_until_idle();
  // The result of a finished request, once; nothing while it runs.
  std::optional<Result> take(RequestId id);
  // Ends every request with an error: after step() has thrown, when nothing can go on.
  void fail_all(const std::string& error);

  // Drops every cached prefix that no running sequence uses.
  void flush_prefix_cache();

  const ModelConfig& config() const { return config_; }
  const Checkpoint& file() const { return *file_; }
  const EngineOptions& options() const { return options_; }
  Backend& backend() { return *backend_; }
  Decoder& decoder() { return *decoder_; }
  size_t kv_bytes() const { return pages_->bytes(); }

  // Where each row of the step being run belongs, for a tracer: the sequence and its position.
  struct RowOrigin {
    RequestId request = 0;
    int32_t position = 0;
  };
  const std::vector<RowOrigin>& step_rows() const { return step_rows_; }

 private:
  struct Sampled;
  struct Flight;
  struct DraftRows;
  // What else a step's sampling does.
  struct StepKinds {
    bool masked = false, drafts = false, trees = false;
    uint32_t variant() const { return (masked ? 1U : 0U) + (drafts ? 2U : 0U) + (trees ? 4U : 0U); }
  };

  void load(const StepLimits& limits);
  SchedulerOptions scheduler_options() const;
  void size_cache(int32_t whole);
  void make_buffers();
  void receive();
  void end_overdue();
  void set_slots(const std::vector<Part>& parts);
  bool drafts_pay() const;
  Drafts propose(Sequence& s, int32_t most, bool branches);
  StepShape shape_of(const std::vector<Part>& parts) const;
  StepKinds fill_inputs(const std::vector<Part>& parts, const StepShape& shape, int32_t logit_rows);
  bool must_land_at_once(const std::vector<Part>& parts) const;
  std::unique_ptr<Flight> launch(std::vector<Part> parts);
  SampleArgs sample_args(int32_t rows) const;
  void sample_rows(int32_t rows, int32_t requests, StepKinds kinds);
  void fetch(Flight& flight);
  void land(Flight& flight);
  TokenOutput output(const Sequence& s, const Sampled& from, size_t row, int32_t position) const;
  void accept(Part& part, const Sampled& from);
  void report_drafts(const Part& part);
  void compact(const std::vector<Part>& parts);
  void accept_token(Sequence& s, const TokenOutput& out);
  void digest_logits(Sequence& s, TokenOutput& out, int32_t row);
  void observe(const std::vector<Part>& parts);
  void observe_residual(const Part& part);
  void observe_logits(const Part& part, const std::vector<float>& of_sampled);
  void score_prompt(const Part& part, const float* logits, int32_t first, int32_t rows);
  void rank_prompt(Sequence& s, const float* logits, int32_t rows);
  void finish(Sequence& s, FinishReason reason, std::string error = {});
  void retire();
  void deliver(Scheduler::Sequences ended);
  void publish();

  EngineOptions options_;
  std::shared_ptr<const Checkpoint> file_;
  ModelConfig config_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<KvPages> pages_;
  std::unique_ptr<DraftModel> draft_model_;
  std::unique_ptr<StepArrays> arrays_;
  std::unique_ptr<DraftRows> drafts_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<SamplerSlots> slots_;
  std::unique_ptr<StepMasks> masks_;
  std::unique_ptr<Flight> flight_;  // the step under way
  bool drafting_ = false;           // in the step being made
  std::map<RequestId, Result> finished_;
  std::vector<RowOrigin> step_rows_;
  EngineStats counted_;  // by the stepping thread
  std::atomic<RequestId> next_id_{1};

  // What other threads leave for the stepping one, and what it leaves for them.
  mutable std::mutex mutex_;
  Scheduler::Sequences arrivals_;
  std::vector<RequestId> cancels_;
  EngineStats published_;

  // Host and backend sides of a step's sampling, made once.
  struct SampleBuffers {
    Buffer slots, positions, logprobs, top_ids, top_logprobs, status, targets, best, scores;
  } sample_;
};

}  // namespace isobit
