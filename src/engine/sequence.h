#pragma once
// A request on its way through the engine.
#include <cstdint>
#include <vector>

#include "base/digest.h"
#include "cache/page_pool.h"
#include "engine/draft.h"
#include "engine/request.h"

namespace isobit {

constexpr int32_t kUnknownToken = -1;

// A step may be started before the last one's results are seen (EngineOptions::ahead). Then a sequence's last token can
// be unknown to the host: it stands as kUnknownToken, and the step takes it from where the last one has put it.
struct Sequence {
  RequestId id = 0;
  Request request;
  std::vector<int32_t> tokens;  // prompt, then what was sampled
  int32_t longest = INT32_MAX;  // prompt and answer end here
  int32_t computed = 0;         // tokens whose keys and values are in the pages, or will be after the steps under way
  int32_t settled = 0;          // of them those of steps whose results were seen
  int32_t unknown_row = -1;     // of the rows that the step under way samples: the last token's; -1: all are known
  int32_t scored = 0;           // positions that were handed out (prompt_logprobs, on_logits, on_residual)
  std::vector<PageId> pages;
  // Of the layers with a window, where they have pages of their own: as many, those that no token to come sees given
  // up.
  std::vector<PageId> window_pages;
  int32_t window_begin = 0;  // leading ones of them that are given up: -1
  int32_t shared = 0;        // leading pages that are the prefix tree's
  int32_t slot = -1;         // of the sampler, while running
  bool slot_is_set = false;  // the sampler's slot knows this sequence
  int64_t rank = 0;          // Scheduler's order: smaller first, then smaller id
  bool cancelled = false;
  bool done = false;
  Result result;
  std::unique_ptr<TokenMask> mask;  // of the request's grammar, after the answer's tokens
  Digest logits;                    // of the answer's rows so far
  Drafts drafts;                    // guesses at the tokens to come, for this step
  DraftLength draft_length, model_draft_length;
  BranchWorth branch_worth;
  bool drafted_by_model = false;  // this step's
  int32_t drafted_to = 0;         // tokens whose keys and values the draft model has

  int32_t size() const { return static_cast<int32_t>(tokens.size()); }
  int32_t pending() const { return size() - computed; }
  bool knows_all() const { return unknown_row < 0; }
  // Its last token is being sampled; it needs no key or value of its own.
  bool only_waits() const { return !knows_all() && size() >= longest; }
  void put(int32_t position, int32_t token) {
    if (position == size()) tokens.push_back(token);
    tokens[static_cast<size_t>(position)] = token;
  }
  bool is_observed() const { return request.prompt_logprobs || request.on_logits || request.on_residual; }
  bool ahead_of(const Sequence& other) const { return rank < other.rank || (rank == other.rank && id < other.id); }
  // The sampler can be told of the prompt and of what is in the context, but not how often each token was sampled.
  bool can_leave_slot() const {
    const SamplingParams& p = request.sampling;
    return (result.tokens.empty() && knows_all()) || (p.presence_penalty == 0 && p.frequency_penalty == 0);
  }
};

// What one step computes of one sequence: `count` of its tokens, then its drafts.
struct Part {
  Sequence* sequence = nullptr;
  int32_t start = 0;        // position of its first token
  int32_t preemptions = 0;  // of the sequence when the step was planned
  int32_t first_row = 0, count = 0, drafts = 0;
  int32_t sample_row = -1;         // the first of its 1 + drafts among the step's sampled rows; -1: none
  std::vector<int32_t> path = {};  // the drafts that proved right, once the step has run

  int32_t accepted() const { return static_cast<int32_t>(path.size()); }
  int32_t rows() const { return count + drafts; }
  int32_t kept() const { return count + accepted(); }
  int32_t sampled() const { return sample_row >= 0 ? 1 + drafts : 0; }
  bool samples() const { return sequence->computed + count == sequence->size(); }
};

}  // namespace isobit
