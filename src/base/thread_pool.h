#pragma once
// A fixed team of threads for fork-join loops. Which thread computes what never changes a bit of a result.
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace isobit {

class ThreadPool {
 public:
  // threads = 0: one per hardware thread. The calling thread is one of them.
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(thread, index) once for every index in [0, count), in any order, and returns when all are done. `thread`
  // is in [0, size()), so that fn can own scratch memory. The first exception is rethrown here. Not reentrant.
  void parallel_for(int64_t count, const std::function<void(int thread, int64_t index)>& fn);

 private:
  void work(int thread);
  void drain(int thread);

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int, int64_t)>* fn_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int> busy_{0};
  std::exception_ptr error_;
  std::atomic<bool> stop_{false};
};

}  // namespace isobit
