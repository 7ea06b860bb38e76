// A vocabulary and a text of any bytes: an error, or ids in range whose detokenization ends, never a crash or a hang.
//
// The input is lines: "bpe PRE" or "spm"; tokens, one a line, the first byte their type (' ' normal, '?' unknown, '!'
// control, '+' user-defined, '-' unused, '%' byte); an empty line; merges (BPE), one a line; an empty line; the text.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace {

using isobit::TokenizerKind;
using isobit::TokenizerSpec;
using isobit::TokenType;

std::string_view take_line(std::string_view& rest) {
  const size_t end = rest.find('\n');
  const std::string_view line = rest.substr(0, end);
  rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
  return line;
}

TokenType type_of(char mark) {
  constexpr std::string_view kMarks = " ?!+-%";
  const size_t at = kMarks.find(mark);
  return static_cast<TokenType>(at == std::string_view::npos ? 1 : at + 1);
}

TokenizerSpec read_spec(std::string_view& rest) {
  TokenizerSpec spec;
  const std::string_view first = take_line(rest);
  spec.kind = first.starts_with("spm") ? TokenizerKind::kSpm : TokenizerKind::kBpe;
  if (first.size() > 4) spec.pre = first.substr(4);
  for (auto line = take_line(rest); !line.empty(); line = take_line(rest)) {
    const auto id = static_cast<int32_t>(spec.tokens.size());
    spec.types.push_back(type_of(line[0]));
    spec.tokens.emplace_back(line.substr(1));
    if (spec.types.back() == TokenType::kUnknown) spec.unknown_id = id;
    if (spec.types.back() == TokenType::kControl) (spec.bos_id ? spec.eos_id : spec.bos_id) = id;
    if (spec.kind == TokenizerKind::kSpm) spec.scores.push_back(-static_cast<float>(line.size() * 7 % 5));
  }
  spec.remove_extra_whitespaces = spec.kind == TokenizerKind::kSpm && first.ends_with("trim");
  if (spec.kind == TokenizerKind::kBpe) {
    for (auto line = take_line(rest); !line.empty(); line = take_line(rest)) spec.merges.emplace_back(line);
  }
  return spec;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  try {
    const auto tokenizer = isobit::Tokenizer::create(read_spec(rest));
    for (const bool special : {false, true}) {
      const std::vector<int32_t> ids = tokenizer->encode(rest, {.add_special = special, .parse_special = special});
      isobit::Detokenizer streamed(*tokenizer);
      std::string text;
      for (const int32_t id : ids) {
        if (id < 0 || id >= tokenizer->vocab_size()) std::abort();
        text += streamed.push(id);
      }
      text += streamed.flush();
      if (text != tokenizer->decode(ids)) std::abort();
    }
  } catch (const isobit::Error&) {  // a vocabulary that contradicts itself
  }
  return 0;
}
