#pragma once
// Sampling on a pool of slots. A slot carries one sequence's settings and token counts, written only when the slot
// changes.
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

namespace isobit {

constexpr int kMaxTopLogprobs = 20;

struct SamplingParams {
  float temperature = 1.0f;         // 0: argmax, lowest id
  int32_t top_k = 0;                // 0, -1 or >= vocabulary: off
  float top_p = 1.0f;               // (0, 1]; 1: off
  float min_p = 0.0f;               // [0, 1); 0: off
  float repetition_penalty = 1.0f;  // > 0; counts prompt and output
  float presence_penalty = 0.0f;    // [-2, 2]; counts the output
  float frequency_penalty = 0.0f;   // [-2, 2]; counts the output
  uint64_t seed = 0;
  uint32_t choice = 0;  // index of this sequence among n choices of one request
  std::vector<std::pair<int32_t, float>> logit_bias;
  int32_t top_logprobs = -1;        // -1: none; 0: the chosen token's; up to 20
  bool processed_logprobs = false;  // of the logits after bias, penalties and temperature, rather than the raw ones

  // Throws Error naming the parameter, its value and its range.
  void check(int64_t vocab) const;
};

class SamplerSlots {
 public:
  virtual ~SamplerSlots() = default;
  // Starts a sequence in a slot: its settings, and its prompt for the repetition penalty.
  virtual void assign(int slot, const SamplingParams& params, std::span<const int32_t> prompt) = 0;
  virtual void release(int slot) = 0;
  virtual int slots() const = 0;
  virtual int64_t vocab() const = 0;
};

enum SampleStatus : int32_t {
  kSampled = 0,
  kNotFinite = 1,  // a NaN, +infinity, or no finite logit
  kBadDraft = 2,   // the row's slot counts its output, and the drafted tokens before the row are no path (DraftTrees)
};

constexpr int kMaxDraftDepth = 64;

// Speculation. A request's rows are a tree: the root's input is the request's last token, every other row's a drafted
// token that follows its parent's. A chain is the tree in which each row's parent is the row before it; a request
// without drafts is a root alone. Each row is sampled as if the drafts on its path were already output: by its own
// position's noise, with the penalties of their counts. Then the path is walked: a drafted token is accepted while it
// is the token sampled in its parent's row. So what comes out is what plain decoding would have sampled; and counts are
// kept of that alone, so that nothing has to be undone for the drafts that were rejected.
struct DraftTrees {
  int64_t requests = 0;                // 0: no speculation; every row stands for itself
  const int32_t* first_row = nullptr;  // [requests + 1], ascending: request i has rows first_row[i] to first_row[i +
                                       // 1], the root first; none: padding
  // [rows]: the parent's row, of the same request and before the row's own; -1 for a root. A row with another value is
  // never reached.
  const int32_t* parents = nullptr;
  const int32_t* tokens = nullptr;  // [rows]: the drafted token; of a root not read. Of equal siblings the first counts
  int32_t* accepted = nullptr;      // out [requests]: drafted tokens accepted; -1 for padding
  int32_t* bonus = nullptr;         // out [requests]: the token after them; -1 where its row has another status than
                                    // kSampled, and for padding
  // out [rows]: in the request's first places the rows from the root to the last accepted token, -1 in the others. The
  // request's new tokens are `tokens` of these rows, the last one of them being the bonus.
  int32_t* path = nullptr;
};

// One token per row, rules N12 to N17. A row depends on its logits, its slot and its position, on nothing else.
// `slots`, `positions` and the slots' settings are read before the operators ahead in the step have ended: they must be
// written between steps (uploads, assign), never by an operator of the same step.
struct SampleArgs {
  const float* logits = nullptr;       // [rows, vocab], not changed; on CUDA aligned to 16 bytes
  const int32_t* slots = nullptr;      // [rows]; negative: padding, nothing is written
  const int32_t* positions = nullptr;  // [rows]: of the token being sampled, counted from the sequence's start
  int64_t rows = 0, vocab = 0;
  // Structured output: bit (id mod 32) of word id / 32 says whether a token may come; one that may not counts as
  // -infinity in rule N12, whatever its logit. [rows, allowed_stride], or null: all may.
  const uint32_t* allowed = nullptr;
  int64_t allowed_stride = 0;  // words a row, at least (vocab + 31) / 32
  bool count_output = true;    // add the token (with drafts: those of the path) to the slot's output counts
  // Noise of rule N15's purpose 1, for drafting independently of the target's draws; else a draft with the target's
  // seed and position shares its noise, and is accepted more often.
  bool draft_noise = false;
  DraftTrees drafts;
  int32_t* tokens = nullptr;      // out [rows]
  float* logprobs = nullptr;      // out [rows], or null; written where the slot asks for log-probabilities (NaN where
                                  // they are of raw logits that hold a NaN or +infinity)
  int32_t* top_ids = nullptr;     // out [rows, kMaxTopLogprobs], best first, -1 beyond the slot's number; or null
  float* top_logprobs = nullptr;  // out [rows, kMaxTopLogprobs]
  int32_t* status = nullptr;      // out [rows]: SampleStatus

  void check() const;
};

// Log-probabilities of given tokens, rule N14, raw logits: out[i] = ln p(targets[i] | row i). A negative target is
// skipped.
struct LogProbArgs {
  const float* logits = nullptr;     // [rows, vocab]
  const int32_t* targets = nullptr;  // [rows]
  int64_t rows = 0, vocab = 0;
  float* out = nullptr;       // [rows]
  int32_t* best = nullptr;    // out [rows]: argmax, lowest id; or null
  int32_t* status = nullptr;  // out [rows]

  void check() const;
};

}  // namespace isobit
