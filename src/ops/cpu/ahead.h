#pragma once
// Memory to be asked for little by little: of many requests in a row most are dropped (seen: of 256 more than half).
#include <cstddef>
#include <vector>

namespace isobit::cpu {

class Ahead {
 public:
  // The requests will be made in `calls` calls of go().
  void begin(size_t calls) {
    runs_.clear();
    lines_ = at_ = offset_ = 0;
    calls_ = calls;
  }
  void add(const char* from, size_t bytes) {
    runs_.push_back({from, bytes});
    lines_ += bytes / kLine + 1;
  }
  void go() {
    for (size_t n = lines_ / calls_ + 1; n > 0 && at_ < runs_.size(); n--) {
      __builtin_prefetch(runs_[at_].from + offset_);
      offset_ += kLine;
      if (offset_ < runs_[at_].bytes) continue;
      at_++;
      offset_ = 0;
    }
  }

 private:
  static constexpr size_t kLine = 64;
  struct Run {
    const char* from;
    size_t bytes;
  };
  std::vector<Run> runs_;
  size_t lines_ = 0, calls_ = 1, at_ = 0, offset_ = 0;
};

}  // namespace isobit::cpu
