// The CUDA backend's memory, weights and graphs.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <random>

#include "base/error.h"
#include "numerics/convert.h"
#include "numerics/dequantize.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/reference_linear.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/cuda/device_messages.h"
#include "ops/cuda/linear_cuda.h"
#include "ops_cuda/gpu_memory.h"

namespace isobit {
namespace {

std::vector<std::byte> random_bytes(size_t count, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::vector<std::byte> v(count);
  for (std::byte& b : v) b = static_cast<std::byte>(rng());
  return v;
}

template <typename F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "no error";
}

TEST(GpuBackend, MemoryIsZeroAndCopiesAreExact) {
  const auto backend = make_cuda_backend({});
  for (const size_t bytes : {size_t{1}, size_t{4096}, (size_t{40} << 20) + 13}) {  // past the staging memory's halves
    const uint64_t seed = fresh_seed();
    SCOPED_TRACE(fmt::format("{} bytes, seed {}", bytes, seed));
    const Buffer a = backend->allocate(bytes, "test"), b = backend->allocate(bytes, "test");
    EXPECT_EQ(reinterpret_cast<uintptr_t>(a.data()) % 256, 0u);
    std::vector<std::byte> got(bytes, std::byte{1});
    backend->download(got.data(), a.data(), bytes);
    EXPECT_EQ(got, std::vector<std::byte>(bytes));
    std::vector<std::byte> source = random_bytes(bytes, seed);
    const std::vector<std::byte> want = source;
    backend->upload(a.data(), source.data(), bytes);
    std::fill(source.begin(), source.end(), std::byte{0xee});  // allowed once upload has returned
    backend->copy(b.data(), a.data(), bytes);
    backend->download(got.data(), b.data(), bytes);
    EXPECT_EQ(got, want);
  }
}

TEST(GpuBackend, ManySmallCopiesAtOnce) {
  const auto backend = make_cuda_backend({});
  for (int round = 0; round < 300; round++) {  // more than the staging memory holds at once
    const uint64_t seed = fresh_seed();
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 rng(seed);
    std::vector<std::vector<std::byte>> sent, got;
    std::vector<Buffer> buffers;
    const size_t parts = 1 + rng() % (round % 10 == 0 ? 30 : 16);  // past the parts of one launch too
    for (size_t i = 0; i < parts; i++) {
      const size_t bytes = rng() % 4 == 0 ? 0 : 4 * (1 + rng() % (round % 20 == 0 ? 100000 : 3000));
      sent.push_back(random_bytes(bytes, rng()));
      got.emplace_back(bytes);
      buffers.push_back(backend->allocate(bytes, "test"));
    }
    std::vector<Upload> uploads;
    std::vector<Download> downloads;
    for (size_t i = 0; i < parts; i++) {
      uploads.push_back({buffers[i].data(), sent[i].data(), sent[i].size()});
      downloads.push_back({got[i].data(), buffers[i].data(), got[i].size()});
    }
    const auto want = sent;
    backend->upload_all(uploads);
    for (auto& s : sent) std::fill(s.begin(), s.end(), std::byte{0xee});  // allowed once the call has returned
    backend->download_all(downloads);
    ASSERT_EQ(got, want);
  }
}

// Two under way at a time, while the memory they read is written anew.
TEST(GpuBackend, DownloadsLandLater) {
  const auto backend = make_cuda_backend({});
  constexpr size_t kMost = 100000;
  const Buffer memory = backend->allocate(4 * kMost, "test"), other = backend->allocate(4 * kMost, "test");
  struct Sent {
    std::vector<std::byte> want, got, other_got;
    std::function<void()> arrive;
  };
  std::vector<Sent> sent(200);
  for (size_t round = 0; round < sent.size(); round++) {
    const uint64_t seed = fresh_seed();
    SCOPED_TRACE(fmt::format("round {}, seed {}", round, seed));
    Sent& s = sent[round];
    s.want = random_bytes(4 * (1 + seed % (round % 20 == 19 ? kMost : 1000)), seed);
    s.got.resize(s.want.size(), std::byte{0xee});
    s.other_got.resize(round % 3 == 0 ? 0 : 4 * (seed / 7 % (s.want.size() / 4 + 1)), std::byte{0xee});
    backend->upload(memory.data(), s.want.data(), s.want.size());
    backend->copy(other.data(), memory.data(), s.want.size());
    const Download parts[] = {{s.got.data(), memory.data(), s.got.size()},
                              {s.other_got.data(), other.data(), s.other_got.size()}};
    s.arrive = backend->download_later(parts);
    if (round == 0) continue;
    Sent& last = sent[round - 1];
    last.arrive();
    ASSERT_EQ(last.got, last.want);
    ASSERT_TRUE(std::equal(last.other_got.begin(), last.other_got.end(), last.want.begin()));
  }
}

// Words of -2 - i are what stands at i of another array by the time the upload runs.
TEST(GpuBackend, UploadsTakeWhatWasDrawn) {
  const auto backend = make_cuda_backend({});
  for (int round = 0; round < 50; round++) {
    const uint64_t seed = fresh_seed();
    SCOPED_TRACE(fmt::format("seed {}", seed));
    std::mt19937_64 rng(seed);
    std::vector<int32_t> drawn(1 + rng() % 300), words(1 + rng() % 3000), plain(words.size());
    for (int32_t& d : drawn) d = static_cast<int32_t>(rng() % 100000);
    for (int32_t& w : words) w = static_cast<int32_t>(rng() % 1000) - 1;
    for (int32_t& w : words) w = rng() % 2 == 0 ? w : -2 - static_cast<int32_t>(rng() % drawn.size());
    const Buffer from = backend->allocate(drawn.size() * 4, "test"), to = backend->allocate(words.size() * 4, "test"),
                 beside = backend->allocate(words.size() * 4, "test");
    const Upload before[] = {{from.data(), drawn.data(), drawn.size() * 4}};
    backend->upload_all(before);
    const Upload uploads[] = {{to.data(), words.data(), words.size() * 4, from.data<int32_t>()},
                              {beside.data(), words.data(), words.size() * 4}};
    backend->upload_all(uploads);
    std::vector<int32_t> got(words.size());
    backend->download(got.data(), to.data(), got.size() * 4);
    backend->download(plain.data(), beside.data(), plain.size() * 4);
    ASSERT_EQ(plain, words);
    for (size_t i = 0; i < words.size(); i++) {
      ASSERT_EQ(got[i], words[i] < -1 ? drawn[static_cast<size_t>(-2 - words[i])] : words[i]) << i;
    }
  }
}

TEST(GpuBackend, ErrorsNameTheLimit) {
  EXPECT_NE(error_of([] { make_cuda_backend({.device = 99}); }).find("cuda:99"), std::string::npos);
  const auto backend = make_cuda_backend({});
  const std::string text = error_of([&] { backend->allocate(size_t{1} << 50, "a cache of a petabyte"); });
  EXPECT_NE(text.find("a cache of a petabyte"), std::string::npos) << text;
  EXPECT_NE(text.find("MB are missing"), std::string::npos) << text;
  const BackendInfo info = backend->info();
  EXPECT_EQ(info.name, "cuda:0");
  EXPECT_GT(info.memory_total, info.memory_free);
}

TEST(GpuBackend, AMissingGpuIsExplained) {
  const std::string none = cuda::why_no_device(cudaErrorInsufficientDriver, 0);
  EXPECT_NE(none.find("no NVIDIA driver is loaded; install one"), std::string::npos) << none;
  const std::string old = cuda::why_no_device(cudaErrorInsufficientDriver, 12040);
  EXPECT_NE(old.find("supports CUDA 12.4, this build needs "), std::string::npos) << old;
  EXPECT_NE(old.find("update the driver"), std::string::npos) << old;
  for (const cudaError_t status : {cudaSuccess, cudaErrorNoDevice}) {
    const std::string hidden = cuda::why_no_device(status, 13000);
    EXPECT_NE(hidden.find("no NVIDIA GPU is visible; check nvidia-smi"), std::string::npos) << hidden;
  }
  const std::string other = cuda::why_no_device(cudaErrorSystemNotReady, 13000);
  EXPECT_NE(other.find("cudaErrorSystemNotReady"), std::string::npos) << other;
}

TEST(GpuBackend, WeightsEqualTheHostsDequantisation) {
  const auto backend = make_cuda_backend({});
  for (const DType type : {DType::kBF16, DType::kF16}) {
    for (const DType from : numerics::dequantizable_types()) {
      const int64_t k = is_quantized(from) ? 768 : 771;  // plain types: K padded on the device
      for (const LinearForm form : {LinearForm::kStacked, LinearForm::kGated}) {
        const uint64_t seed = fresh_seed();
        SCOPED_TRACE(fmt::format("{} to {}, form {}, seed {}", dtype_info(from).name, dtype_info(type).name,
                                 static_cast<int>(form), seed));
        const int64_t rows = 45;
        const size_t row_bytes = dtype_bytes(from, static_cast<size_t>(k));
        const auto first = random_bytes(static_cast<size_t>(rows) * row_bytes, seed);
        const auto second = random_bytes(static_cast<size_t>(rows) * row_bytes, seed + 1);
        const WeightPart parts[] = {{from, rows, k, first.data()}, {from, rows, k, second.data()}};
        const auto gpu = backend->load_linear(parts, form, type);
        const auto cpu = cpu::load_reference(parts, form, type);
        const auto& want = dynamic_cast<const cpu::ReferenceLinear&>(*cpu);
        const auto& linear = cuda::as_cuda(gpu.get(), "test");
        std::vector<uint16_t> got(static_cast<size_t>(linear.stored_rows() * linear.row_elements()));
        backend->download(got.data(), linear.data(), got.size() * 2);
        for (int64_t r = 0; r < 2 * rows; r++) {
          const int64_t up = r / rows, i = r % rows;
          const int64_t at = form == LinearForm::kGated ? i / 8 * 16 + up * 8 + i % 8 : r;
          for (int64_t c = 0; c < linear.row_elements(); c++) {
            const auto place = static_cast<size_t>(cuda::CudaLinear::place(linear.stored_rows(), at, c));
            ASSERT_EQ(got[place], c < k ? want.row(r)[c] : 0) << "row " << r << " column " << c;
          }
        }
      }
    }
  }
}

TEST(GpuBackend, BadWeightsAreNamed) {
  const auto backend = make_cuda_backend({});
  const std::vector<std::byte> data(1 << 16);
  const WeightPart odd[] = {{DType::kQ4_0, 2, 40, data.data()}};
  EXPECT_NE(error_of([&] { backend->load_linear(odd, LinearForm::kStacked, DType::kBF16); }).find("multiple of 32"),
            std::string::npos);
  const WeightPart uneven[] = {{DType::kF16, 2, 64, data.data()}, {DType::kF16, 3, 64, data.data()}};
  EXPECT_NE(error_of([&] { backend->load_linear(uneven, LinearForm::kGated, DType::kBF16); }).find("equal rows"),
            std::string::npos);
  const WeightPart integers[] = {{DType::kI32, 2, 64, data.data()}};
  EXPECT_NE(error_of([&] { backend->load_linear(integers, LinearForm::kStacked, DType::kBF16); }).find("I32"),
            std::string::npos);
}

// A step of two GEMMs that depend on each other: eager, recorded and replayed runs write the same bytes, with inputs
// that change between replays.
TEST(GpuBackend, ReplayedStepsEqualEagerOnes) {
  const auto graphs = make_cuda_backend({});
  const auto eager = make_cuda_backend({.graphs = false});
  const int64_t m = 5, hidden = 576, inner = 1536;
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0.0f, 0.1f);
  std::vector<float> up(static_cast<size_t>(2 * inner * hidden)), down(static_cast<size_t>(hidden * inner));
  for (float& v : up) v = normal(rng);
  for (float& v : down) v = normal(rng);
  const auto half = reinterpret_cast<const std::byte*>(up.data() + inner * hidden);
  const WeightPart gate_up[] = {{DType::kF32, inner, hidden, reinterpret_cast<const std::byte*>(up.data())},
                                {DType::kF32, inner, hidden, half}};
  const WeightPart last[] = {{DType::kF32, hidden, inner, reinterpret_cast<const std::byte*>(down.data())}};
  struct Side {
    Backend* backend;
    std::unique_ptr<Linear> gate_up, down;
    Buffer x, mid, out;
  };
  std::vector<Side> sides;
  for (Backend* b : {graphs.get(), eager.get()}) {
    sides.push_back({b, b->load_linear(gate_up, LinearForm::kGated, DType::kBF16),
                     b->load_linear(last, LinearForm::kStacked, DType::kBF16), b->allocate(m * hidden * 2, "x"),
                     b->allocate(m * inner * 2, "mid"), b->allocate(m * hidden * 4, "out")});
  }
  for (int step = 0; step < 6; step++) {
    std::vector<uint16_t> x(static_cast<size_t>(m * hidden));
    for (uint16_t& v : x) v = static_cast<uint16_t>(rng() & 0xbfff);  // below 2
    std::vector<std::vector<uint32_t>> results;
    for (Side& s : sides) {
      s.backend->upload(s.x.data(), x.data(), x.size() * 2);
      s.backend->run_step({.tokens = 5, .requests = 1}, [&] {
        GemmArgs a;
        a.x = s.x.data<uint16_t>();
        a.m = m;
        a.w = s.gate_up.get();
        a.epilogue = Epilogue::kSiluMul;
        a.out = s.mid.data();
        s.backend->gemm(a);
        a.x = s.mid.data<uint16_t>();
        a.w = s.down.get();
        a.epilogue = Epilogue::kAddResidual;
        a.out = s.out.data();
        s.backend->gemm(a);
      });
      results.emplace_back(static_cast<size_t>(m * hidden));
      s.backend->download(results.back().data(), s.out.data(), results.back().size() * 4);
    }
    EXPECT_EQ(results[0], results[1]) << "step " << step;
    EXPECT_NE(results[0], std::vector<uint32_t>(results[0].size())) << "nothing was written";
  }
}

