#include "models/synthetic.h"

#include <gtest/gtest.h>

#include "models/config.h"
#include "models/registry.h"
#include "models/tokenizer_spec.h"
#include "text/tokenizer.h"
#include "weights/expect_error.h"

namespace isobit::test {
namespace {

TEST(Synthetic, IsAModelByName) {
  EXPECT_TRUE(names_model("random:tiny"));
  EXPECT_EQ(resolve_model("random:tiny:7"), "random:tiny:7");
  EXPECT_FALSE(names_synthetic("tiny.gguf"));
  const auto file = synthetic_checkpoint("random:tiny");
  const ModelConfig config = read_config(*file);
  EXPECT_EQ(config.layer_count(), 2);
  EXPECT_EQ(config.context, 131072);
  EXPECT_EQ(file->tensor("blk.0.ffn_up.weight").dtype, DType::kBF16);
  EXPECT_EQ(synthetic_checkpoint("random:tiny-fp8")->tensor("blk.0.ffn_up.weight").dtype, DType::kF8E4M3);
}

TEST(Synthetic, TheSeedDecides) {
  const auto one = synthetic_checkpoint("random:tiny"), same = synthetic_checkpoint("random:tiny:1"),
             other = synthetic_checkpoint("random:tiny:18446744073709551615");
  EXPECT_EQ(one->full_digest(), same->full_digest());
  EXPECT_NE(one->full_digest(), other->full_digest());
}

TEST(Synthetic, TextIsBytes) {
  const auto file = synthetic_checkpoint("random:tiny");
  const auto tokenizer = Tokenizer::create(read_tokenizer_spec(*file));
  EXPECT_EQ(tokenizer->vocab_size(), read_config(*file).vocab);
  std::string text = "Hällo\n世界 <300>";
  text += '\0';
  const std::vector<int32_t> ids = tokenizer->encode(text, {});
  EXPECT_EQ(ids.size(), text.size());
  EXPECT_EQ(tokenizer->decode(ids), text);
}

TEST(Synthetic, RefusesOtherNames) {
  expect_error(ErrorCode::kInvalidArgument, {"random:tiny:x", "seed", "'x'"},
               [] { synthetic_checkpoint("random:tiny:x"); });
  expect_error(ErrorCode::kInvalidArgument, {"'huge'", "llama-8b"}, [] { synthetic_checkpoint("random:huge"); });
}

}  // namespace
}  // namespace isobit::test
