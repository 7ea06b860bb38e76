#include "engine/step_masks.h"

#include <algorithm>

namespace isobit {
namespace {

// Stands a mask behind any draft of a tree, and puts it back in the end.
class MaskWalk {
 public:
  MaskWalk(TokenMask& mask, const Drafts& drafts) : mask_(mask), drafts_(drafts) {}
  ~MaskWalk() { back_to(0); }
  MaskWalk(const MaskWalk&) = delete;
  MaskWalk& operator=(const MaskWalk&) = delete;

  // Behind draft i; -1: behind the sequence's own tokens. False where a token on the way may not come.
  bool go(int32_t i) {
    const std::vector<int32_t> path = drafts_.path(i);
    back_to(static_cast<size_t>(std::ranges::mismatch(at_, path).in1 - at_.begin()));
    while (at_.size() < path.size()) {
      const int32_t next = path[at_.size()];
      if (!mask_.accept(drafts_.tokens[static_cast<size_t>(next)])) return false;
      at_.push_back(next);
    }
    return true;
  }

 private:
  void back_to(size_t depth) {
    mask_.rollback(static_cast<int32_t>(at_.size() - depth));
    at_.resize(depth);
  }

  TokenMask& mask_;
  const Drafts& drafts_;
  std::vector<int32_t> at_;  // the drafts that the mask has accepted
};

}  // namespace

std::span<uint32_t> StepMasks::row(int32_t index) {
  return std::span(bits_).subspan(static_cast<size_t>(index) * static_cast<size_t>(words_),
                                  static_cast<size_t>(words_));
}

bool StepMasks::fill(Backend& backend, std::span<const Part> parts, std::vector<Upload>& uploads) {
  const auto masked = [](const Part& p) { return p.sample_row >= 0 && p.sequence->mask != nullptr; };
  if (std::ranges::none_of(parts, masked)) return false;
  if (!buffer_) {
    bits_.resize(static_cast<size_t>(rows_) * static_cast<size_t>(words_));
    buffer_ = backend.allocate(bits_.size() * sizeof(uint32_t), "masks of structured output");
  }
  int32_t used = 0;
  for (const Part& p : parts) used = p.sample_row >= 0 ? std::max(used, p.sample_row + p.drafts + 1) : used;
  const auto part_of_bits = std::span(bits_).first(static_cast<size_t>(used) * static_cast<size_t>(words_));
  std::ranges::fill(part_of_bits, ~0U);
  for (const Part& p : parts) {
    if (masked(p)) fill(p);
  }
  uploads.push_back({buffer_.data(), part_of_bits.data(), part_of_bits.size_bytes()});
  return true;
}

// Behind an end that was drafted nothing comes; its bits are not read.
void StepMasks::fill(const Part& part) {
  TokenMask& mask = *part.sequence->mask;
  MaskWalk walk(mask, part.sequence->drafts);
  for (int32_t i = -1; i < part.drafts; i++) {
    if (walk.go(i) && !mask.finished()) mask.fill(row(part.sample_row + 1 + i));
  }
}

void StepMasks::apply(SampleArgs& args) const {
  args.allowed = buffer_.data<uint32_t>();
  args.allowed_stride = words_;
}

bool StepMasks::dead_end(int32_t index) const {
  const auto first = bits_.begin() + index * words_;
  return std::all_of(first, first + words_, [](uint32_t word) { return word == 0; });
}

Drafts StepMasks::allowed(TokenMask& mask, const Drafts& drafts) {
  MaskWalk walk(mask, drafts);
  Drafts kept;
  std::vector<int32_t> place(drafts.tokens.size(), -1);  // among those kept
  for (int32_t i = 0; i < drafts.size(); i++) {
    const auto at = static_cast<size_t>(i);
    if (!walk.go(i)) continue;
    const int32_t parent = drafts.parents[at];
    place[at] = kept.size();
    kept.add(drafts.tokens[at], parent < 0 ? -1 : place[static_cast<size_t>(parent)]);
  }
  return kept;
}

}  // namespace isobit
