#include "models/synthetic.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "base/error.h"
#include "numerics/convert.h"
#include "ops/gemm_fp8.h"
#include "text/tokenizer.h"

namespace isobit {
namespace {

constexpr std::array<SyntheticShape, 3> kShapes = {{
    {"llama-1b", 16, 2048, 8192, 128256, 131072, 32, 8, 64, 500000.0f, true},
    {"llama-8b", 32, 4096, 14336, 128256, 131072, 32, 8, 128, 500000.0f, false},
    {"tiny", 2, 256, 512, 512, 131072, 4, 2, 64, 500000.0f, true},
}};

constexpr float kLargest = 0.035f;

// The bytes that all tensors view: random BF16, ones in F32, and of a block-scaled model random E4M3 and its scales.
struct Block {
  std::vector<uint16_t> matrices;
  std::vector<float> ones, scales;
  std::vector<uint8_t> fp8;
  std::vector<std::string> tokens;
  std::vector<int32_t> token_types;
  std::vector<float> token_scores;
};

constexpr std::string_view kRandom = "random:", kFp8 = "-fp8";
constexpr uint64_t kStartToken = 1, kEndToken = 2;

// Every text is bytes; what is left of the vocabulary can be sampled and shown, but no text leads to it.
void make_vocabulary(int64_t size, Block& block) {
  const auto add = [&](std::string token, TokenType type) {
    block.tokens.push_back(std::move(token));
    block.token_types.push_back(static_cast<int32_t>(type));
  };
  add("<unk>", TokenType::kUnknown);
  add("<|im_start|>", TokenType::kControl);
  add("<|im_end|>", TokenType::kControl);
  for (int byte = 0; byte < 256; byte++) add(fmt::format("<0x{:02X}>", byte), TokenType::kByte);
  add("\u2581", TokenType::kNormal);  // SentencePiece's space
  while (std::ssize(block.tokens) < size) add(fmt::format("<{}>", block.tokens.size()), TokenType::kNormal);
  block.token_scores.assign(block.tokens.size(), 0.0f);
}

std::shared_ptr<Block> make_block(size_t elements, size_t ones, uint64_t seed, size_t fp8_elements) {
  auto block = std::make_shared<Block>();
  block->matrices.resize(elements);
  block->ones.assign(ones, 1.0f);
  uint64_t state = seed * 0x9e3779b97f4a7c15ULL + 1;
  for (uint16_t& w : block->matrices) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const auto u = static_cast<float>(static_cast<int32_t>(state >> 40) - (1 << 23));
    w = numerics::f32_to_bf16(u * (kLargest / (1 << 23)));
  }
  block->fp8.resize(fp8_elements);
  for (size_t i = 0; i < fp8_elements; i++) {
    block->fp8[i] = numerics::f32_to_e4m3(numerics::bf16_to_f32(block->matrices[i]) * (448.0f / kLargest));
  }
  block->scales.assign(fp8_elements / (kFp8Block * kFp8Block) + 1, kLargest / 448.0f);
  return block;
}

MetadataEntry number(std::string_view key, uint64_t value) { return {key, {ValueType::kU32, value}}; }
MetadataEntry real(std::string_view key, double value) { return {key, {ValueType::kF32, value}}; }
MetadataEntry text(std::string_view key, std::string_view value) { return {key, {ValueType::kString, value}}; }
MetadataEntry array(std::string_view key, MetadataArray value) { return {key, {ValueType::kArray, std::move(value)}}; }
template <typename T>
MetadataEntry numbers(std::string_view key, ValueType type, const std::vector<T>& values) {
  return array(key, {.element = type, .count = values.size(), .raw = std::as_bytes(std::span(values)), .strings = {}});
}

void add_tokenizer(const Block& block, std::vector<MetadataEntry>& meta) {
  MetadataArray tokens{.element = ValueType::kString, .count = block.tokens.size(), .raw = {}, .strings = {}};
  tokens.strings.assign(block.tokens.begin(), block.tokens.end());
  meta.push_back(text("tokenizer.ggml.model", "llama"));
  meta.push_back(array("tokenizer.ggml.tokens", std::move(tokens)));
  meta.push_back(numbers("tokenizer.ggml.token_type", ValueType::kI32, block.token_types));
  meta.push_back(numbers("tokenizer.ggml.scores", ValueType::kF32, block.token_scores));
  meta.push_back(number("tokenizer.ggml.bos_token_id", kStartToken));
  meta.push_back(number("tokenizer.ggml.eos_token_id", kEndToken));
  for (const char* key : {"tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_space_prefix"}) {
    meta.push_back({key, {ValueType::kBool, false}});
  }
}

}  // namespace

const SyntheticShape& synthetic_shape(std::string_view name) {
  const auto* found = std::ranges::find(kShapes, name, &SyntheticShape::name);
  require(found != kShapes.end(), "shape '{}' is not known; use llama-1b, llama-8b or tiny", name);
  return *found;
}

bool names_synthetic(std::string_view name) { return name.starts_with(kRandom); }

