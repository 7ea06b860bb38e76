#pragma once
// Speculation by a second, smaller model of the same vocabulary. Its keys and values lie under the target's page
// numbers, so that what shares, moves and evicts the target's pages serves both; they are made when drafts are asked
// for, so that a sequence without them costs nothing. Whatever they hold, an answer's bits are the target's alone.
#include <memory>
#include <vector>

#include "engine/sequence.h"
#include "engine/step_arrays.h"
#include "models/decoder.h"

namespace isobit {

class DraftModel {
 public:
  // Throws Error for a model that cannot draft for the target: another vocabulary, or a shorter context.
  // branches: the most that ask() is ever given.
  DraftModel(Backend& backend, const Checkpoint& file, const ModelConfig& target, const StepLimits& limits,
             int64_t pages, int32_t page_size, int32_t branches);

  // While a step is planned: the sequence gets a path of `count` drafts, and beside each of them, from the first on as
  // long as they are not more than `most` in all, the branches - 1 likeliest other tokens; kUnknownToken until run().
  // None where more of its tokens are new to this model than the step has room for; then run() reads some of them.
  Drafts ask(Sequence& s, int32_t count, int32_t most, int32_t branches);
  // Makes the drafts of all that asked, together. Their sampler slots are set.
  void run(SamplerSlots& slots);

  // Bytes of its weights: its share of a step's time beside the target's.
  size_t weight_bytes() const { return decoder_.weight_bytes(); }

 private:
  struct Asked {
    Sequence* sequence = nullptr;
    int32_t first = 0, count = 0;  // tokens to read
    int32_t drafts = 0;
    int32_t row = -1;  // sampled
  };
  static const ModelConfig& checked(const ModelConfig& draft, const ModelConfig& target, const StepLimits& limits);
  void pass(int32_t draft, int32_t rows, SamplerSlots& slots);
  void sample(int32_t rows, SamplerSlots& slots);
  void hand_out(const Asked& asked, int32_t rows) const;

  Backend& backend_;
  Decoder decoder_;
  KvPages pages_;
  Buffer slot_, position_, status_;
  Buffer drafted_;  // int32 [drafts, rows of a pass]
  // With branches, int32 [rows of a pass, branches]: the likeliest tokens; and of all passes: [drafts, …].
  int32_t branches_;
  Buffer likely_, liked_;
  std::vector<int32_t> drawn_, ranked_;  // drafted_ and liked_ on the host
  StepArrays arrays_;
  std::vector<Asked> asked_;
  int32_t room_;  // tokens that may still be read in the step being planned
};

}  // namespace isobit
