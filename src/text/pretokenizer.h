#pragma once
// Pre-splitting of text for byte-level BPE: the pieces within which merges happen. The patterns are those of the
// models' own tokenizer.json files, run by PCRE2 with UTF and UCP; letters, numbers and white space are Unicode 16's.
#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

namespace isobit {

// What a pre-tokenizer name of `tokenizer.ggml.pre` stands for.
struct PreTokenizerFamily {
  std::vector<std::string_view> names;  // the first is the family's own
  std::string_view pattern;
  bool ignore_merges = false;  // a piece that is a token is that token, whatever its merges give
  bool normalize_nfc = false;  // the model's tokenizer.json normalizes to NFC first
  bool add_bos = false;        // when the file does not say
  std::string_view published;  // the pattern as tokenizer.json files have it; "": they spell it otherwise
};

// kUnsupported, with the list of supported names, for a name not known.
const PreTokenizerFamily& find_pretokenizer(std::string_view name);

// The family whose published pattern this is, or null.
const PreTokenizerFamily* find_pretokenizer_by_pattern(std::string_view published);

// A compiled pattern. Const and safe to share between threads.
class PreTokenizer {
 public:
  explicit PreTokenizer(const PreTokenizerFamily& family);
  ~PreTokenizer();
  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;

  // Replaces `ends` by the end offset of each piece, in order; the pieces cover text and none is empty. text must be
  // well-formed UTF-8 (sanitize_utf8 it first; PCRE2's own check is off).
  void split(std::string_view text, std::vector<size_t>& ends) const;

 private:
  struct Code;
  std::unique_ptr<Code> code_;
};

}  // namespace isobit