// SmolLM2-135M's matrices at a padded prefill and at decode, through the Backend interface alone: the CPU's bytes.
TEST(GpuBackend, ModelGemmsEqualTheCpuBackend) {
  struct Shape {
    int64_t m, n, k;
    LinearForm form;
    Epilogue epilogue;
  };
  constexpr Shape kShapes[] = {{48, 960, 576, LinearForm::kStacked, Epilogue::kStoreF32},
                               {48, 576, 576, LinearForm::kStacked, Epilogue::kAddResidual},
                               {48, 1536, 576, LinearForm::kGated, Epilogue::kSiluMul},
                               {48, 576, 1536, LinearForm::kStacked, Epilogue::kAddResidual},
                               {1, 960, 576, LinearForm::kStacked, Epilogue::kStoreF32},
                               {1, 1536, 576, LinearForm::kGated, Epilogue::kSiluMul},
                               {2, 49152, 576, LinearForm::kStacked, Epilogue::kStoreF32}};
  const auto gpu = make_cuda_backend({}), cpu = make_cpu_backend({});
  for (const Shape& s : kShapes) {
    const uint64_t seed = fresh_seed();
    SCOPED_TRACE(fmt::format("m {} n {} k {}, seed {}", s.m, s.n, s.k, seed));
    std::mt19937_64 rng(seed);
    std::normal_distribution<float> normal;
    const auto bf16 = [&](int64_t count) {
      std::vector<uint16_t> v(static_cast<size_t>(count));
      for (uint16_t& x : v) x = numerics::f32_to_bf16(normal(rng));
      return v;
    };
    const std::vector<uint16_t> x = bf16(s.m * s.k), first = bf16(s.n * s.k), second = bf16(s.n * s.k);
    const bool gated = s.form == LinearForm::kGated;
    const WeightPart parts[] = {{DType::kBF16, s.n, s.k, reinterpret_cast<const std::byte*>(first.data())},
                                {DType::kBF16, s.n, s.k, reinterpret_cast<const std::byte*>(second.data())}};
    const size_t out_bytes = static_cast<size_t>(s.m * s.n) * (gated ? 2 : 4);
    std::vector<std::vector<std::byte>> results;
    for (Backend* b : {gpu.get(), cpu.get()}) {
      const auto w = b->load_linear(std::span(parts).first(gated ? 2 : 1), s.form, DType::kBF16);
      const Buffer bx = b->allocate(x.size() * 2, "x"), out = b->allocate(out_bytes, "out");
      b->upload(bx.data(), x.data(), x.size() * 2);
      GemmArgs a;
      a.x = bx.data<uint16_t>();
      a.m = s.m;
      a.w = w.get();
      a.epilogue = s.epilogue;
      a.out = out.data();
      for (int step = 0; step < 3; step++) {  // on the GPU: eager, recorded, replayed; a residual grows each time
        b->run_step({.tokens = static_cast<int32_t>(s.m), .variant = static_cast<uint32_t>(&s - kShapes)},
                    [&] { b->gemm(a); });
      }
      results.emplace_back(out_bytes);
      b->download(results.back().data(), out.data(), out_bytes);
    }
    EXPECT_EQ(results[0], results[1]);
  }
}

}  // namespace
}  // namespace isobit
