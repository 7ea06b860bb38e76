// Every family's tiny model on both backends, by bytes: prompts longer than the windows, in chunks, over pages in no
// order. attention_generic has what the fast kernels lack (head sizes of 16, soft caps).
#include <gtest/gtest.h>

#include "models/family_golden.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cuda/cuda_backend.h"

namespace isobit::test {
namespace {

class GpuFamily : public ::testing::TestWithParam<std::string> {};

TEST_P(GpuFamily, HasTheCpusBits) {
  const FamilyGolden golden = read_family_golden(GetParam());
  const Checkpoint file = load_hf_folder(family_folder(GetParam()));
  const auto cpu = make_cpu_backend({}), gpu = make_cuda_backend({});
  for (const ComputeType type : {ComputeType::kBF16, ComputeType::kF16}) {
    const ModelConfig config = read_config(file, type);
    const std::vector<float> want = decoder_logits(*cpu, file, config, golden.tokens);
    for (const int32_t chunk : {1, 5, 64}) {
      const std::vector<float> got = decoder_logits(*gpu, file, config, golden.tokens, chunk);
      ASSERT_EQ(got.size(), want.size());
      int64_t wrong = 0;
      for (size_t i = 0; i < got.size(); i++) wrong += std::memcmp(&got[i], &want[i], sizeof(float)) != 0 ? 1 : 0;
      EXPECT_EQ(wrong, 0) << dtype_info(config.type).name << ", chunks of " << chunk << ", of " << got.size();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, GpuFamily, ::testing::ValuesIn(family_names()), [](const auto& tested) {
  std::string name = tested.param;
  std::ranges::replace(name, '-', '_');
  return name;
});

}  // namespace
}  // namespace isobit::test
