// Rows `sampling`: 151936 logits of N(0, 3²), settings in slots, one launch; the cases "call" are what an engine's step
// does for it, host side included. Rows `topk_per_row`: 129280 of the same.
#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <vector>

#include "gpu_bench.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device.h"
#include "ops/cuda/kernels.h"

namespace isobit::bench {
namespace {

constexpr int64_t kVocab = 151936;

struct Setting {
  const char* name;
  SamplingParams params;
  bool penalties = false;
};

std::vector<Setting> settings() {
  SamplingParams plain;
  plain.temperature = 0.8f;
  const auto with = [&](auto&& change) {
    SamplingParams p = plain;
    change(p);
    return p;
  };
  return {{"no-filter", plain},
          {"topk-topp", with([](SamplingParams& p) { p.top_k = 40, p.top_p = 0.95f; })},
          {"topk-topp-minp-penalties", with([](SamplingParams& p) {
             p.top_k = 40, p.top_p = 0.95f, p.min_p = 0.05f;
             p.repetition_penalty = 1.1f, p.presence_penalty = 0.2f, p.frequency_penalty = 0.1f;
             for (int i = 0; i < 20; i++) p.logit_bias.emplace_back(i * 7001, 2.0f);
           }),
           true},
          {"greedy", with([](SamplingParams& p) { p.temperature = 0.0f; })},
          {"topp", with([](SamplingParams& p) { p.top_p = 0.95f; })},
          {"logprobs20", with([](SamplingParams& p) { p.temperature = 0.0f, p.top_logprobs = 20; })},
          {"minp", with([](SamplingParams& p) { p.min_p = 0.05f; })},
          {"topk1000", with([](SamplingParams& p) { p.top_k = 1000; })}};
}

std::vector<float> normal_logits(size_t count) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 3.0f);
  std::vector<float> v(count);
  for (float& x : v) x = normal(random);
  return v;
}

// Of one long random sequence each copy starts elsewhere.
void fill_normal(DeviceBuffer& b, size_t at) {
  static const std::vector<float> values = normal_logits(size_t{1} << 22);
  for (size_t done = 0; done < b.bytes() / 4;) {
    const size_t n = std::min(values.size() - at % values.size(), b.bytes() / 4 - done);
    cuda::check(cudaMemcpy(b.data<float>() + done, &values[at % values.size()], n * 4, cudaMemcpyHostToDevice),
                "logits");
    done += n, at += n + 1;
  }
}

class SamplingBench {
 public:
  SamplingBench(int rows, const Setting& setting, int64_t vocab)
      : rows_(rows), vocab_(vocab), slots_memory_(Bytes(rows)), positions_(Bytes(rows)), outputs_(Bytes(rows) * 44) {
    std::vector<int32_t> ids(static_cast<size_t>(rows));
    slots_ = cuda::make_sampler_slots(rows, vocab, context(nullptr));
    std::vector<int32_t> prompt;
    for (int i = 0; i < 1000 && setting.penalties; i++) prompt.push_back(i * 151);
    for (int i = 0; i < rows; i++) {
      SamplingParams p = setting.params;
      p.seed = static_cast<uint64_t>(i) * 7919 + 1;
      slots_->assign(i, p, prompt);
      ids[static_cast<size_t>(i)] = i;
    }
    cuda::check(cudaMemcpy(slots_memory_.data(), ids.data(), Bytes(rows), cudaMemcpyHostToDevice), "slots");
    cuda::check(cudaMemcpy(positions_.data(), ids.data(), Bytes(rows), cudaMemcpyHostToDevice), "positions");
    const size_t bytes = Bytes(rows) * static_cast<size_t>(vocab);
    for (int i = 0; i < rotated_copies(bytes); i++) {
      fill_normal(logits_.emplace_back(bytes), static_cast<size_t>(i) * 104729);
    }
  }

  Timing run() {
    return graph_timing(static_cast<int>(logits_.size()),
                        [&](int i, cudaStream_t stream) { launch_sample(*slots_, args(i), context(stream)); });
  }

