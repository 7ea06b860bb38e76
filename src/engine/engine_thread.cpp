#include "engine/engine_thread.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "base/error.h"
#include "base/log.h"

namespace isobit {

void DurationHistogram::add(double seconds) {
  const auto bucket = static_cast<size_t>(std::ranges::lower_bound(kEnds, seconds) - kEnds.begin());
  counts_[bucket].fetch_add(1, std::memory_order_relaxed);
  sum_.store(sum_.load(std::memory_order_relaxed) + seconds, std::memory_order_relaxed);
}

EngineThread::EngineThread(Engine& engine) : engine_(engine), thread_([this] { work(); }) {}

EngineThread::~EngineThread() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

RequestId EngineThread::submit(Request request) {
  if (const std::string why = failure(); !why.empty())
    throw fail(ErrorCode::kInternal, "the engine has stopped: {}; restart the server", why);
  const RequestId id = engine_.submit(std::move(request));
  {
    const std::lock_guard lock(mutex_);
    work_waits_ = true;
  }
  wake_.notify_one();
  return id;
}

void EngineThread::cancel(RequestId id) {
  engine_.cancel(id);
  {
    const std::lock_guard lock(mutex_);
    work_waits_ = true;
  }
  wake_.notify_one();
}

void EngineThread::post(std::function<void(Engine&)> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
    work_waits_ = true;
  }
  wake_.notify_one();
}

std::string EngineThread::failure() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

// Waits until there may be work; false to end.
bool EngineThread::run_tasks() {
  std::vector<std::function<void(Engine&)>> tasks;
  {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return stop_ || work_waits_; });
    work_waits_ = false;
    tasks.swap(tasks_);
    if (stop_) return false;
  }
  for (auto& task : tasks) task(engine_);
  return true;
}

void EngineThread::work() {
  while (run_tasks()) {
    try {
      const auto start = std::chrono::steady_clock::now();
      const bool more = engine_.step();
      step_times_.add(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
      if (!more) continue;
      const std::lock_guard lock(mutex_);
      work_waits_ = true;
    } catch (const std::exception& e) {
      spdlog::error("a step of the engine failed: {}", e.what());
      {
        const std::lock_guard lock(mutex_);
        failure_ = e.what();
      }
      engine_.fail_all(e.what());
    }
  }
  engine_.fail_all("the server is shutting down");
}

}  // namespace isobit
