#pragma once
// Tokens to text as they come, never half a character.
#include <cstdint>
#include <string>

#include "text/unicode.h"

namespace isobit {

class Tokenizer;

// Where the tokens begin: at a text's start the space that SentencePiece-style encoding put there is left out.
enum class TextPosition { kStart, kMiddle };

// The pushes and the flush, concatenated, are sanitize_utf8 of the tokens' concatenated bytes (less that first space).
class Detokenizer {
 public:
  // The tokenizer must outlive this. A generation that continues a prompt is at kMiddle.
  explicit Detokenizer(const Tokenizer& tokenizer, TextPosition position = TextPosition::kStart);

  // The characters that token id completes, perhaps none; invalid UTF-8 becomes U+FFFD. kInvalidArgument for an id
  // that is not in the vocabulary.
  std::string push(int32_t id);
  // The end: an incomplete character becomes U+FFFD. Ready for another text in the same position afterwards.
  std::string flush();

 private:
  const Tokenizer& tokenizer_;
  TextPosition position_;
  bool strip_space_;
  Utf8Sanitizer sanitizer_;
};

}  // namespace isobit
