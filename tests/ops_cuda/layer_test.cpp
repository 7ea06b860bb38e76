// A layer of each published shape that the benchmarks time, random weights, on both backends by bytes: embedding to
// logits as a step runs them, so with the operators that the GPU takes together. (Operators alone have tests of their
// own; the families' tiny models have other shapes.)
#include <gtest/gtest.h>

#include <random>

#include "models/family_golden.h"
#include "models/synthetic.h"
#include "numerics/testing.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cuda/cuda_backend.h"

namespace isobit::test {
namespace {

class GpuLayer : public ::testing::TestWithParam<std::string> {};

TEST_P(GpuLayer, HasTheCpusBits) {
  const uint64_t seed = isobit::testing::fresh_seed();
  SCOPED_TRACE(fmt::format("seed {}", seed));
  SyntheticShape shape = synthetic_shape(GetParam());
  shape.layers = 1;
  shape.vocab = 2000;  // the head's matrix has its own tests
  const auto file = synthetic_checkpoint(shape, seed);
  const ModelConfig config = read_config(*file);
  std::mt19937_64 rng(seed);
  std::vector<int32_t> tokens(70);
  for (int32_t& t : tokens) t = static_cast<int32_t>(rng() % static_cast<uint64_t>(shape.vocab));
  const auto cpu = make_cpu_backend({}), gpu = make_cuda_backend({});
  const std::vector<float> want = decoder_logits(*cpu, *file, config, tokens);
  for (const int32_t chunk : {1, 2, 13, 70}) {  // a GEMM's forms for few rows, with and without the norm; for many
    const std::vector<float> got = decoder_logits(*gpu, *file, config, tokens, chunk);
    ASSERT_EQ(got.size(), want.size());
    int64_t wrong = 0;
    for (size_t i = 0; i < got.size(); i++) wrong += std::memcmp(&got[i], &want[i], sizeof(float)) != 0 ? 1 : 0;
    EXPECT_EQ(wrong, 0) << "chunks of " << chunk << ", of " << got.size();
  }
}

INSTANTIATE_TEST_SUITE_P(Llama, GpuLayer, ::testing::Values("llama-1b", "llama-8b"), [](const auto& tested) {
  std::string name = tested.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

}  // namespace
}  // namespace isobit::test
