#pragma once
// Structured output in a step: the bits that say, for each row it samples, which tokens may come.
#include <cstdint>
#include <span>
#include <vector>

#include "engine/sequence.h"
#include "ops/backend.h"

namespace isobit {

class StepMasks {
 public:
  StepMasks(int32_t rows, int64_t vocab) : rows_(rows), words_((vocab + 31) / 32) {}

  // Before a step: the bits of its rows, of drafts too. Whether any row has some; if so, an upload for them is added.
  bool fill(Backend& backend, std::span<const Part> parts, std::vector<Upload>& uploads);
  void apply(SampleArgs& args) const;
  // Of the step that was filled last: no token at all may come there.
  bool dead_end(int32_t row) const;

  // The drafts without those that may not come, and what follows them.
  static Drafts allowed(TokenMask& mask, const Drafts& drafts);

 private:
  void fill(const Part& part);
  std::span<uint32_t> row(int32_t index);

  int32_t rows_;
  int64_t words_;
  std::vector<uint32_t> bits_;  // [rows, words]; made, as is the buffer, when first needed
  Buffer buffer_;
};

}  // namespace isobit
