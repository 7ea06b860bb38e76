#pragma once
// Timing of the CUDA operators: a graph of calls over rotated inputs, replayed, median of the repetitions.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace isobit::bench {

// Microseconds a call: the median of the repetitions, and where it was asked for the 95th percentile.
struct Timing {
  double us = 0, p95_us = 0;
  Timing(double median, double p95 = 0) : us(median), p95_us(p95) {}
};

struct Case {
  std::string op, name;  // as in the goals: "gemm_bf16", "m1-4096x4096"
  double floor_us = 0;   // max(flops / 790 TFLOP/s, bytes / 4.3 TB/s)
  std::function<Timing()> run;
};

// Files add their cases here before main runs.
std::vector<Case>& cases();
struct AddCases {
  explicit AddCases(void (*add)(std::vector<Case>&)) { add(cases()); }
};

double floor_us(double flops, double bytes);

// How long a graph is replayed. The clocks rise over milliseconds, so that short kernels are replayed for 20 ms before
// the first reading and read for as long again; under large GEMMs they fall within a tenth of a second, so that these
// are read 15 times after two replays, as the peers are (bench/peers).
enum class Replays { kUntilClocksRise, kBeforeClocksFall };

// One call of `call(i, stream)` for i in [0, calls), captured as one graph, warmed up, replayed.
Timing graph_timing(int calls, const std::function<void(int, cudaStream_t)>& call, int repetitions = 15,
                    Replays replays = Replays::kUntilClocksRise);
// Its median.
double graph_us(int calls, const std::function<void(int, cudaStream_t)>& call, int repetitions = 15,
                Replays replays = Replays::kUntilClocksRise);

// Device memory that frees itself, filled with normally distributed bf16 (or f16 with the same bits' layout) values.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes);
  ~DeviceBuffer();
  DeviceBuffer(DeviceBuffer&& other) noexcept : data_(other.data_), bytes_(other.bytes_) { other.data_ = nullptr; }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  template <typename T = void>
  T* data() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }
  void fill_random_bf16(uint64_t seed);  // uniform in (-1, 1)
  void poison();

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Sets of inputs to rotate over, so that `bytes` of one call are never found in the L2: at least 2, about 400 MB in
// all.
int rotated_copies(size_t bytes);

}  // namespace isobit::bench
