#include "engine/draft_model.h"

#include <algorithm>

#include "base/error.h"

namespace isobit {
namespace {

constexpr uint32_t kDraftSteps = 1U << 8;  // StepKey::variant: no step of the target's is like it

}  // namespace

const ModelConfig& DraftModel::checked(const ModelConfig& draft, const ModelConfig& target, const StepLimits& limits) {
  require(draft.vocab == target.vocab,
          "the draft model {} has a vocabulary of {}, {} one of {}: take one that was made with the same tokenizer",
          draft.name, draft.vocab, target.name, target.vocab);
  require(draft.context >= limits.positions,
          "the draft model {} was trained for {} tokens and the context is {}: ask for a shorter context", draft.name,
          draft.context, limits.positions);
  return draft;
}

DraftModel::DraftModel(Backend& backend, const Checkpoint& file, const ModelConfig& target, const StepLimits& limits,
                       int64_t pages, int32_t page_size, int32_t branches)
    : backend_(backend),
      decoder_(backend, file, checked(read_config(file), target, limits), limits),
      pages_(backend, decoder_.config(), pages, page_size),
      slot_(backend.allocate(static_cast<size_t>(limits.logit_rows) * 4, "drafts")),
      position_(backend.allocate(static_cast<size_t>(limits.logit_rows) * 4, "drafts")),
      status_(backend.allocate(static_cast<size_t>(limits.logit_rows) * 4, "drafts")),
      drafted_(backend.allocate(static_cast<size_t>(limits.logit_rows) * 4 * kMaxDraftDepth, "drafts")),
      branches_(branches),
      arrays_(decoder_, slot_, position_, page_size),
      room_(limits.tokens) {
  if (branches_ == 1) return;
  const size_t bytes = static_cast<size_t>(limits.logit_rows) * static_cast<size_t>(branches_) * 4;
  likely_ = backend.allocate(bytes, "drafts");
  liked_ = backend.allocate(bytes * kMaxDraftDepth, "drafts");
}

Drafts DraftModel::ask(Sequence& s, int32_t count, int32_t most, int32_t branches) {
  const int32_t wanted = s.size() - s.drafted_to, taken = std::min(wanted, room_);
  if (taken == 0) return {};
  room_ -= taken;
  asked_.push_back({.sequence = &s, .first = s.drafted_to, .count = taken, .drafts = taken == wanted ? count : 0});
  count = asked_.back().drafts;
  Drafts drafts = Drafts::chain(std::vector<int32_t>(static_cast<size_t>(count), kUnknownToken));
  for (int32_t i = 0; i < count; i++) {
    for (int32_t b = 1; b < branches && drafts.size() < most; b++) drafts.add(kUnknownToken, i - 1);
  }
  return drafts;
}

// A sequence has its row from the first pass to the last; where it asked for fewer drafts the row is padding.
void DraftModel::run(SamplerSlots& slots) {
  if (asked_.empty()) return;
  int32_t drafts = 0, rows = 0;
  for (Asked& a : asked_) {
    drafts = std::max(drafts, a.drafts);
    a.row = a.drafts > 0 ? rows++ : -1;
  }
  rows = std::min(backend_.bucket(rows), decoder_.limits().logit_rows);
  for (int32_t i = 0; i < std::max(drafts, 1); i++) pass(i, rows, slots);
  drawn_.resize(static_cast<size_t>(rows) * static_cast<size_t>(drafts));
  ranked_.resize(likely_ ? drawn_.size() * static_cast<size_t>(branches_) : 0);
  const Download downloads[] = {{drawn_.data(), drafted_.data(), drawn_.size() * 4},
                                {ranked_.data(), liked_.data(), ranked_.size() * 4}};
  if (!drawn_.empty()) backend_.download_all(std::span(downloads).first(ranked_.empty() ? 1 : 2));
  for (const Asked& a : asked_) {
    a.sequence->drafted_to = a.first + a.count;
    hand_out(a, rows);
  }
  asked_.clear();
  room_ = decoder_.limits().tokens;
}

// What the passes drew, and beside it the likeliest of the others.
void DraftModel::hand_out(const Asked& asked, int32_t rows) const {
  Drafts& drafts = asked.sequence->drafts;
  auto branch = static_cast<size_t>(asked.drafts);
  for (int32_t i = 0; i < asked.drafts; i++) {
    const auto at = static_cast<size_t>(i) * static_cast<size_t>(rows) + static_cast<size_t>(asked.row);
    // -1 where the draft's logits are not finite: any token will do as a guess.
    drafts.tokens[static_cast<size_t>(i)] = std::max(0, drawn_[at]);
    for (size_t b = 0; branch < drafts.tokens.size() && drafts.parents[branch] == i - 1; b++) {
      const int32_t token = ranked_[at * static_cast<size_t>(branches_) + b];
      if (token != drawn_[at]) drafts.tokens[branch++] = std::max(0, token);
    }
  }
}

// The tokens that are new to this model, or, from the second pass on, the draft that the last one made; each pass makes
// one more.
void DraftModel::pass(int32_t draft, int32_t rows, SamplerSlots& slots) {
  const auto reads = [&](const Asked& a) { return draft == 0 || a.drafts > draft; };
  StepShape shape{.tokens = 0, .requests = 0, .max_query = 1, .max_kv = 1};
  for (const Asked& a : asked_) {
    if (!reads(a)) continue;
    const int32_t tokens = draft == 0 ? a.count : 1;
    shape.tokens += tokens;
    shape.requests++;
    shape.max_query = std::max(shape.max_query, tokens);
    shape.max_kv = std::max(shape.max_kv, a.first + a.count + draft);
  }
  shape = padded(shape, backend_, decoder_, pages_.page_size());
  arrays_.start(shape, rows);
  int32_t token = 0;
  for (const Asked& a : asked_) {
    if (!reads(a)) continue;
    const Sequence& s = *a.sequence;
    const int32_t end = a.first + a.count, last = -2 - a.row;
    if (draft == 0) {
      const auto unread = std::span(s.tokens).subspan(static_cast<size_t>(a.first), static_cast<size_t>(a.count));
      arrays_.add_request({s.pages, {}}, a.first, unread);
    } else {
      arrays_.add_request({s.pages, {}}, end - 1 + draft, std::span(&last, 1));
    }
    token += draft == 0 ? a.count : 1;
    if (a.drafts > draft) arrays_.set_row(a.row, token - 1, s.slot, end + draft);
  }
  backend_.upload_all(arrays_.uploads());
  backend_.run_step({shape.tokens, shape.requests, rows, shape.max_query, shape.max_kv, kDraftSteps}, [&] {
    decoder_.forward(shape, pages_);
    if (rows > 0) sample(rows, slots);
  });
  const size_t bytes = static_cast<size_t>(rows) * 4;
  if (rows > 0) {
    const auto keep = [&](const Buffer& all, const Buffer& of_pass, size_t size) {
      backend_.copy(all.data<std::byte>() + static_cast<size_t>(draft) * size, of_pass.data(), size);
    };
    keep(drafted_, decoder_.inputs().sampled, bytes);
    if (likely_) keep(liked_, likely_, bytes * static_cast<size_t>(branches_));
  }
}

// With the target's noise: what it would draw from these logits. Its counts of output stay as they are.
void DraftModel::sample(int32_t rows, SamplerSlots& slots) {
  decoder_.head(rows);
  SampleArgs a;
  a.logits = decoder_.logits();
  a.slots = slot_.data<int32_t>();
  a.positions = position_.data<int32_t>();
  a.rows = rows;
  a.vocab = decoder_.config().vocab;
  a.count_output = false;
  a.tokens = decoder_.inputs().sampled.data<int32_t>();
  a.status = status_.data<int32_t>();
  backend_.sample(slots, a);
  if (!likely_) return;
  TopkPerRowArgs best;
  best.logits = decoder_.logits();
  best.rows = rows;
  best.stride = decoder_.config().vocab;
  best.k = branches_;
  best.out = likely_.data<int32_t>();
  best.status = status_.data<int32_t>();
  backend_.topk_per_row(best);
}

}  // namespace isobit
