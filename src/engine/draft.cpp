#include "engine/draft.h"

#include <algorithm>
#include <array>
#include <utility>

namespace isobit {
namespace {

// An earlier place of the text's ending: of so many tokens, before `end`.
struct Place {
  int32_t length = 0, end = 0;
};

// Tokens of the text's ending that also stand before `end`, at most kDraftLongest.
int32_t repeated(std::span<const int32_t> tokens, int32_t end) {
  const int32_t most = std::min(end, kDraftLongest), size = static_cast<int32_t>(tokens.size());
  int32_t length = 0;
  while (length < most &&
         tokens[static_cast<size_t>(end - 1 - length)] == tokens[static_cast<size_t>(size - 1 - length)])
    length++;
  return length;
}

std::span<const int32_t> following(std::span<const int32_t> tokens, const Place& place, int32_t most) {
  const int32_t count = std::min(most, static_cast<int32_t>(tokens.size()) - place.end);
  return tokens.subspan(static_cast<size_t>(place.end), static_cast<size_t>(count));
}

// The longest endings first, of each length the most recent; not more of one length than are worth reading.
std::vector<Place> places(std::span<const int32_t> tokens) {
  constexpr size_t kEnough = 32;
  std::array<std::vector<Place>, kDraftLongest + 1> by_length;
  for (auto end = static_cast<int32_t>(tokens.size()) - 1; end >= kDraftShortest; end--) {
    const int32_t length = repeated(tokens, end);
    std::vector<Place>& of = by_length[static_cast<size_t>(length)];
    if (length >= kDraftShortest && of.size() < kEnough) of.push_back({length, end});
    if (by_length.back().size() == kEnough) break;
  }
  std::vector<Place> all;
  for (size_t length = kDraftLongest; length >= kDraftShortest; length--) {
    all.insert(all.end(), by_length[length].begin(), by_length[length].end());
  }
  return all;
}

}  // namespace

Drafts Drafts::chain(std::vector<int32_t> tokens) {
  Drafts d;
  d.tokens = std::move(tokens);
  for (int32_t i = 0; i < d.size(); i++) d.parents.push_back(i - 1);
  return d;
}

void Drafts::add(int32_t token, int32_t parent) {
  tokens.push_back(token);
  parents.push_back(parent);
}

int32_t Drafts::first_path() const {
  int32_t i = 0;
  while (i < size() && parents[static_cast<size_t>(i)] == i - 1) i++;
  return i;
}

int32_t Drafts::child(int32_t parent, int32_t token) const {
  for (int32_t i = parent + 1; i < size(); i++) {
    if (parents[static_cast<size_t>(i)] == parent && tokens[static_cast<size_t>(i)] == token) return i;
  }
  return -1;
}

std::vector<int32_t> Drafts::path(int32_t i) const {
  std::vector<int32_t> nodes;
  for (; i >= 0; i = parents[static_cast<size_t>(i)]) nodes.push_back(i);
  std::ranges::reverse(nodes);
  return nodes;
}

std::vector<int32_t> lookup_draft(std::span<const int32_t> tokens, int32_t most) {
  Place best;
  for (auto end = static_cast<int32_t>(tokens.size()) - 1; end >= kDraftShortest && best.length < kDraftLongest;
       end--) {
    const int32_t length = repeated(tokens, end);
    if (length > best.length) best = {length, end};
  }
  if (best.length < kDraftShortest || most <= 0) return {};
  const auto found = following(tokens, best, most);
  return {found.begin(), found.end()};
}

// The first way on takes its length; the others share what is left, so that no one of them takes it all.
Drafts lookup_tree(std::span<const int32_t> tokens, int32_t length, int32_t most, int32_t branches) {
  Drafts drafts = Drafts::chain(lookup_draft(tokens, std::min(length, most)));
  // Only trees look at the whole text: a chain's search ends at the first place of the longest ending.
  if (drafts.empty() || branches <= 1) return drafts;
  const int32_t share = std::max(1, (most - drafts.size()) / (branches - 1));
  for (const Place& place : places(tokens)) {
    if (branches <= 1 || drafts.size() >= most) break;
    int32_t node = -1, added = 0;
    for (const int32_t token : following(tokens, place, length)) {
      const int32_t known = drafts.child(node, token);
      if (known < 0 && (added == share || drafts.size() == most)) break;
      if (known < 0) drafts.add(token, node), added++;
      node = known >= 0 ? known : drafts.size() - 1;
    }
    branches -= added > 0 ? 1 : 0;
  }
  return drafts;
}

bool Pause::over() {
  if (left_ == 0) return true;
  left_--;
  return false;
}

void Pause::again() {
  left_ = next_;
  next_ = std::min(2 * next_, kLongest);
}

int32_t DraftLength::next() { return pause_.over() ? length_ : 0; }

void DraftLength::report(int32_t drafted, int32_t accepted, double price) {
  gain_ = kMemory * gain_ + accepted - price * drafted;
  if (accepted == 0 || gain_ < 0) {
    gain_ = 0;
    pause_.again();
    length_ = kFirst;
    return;
  }
  pause_.forget();
  length_ = accepted == drafted ? std::min(2 * length_, kMost) : std::max(accepted + 1, kFirst / 2);
}

void BranchWorth::report(int32_t rows, int32_t won, double price) {
  if (won > 0) pause_.forget();
  gain_ = kMemory * gain_ + won - price * rows;
  if (gain_ >= -kPatience) return;
  gain_ = 0;
  pause_.again();
}

}  // namespace isobit
