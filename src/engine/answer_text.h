#pragma once
// An answer's tokens as text: whole characters, ended by stop strings.
#include <string>
#include <vector>

#include "engine/stop_strings.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"

namespace isobit {

class AnswerText {
 public:
  // keep_end: end-of-generation tokens are text too (ignore_eos).
  AnswerText(const Tokenizer& tokenizer, std::vector<std::string> stops, bool keep_end)
      : tokenizer_(tokenizer),
        detokenizer_(tokenizer, TextPosition::kMiddle),
        stops_(std::move(stops)),
        keep_end_(keep_end) {}

  // What can be shown once the token has come.
  std::string push(int32_t token) {
    if (!keep_end_ && tokenizer_.is_eog(token)) return {};
    return stops_.push(detokenizer_.push(token));
  }
  // The end: what was held back.
  std::string flush() {
    if (stops_.stopped()) return {};
    std::string text = stops_.push(detokenizer_.flush());
    return stops_.stopped() ? text : text + stops_.flush();
  }
  bool stopped() const { return stops_.stopped(); }
  const std::string& matched() const { return stops_.matched(); }

 private:
  const Tokenizer& tokenizer_;
  Detokenizer detokenizer_;
  StopStrings stops_;
  bool keep_end_;
};

}  // namespace isobit
