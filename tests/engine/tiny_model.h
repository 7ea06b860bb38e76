#pragma once
// Model files of a few hundred kilobytes with random weights: a real architecture and a real tokenizer, so that the
// engine's tests take seconds. The weights follow from the seed alone.
#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "engine/session.h"
#include "numerics/convert.h"
#include "weights/gguf_builder.h"

namespace isobit::test {

enum GgufType : uint32_t { kF32 = 0, kF16 = 1, kQ4_0 = 2, kQ4_1 = 3, kQ8_0 = 8, kBF16 = 30 };

struct TinyModel {
  uint64_t seed = 1;
  std::string architecture = "llama";
  uint32_t layers = 2, hidden = 64, ffn = 96, q_heads = 4, kv_heads = 2, head_dim = 16, vocab = 300, context = 512;
  std::vector<uint32_t> kv_heads_by_layer = {};                            // where they differ
  std::vector<uint32_t> types = {kF32, kQ4_1, kF16, kQ8_0, kBF16, kQ4_0};  // of the matrices, in turn
  bool tied = false;
  std::set<std::string> without;                                      // tensors to leave out
  std::function<void(std::string_view, std::vector<float>&)> change;  // a tensor's values before they are encoded
  std::function<void(GgufBuilder&)> extra;                            // further metadata
};

// A row-major matrix in a block format, rounded to nearest; good enough for random weights.
inline std::vector<std::byte> encode(uint32_t type, const std::vector<float>& values) {
  Bytes out;
  constexpr size_t kBlock = 32;
  switch (type) {
    case kF32:
      out.raw(values.data(), values.size() * sizeof(float));
      break;
    case kF16:
      for (const float v : values) out.number(numerics::f32_to_f16(v));
      break;
    case kBF16:
      for (const float v : values) out.number(numerics::f32_to_bf16(v));
      break;
    default:
      for (size_t b = 0; b < values.size(); b += kBlock) {
        const std::span block = std::span(values).subspan(b, kBlock);
        const auto [low, high] = std::ranges::minmax(block);
        const float largest = std::max(std::abs(low), std::abs(high));
        const float step = type == kQ8_0 ? largest / 127 : type == kQ4_1 ? (high - low) / 15 : largest / 7;
        const float base = type == kQ8_0 ? 0 : type == kQ4_1 ? low : -8 * step;
        const auto code = [&](size_t i) {
          return step > 0 ? static_cast<int>(std::lround((block[i] - base) / step)) : 0;
        };
        out.number(numerics::f32_to_f16(step));
        if (type == kQ4_1) out.number(numerics::f32_to_f16(low));
        for (size_t i = 0; type == kQ8_0 && i < kBlock; i++) out.number(static_cast<int8_t>(code(i)));
        for (size_t i = 0; type != kQ8_0 && i < kBlock / 2; i++) {
          out.number(static_cast<uint8_t>(std::clamp(code(i), 0, 15) | std::clamp(code(i + kBlock / 2), 0, 15) << 4));
        }
      }
  }
  return out.data();
}

// 256 bytes in GPT-2's alphabet, the two ChatML tokens, then merges of frequent English letters.
inline void add_tokenizer(GgufBuilder& file, uint32_t vocab) {
  constexpr uint32_t kStart = 256, kEnd = 257;
  std::vector<std::string> tokens, merges;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; byte++) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const uint32_t c = printable ? byte : next++;
    tokens.push_back(c < 0x80 ? std::string(1, static_cast<char>(c))
                              : std::string{static_cast<char>(0xC0 | c >> 6), static_cast<char>(0x80 | (c & 0x3F))});
  }
  tokens.insert(tokens.end(), {"<|im_start|>", "<|im_end|>"});
  const std::string letters = "etaoinshr";
  for (size_t i = 0; tokens.size() < vocab && i < letters.size() * letters.size(); i++) {
    const std::string left(1, letters[i / letters.size()]), right(1, letters[i % letters.size()]);
    tokens.push_back(left + right);
    merges.push_back(left + " " + right);
  }
  const auto strings = [](const std::vector<std::string>& all) {
    Bytes b;
    for (const std::string& s : all) b.text(s);
    return b;
  };
  Bytes types;
  for (uint32_t id = 0; id < tokens.size(); id++) types.number<int32_t>(id == kStart || id == kEnd ? 3 : 1);
  file.text("tokenizer.ggml.model", "gpt2").text("tokenizer.ggml.pre", "smollm");
  file.array("tokenizer.ggml.tokens", ValueType::kString, tokens.size(), strings(tokens));
  file.array("tokenizer.ggml.token_type", ValueType::kI32, tokens.size(), types);
  file.array("tokenizer.ggml.merges", ValueType::kString, merges.size(), strings(merges));
  file.u32("tokenizer.ggml.bos_token_id", kStart).u32("tokenizer.ggml.eos_token_id", kEnd);
}

