#include "text/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>

#include "base/error.h"

namespace isobit {

namespace {

// The published patterns, each run possessive where the pattern allows no shorter match anyway, and the classes \s,
// \p{L} and \p{N} always within brackets so that expand_classes() can spell them out.
// GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
constexpr std::string_view kGpt2 =
    R"('(?:[stmd]|re|ve|ll)| ?[\p{L}]++| ?[\p{N}]++| ?[^\s\p{L}\p{N}]++|[\s]+(?![^\s])|[\s])";
// Digits one by one, then GPT-2 within what lies between them, as one pattern: a digit ends the text for \s+(?!\S).
constexpr std::string_view kSmollm =
    R"('(?:[stmd]|re|ve|ll)| ?[\p{L}]++|[\p{N}]| ?[^\s\p{L}\p{N}]++|[\s]+(?![^\s\p{N}])|[\s])";
// Llama-3: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
// \s+(?!\S)|\s+
constexpr std::string_view kLlama3 =
    R"((?i:'(?:[stmd]|re|ve|ll))|[^\r\n\p{L}\p{N}]?[\p{L}]++|[\p{N}]{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|)"
    R"([\s]*[\r\n]++|[\s]+(?![^\s])|[\s])";
// Qwen2: Llama-3's with \p{N} for \p{N}{1,3}.
constexpr std::string_view kQwen2 =
    R"((?i:'(?:[stmd]|re|ve|ll))|[^\r\n\p{L}\p{N}]?[\p{L}]++|[\p{N}]| ?[^\s\p{L}\p{N}]++[\r\n]*+|)"
    R"([\s]*[\r\n]++|[\s]+(?![^\s])|[\s])";

constexpr std::string_view kLlama3Published =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2Published =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// Letters and numbers added in Unicode 15 to 16: HF's tokenizers (0.23) know them, Debian 12's PCRE2 (Unicode 14) does
// not, and a text must not change its tokens with the machine's PCRE2.
constexpr std::string_view kNewLetters =
    R"(\x{1C89}-\x{1C8A}\x{A7CB}-\x{A7CD}\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}\x{10D4A}-\x{10D65})"
    R"(\x{10D6F}-\x{10D85}\x{10EC2}-\x{10EC4}\x{1123F}-\x{11240}\x{11380}-\x{11389}\x{1138B}\x{1138E})"
    R"(\x{11390}-\x{113B5}\x{113B7}\x{113D1}\x{113D3}\x{11BC0}-\x{11BE0}\x{11F02}\x{11F04}-\x{11F10})"
    R"(\x{11F12}-\x{11F33}\x{1342F}\x{13441}-\x{13446}\x{13460}-\x{143FA}\x{16100}-\x{1611D})"
    R"(\x{16D40}-\x{16D6C}\x{18CFF}\x{1B132}\x{1B155}\x{1DF25}-\x{1DF2A}\x{1E030}-\x{1E06D})"
    R"(\x{1E4D0}-\x{1E4EB}\x{1E5D0}-\x{1E5ED}\x{1E5F0}\x{2B739}\x{2EBF0}-\x{2EE5D}\x{31350}-\x{323AF})";
constexpr std::string_view kNewNumbers =
    R"(\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{11F50}-\x{11F59}\x{16130}-\x{16139})"
    R"(\x{16D70}-\x{16D79}\x{1CCF0}-\x{1CCF9}\x{1D2C0}-\x{1D2D3}\x{1E4F0}-\x{1E4F9}\x{1E5F1}-\x{1E5FA})";

std::string expand_classes(std::string_view pattern) {
  std::string out;
  while (!pattern.empty()) {
    if (pattern.starts_with(R"(\s)")) {  // Unicode's White_Space; PCRE2's own \s also takes U+180E
      out += R"(\t-\r\x{85}\p{Z})";
      pattern.remove_prefix(2);
    } else if (pattern.starts_with(R"(\p{L})") || pattern.starts_with(R"(\p{N})")) {
      out.append(pattern.substr(0, 5)).append(pattern[3] == 'L' ? kNewLetters : kNewNumbers);
      pattern.remove_prefix(5);
    } else {
      out += pattern.front();
      pattern.remove_prefix(1);
    }
  }
  return out;
}

const std::array<PreTokenizerFamily, 5>& families() {
  static const std::array<PreTokenizerFamily, 5> kFamilies = {{
      {{"gpt-2", "gpt2", "phi-2", "olmo", "exaone4"}, kGpt2, false, false, false},
      {{"smollm", "starcoder", "refact", "codeshell"}, kSmollm, false, false, false},
      {{"llama-bpe", "llama3", "llama-v3"}, kLlama3, true, false, true, kLlama3Published},
      {{"smaug-bpe", "dbrx"}, kLlama3, false, false, false},
      {{"qwen2", "deepseek-r1-qwen", "megrez"}, kQwen2, false, true, false, kQwen2Published},
  }};
  return kFamilies;
}

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> text{};
  pcre2_get_error_message(code, text.data(), text.size());
  return reinterpret_cast<const char*>(text.data());
}

struct MatchDataFree {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

}  // namespace

const PreTokenizerFamily& find_pretokenizer(std::string_view name) {
  std::string known;
  for (const PreTokenizerFamily& family : families()) {
    for (const std::string_view candidate : family.names) {
      if (candidate == name) return family;
      if (!known.empty()) known += ", ";
      known += candidate;
    }
  }
  throw fail(ErrorCode::kUnsupported, "tokenizer.ggml.pre: unknown pre-tokenizer '{}'; supported are {}", name, known);
}

const PreTokenizerFamily* find_pretokenizer_by_pattern(std::string_view published) {
  for (const PreTokenizerFamily& family : families()) {
    if (!family.published.empty() && family.published == published) return &family;
  }
  return nullptr;
}

struct PreTokenizer::Code {
  pcre2_code* pattern = nullptr;
  pcre2_match_context* limits = nullptr;

