#include "engine/stop_strings.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace isobit {

StopStrings::StopStrings(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& s : stops_) require(!s.empty(), "a stop string is empty; leave it out");
}

std::string StopStrings::push(std::string_view text) {
  if (stopped_) return {};
  held_ += text;
  // The first to be complete ends the text, whole tokens or single letters; of several, the one that began first.
  size_t first = std::string::npos, end = std::string::npos;
  for (const std::string& s : stops_) {
    const size_t at = held_.find(s);
    if (at == std::string::npos || at + s.size() > end || (at + s.size() == end && at > first)) continue;
    first = at;
    end = at + s.size();
    matched_ = s;
  }
  if (first != std::string::npos) {
    stopped_ = true;
    std::string shown = held_.substr(0, first);
    held_.clear();
    return shown;
  }
  size_t keep = 0;  // longest end of the text that begins a stop string
  for (const std::string& s : stops_) {
    for (size_t n = std::min(s.size() - 1, held_.size()); n > keep; n--) {
      if (held_.ends_with(std::string_view(s).substr(0, n))) keep = n;
    }
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return shown;
}

std::string StopStrings::flush() { return std::exchange(held_, {}); }

}  // namespace isobit