  // From slots and positions on the host to tokens and statuses there: uploads, the step's graph, the download.
  Timing run_call() {
    constexpr size_t kWarm = 40, kRead = 400;
    const std::unique_ptr<Backend> backend = make_cuda_backend({});
    std::vector<int32_t> ids(static_cast<size_t>(rows_)), positions(ids), tokens(ids), status(ids);
    for (size_t i = 0; i < ids.size(); i++) ids[i] = positions[i] = static_cast<int32_t>(i);
    const Upload uploads[] = {{slots_memory_.data(), ids.data(), Bytes(rows_)},
                              {positions_.data(), positions.data(), Bytes(rows_)}};
    const Download downloads[] = {{tokens.data(), outputs_.data(), Bytes(rows_)},
                                  {status.data(), outputs_.data<int32_t>() + rows_, Bytes(rows_)}};
    std::vector<double> times;
    for (size_t n = 0; n < kWarm + kRead; n++) {
      const size_t copy = n % logits_.size();
      StepKey key;
      key.logit_rows = rows_;
      key.variant = static_cast<uint32_t>(copy);  // its own logits
      for (int32_t& p : positions) p++;
      backend->synchronize();
      const auto begin = std::chrono::steady_clock::now();
      backend->upload_all(uploads);
      backend->run_step(key, [&] { backend->sample(*slots_, args(static_cast<int>(copy))); });
      backend->download_later(downloads)();
      const std::chrono::duration<double, std::micro> us = std::chrono::steady_clock::now() - begin;
      if (n >= kWarm) times.push_back(us.count());
    }
    std::sort(times.begin(), times.end());
    return {times[times.size() / 2], times[times.size() * 19 / 20]};
  }

 private:
  SampleArgs args(int copy) const {
    SampleArgs a;
    a.logits = logits_[static_cast<size_t>(copy)].data<float>();
    a.slots = slots_memory_.data<int32_t>(), a.positions = positions_.data<int32_t>();
    a.rows = rows_, a.vocab = vocab_;
    auto* out = outputs_.data<int32_t>();
    a.tokens = out, a.status = out + rows_, a.top_ids = out + 4 * rows_;
    a.logprobs = outputs_.data<float>() + 2 * rows_, a.top_logprobs = outputs_.data<float>() + 24 * rows_;
    return a;
  }
  static size_t Bytes(int rows) { return static_cast<size_t>(rows) * 4; }
  static cuda::KernelContext context(cudaStream_t stream) {
    cuda::KernelContext c;
    c.stream = stream;
    c.sm_count = 132;
    return c;
  }

  int rows_;
  int64_t vocab_;
  std::unique_ptr<SamplerSlots> slots_;
  DeviceBuffer slots_memory_, positions_, outputs_;
  std::vector<DeviceBuffer> logits_;
};

Timing run_topk(int64_t rows) {
  constexpr int64_t kLength = 129280;
  constexpr int32_t kCount = 1024;
  const size_t bytes = static_cast<size_t>(rows * kLength) * 4;
  std::vector<DeviceBuffer> logits;
  for (int i = 0; i < rotated_copies(bytes); i++)
    fill_normal(logits.emplace_back(bytes), static_cast<size_t>(i) * 104729);
  const DeviceBuffer out(static_cast<size_t>(rows) * kCount * 4), status(static_cast<size_t>(rows) * 4);
  return graph_timing(static_cast<int>(logits.size()), [&](int i, cudaStream_t stream) {
    TopkPerRowArgs a;
    a.logits = logits[static_cast<size_t>(i)].data<float>();
    a.rows = rows, a.stride = kLength, a.k = kCount;
    a.out = out.data<int32_t>(), a.status = status.data<int32_t>();
    cuda::KernelContext c;
    c.stream = stream;
    c.sm_count = 132;
    launch_topk_per_row(a, c);
  });
}

void add(std::vector<Case>& cases) {
  for (const int rows : {1, 32, 64, 2048}) {
    cases.push_back({"topk_per_row", "n129280-k1024-r" + std::to_string(rows), floor_us(0, 4.0 * rows * 129280),
                     [rows] { return run_topk(rows); }});
  }
  for (const Setting& s : settings()) {
    for (const int rows : {1, 8, 32, 128}) {
      cases.push_back({"sampling", std::string(s.name) + "-b" + std::to_string(rows), floor_us(0, 4.0 * rows * kVocab),
                       [s, rows] { return SamplingBench(rows, s, kVocab).run(); }});
    }
  }
  for (const Setting& s : settings()) {
    const std::string name = s.name;
    if (name != "no-filter" && name != "topk-topp" && name != "minp") continue;
    for (const int64_t vocab : {int64_t{32768}, int64_t{128256}}) {
      for (const int rows : {1, 32}) {
        cases.push_back({"sampling", name + "-v" + std::to_string(vocab) + "-b" + std::to_string(rows),
                         floor_us(0, 4.0 * rows * static_cast<double>(vocab)),
                         [s, rows, vocab] { return SamplingBench(rows, s, vocab).run(); }});
      }
    }
    for (const int rows : {1, 8, 32, 128}) {
      cases.push_back({"sampling", name + "-call-b" + std::to_string(rows), floor_us(0, 4.0 * rows * kVocab),
                       [s, rows] { return SamplingBench(rows, s, kVocab).run_call(); }});
    }
  }
}

const AddCases kAdded(add);

}  // namespace
}  // namespace isobit::bench
