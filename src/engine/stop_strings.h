#pragma once
// Ends a streamed text at the first stop string, and holds back what could still become one.
#include <string>
#include <string_view>
#include <vector>

namespace isobit {

class StopStrings {
 public:
  explicit StopStrings(std::vector<std::string> stops);

  // Takes new text, returns what can be shown. Once a stop string is complete, stopped() is true and nothing from its
  // first byte on is shown.
  std::string push(std::string_view text);
  // The end of the text: what was held back.
  std::string flush();
  bool stopped() const { return stopped_; }
  const std::string& matched() const { return matched_; }  // the stop string; "" until stopped()

 private:
  std::vector<std::string> stops_;
  std::string held_, matched_;
  bool stopped_ = false;
};

}  // namespace isobit