  Code() = default;
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
  ~Code() {
    pcre2_match_context_free(limits);
    pcre2_code_free(pattern);
  }
};

PreTokenizer::PreTokenizer(const PreTokenizerFamily& family) : code_(std::make_unique<Code>()) {
  int error = 0;
  PCRE2_SIZE where = 0;
  const std::string pattern = expand_classes(family.pattern);
  code_->pattern = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF | PCRE2_UCP,
                                 &error, &where, nullptr);
  if (code_->pattern == nullptr) {
    throw fail(ErrorCode::kInternal, "pre-tokenizer '{}': PCRE2 does not take its pattern at offset {}: {}",
               family.names.front(), where, pcre2_message(error));
  }
  // Without JIT (not built in, or no executable memory allowed) the interpreter gives the same pieces, more slowly.
  pcre2_jit_compile(code_->pattern, PCRE2_JIT_COMPLETE);
  code_->limits = pcre2_match_context_create(nullptr);
  if (code_->limits == nullptr) throw fail(ErrorCode::kOutOfMemory, "pre-tokenizer: no memory for a match context");
  // The patterns are ours and linear in a piece's length; only the text's length would reach these limits.
  pcre2_set_match_limit(code_->limits, UINT32_MAX);
  pcre2_set_heap_limit(code_->limits, UINT32_MAX);
}

PreTokenizer::~PreTokenizer() = default;

void PreTokenizer::split(std::string_view text, std::vector<size_t>& ends) const {
  ends.clear();
  const std::unique_ptr<pcre2_match_data, MatchDataFree> match(pcre2_match_data_create(1, nullptr));
  if (match == nullptr) throw fail(ErrorCode::kOutOfMemory, "pre-tokenizer: no memory for a match");
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
  const auto* bytes = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t pos = 0;
  while (pos < text.size()) {
    // Every character begins some alternative, so a match always starts at pos.
    const int rc = pcre2_match(code_->pattern, bytes, text.size(), pos, PCRE2_NO_UTF_CHECK, match.get(), code_->limits);
    if (rc < 0 || range[0] != pos || range[1] <= pos) {
      throw fail(ErrorCode::kInternal, "pre-tokenizer: no piece at byte {} of {}: {}", pos, text.size(),
                 rc < 0 ? pcre2_message(rc) : "match elsewhere");
    }
    pos = range[1];
    ends.push_back(pos);
  }
}

}  // namespace isobit
