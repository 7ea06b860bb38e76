#include "text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>

#include "base/error.h"
#include "text/unicode.h"

namespace isobit {

namespace {

// Pieces up to here are merged by scanning, which is quadratic but beats the heap on words.
constexpr size_t kShortPiece = 48;

// GPT-2's byte alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 on, in order.
std::array<char32_t, 256> byte_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; byte++) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

// Inverse of byte_alphabet() over the code points 0 to 0x143; -1 where there is none.
std::array<int, 0x144> inverse_alphabet() {
  std::array<int, 0x144> inverse{};
  inverse.fill(-1);
  const auto alphabet = byte_alphabet();
  for (int byte = 0; byte < 256; byte++) inverse[alphabet[byte]] = byte;
  return inverse;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t hash_pair(uint64_t pair) {
  pair *= 0x9E3779B97F4A7C15U;
  return pair ^ pair >> 29;
}

}  // namespace

std::string decode_byte_level(std::string_view name) {
  static const std::array<int, 0x144> kInverse = inverse_alphabet();
  std::string bytes;
  if (valid_utf8_prefix(name) != name.size()) return std::string(name);
  for (size_t pos = 0; pos < name.size();) {
    const char32_t code_point = next_code_point(name, pos);
    if (code_point >= kInverse.size() || kInverse[code_point] < 0) return std::string(name);
    bytes += static_cast<char>(static_cast<unsigned char>(kInverse[code_point]));
  }
  return bytes;
}

BpeMerger::BpeMerger(const std::unordered_map<std::string_view, int32_t>& ids, const std::vector<bool>& usable,
                     std::span<const std::string> merges, Options options)
    : options_(options), names_(&ids), usable_(usable) {
  const auto alphabet = byte_alphabet();
  for (int byte = 0; byte < 256; byte++) {
    std::string name;
    if (options_.characters) {
      name = fmt::format("<0x{:02X}>", byte);
    } else {
      append_utf8(alphabet[byte], name);
    }
    byte_ids_[byte] = id_of(name);
  }
  read_merges(merges);
  if (!options_.ignore_merges) return;
  pieces_.reserve(ids.size());
  for (const auto& [name, id] : ids) {
    if (usable[id]) pieces_.emplace(options_.characters ? std::string(name) : decode_byte_level(name), id);
  }
}

int32_t BpeMerger::id_of(std::string_view name) const {
  const auto found = names_->find(name);
  return found == names_->end() || !usable_[found->second] ? -1 : found->second;
}

void BpeMerger::read_merges(std::span<const std::string> merges) {
  rules_.resize(std::bit_ceil(std::max<size_t>(merges.size() * 2, 16)), {kNoPair, kNoRank, -1});
  mask_ = rules_.size() - 1;
  std::string joined;
  for (size_t rank = 0; rank < merges.size(); rank++) {
    const std::string_view merge = merges[rank];
    const size_t space = merge.find(' ', 1);  // not at 0: a left name is never empty
    if (merge.empty() || space == std::string_view::npos || space + 1 == merge.size()) {
      throw fail(ErrorCode::kBadFile, "tokenizer.ggml.merges[{}] = '{}': must be two tokens with one space between",
                 rank, merge);
    }
    const auto need = [&](std::string_view name) {
      const int32_t id = id_of(name);
      if (id >= 0) return id;
      throw fail(ErrorCode::kBadFile, "tokenizer.ggml.merges[{}] = '{}': '{}' is not a normal token of the vocabulary",
                 rank, merge, name);
    };
    const std::string_view left = merge.substr(0, space);
    const std::string_view right = merge.substr(space + 1);
    joined.assign(left).append(right);
    insert({pair_key(need(left), need(right)), static_cast<int32_t>(rank), need(joined)});
  }
}

// A pair listed twice keeps its first, better rank.
void BpeMerger::insert(const Rule& rule) {
  uint64_t slot = hash_pair(rule.pair) & mask_;
  while (rules_[slot].pair != kNoPair && rules_[slot].pair != rule.pair) slot = (slot + 1) & mask_;
  if (rules_[slot].pair == kNoPair) rules_[slot] = rule;
}

// The rule of the pair, or an empty slot (rank kNoRank).
const BpeMerger::Rule& BpeMerger::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_key(left, right);
  uint64_t slot = hash_pair(pair) & mask_;
  while (rules_[slot].pair != pair && rules_[slot].pair != kNoPair) slot = (slot + 1) & mask_;
  return rules_[slot];
}

