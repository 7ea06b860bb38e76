#include "ops/cpu/gemm.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "ops/cpu/gemm_kernel.h"

namespace isobit::cpu {
namespace {

// Memory that grows and is not cleared.
template <typename T>
class Block {
 public:
  T* at_least(size_t size) {
    if (size > size_) {
      data_ = std::make_unique_for_overwrite<T[]>(size);
      size_ = size;
    }
    return data_.get();
  }

 private:
  std::unique_ptr<T[]> data_;
  size_t size_ = 0;
};

// Kept from call to call by the calling thread: fresh pages for every GEMM would cost more than some GEMMs do.
struct Arena {
  struct Rows {
    Block<float> value;
    Block<uint8_t> below, general;
    Block<uint32_t> pairs, words;

    PreparedRows prepared(int64_t m, int64_t padded) {
      const auto size = static_cast<size_t>(m * padded);
      uint32_t* single_pairs = m == 1 ? pairs.at_least(size / 2) : nullptr;
      uint32_t* single_words = m == 1 ? words.at_least(size) : nullptr;
      return {padded,       value.at_least(size), below.at_least(size),
              single_pairs, single_words,         general.at_least(static_cast<size_t>(m))};
    }
  };
  // Panels [first, second) that a thread has not begun: it takes them from the front, others from the back.
  struct alignas(64) Share {
    std::atomic<uint64_t> range;

    struct Some {
      int64_t first, count;
    };
    void set(int64_t first, int64_t second) { range = pack(first, second); }
    // From the front up to `most` panels, fewer towards the end, where the threads should end together; count 0: none
    // is left.
    Some front(int64_t most) {
      return take([&](Some all) { return Some{all.first, std::min(most, (all.count + 3) / 4)}; });
    }
    Some back() {
      return take([](Some all) { return Some{all.first + all.count - 1, 1}; });
    }

   private:
    static uint64_t pack(int64_t first, int64_t second) {
      return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(second);
    }
    template <typename Choose>
    Some take(Choose choose) {
      uint64_t old = range.load(std::memory_order_relaxed);
      for (;;) {
        const auto first = static_cast<int64_t>(old >> 32), second = static_cast<int64_t>(old & 0xffffffff);
        if (first >= second) return {first, 0};
        const Some some = choose({first, second - first});
        const bool in_front = some.first == first;
        const uint64_t rest = in_front ? pack(first + some.count, second) : pack(first, some.first);
        if (range.compare_exchange_weak(old, rest, std::memory_order_relaxed)) return some;
      }
    }
  };
  struct Thread {
    Rows single;
    GemmScratch scratch;
  };

  Rows rows;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Share> shares;

  void grow(size_t size) {
    if (threads.size() >= size) return;
    threads.resize(size);
    shares = std::vector<Share>(size);
  }
  Thread& own(int thread) {
    auto& t = threads[static_cast<size_t>(thread)];
    if (t == nullptr) t = std::make_unique_for_overwrite<Thread>();
    return *t;
  }
};

void prefetch(const std::byte* p) {
  for (int i = 0; i < 4096; i += 64) __builtin_prefetch(p + i);
}

// One row: the time is that of streaming the weights. Each thread has panels in a row (its memory stream begins cold
// but once) and prepares x itself while the first of them come in; who is done first takes from the others' ends.
void gemm_single(const Cpu& cpu, const GemmArgs& a, const PackedLinear& w, int64_t panels, Arena& arena) {
  const int64_t threads = std::min<int64_t>(cpu.pool.size(), panels);
  for (int64_t t = 0; t < threads; t++) {
    arena.shares[static_cast<size_t>(t)].set(panels * t / threads, panels * (t + 1) / threads);
  }
  const PrepareFn prepare = prepare_row_for(cpu.simd);
  const SingleFn run = gemm_single_for(cpu.simd);
  cpu.pool.parallel_for(threads, [&](int thread, int64_t t) {
    const auto first = static_cast<size_t>(panels * t / threads);
    prefetch(w.panels()[first].data);
    if (w.form() == LinearForm::kGated) prefetch(w.panels()[first + w.panels().size() / 2].data);
    Arena::Thread& own = arena.own(thread);
    const GemmJob job{&a, &w, own.single.prepared(1, w.groups() * kGroup)};
    prepare(job, 0);
    using Some = Arena::Share::Some;
    Arena::Share& mine = arena.shares[static_cast<size_t>(t)];
    for (Some s; (s = mine.front(kSinglePanels)).count > 0;) run(job, s.first, s.count, own.scratch);
    for (int64_t i = 1; i < threads; i++) {
      Arena::Share& other = arena.shares[static_cast<size_t>((t + i) % threads)];
      for (Some s; (s = other.back()).count > 0;) run(job, s.first, s.count, own.scratch);
    }
  });
}

}  // namespace

void gemm(const Cpu& cpu, const GemmArgs& a) {
  if (a.m == 0) return;
  const auto& w = dynamic_cast<const PackedLinear&>(*a.w);
  static thread_local Arena own_arena;
  Arena& arena = own_arena;  // a lambda on another thread would see that thread's
  arena.grow(static_cast<size_t>(cpu.pool.size()));
  const int64_t panels = static_cast<int64_t>(w.panels().size()) / (w.form() == LinearForm::kGated ? 2 : 1);
  if (a.m == 1) return gemm_single(cpu, a, w, panels, arena);
  const GemmJob job{&a, &w, arena.rows.prepared(a.m, w.groups() * kGroup)};
  const PrepareFn prepare = prepare_row_for(cpu.simd);
  const PanelFn panel = gemm_panel_for(cpu.simd);
  cpu.pool.parallel_for((a.m + 7) / 8, [&](int, int64_t i) {
    for (int64_t r = 8 * i; r < std::min(a.m, 8 * i + 8); r++) prepare(job, r);
  });
  const int64_t blocks = (a.m + kRowBlock - 1) / kRowBlock;
  // Two panels' chains at a time share what is done for an activation.
  const int64_t at_once = w.form() == LinearForm::kGated ? 1 : 2, tasks = (panels + at_once - 1) / at_once;
  cpu.pool.parallel_for(blocks * tasks, [&](int thread, int64_t i) {
    const int64_t begin = i / tasks * kRowBlock, first = i % tasks * at_once;
    panel(job, begin, std::min(a.m, begin + kRowBlock), first, std::min(at_once, panels - first),
          arena.own(thread).scratch);
  });
}

}  // namespace isobit::cpu