inline std::vector<std::byte> build_tiny_model(const TinyModel& m) {
  GgufBuilder file;
  const std::string p = m.architecture + ".";
  file.text("general.architecture", m.architecture).text("general.name", "tiny");
  file.u32(p + "block_count", m.layers).u32(p + "embedding_length", m.hidden).u32(p + "feed_forward_length", m.ffn);
  file.u32(p + "context_length", m.context).u32(p + "attention.head_count", m.q_heads);
  file.u32(p + "attention.key_length", m.head_dim);
  if (m.kv_heads_by_layer.empty()) {
    file.u32(p + "attention.head_count_kv", m.kv_heads);
  } else {
    Bytes counts;
    for (const uint32_t n : m.kv_heads_by_layer) counts.number(n);
    file.array(p + "attention.head_count_kv", ValueType::kU32, m.kv_heads_by_layer.size(), counts);
  }
  file.number(p + "attention.layer_norm_rms_epsilon", ValueType::kF32, 1e-5f);
  file.number(p + "rope.freq_base", ValueType::kF32, 10000.0f);
  if (m.extra) m.extra(file);
  add_tokenizer(file, m.vocab);

  std::mt19937_64 random(m.seed);
  std::normal_distribution<float> normal;
  size_t matrices = 0;
  const auto add = [&](const std::string& name, uint64_t rows, uint64_t columns, float scale, float center) {
    const bool vector = rows == 1;
    std::vector<float> values(rows * columns);
    for (float& v : values) v = center + scale * normal(random);
    if (m.change) m.change(name, values);
    const uint32_t type = vector ? kF32 : m.types[matrices++ % m.types.size()];
    if (m.without.contains(name)) return;
    file.tensor({name, type, vector ? std::vector{columns} : std::vector{columns, rows}, encode(type, values), {}});
  };
  const auto matrix = [&](const std::string& name, uint64_t rows, uint64_t columns, float gain) {
    add(name, rows, columns, gain / std::sqrt(static_cast<float>(columns)), 0);
  };
  const uint64_t q = uint64_t{m.q_heads} * m.head_dim;
  matrix("token_embd.weight", m.vocab, m.hidden, 6);
  for (uint32_t i = 0; i < m.layers; i++) {
    const std::string b = "blk." + std::to_string(i) + ".";
    const uint64_t kv = uint64_t{m.kv_heads_by_layer.empty() ? m.kv_heads : m.kv_heads_by_layer[i]} * m.head_dim;
    add(b + "attn_norm.weight", 1, m.hidden, 0.1f, 1);
    matrix(b + "attn_q.weight", q, m.hidden, 1.5f);
    matrix(b + "attn_k.weight", kv, m.hidden, 1.5f);
    matrix(b + "attn_v.weight", kv, m.hidden, 1);
    if (m.architecture == "qwen2") {
      for (const auto& [name, n] : {std::pair{"attn_q.bias", q}, {"attn_k.bias", kv}, {"attn_v.bias", kv}})
        add(b + name, 1, n, 0.2f, 0);
    }
    if (m.architecture == "qwen3") {
      add(b + "attn_q_norm.weight", 1, m.head_dim, 0.1f, 1);
      add(b + "attn_k_norm.weight", 1, m.head_dim, 0.1f, 1);
    }
    matrix(b + "attn_output.weight", m.hidden, q, 1);
    add(b + "ffn_norm.weight", 1, m.hidden, 0.1f, 1);
    matrix(b + "ffn_gate.weight", m.ffn, m.hidden, 1);
    matrix(b + "ffn_up.weight", m.ffn, m.hidden, 1);
    matrix(b + "ffn_down.weight", m.hidden, m.ffn, 1);
  }
  add("output_norm.weight", 1, m.hidden, 0.1f, 1);
  if (!m.tied) matrix("output.weight", m.vocab, m.hidden, 2);
  return file.build();
}

// A tiny model on disk, opened.
class TinyFile {
 public:
  explicit TinyFile(const TinyModel& model = {}) : path_(folder_.write("tiny.gguf", build_tiny_model(model))) {
    file_ = open_checkpoint(path_);
  }
  const std::string& path() const { return path_; }
  const std::shared_ptr<const Checkpoint>& file() const { return file_; }

  std::unique_ptr<Engine> engine(const EngineOptions& options = {}, int threads = 1,
                                 const std::string& simd = {}) const {
    return std::make_unique<Engine>(make_backend({"cpu", threads, simd}), file_, options);
  }

 private:
  TemporaryFolder folder_;
  std::string path_;
  std::shared_ptr<const Checkpoint> file_;
};

}  // namespace isobit::test