void BpeMerger::split_bytes(std::string_view piece, std::vector<int32_t>& ids) const {
  for (const char byte : piece) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(byte)];
    if (id >= 0) ids.push_back(id);
  }
}

void BpeMerger::split_characters(std::string_view piece, std::vector<int32_t>& ids) const {
  bool after_unknown = false;
  for (size_t pos = 0; pos < piece.size();) {
    const size_t begin = pos;
    next_code_point(piece, pos);
    const std::string_view character = piece.substr(begin, pos - begin);
    const int32_t id = id_of(character);
    const bool has_bytes =
        std::ranges::all_of(character, [&](char c) { return byte_ids_[static_cast<unsigned char>(c)] >= 0; });
    const bool unknown = id < 0 && !has_bytes;
    if (id >= 0) {
      ids.push_back(id);
    } else if (has_bytes) {
      split_bytes(character, ids);
    } else if (options_.unknown_id >= 0 && !(after_unknown && options_.fuse_unknown)) {
      ids.push_back(options_.unknown_id);
    }
    after_unknown = unknown;
  }
}

void BpeMerger::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const {
  if (options_.ignore_merges) {
    const auto found = pieces_.find(piece);
    if (found != pieces_.end()) {
      out.push_back(found->second);
      return;
    }
  }
  std::vector<int32_t>& ids = scratch.ids;
  ids.clear();
  if (options_.characters) {
    split_characters(piece, ids);
  } else {
    split_bytes(piece, ids);
  }
  if (ids.size() > kShortPiece) {
    merge_long(ids, scratch);
  } else if (ids.size() > 1) {
    merge_short(ids, scratch);
  }
  out.insert(out.end(), ids.begin(), ids.end());
}

void BpeMerger::merge_short(std::vector<int32_t>& ids, Scratch& scratch) const {
  auto& rules = scratch.rules;  // rules[i] is of the pair (ids[i], ids[i + 1])
  rules.clear();
  for (size_t i = 0; i + 1 < ids.size(); i++) rules.push_back(&find(ids[i], ids[i + 1]));
  while (!rules.empty()) {
    const auto best =
        std::min_element(rules.begin(), rules.end(), [](const Rule* a, const Rule* b) { return a->rank < b->rank; });
    if ((*best)->rank == kNoRank) return;
    const auto i = static_cast<size_t>(best - rules.begin());
    ids[i] = (*best)->merged;
    ids.erase(ids.begin() + static_cast<ptrdiff_t>(i) + 1);
    rules.erase(best);
    if (i > 0) rules[i - 1] = &find(ids[i - 1], ids[i]);
    if (i < rules.size()) rules[i] = &find(ids[i], ids[i + 1]);
  }
}

void BpeMerger::merge_long(std::vector<int32_t>& ids, Scratch& scratch) const {
  require(ids.size() < static_cast<size_t>(INT32_MAX),
          "a piece of {} bytes without a split is over the limit of 2147483646; shorten the text", ids.size());
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  using Candidate = Scratch::Candidate;
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto count = static_cast<int32_t>(ids.size());
  symbols.clear();
  heap.clear();
  for (int32_t i = 0; i < count; i++) symbols.push_back({ids[i], i - 1, i + 1 < count ? i + 1 : -1});
  const auto candidate = [&](int32_t position) -> bool {
    const int32_t next = symbols[position].next;
    if (next < 0) return false;
    const Rule& rule = find(symbols[position].id, symbols[next].id);
    if (rule.rank == kNoRank) return false;
    heap.push_back({rule.rank, position, symbols[position].id, symbols[next].id, rule.merged});
    return true;
  };
  for (int32_t i = 0; i < count; i++) candidate(i);
  std::make_heap(heap.begin(), heap.end(), later);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate best = heap.back();
    heap.pop_back();
    auto& left = symbols[best.position];
    // A neighbour merged since, or the symbol itself did: the pair is no more.
    if (left.id != best.left || left.next < 0 || symbols[left.next].id != best.right) continue;
    auto& right = symbols[left.next];
    left.id = best.merged;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) symbols[left.next].previous = best.position;
    if (candidate(best.position)) std::push_heap(heap.begin(), heap.end(), later);
    if (left.previous >= 0 && candidate(left.previous)) std::push_heap(heap.begin(), heap.end(), later);
  }

  ids.clear();
  for (int32_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace isobit
