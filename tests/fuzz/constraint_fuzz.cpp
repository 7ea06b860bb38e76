// Any bytes as a constraint: an error that says what is wrong with it, or a mask that some tokens pass, within the time
// that libFuzzer allows an input (-timeout=10). The first byte says what kind of constraint.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/error.h"
#include "grammar/grammar.h"
#include "text/tokenizer.h"

namespace {

constexpr int kBytes = 256;  // tokens 0 to 255; then the end

std::unique_ptr<isobit::Tokenizer> make_tokenizer() {
  isobit::TokenizerSpec spec;
  spec.kind = isobit::TokenizerKind::kSpm;
  for (int i = 0; i < kBytes; i++) {
    spec.tokens.push_back(fmt::format("<0x{:02X}>", i));
    spec.types.push_back(isobit::TokenType::kByte);
  }
  spec.tokens.emplace_back("</s>");
  spec.types.push_back(isobit::TokenType::kControl);
  spec.scores.assign(spec.tokens.size(), 0.0f);
  spec.eos_id = kBytes;
  spec.add_bos = false;
  spec.add_space_prefix = false;
  return isobit::Tokenizer::create(spec);
}

isobit::GrammarCompiler& compiler() {
  static const std::unique_ptr<isobit::Tokenizer> tokenizer = make_tokenizer();
  static isobit::GrammarCompiler made(*tokenizer, std::vector<int32_t>{kBytes});
  return made;
}

int32_t first_allowed(isobit::TokenMask& mask) {
  std::vector<uint32_t> bits(kBytes / 32 + 1);
  mask.fill(bits);
  for (int32_t id = 0; id <= kBytes; id++) {
    if (((bits[static_cast<std::size_t>(id) / 32] >> (id % 32)) & 1) != 0) return id;
  }
  return -1;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const auto kind = static_cast<isobit::Constraint::Kind>(data[0] % 5);
  try {
    const auto grammar = compiler().compile({kind, std::string(reinterpret_cast<const char*>(data) + 1, size - 1)});
    const auto mask = grammar->start();
    for (int i = 0; i < 20 && !mask->finished(); i++) {
      const int32_t token = first_allowed(*mask);
      if (token < 0) break;  // a grammar can lead nowhere
      if (!mask->accept(token)) std::abort();
    }
  } catch (const isobit::Error& e) {
    if (e.code() != isobit::ErrorCode::kInvalidArgument) std::abort();
  }
  return 0;
}
