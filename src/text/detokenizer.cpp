#include "text/detokenizer.h"

#include <string_view>

#include "text/tokenizer.h"

namespace isobit {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, TextPosition position)
    : tokenizer_(tokenizer),
      position_(position),
      strip_space_(position == TextPosition::kStart && tokenizer.has_space_prefix()) {}

std::string Detokenizer::push(int32_t id) {
  std::string_view bytes = tokenizer_.token_bytes(id);
  if (strip_space_ && !bytes.empty()) {
    if (bytes.front() == ' ') bytes.remove_prefix(1);
    strip_space_ = false;
  }
  std::string out;
  sanitizer_.push(bytes, out);
  return out;
}

std::string Detokenizer::flush() {
  std::string out;
  sanitizer_.flush(out);
  strip_space_ = position_ == TextPosition::kStart && tokenizer_.has_space_prefix();
  return out;
}

}  // namespace isobit
