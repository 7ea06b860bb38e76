#include "engine/step_masks.h"

#include <algorithm>

namespace isobit {

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

// Row i stands behind the first i drafts. Behind an end that was drafted nothing comes; its bits are not read.
void StepMasks::fill(const Part& part) {
  TokenMask& mask = *part.sequence->mask;
  int32_t taken = 0;
  for (int32_t i = 0; i <= part.drafts && !mask.finished(); i++) {
    mask.fill(row(part.sample_row + i));
    if (i == part.drafts || !mask.accept(part.sequence->drafts[static_cast<size_t>(i)])) break;
    taken++;
  }
  mask.rollback(taken);
}

void StepMasks::apply(SampleArgs& args) const {
  args.allowed = buffer_.data<uint32_t>();
  args.allowed_stride = words_;
}

bool StepMasks::dead_end(int32_t index) const {
  const auto first = bits_.begin() + index * words_;
  return std::all_of(first, first + words_, [](uint32_t word) { return word == 0; });
}

std::vector<int32_t> StepMasks::allowed(TokenMask& mask, std::vector<int32_t> drafts) {
  size_t taken = 0;
  while (taken < drafts.size() && !mask.finished() && mask.accept(drafts[taken])) taken++;
  mask.rollback(static_cast<int32_t>(taken));
  drafts.resize(taken);
  return drafts;
}

}  // namespace isobit
