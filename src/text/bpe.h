#pragma once
// Byte-level byte-pair encoding: the merges, within one piece of pre-split text.
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace isobit {

// Looks strings up by view.
struct StringViewHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>{}(text); }
};

// The bytes that a token of a byte-level vocabulary stands for: each character of GPT-2's alphabet is one byte. A name
// with a character outside that alphabet stands for its own UTF-8 (as in HF's ByteLevel decoder).
std::string decode_byte_level(std::string_view name);

// The merge rules of a vocabulary. Const and safe to share between threads; each thread brings its own Scratch.
class BpeMerger {
 public:
  struct Options {
    bool ignore_merges = false;  // a piece that is itself a token becomes that token
    // Symbols are characters and not bytes (SentencePiece's vocabularies as tokenizer.json has them). A character
    // without a token becomes its "<0xHH>" tokens, or, where a byte has none, the unknown token (-1: nothing).
    bool characters = false;
    int32_t unknown_id = -1;
    bool fuse_unknown = true;  // a run of unknown characters is one token
  };
  struct Scratch;

  // ids: the vocabulary as in the file, GPT-2's byte alphabet, or text where symbols are characters; it must then
  // outlive this. usable[id]: whether merges and pieces may give id (false for control and user-defined tokens).
  // merges: "left right" by rank.
  // Throws kBadFile for a merge that is not two names, or whose left, right or result is not in the vocabulary.
  BpeMerger(const std::unordered_map<std::string_view, int32_t>& ids, const std::vector<bool>& usable,
            std::span<const std::string> merges, Options options);

  // Appends the tokens of one piece: the pair of lowest rank is merged first, of equals the leftmost. A byte that has
  // no token is dropped and its neighbours meet, as in HF's BPE without an unknown token. O(n log n) in the piece.
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

  bool has_byte(unsigned char byte) const { return byte_ids_[byte] >= 0; }

 private:
  struct Rule {
    uint64_t pair;  // left id << 32 | right id
    int32_t rank;
    int32_t merged;
  };
  static constexpr uint64_t kNoPair = ~uint64_t{0};
  static constexpr int32_t kNoRank = INT32_MAX;

  const Rule& find(int32_t left, int32_t right) const;
  void insert(const Rule& rule);
  void read_merges(std::span<const std::string> merges);
  void split_bytes(std::string_view piece, std::vector<int32_t>& ids) const;
  void split_characters(std::string_view piece, std::vector<int32_t>& ids) const;
  int32_t id_of(std::string_view name) const;
  void merge_short(std::vector<int32_t>& ids, Scratch& scratch) const;
  void merge_long(std::vector<int32_t>& ids, Scratch& scratch) const;

  Options options_;
  const std::unordered_map<std::string_view, int32_t>* names_;
  std::vector<bool> usable_;
  int32_t byte_ids_[256];
  std::vector<Rule> rules_;  // open addressing, a power of two, at most half full
  uint64_t mask_ = 0;
  // Bytes of a token -> id; filled for ignore_merges only.
  std::unordered_map<std::string, int32_t, StringViewHash, std::equal_to<>> pieces_;
};

// Working memory of one encoding thread.
struct BpeMerger::Scratch {
  struct Symbol {
    int32_t id;  // -1: merged into its left neighbour
    int32_t previous;
    int32_t next;
  };
  struct Candidate {
    int32_t rank;
    int32_t position;
    int32_t left;
    int32_t right;
    int32_t merged;
  };
  std::vector<int32_t> ids;
  std::vector<const Rule*> rules;
  std::vector<Symbol> symbols;
  std::vector<Candidate> heap;
};

}  // namespace isobit