std::shared_ptr<const Checkpoint> synthetic_checkpoint(std::string_view name) {
  std::string_view shape = name.substr(kRandom.size());
  uint64_t seed = 1;
  if (const size_t colon = shape.find(':'); colon != std::string_view::npos) {
    const std::string_view digits = shape.substr(colon + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), seed);
    require(error == std::errc() && end == digits.data() + digits.size(),
            "model '{}': the seed '{}' is not a number; write random:SHAPE:SEED, the seed in [0, 2^64)", name, digits);
    shape = shape.substr(0, colon);
  }
  const bool fp8 = shape.ends_with(kFp8);
  if (fp8) shape.remove_suffix(kFp8.size());
  return synthetic_checkpoint(synthetic_shape(shape), seed, fp8);
}

std::shared_ptr<const Checkpoint> synthetic_checkpoint(const SyntheticShape& s, uint64_t seed, bool fp8) {
  const size_t largest = static_cast<size_t>(std::max(s.vocab, s.ffn) * s.hidden);
  const auto block = make_block(largest, static_cast<size_t>(s.hidden), seed,
                                fp8 ? static_cast<size_t>(std::max(s.ffn, s.hidden) * s.hidden) : 0);
  make_vocabulary(s.vocab, *block);
  Checkpoint::Parts parts;
  parts.path = std::string(s.name);
  parts.format = "synthetic";
  parts.keep_alive = block;
  const auto bytes = std::as_bytes(std::span(block->matrices));
  parts.files.push_back({"", bytes, bytes.first(4096), nullptr});
  std::vector<MetadataEntry> meta = {
      text("general.architecture", "llama"),
      text("general.name", s.name),
      number("llama.block_count", static_cast<uint64_t>(s.layers)),
      number("llama.embedding_length", static_cast<uint64_t>(s.hidden)),
      number("llama.feed_forward_length", static_cast<uint64_t>(s.ffn)),
      number("llama.context_length", static_cast<uint64_t>(s.context)),
      number("llama.attention.head_count", static_cast<uint64_t>(s.q_heads)),
      number("llama.attention.head_count_kv", static_cast<uint64_t>(s.kv_heads)),
      number("llama.attention.key_length", static_cast<uint64_t>(s.head_dim)),
      number("llama.rope.dimension_count", static_cast<uint64_t>(s.head_dim)),
      real("llama.rope.freq_base", static_cast<double>(s.rope_theta)),
      real("llama.attention.layer_norm_rms_epsilon", 1e-5),
  };
  add_tokenizer(*block, meta);
  parts.metadata = Metadata(parts.path, std::move(meta));
  const auto add = [&](std::string name, DType type, std::vector<int64_t> shape) {
    Tensor t;
    t.name = std::move(name);
    t.dtype = type;
    t.shape = std::move(shape);
    t.data = type == DType::kF32 ? std::as_bytes(std::span(block->ones)).data()
                                 : std::as_bytes(std::span(block->matrices)).data();
    t.bytes = dtype_bytes(type, static_cast<size_t>(t.elements()));
    parts.tensors.push_back(std::move(t));
  };
  // A layer's matrix; of a block-scaled model with its scales.
  const auto add_matrix = [&](const std::string& name, int64_t rows, int64_t columns) {
    if (!fp8) return add(name, DType::kBF16, {rows, columns});
    add(name, DType::kF8E4M3, {rows, columns});
    parts.tensors.back().data = std::as_bytes(std::span(block->fp8)).data();
    add(name + std::string(kScaleSuffix), DType::kF32, {fp8_blocks(rows), fp8_blocks(columns)});
    parts.tensors.back().data = std::as_bytes(std::span(block->scales)).data();
  };
  const int64_t q = static_cast<int64_t>(s.q_heads) * s.head_dim, kv = static_cast<int64_t>(s.kv_heads) * s.head_dim;
  add("token_embd.weight", DType::kBF16, {s.vocab, s.hidden});
  if (!s.tied) add("output.weight", DType::kBF16, {s.vocab, s.hidden});
  add("output_norm.weight", DType::kF32, {s.hidden});
  for (int64_t i = 0; i < s.layers; i++) {
    const std::string p = fmt::format("blk.{}.", i);
    add(p + "attn_norm.weight", DType::kF32, {s.hidden});
    add_matrix(p + "attn_q.weight", q, s.hidden);
    add_matrix(p + "attn_k.weight", kv, s.hidden);
    add_matrix(p + "attn_v.weight", kv, s.hidden);
    add_matrix(p + "attn_output.weight", s.hidden, q);
    add(p + "ffn_norm.weight", DType::kF32, {s.hidden});
    add_matrix(p + "ffn_gate.weight", s.ffn, s.hidden);
    add_matrix(p + "ffn_up.weight", s.ffn, s.hidden);
    add_matrix(p + "ffn_down.weight", s.hidden, s.ffn);
  }
  return std::make_shared<const Checkpoint>(std::move(parts));
}

}  // namespace isobit
