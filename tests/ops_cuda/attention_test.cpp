// Attention on the GPU against rule N10's scalar form, by bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>

#include "ops/cuda/attention_launch.h"
#include "ops_cuda/attention_case.h"
#include "ops_cuda/hold_up.h"

namespace isobit::test {
namespace {

uint64_t seed() {
  static const uint64_t value = [] {
    const char* fixed = std::getenv("ISOBIT_TEST_SEED");
    const uint64_t s = fixed != nullptr ? std::strtoull(fixed, nullptr, 10) : std::random_device{}();
    std::cout << "attention tests: ISOBIT_TEST_SEED=" << s << std::endl;
    return s;
  }();
  return value;
}

int case_count(int usual) {
  const char* text = std::getenv("ISOBIT_ATTENTION_CASES");
  return text != nullptr ? std::atoi(text) : usual;
}

template <typename T>
T pick(std::mt19937_64& random, std::initializer_list<T> of) {
  return of.begin()[random() % of.size()];
}

int log_uniform(std::mt19937_64& random, int low, int high) {
  const double x = std::uniform_real_distribution<double>(std::log(low), std::log(high + 1.0))(random);
  return std::clamp(static_cast<int>(std::exp(x)), low, high);
}

using Launch = void (*)(const AttentionArgs&, const cuda::KernelContext&);

void run(const AttentionCase& c, Launch launch = cuda::launch_attention) {
  launch(c.args(), test_context());
  cuda_ok(cudaDeviceSynchronize(), "attention");
}

void check(const AttentionShape& shape, std::mt19937_64& random, int rows = 8, int64_t budget = 200000,
           Launch launch = cuda::launch_attention) {
  SCOPED_TRACE(shape.describe());
  AttentionCase c(shape, random);
  run(c, launch);
  const auto difference = compare_sampled(c, c.output(), rows, budget, random);
  EXPECT_FALSE(difference.has_value()) << *difference;
}

enum class Regime { kAny, kDecode, kVerify, kPrefill };

AttentionShape random_shape(std::mt19937_64& random, Regime regime) {
  AttentionShape s;
  s.type = random() % 4 == 0 ? DType::kF16 : DType::kBF16;
  s.cache_type = random() % 6 == 0 ? DType::kF8E4M3 : s.type;
  s.head_dim = pick(random, {64, 64, 128, 128, 128, 256, 256, 96, 16, 80, 512});
  const auto [q, kv] = pick<std::pair<int, int>>(random, {{9, 3}, {32, 8}, {8, 4}, {8, 1}, {4, 4}, {40, 2}, {3, 1}});
  s.kv_heads = kv, s.group = q / kv;
  s.page_size = pick(random, {16, 16, 32, 64, 128, 1, 3, 48});
  s.sharpness = pick(random, {1.0f, 0.3f, 4.0f, 30.0f});
  if (random() % 4 == 0) s.soft_cap = pick(random, {5.0f, 30.0f, 50.0f});
  if (random() % 3 == 0) s.window = log_uniform(random, 1, 3000);
  s.sinks = random() % 3 == 0;
  s.mask = random() % 6 == 0;
  if (regime == Regime::kAny) {
    regime = pick(random, {Regime::kDecode, Regime::kDecode, Regime::kVerify, Regime::kPrefill, Regime::kPrefill});
  }
  const int batch = log_uniform(random, 1, regime == Regime::kPrefill ? 6 : 64);
  const int longest = log_uniform(random, 1, s.head_dim > 256 ? 600 : 4096);
  int room = 60000000 / (s.head_dim * s.kv_heads * 4);  // keys in all: bounds the test's memory
  for (int b = 0; b < batch && room > 0; b++) {
    RequestShape r;
    const int total = std::min(room, log_uniform(random, 1, longest));
    const int most = regime == Regime::kDecode ? 1 : regime == Regime::kVerify ? 16 : total;
    r.added = std::min(total, regime == Regime::kPrefill && random() % 2 != 0 ? total : log_uniform(random, 1, most));
    r.prefix = total - r.added;
    r.padding = random() % 16 == 0;
    room -= total;
    s.requests.push_back(r);
  }
  s.tree = regime == Regime::kVerify && random() % 2 != 0;
  s.causal = s.tree || random() % 8 != 0;
  return s;
}

TEST(CudaAttention, RandomCases) {
  std::mt19937_64 random(seed());
  for (int i = 0; i < case_count(150) && !HasFailure(); i++) {
    SCOPED_TRACE(i);
    check(random_shape(random, Regime::kAny), random);
  }
}

// Many small cases; ISOBIT_ATTENTION_SMALL_CASES=100000 is the long run.
TEST(CudaAttention, SmallCases) {
  std::mt19937_64 random(seed() + 5);
  const char* text = std::getenv("ISOBIT_ATTENTION_SMALL_CASES");
  const int count = text != nullptr ? std::atoi(text) : 200;
  for (int i = 0; i < count && !HasFailure(); i++) {
    SCOPED_TRACE(i);
    AttentionShape s = random_shape(random, Regime::kAny);
    s.head_dim = pick(random, {16, 64, 64, 96, 128, 128, 256});
    s.requests.resize(std::min<size_t>(s.requests.size(), 4));
    for (RequestShape& r : s.requests) {
      r.prefix = std::min(r.prefix, log_uniform(random, 1, 200));
      r.added = std::min(r.added, log_uniform(random, 1, 64));
    }
    check(s, random, 4, 4000);
  }
}

// Where the choice between the kernels changes: a batch of like requests, by its size and by their new tokens.
TEST(CudaAttention, BatchesAroundTheChoiceOfKernels) {
  std::mt19937_64 random(seed() + 6);
  for (const int batch : {7, 8, 9}) {
    for (const int added : {1, 4, 16, 17, 512}) {
      AttentionShape s;
      s.head_dim = pick(random, {64, 128, 256});
      s.group = pick(random, {1, 2, 4, 8});
      s.sinks = random() % 2 != 0;
      for (int b = 0; b < batch; b++) s.requests.push_back({log_uniform(random, 1, 700) - 1, added});
      check(s, random, 6, 40000);
    }
  }
}

TEST(CudaAttention, OneLongChunkAmongDecodes) {
  std::mt19937_64 random(seed() + 7);
  for (const int head_dim : {64, 128, 256}) {
    AttentionShape s;
    s.head_dim = head_dim;
    s.group = 4;
    for (int b = 0; b < 32; b++) s.requests.push_back({log_uniform(random, 1, 1500) - 1, 1});
    s.requests[random() % 32] = {log_uniform(random, 1, 3000) - 1, 600};
    check(s, random, 40, 200000);
    s.cache_type = DType::kF8E4M3;
    check(s, random, 40, 200000);
  }
}

// Workspaces with room for all requests, for one, and for some heads of one.
TEST(CudaAttention, PrefillOverFp8InParts) {
  std::mt19937_64 random(seed() + 10);
  for (const int head_dim : {64, 128, 256}) {
    AttentionShape s;
    s.head_dim = head_dim, s.cache_type = DType::kF8E4M3;
    s.kv_heads = 5, s.group = 2;
    s.sinks = true;
    s.requests = {{700, 200}, {90, 1}, {2000, 300}, {0, 64}, {5, 33}, {1000, 1}};
    SCOPED_TRACE(s.describe());
    AttentionCase c(s, random);
    for (const int megabytes : {64, 32, 10, 6}) {
      cuda::KernelContext context = test_context();
      context.workspace_bytes = size_t(megabytes) << 20;
      c.poison();
      cuda::launch_attention(c.args(), context);
      cuda_ok(cudaDeviceSynchronize(), "attention");
      const auto difference = compare_sampled(c, c.output(), 12, 20000, random);
      EXPECT_FALSE(difference.has_value()) << megabytes << ": " << *difference;
    }
  }
}

void launch_generic(const AttentionArgs& args, const cuda::KernelContext& context) {
  cuda::launch_attention_generic(args, context);
}

// The kernel that takes everything, whatever the plan would have chosen.
TEST(CudaAttention, Generic) {
  std::mt19937_64 random(seed() + 1);
  for (int i = 0; i < case_count(60) && !HasFailure(); i++) {
    SCOPED_TRACE(i);
    check(random_shape(random, Regime::kAny), random, 6, 100000, launch_generic);
  }
}

TEST(CudaAttention, SuperBlocksAndEdges) {
  std::mt19937_64 random(seed() + 2);
  for (const int length : {1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049, 4096, 4097, 6200}) {
    for (const int head_dim : {64, 128, 256}) {
      AttentionShape s;
      s.head_dim = head_dim;
      s.kv_heads = 2, s.group = pick(random, {1, 2, 4});
      s.page_size = pick(random, {16, 64});
      s.requests = {{length - 1, 1}, {0, std::min(length, 700)}, {length, 33}};
      check(s, random, 6, 50000);
      s.cache_type = DType::kF8E4M3;
      s.requests = {{length - 1, 1}, {length, 3}};
      check(s, random, 6, 20000);
    }
  }
}

TEST(CudaAttention, WindowsAtTheirEdges) {
  std::mt19937_64 random(seed() + 3);
  for (const int window : {1, 2, 63, 64, 65, 127, 128, 129, 1024, 2048}) {
    for (const int head_dim : {64, 128, 256}) {
      AttentionShape s;
      s.head_dim = head_dim;
      s.kv_heads = 2, s.group = 2;
      s.window = window;
      s.sinks = random() % 2 != 0;
      for (const int length : {window - 1, window, window + 1, 2 * window + 77, 2500}) {
        if (length > 0) s.requests.push_back({length - 1, 1});
      }
      check(s, random);
      s.requests = {{0, window + 70}, {window, 40}, {2 * window + 50, 20}};
      check(s, random);
      s.requests = {{window, 7}, {window - 1, 5}, {2600, 16}};
      s.tree = true;
      check(s, random);
    }
  }
}

// A stream with what launches on it need for themselves.
class Lane {
 public:
  Lane() {
    cuda_ok(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream");
    cuda_ok(cudaMemset(counters_.as<void>(), 0, counters_.bytes()), "counters");
  }
  ~Lane() { cudaStreamDestroy(stream_); }
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  cudaStream_t stream() const { return stream_; }
  cuda::KernelContext context() const {
    cuda::KernelContext c = test_context();
    c.stream = stream_;
    c.workspace = workspace_.as<void>(), c.workspace_bytes = workspace_.bytes();
    c.counters = counters_.as<uint32_t>();
    return c;
  }

 private:
  cudaStream_t stream_ = nullptr;
  DeviceBytes counters_{cuda::kCounters * sizeof(uint32_t)}, workspace_{size_t{32} << 20};
};

// Many units of several phases each while one of an SM's schedulers is busy, so that of a CTA's warps one falls far
// behind: where they do not wait for each other between phases, launches differ from the first.
TEST(CudaAttention, RepeatedLaunchesAgree) {
  std::mt19937_64 random(seed() + 9);
  constexpr int kSequences = 24, kLaunches = 16, kRounds = 8;
  constexpr int64_t kCycles = 3000000;  // more than the launches of a round take undisturbed
  const Lane lane, other;
  for (const auto& [head_dim, cache_type] : {std::pair{64, DType::kBF16}, {128, DType::kBF16}, {64, DType::kF8E4M3}}) {
    AttentionShape s;
    s.head_dim = head_dim, s.cache_type = cache_type;
    s.kv_heads = 3, s.group = pick(random, {1, 4, 8});
    for (int b = 0; b < kSequences; b++) s.requests.push_back({520 + static_cast<int>(random() % 300), 1});
    SCOPED_TRACE(s.describe());
    AttentionCase c(s, random);
    run(c);
    const std::vector<uint16_t> first = c.output();
    const auto difference = compare_sampled(c, first, 8, 50000, random);
    ASSERT_FALSE(difference.has_value()) << *difference;
    const size_t bytes = first.size() * sizeof(uint16_t);
    const DeviceBytes outputs(bytes * kLaunches);
    std::vector<uint16_t> got(first.size() * kLaunches);
    int different = 0;
    for (int round = 0; round < kRounds; round++) {
      cuda_ok(cudaMemset(outputs.as<void>(), 0xff, outputs.bytes()), "poison");
      cuda_ok(cudaDeviceSynchronize(), "poison");
      hold_up(round % 4, kCycles, test_context().sm_count, other.stream());
      for (int i = 0; i < kLaunches; i++) {
        AttentionArgs a = c.args();
        a.out = outputs.as<uint16_t>() + first.size() * static_cast<size_t>(i);
        cuda::launch_attention(a, lane.context());
      }
      cuda_ok(cudaDeviceSynchronize(), "attention");
      cuda_ok(cudaMemcpy(got.data(), outputs.as<void>(), outputs.bytes(), cudaMemcpyDeviceToHost), "download");
      for (int i = 0; i < kLaunches; i++) {
        different += std::memcmp(first.data(), got.data() + first.size() * static_cast<size_t>(i), bytes) != 0 ? 1 : 0;
      }
    }
    EXPECT_EQ(different, 0) << "of " << kLaunches * kRounds << " launches";
  }
}

// 131072 keys: decode and a chunk, sampled rows.
TEST(CudaAttention, LongestContext) {
  std::mt19937_64 random(seed() + 8);
  for (const int head_dim : {64, 128}) {
    AttentionShape s;
    s.head_dim = head_dim;
    s.group = 4;
    s.sinks = random() % 2 != 0;
    s.requests = {{131071, 1}};
    check(s, random, 2, 1000000);
    s.requests = {{131072 - 300, 300}};
    check(s, random, 2, 1000000);
  }
}

// One sequence as a whole, as chunks of any sizes and token by token (each token a request over the same pages): every
// byte of every row.
TEST(CudaAttention, PrefillChunksAndDecodeAgree) {
  std::mt19937_64 random(seed() + 4);
  for (int round = 0; round < 10; round++) {
    AttentionShape s;
    s.head_dim = pick(random, {64, 96, 128, 256});
    s.kv_heads = 2, s.group = pick(random, {1, 3, 4, 8});
    s.page_size = pick(random, {16, 32, 128, 5});
    s.sharpness = pick(random, {1.0f, 10.0f});
    if (random() % 2 != 0) s.window = log_uniform(random, 1, 1500);
    s.sinks = random() % 2 != 0;
    const int length = log_uniform(random, 200, 2600);
    s.requests = {{0, length}};
    SCOPED_TRACE(s.describe());
    AttentionCase c(s, random);
    run(c);
    const std::vector<uint16_t> whole = c.output();

    for (const bool decode : {false, true}) {
      std::vector<int32_t> starts = {0}, lengths;
      int longest = 0;
      while (starts.back() < length) {
        const int step = decode ? 1 : std::min(length - starts.back(), log_uniform(random, 1, 1000));
        starts.push_back(starts.back() + step);
        lengths.push_back(starts.back());
        longest = std::max(longest, step);
      }
      std::vector<int32_t> table(static_cast<size_t>(c.args().table_stride) * lengths.size());
      for (size_t b = 0; b < lengths.size(); b++) {
        cuda_ok(cudaMemcpy(table.data() + b * c.args().table_stride, c.args().page_table,
                           static_cast<size_t>(c.args().table_stride) * 4, cudaMemcpyDeviceToHost),
                "table");
      }
      const DeviceBytes d_starts(starts.data(), starts.size() * 4), d_lengths(lengths.data(), lengths.size() * 4),
          d_table(table.data(), table.size() * 4);
      AttentionArgs a = c.args();
      a.query_start = d_starts.as<int32_t>();
      a.kv_len = d_lengths.as<int32_t>();
      a.page_table = d_table.as<int32_t>();
      a.requests = static_cast<int32_t>(lengths.size());
      a.max_query = longest;
      c.poison();
      cuda::launch_attention(a, test_context());
      cuda_ok(cudaDeviceSynchronize(), "attention");
      const std::vector<uint16_t> parts = c.output();
      const auto at = std::mismatch(whole.begin(), whole.end(), parts.begin());
      ASSERT_EQ(at.first, whole.end()) << (decode ? "decode" : "chunks") << " differ from prefill at row "
                                       << (at.first - whole.begin()) / s.head_dim;
    }
    const auto difference = compare_sampled(c, whole, 6, 100000, random);
    EXPECT_FALSE(difference.has_value()) << *difference;
  }
}

}  // namespace
}  // namespace isobit::test
