#include "text/spm.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

namespace isobit {

namespace {

constexpr char32_t kSpaceCharacter = 0x2581;
constexpr int32_t kNotLookedUp = -2;

}  // namespace

std::string escape_spaces(std::string_view text) {
  std::string out;
  out.reserve(text.size() + text.size() / 4);
  for (const char c : text) {
    if (c == ' ') {
      out += kSpmSpace;
    } else {
      out += c;
    }
  }
  return out;
}

std::string unescape_spaces(std::string_view text) {
  std::string out;
  for (size_t pos = 0; pos < text.size();) {
    const bool space = text.substr(pos, kSpmSpace.size()) == kSpmSpace;
    out += space ? ' ' : text[pos];
    pos += space ? kSpmSpace.size() : 1;
  }
  return out;
}

int parse_byte_token(std::string_view name) {
  if (name.size() != 6 || name.substr(0, 3) != "<0x" || name[5] != '>') return -1;
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
  };
  const int high = digit(name[3]);
  const int low = digit(name[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

SpmMerger::SpmMerger(std::span<const std::string> names, std::span<const TokenType> types,
                     std::span<const float> scores, int32_t unknown_id)
    : types_(types), scores_(scores), unknown_id_(unknown_id) {
  byte_ids_.fill(-1);
  int bytes = 0;
  std::vector<std::pair<std::string, int32_t>> user_defined;
  for (size_t i = 0; i < names.size(); i++) {
    const auto id = static_cast<int32_t>(i);
    if (types[i] == TokenType::kByte) {
      const int byte = parse_byte_token(names[i]);
      if (byte < 0) {
        throw fail(ErrorCode::kBadFile, "tokenizer.ggml.tokens[{}] = '{}' is of type byte but not <0x00> to <0xFF>", i,
                   names[i]);
      }
      bytes += byte_ids_[byte] < 0 ? 1 : 0;
      byte_ids_[byte] = id;
      continue;
    }
    if (types[i] == TokenType::kControl || types[i] == TokenType::kUnknown || names[i].empty()) continue;
    if (std::isnan(scores[i])) {
      throw fail(ErrorCode::kBadFile, "tokenizer.ggml.scores[{}] (token '{}') is not a number", i, names[i]);
    }
    // A file may name the spaces of a user-defined token either way.
    if (types[i] == TokenType::kUserDefined) user_defined.emplace_back(escape_spaces(names[i]), id);
    has_unused_ = has_unused_ || types[i] == TokenType::kUnused;
    note_spaces(names[i]);
    longest_piece_ = std::max(longest_piece_, names[i].size());
    pieces_.emplace(names[i], id);
  }
  before_space_.insert(kSpaceCharacter);
  has_bytes_ = bytes == 256;
  if (bytes > 0 && !has_bytes_) {
    const auto missing = std::find(byte_ids_.begin(), byte_ids_.end(), -1) - byte_ids_.begin();
    throw fail(ErrorCode::kBadFile, "tokenizer.ggml.tokens: {} of the 256 byte tokens, <0x{:02X}> is missing", bytes,
               missing);
  }
  if (!has_bytes_ && unknown_id < 0) {
    throw fail(ErrorCode::kBadFile,
               "tokenizer.ggml.tokens: neither byte tokens nor an unknown token for what is not in the vocabulary");
  }
  user_defined_ = TokenMatcher(std::move(user_defined));
}

// Records which characters stand before a U+2581 inside the piece.
void SpmMerger::note_spaces(std::string_view piece) {
  if (piece.find(kSpmSpace, 1) == std::string_view::npos || valid_utf8_prefix(piece) != piece.size()) return;
  size_t pos = 0;
  char32_t last = next_code_point(piece, pos);
  while (pos < piece.size()) {
    const char32_t next = next_code_point(piece, pos);
    if (next == kSpaceCharacter) before_space_.insert(last);
    last = next;
  }
}

int32_t SpmMerger::find(std::string_view piece) const {
  if (piece.size() > longest_piece_) return -1;
  const auto found = pieces_.find(piece);
  return found == pieces_.end() ? -1 : found->second;
}

// One text being encoded.
class SpmMerger::Run {
 public:
  Run(const SpmMerger& merger, std::string_view text) : merger_(merger), text_(text) {}

  // Stretch by stretch: where no piece of the vocabulary spans two neighbours no merge does, and what lies on either
  // side is independent. Most texts fall into words so, and the heap stays in cache.
  void encode(std::vector<int32_t>& out) {
    char32_t last = 0;
    for (size_t pos = 0; pos < text_.size();) {
      const auto token = merger_.user_defined_.match_at(text_, pos);
      const bool frozen = token.end > pos;
      size_t end = pos;
      const char32_t next = next_code_point(text_, end);
      if (separates(last, next, frozen)) finish_stretch(out);
      last = frozen ? 0 : next;
      if (frozen) end = token.end;
      const auto index = static_cast<int32_t>(symbols_.size());
      if (index > 0) symbols_.back().next = index;
      symbols_.push_back({pos, end - pos, frozen ? token.id : kNotLookedUp, index - 1, -1, frozen});
      pos = end;
    }
    finish_stretch(out);
  }

 private:
  struct Symbol {
    size_t begin;
    size_t size;  // 0: merged into its left neighbour
    int32_t id;   // -1: no piece; or kNotLookedUp
    int32_t previous;
    int32_t next;
    bool frozen;
  };
  struct Candidate {
    float score;
    int32_t left;
    int32_t right;
    int32_t id;
    size_t size;
  };

  static bool worse(const Candidate& a, const Candidate& b) {
    return a.score != b.score ? a.score < b.score : a.left > b.left;
  }

  std::string_view piece(const Symbol& symbol) const { return text_.substr(symbol.begin, symbol.size); }

  // With unused pieces the text is one stretch, as their splits are recorded over all of it.
  bool separates(char32_t last, char32_t next, bool frozen) const {
    if (symbols_.empty() || merger_.has_unused_) return false;
    if (frozen || symbols_.back().frozen) return true;
    return next == kSpaceCharacter && !merger_.before_space_.contains(last);
  }

  void finish_stretch(std::vector<int32_t>& out) {
    for (int32_t i = 0; i + 1 < static_cast<int32_t>(symbols_.size()); i++) add_candidate(i, i + 1);
    merge();
    for (int32_t i = symbols_.empty() ? -1 : 0; i >= 0; i = symbols_[i].next) emit(symbols_[i], out);
    symbols_.clear();
  }

  void add_candidate(int32_t left, int32_t right) {
    if (left < 0 || right < 0 || symbols_[left].frozen || symbols_[right].frozen) return;
    const size_t size = symbols_[left].size + symbols_[right].size;
    const std::string_view joined = text_.substr(symbols_[left].begin, size);
    const int32_t id = merger_.find(joined);
    if (id < 0) return;
    heap_.push_back({merger_.scores_[id], left, right, id, size});
    std::push_heap(heap_.begin(), heap_.end(), worse);
    if (merger_.types_[id] == TokenType::kUnused) unused_splits_[joined] = symbols_[left].size;
  }

  void merge() {
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end(), worse);
      const Candidate best = heap_.back();
      heap_.pop_back();
      Symbol& left = symbols_[best.left];
      Symbol& right = symbols_[best.right];
      if (left.size == 0 || right.size == 0 || left.size + right.size != best.size) continue;  // merged meanwhile
      left.size = best.size;
      left.id = best.id;
      left.next = right.next;
      right.size = 0;
      if (left.next >= 0) symbols_[left.next].previous = best.left;
      add_candidate(left.previous, best.left);
      add_candidate(best.left, left.next);
    }
  }

  void emit(Symbol& symbol, std::vector<int32_t>& out) {
    if (symbol.id == kNotLookedUp) symbol.id = merger_.find(piece(symbol));
    if (symbol.id < 0 || merger_.types_[symbol.id] != TokenType::kUnused) {
      emit_piece(symbol.id, piece(symbol), out);
      return;
    }
    // An unused piece serves merges but not the output: take it apart as it was put together.
    std::vector<std::string_view> parts = {piece(symbol)};
    while (!parts.empty()) {
      const std::string_view part = parts.back();
      parts.pop_back();
      const int32_t id = merger_.find(part);
      const auto split = unused_splits_.find(part);
      if (id < 0 || merger_.types_[id] != TokenType::kUnused || split == unused_splits_.end()) {
        emit_piece(id, part, out);
        continue;
      }
      parts.push_back(part.substr(split->second));
      parts.push_back(part.substr(0, split->second));
    }
  }

  void emit_piece(int32_t id, std::string_view bytes, std::vector<int32_t>& out) {
    const bool unknown = id < 0 && !merger_.has_bytes_;
    if (id >= 0) {
      out.push_back(id);
    } else if (unknown) {
      if (!after_unknown_) out.push_back(merger_.unknown_id_);
    } else {
      for (const char byte : bytes) out.push_back(merger_.byte_ids_[static_cast<unsigned char>(byte)]);
    }
    after_unknown_ = unknown;
  }

  const SpmMerger& merger_;
  std::string_view text_;
  std::vector<Symbol> symbols_;
  std::vector<Candidate> heap_;
  std::unordered_map<std::string_view, size_t> unused_splits_;  // unused piece -> size of its left part
  bool after_unknown_ = false;
};

void SpmMerger::encode(std::string_view text, std::vector<int32_t>& out) const {
  require(text.size() < static_cast<size_t>(INT32_MAX), "a text of {} bytes is over the limit of 2147483646; split it",
          text.size());
  Run(*this, text).encode(out);
}

}  // namespace isobit
