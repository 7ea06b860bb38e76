#pragma once
// Text to tokens and back, as the model's own tokenizer does it. Built from what a GGUF file says (tokenizer.ggml.*).
//
// Invalid UTF-8: each maximal ill-formed sequence becomes one U+FFFD before anything else (text/unicode.h). HF's
// tokenizers take no such input; llama.cpp and SentencePiece have rules of their own for it.
//
// Where HF's tokenizers and llama.cpp (0.3.36 of llama-cpp-python) differ, HF is followed:
//  - Qwen2's text is normalized to NFC first (UAX #15 with Unicode 14; HF's older tables order 24 marks otherwise).
//  - A byte without a token is dropped, and its neighbours may then merge.
//  - Special and user-defined tokens match leftmost, then longest.
// SentencePiece-style vocabularies follow the sentencepiece library: unused pieces are taken apart again, user-defined
// ones match in the escaped text, the space prefix is set once before a text and after each special token.
// Not followed: unknown tokens decode to nothing (sentencepiece: " \u2047 "), and with remove_extra_whitespaces only
// one leading space is left out in decoding.
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/tokenizer_matcher.h"

namespace isobit {

class BpeMerger;
class PreTokenizer;
class SpmMerger;

enum class TokenizerKind { kBpe, kSpm };  // tokenizer.ggml.model: gpt2, llama

enum class TokenType : int32_t {  // tokenizer.ggml.token_type
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// Where an SPM text gets a U+2581 put before it, as its file or tokenizer.json wants it.
enum class SpacePrefix {
  kNone,
  kEachPart,          // of the parts between special tokens
  kEachPartWithout,   // where it does not begin with one (Metaspace, "always")
  kFirstPartWithout,  // the same at the text's start alone (Metaspace, "first")
};

// Plain data, filled from a model file. What is absent there stays empty and takes the kind's default.
struct TokenizerSpec {
  TokenizerKind kind = TokenizerKind::kBpe;
  std::string pre;                  // tokenizer.ggml.pre; BPE only
  std::vector<std::string> tokens;  // bytes as in the file: BPE in GPT-2's byte alphabet, SPM with U+2581 for a space
  std::vector<TokenType> types;     // as many as tokens, or empty: all normal
  std::vector<float> scores;        // SPM: as many as tokens
  std::vector<std::string> merges;  // BPE, and SPM as tokenizer.json has it: "left right", best first
  // tokenizer.json: which tokens its model knows and merges may give; empty: the normal ones.
  std::vector<bool> mergeable;
  std::vector<bool> strips_left, strips_right;  // special tokens that swallow the white space beside them; or empty
  std::vector<int32_t> end_ids;                 // end a generation, besides eos, eot and eom
  std::optional<int32_t> bos_id, eos_id, unknown_id, padding_id, eot_id, eom_id;
  std::optional<bool> add_bos;                       // default: SPM and Llama-3 true, else false
  std::optional<bool> add_eos;                       // default: false
  std::optional<bool> add_space_prefix;              // SPM; default: true
  std::optional<SpacePrefix> space_prefix;           // SPM: instead of that
  std::optional<bool> ignore_merges, normalize_nfc;  // BPE; default: as `pre` has it
  bool fuse_unknown = true;                          // SPM: a run of unknown characters is one unknown token
  bool split_before_spaces = false;                  // SPM: no merge crosses the start of a word (Metaspace, "split")
  bool remove_extra_whitespaces = false;             // SPM: strip, and make runs of spaces one
};

struct EncodeOptions {
  bool add_special = true;     // BOS and EOS as the file says
  bool parse_special = false;  // control tokens written out in the text become those tokens; never for user text
};

class Tokenizer {
 public:
  // Throws kUnsupported for an unknown pre-tokenizer (naming the known ones) and kBadFile for a vocabulary that
  // contradicts itself (naming the entry).
  static std::unique_ptr<Tokenizer> create(TokenizerSpec spec);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // Const and safe to call from several threads. User-defined tokens always match: they are the model's words.
  std::vector<int32_t> encode(std::string_view text, const EncodeOptions& options) const;

  // The text of ids, invalid UTF-8 replaced: what a Detokenizer at a text's start gives in all.
  std::string decode(std::span<const int32_t> ids) const;

  int32_t vocab_size() const { return static_cast<int32_t>(spec_.tokens.size()); }
  // The bytes a token adds to a text: "" for control and unknown tokens. Not always whole characters.
  std::string_view token_bytes(int32_t id) const;
  // The token as the file names it.
  const std::string& token_name(int32_t id) const;
  std::optional<int32_t> find(std::string_view name) const;
  bool is_control(int32_t id) const;  // control and unknown tokens
  bool is_eog(int32_t id) const;      // ends a generation: EOS, EOT, EOM, and the well-known names of such tokens

  std::optional<int32_t> bos_id() const { return spec_.bos_id; }
  std::optional<int32_t> eos_id() const { return spec_.eos_id; }
  std::optional<int32_t> padding_id() const { return spec_.padding_id; }
  bool add_bos() const { return add_bos_; }
  bool add_eos() const { return add_eos_; }
  // A text's first space is an artefact of encoding: a Detokenizer at a text's start leaves it out.
  bool has_space_prefix() const { return space_prefix_ != SpacePrefix::kNone; }

 private:
  explicit Tokenizer(TokenizerSpec spec);

  void check_spec() const;
  void resolve_types();
  void build_lookup();
  void build_bytes();
  void build_bpe();
  void build_spm();
  void check_id(int32_t id) const;
  std::string bytes_of(int32_t id) const;
  void encode_bpe(std::string_view text, std::vector<int32_t>& out) const;
  void encode_spm(std::string_view text, bool first, std::vector<int32_t>& out) const;
  void merge_spm(std::string_view escaped, std::vector<int32_t>& out) const;
  std::string_view stripped(std::string_view between, int32_t before, int32_t after) const;

  TokenizerSpec spec_;
  bool add_bos_ = false;
  bool add_eos_ = false;
  SpacePrefix space_prefix_ = SpacePrefix::kNone;
  bool normalize_nfc_ = false;
  std::unordered_map<std::string_view, int32_t> ids_;  // views into spec_.tokens
  std::vector<bool> eog_;
  std::string bytes_;              // of all tokens, one after the other
  std::vector<size_t> bytes_end_;  // of token id: bytes_[bytes_end_[id], bytes_end_[id + 1])
  TokenMatcher in_user_text_;      // user-defined tokens (BPE; in SPM the merger has them)
  TokenMatcher in_special_text_;   // those and control tokens
  std::unique_ptr<PreTokenizer> pretokenizer_;
  std::unique_ptr<BpeMerger> bpe_;
  std::unique_ptr<SpmMerger> spm_;
};

}  // namespace isobit
