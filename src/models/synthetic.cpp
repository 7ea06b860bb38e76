#include "models/synthetic.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/error.h"
#include "numerics/convert.h"
#include "ops/gemm_fp8.h"

namespace isobit {
namespace {

constexpr std::array<SyntheticShape, 2> kShapes = {{
    {"llama-1b", 16, 2048, 8192, 128256, 131072, 32, 8, 64, 500000.0f, true},
    {"llama-8b", 32, 4096, 14336, 128256, 131072, 32, 8, 128, 500000.0f, false},
}};

constexpr float kLargest = 0.035f;

// The bytes that all tensors view: random BF16, ones in F32, and of a block-scaled model random E4M3 and its scales.
struct Block {
  std::vector<uint16_t> matrices;
  std::vector<float> ones, scales;
  std::vector<uint8_t> fp8;
};

std::shared_ptr<const Block> make_block(size_t elements, size_t ones, uint64_t seed, size_t fp8_elements) {
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

}  // namespace

const SyntheticShape& synthetic_shape(std::string_view name) {
  const auto* found = std::ranges::find(kShapes, name, &SyntheticShape::name);
  require(found != kShapes.end(), "shape '{}' is not known; use llama-1b or llama-8b", name);
  return *found;
}

std::shared_ptr<const Checkpoint> synthetic_checkpoint(const SyntheticShape& s, uint64_t seed, bool fp8) {
  const size_t largest = static_cast<size_t>(std::max(s.vocab, s.ffn) * s.hidden);
  const auto block = make_block(largest, static_cast<size_t>(s.hidden), seed,
                                fp8 ? static_cast<size_t>(std::max(s.ffn, s.hidden) * s.hidden) : 0);
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
