// The real model, where it has been fetched: its metadata, tensors, digest, and how fast it opens.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>

#include "numerics/dequantize.h"
#include "weights/gguf.h"

namespace isobit::test {
namespace {

std::filesystem::path cache_folder() {
  if (const char* own = std::getenv("ISOBIT_CACHE")) return own;
  if (const char* cache = std::getenv("XDG_CACHE_HOME")) return std::filesystem::path(cache) / "isobit";
  const char* home = std::getenv("HOME");
  return std::filesystem::path(home != nullptr ? home : ".") / ".cache" / "isobit";
}

class SmolLM2 : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = (cache_folder() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").string();
    if (!std::filesystem::exists(path_)) GTEST_SKIP() << path_ << " is not there; scripts/quickstart fetches it";
  }
  std::string path_;
};

TEST_F(SmolLM2, OpensFast) {
  double best = 1e9;
  for (int i = 0; i < 5; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const Checkpoint c = load_gguf(path_);
    best = std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  std::printf("load_gguf: %.2f ms (best of 5)\n", best);
  RecordProperty("load_ms", std::to_string(best));
  EXPECT_LT(best, 100);  // a few ms; a sanitizer build or a busy machine takes longer, copying the weights longer still
  const Checkpoint c = load_gguf(path_);
  const auto start = std::chrono::steady_clock::now();
  const std::string digest = c.digest();
  const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  std::printf("digest %s: %.2f ms\n", digest.c_str(), ms);
}

TEST_F(SmolLM2, HasItsMetadata) {
  const Checkpoint c = load_gguf(path_);
  const Metadata& m = c.metadata();
  EXPECT_EQ(c.format(), "GGUF v3");
  EXPECT_EQ(c.file_bytes(), std::filesystem::file_size(path_));
  EXPECT_EQ(m.entries().size(), 33u);
  EXPECT_EQ(m.get_string("general.architecture"), "llama");
  EXPECT_EQ(m.get_u32("llama.block_count"), 30u);
  EXPECT_EQ(m.get_u32("llama.attention.head_count"), 9u);
  EXPECT_EQ(m.get_u32("llama.attention.head_count_kv"), 3u);
  EXPECT_EQ(m.get_f32("llama.rope.freq_base"), 100000.0f);
  EXPECT_EQ(m.get_f32("llama.attention.layer_norm_rms_epsilon"), 1e-5f);
  EXPECT_FALSE(m.get_bool("tokenizer.ggml.add_bos_token"));
  const auto tokens = m.get_strings("tokenizer.ggml.tokens");
  ASSERT_EQ(tokens.size(), 49152u);
  EXPECT_EQ(tokens[1], "<|im_start|>");
  EXPECT_EQ(m.get_strings("tokenizer.ggml.merges").size(), 48900u);
  EXPECT_EQ(m.get_i64s("tokenizer.ggml.token_type").size(), 49152u);
  EXPECT_TRUE(m.get_string("tokenizer.chat_template").starts_with("{% for message in messages %}"));
}

TEST_F(SmolLM2, HasItsTensors) {
  const Checkpoint c = load_gguf(path_);
  EXPECT_EQ(c.tensors().size(), 272u);
  EXPECT_EQ(c.find("output.weight"), nullptr);  // tied to the embedding
  const Tensor& embedding = c.tensor("token_embd.weight");
  EXPECT_EQ(embedding.dtype, DType::kQ8_0);
  EXPECT_EQ(embedding.shape, (std::vector<int64_t>{49152, 576}));
  for (int layer = 0; layer < 30; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    EXPECT_EQ(c.tensor(prefix + "attn_norm.weight").dtype, DType::kF32);
    EXPECT_EQ(c.tensor(prefix + "attn_q.weight").shape, (std::vector<int64_t>{576, 576}));
    EXPECT_EQ(c.tensor(prefix + "attn_k.weight").shape, (std::vector<int64_t>{192, 576}));
    EXPECT_EQ(c.tensor(prefix + "ffn_down.weight").shape, (std::vector<int64_t>{576, 1536}));
    EXPECT_EQ(c.tensor(prefix + "ffn_up.weight").dtype, DType::kQ4_1);
  }
}

// Every weight of a trained model is a modest finite number: a wrong place or layout would show.
TEST_F(SmolLM2, DequantizesToPlausibleWeights) {
  const Checkpoint c = load_gguf(path_);
  double sum = 0, squares = 0;
  size_t count = 0;
  for (const Tensor& t : c.tensors()) {
    if (t.dtype != DType::kQ4_1) continue;
    std::vector<float> row(static_cast<size_t>(t.columns()));
    for (int64_t r = 0; r < t.rows(); ++r) {
      numerics::dequantize_row_f32(t.dtype, t.data + static_cast<size_t>(r) * t.row_bytes(), t.columns(), row.data());
      for (const float x : row) {
        ASSERT_LT(std::abs(x), 20.0f) << t.name;
        sum += x;
        squares += static_cast<double>(x) * x;
      }
    }
    count += static_cast<size_t>(t.elements());
    c.release_pages(t);
  }
  EXPECT_EQ(count, 106168320u);
  const double n = static_cast<double>(count);
  std::printf("%zu weights: mean %.5f, root mean square %.5f\n", count, sum / n, std::sqrt(squares / n));
  EXPECT_LT(std::abs(sum / n), 0.01);
  EXPECT_GT(std::sqrt(squares / n), 0.02);
  EXPECT_LT(std::sqrt(squares / n), 0.5);
}

}  // namespace
}  // namespace isobit::test
