#pragma once
// The thread that steps an Engine while others submit.
#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace isobit {

// Durations counted in buckets; written by one thread, read by any.
class DurationHistogram {
 public:
  // Upper ends in seconds; the last bucket has none.
  static constexpr std::array<double, 16> kEnds = {0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02,
                                                   0.05,   0.1,    0.2,    0.5,   1,     2,     5,    20};

  void add(double seconds);
  int64_t count(size_t bucket) const { return counts_[bucket].load(std::memory_order_relaxed); }
  double sum() const { return sum_.load(std::memory_order_relaxed); }

 private:
  std::array<std::atomic<int64_t>, kEnds.size() + 1> counts_{};
  std::atomic<double> sum_{0};
};

class EngineThread {
 public:
  explicit EngineThread(Engine& engine);
  // Ends what still runs, as cancelled.
  ~EngineThread();
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  // Any thread, as Engine's; callbacks come from the engine's thread. Throws Error(kInternal) once failed().
  RequestId submit(Request request);
  void cancel(RequestId id);
  // Runs between steps, on the engine's thread.
  void post(std::function<void(Engine&)> task);

  Engine& engine() { return engine_; }
  EngineStats stats() const { return engine_.stats(); }
  // What a step threw; every request has ended with it, and no other is taken. Empty: all is well.
  std::string failure() const;
  const DurationHistogram& step_times() const { return step_times_; }

 private:
  void work();
  bool run_tasks();

  Engine& engine_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::function<void(Engine&)>> tasks_;
  bool work_waits_ = false, stop_ = false;
  std::string failure_;
  DurationHistogram step_times_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace isobit
