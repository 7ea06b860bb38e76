#include "models/decoder.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/error.h"
#include "numerics/dequantize.h"
#include "numerics/rope.h"

namespace isobit {

KvPages::KvPages(Backend& backend, const ModelConfig& config, int64_t pages, int32_t page_size)
    : pages_(pages), page_size_(page_size) {
  KvCacheView view;
  view.pages = pages;
  view.kv_heads = config.kv_heads;
  view.page_size = page_size;
  view.head_dim = config.head_dim;
  view.type = config.type;
  const size_t plane = dtype_bytes(config.type, static_cast<size_t>(pages * view.page_elements()));
  buffer_ = backend.allocate(plane * 2 * static_cast<size_t>(config.layers),
                             fmt::format("the KV cache ({} pages of {} tokens)", pages, page_size));
  for (int64_t i = 0; i < config.layers; i++) {
    view.k = buffer_.data<std::byte>() + plane * static_cast<size_t>(2 * i);
    view.v = buffer_.data<std::byte>() + plane * static_cast<size_t>(2 * i + 1);
    views_.push_back(view);
  }
}

// Reads tensors out of the file, checks their shapes and hands them to the backend.
class Decoder::Loader {
 public:
  Loader(Decoder& decoder, const Checkpoint& file, const Progress& progress)
      : decoder_(decoder), file_(file), progress_(progress) {
    for (const Tensor& t : file.tensors()) total_ += t.bytes;
  }

  std::unique_ptr<Linear> linear(const std::vector<std::pair<std::string, int64_t>>& names_and_rows, int64_t columns,
                                 LinearForm form = LinearForm::kStacked) {
    std::vector<WeightPart> parts;
    for (const auto& [name, rows] : names_and_rows) {
      const Tensor& t = checked(name, rows, columns);
      parts.push_back({t.dtype, rows, columns, t.data});
    }
    auto made = decoder_.backend_.load_linear(parts, form, decoder_.config_.type);
    decoder_.weight_bytes_ += made->bytes();
    for (const auto& entry : names_and_rows) done(file_.tensor(entry.first));
    return made;
  }

  Buffer vector(const std::string& name, int64_t elements) {
    const Tensor& t = checked(name, 1, elements);
    std::vector<float> values(static_cast<size_t>(elements));
    numerics::dequantize_row_f32(t.dtype, t.data, elements, values.data());
    Buffer b = decoder_.backend_.allocate(values.size() * sizeof(float), name);
    decoder_.backend_.upload(b.data(), values.data(), b.bytes());
    decoder_.weight_bytes_ += b.bytes();
    done(t);
    return b;
  }

  Buffer qkv_bias(const std::string& prefix) {
    const ModelConfig& c = decoder_.config_;
    std::vector<float> values(static_cast<size_t>(c.qkv_columns()));
    float* to = values.data();
    for (const auto& [name, heads] :
         {std::pair{"attn_q.bias", c.q_heads}, {"attn_k.bias", c.kv_heads}, {"attn_v.bias", c.kv_heads}}) {
      const int64_t n = static_cast<int64_t>(heads) * c.head_dim;
      const Tensor& t = checked(prefix + name, 1, n);
      numerics::dequantize_row_f32(t.dtype, t.data, n, to);
      to += n;
    }
    Buffer b = decoder_.backend_.allocate(values.size() * sizeof(float), prefix + "attn_qkv.bias");
    decoder_.backend_.upload(b.data(), values.data(), b.bytes());
    return b;
  }

 private:
  const Tensor& checked(const std::string& name, int64_t rows, int64_t columns) const {
    const Tensor& t = file_.tensor(name);
    if (t.columns() != columns || t.rows() != rows) {
      throw fail(ErrorCode::kBadFile, "{}: tensor {} is {} × {}; the model's metadata says {} × {}", file_.path(), name,
                 t.rows(), t.columns(), rows, columns);
    }
    return t;
  }

  void done(const Tensor& t) {
    if (!decoder_.backend_.keeps_file_pages()) file_.release_pages(t);
    done_ += t.bytes;
    if (progress_) progress_(done_, total_);
  }

  Decoder& decoder_;
  const Checkpoint& file_;
  const Progress& progress_;
  size_t total_ = 0, done_ = 0;
};

Decoder::Decoder(Backend& backend, const Checkpoint& file, const ModelConfig& config, const StepLimits& limits,
                 const Progress& progress)
    : backend_(backend), config_(config), limits_(limits) {
  const ModelConfig& c = config_;
  const int64_t q_columns = static_cast<int64_t>(c.q_heads) * c.head_dim,
                kv_columns = static_cast<int64_t>(c.kv_heads) * c.head_dim;
  Loader load(*this, file, progress);
  for (int64_t i = 0; i < c.layers; i++) {
    const std::string p = fmt::format("blk.{}.", i);
    Layer l;
    l.attention_norm = load.vector(p + "attn_norm.weight", c.hidden);
    l.qkv = load.linear(
        {{p + "attn_q.weight", q_columns}, {p + "attn_k.weight", kv_columns}, {p + "attn_v.weight", kv_columns}},
        c.hidden);
    if (c.qkv_bias) l.qkv_bias = load.qkv_bias(p);
    if (c.qk_norm) {
      l.q_norm = load.vector(p + "attn_q_norm.weight", c.head_dim);
      l.k_norm = load.vector(p + "attn_k_norm.weight", c.head_dim);
    }
    l.out = load.linear({{p + "attn_output.weight", c.hidden}}, q_columns);
    l.ffn_norm = load.vector(p + "ffn_norm.weight", c.hidden);
    l.gate_up =
        load.linear({{p + "ffn_gate.weight", c.ffn}, {p + "ffn_up.weight", c.ffn}}, c.hidden, LinearForm::kGated);
    l.down = load.linear({{p + "ffn_down.weight", c.hidden}}, c.ffn);
    layers_.push_back(std::move(l));
  }
  output_norm_ = load.vector("output_norm.weight", c.hidden);
  embedding_ = load.linear({{"token_embd.weight", c.vocab}}, c.hidden);
  if (!c.tied) head_ = load.linear({{"output.weight", c.vocab}}, c.hidden);
  make_rope_tables();
  make_buffers();
}

Buffer Decoder::buffer(size_t bytes, std::string_view what) {
  buffer_bytes_ += bytes;
  return backend_.allocate(bytes, what);
}

void Decoder::make_rope_tables() {
  const RopeConfig& r = config_.rope;
  if (r.frequencies.empty()) return;
  const auto half = static_cast<size_t>(r.dim / 2), count = static_cast<size_t>(limits_.positions) * half;
  std::vector<float> cos(count), sin(count);
  for (int64_t p = 0; p < limits_.positions; p++) {
    for (size_t i = 0; i < half; i++) {
      const numerics::RopeEntry e = numerics::rope_entry(p, r.frequencies[i], r.magnitude);
      cos[static_cast<size_t>(p) * half + i] = e.cos;
      sin[static_cast<size_t>(p) * half + i] = e.sin;
    }
  }
  rope_cos_ = buffer(count * sizeof(float), "the rotary tables");
  rope_sin_ = buffer(count * sizeof(float), "the rotary tables");
  backend_.upload(rope_cos_.data(), cos.data(), rope_cos_.bytes());
  backend_.upload(rope_sin_.data(), sin.data(), rope_sin_.bytes());
}

void Decoder::make_buffers() {
  const ModelConfig& c = config_;
  const auto tokens = static_cast<size_t>(limits_.tokens), requests = static_cast<size_t>(limits_.requests),
             rows = static_cast<size_t>(limits_.logit_rows), hidden = static_cast<size_t>(c.hidden),
             q_columns = static_cast<size_t>(c.q_heads) * static_cast<size_t>(c.head_dim);
  inputs_.tokens = buffer(tokens * 4, "step inputs");
  inputs_.positions = buffer(tokens * 4, "step inputs");
  inputs_.slots = buffer(tokens * 8, "step inputs");
  inputs_.query_start = buffer((requests + 1) * 4, "step inputs");
  inputs_.kv_len = buffer(requests * 4, "step inputs");
  inputs_.page_table = buffer(requests * static_cast<size_t>(limits_.table_stride) * 4, "page tables");
  inputs_.logit_rows = buffer(rows * 4, "step inputs");
  residual_ = buffer(tokens * hidden * 4, "the residual stream");
  normed_ = buffer(tokens * hidden * 2, "normed activations");
  qkv_ = buffer(tokens * static_cast<size_t>(c.qkv_columns()) * 4, "q, k, v");
  q_ = buffer(tokens * q_columns * 2, "queries");
  attended_ = buffer(tokens * q_columns * 2, "attention outputs");
  hidden_ = buffer(tokens * static_cast<size_t>(c.ffn) * 2, "FFN activations");
  head_normed_ = buffer(rows * hidden * 2, "normed activations");
  logits_ = buffer(rows * static_cast<size_t>(c.vocab) * 4, "logits");
  nonfinite_ = buffer(tokens * 4, "step flags");
}

void Decoder::trace(int64_t layer, std::string_view op, const void* data, DType type, int64_t rows, int64_t columns) {
  if (tracer_) tracer_(layer, op, data, type, rows, columns);
}

void Decoder::forward(const StepShape& shape, const KvPages& pages) {
  EmbedArgs embed;
  embed.table = embedding_.get();
  embed.tokens = inputs_.tokens.data<int32_t>();
  embed.count = shape.tokens;
  embed.scale = config_.embedding_scale;
  embed.out = residual_.data<float>();
  backend_.embed(embed);
  trace(-1, "embed", embed.out, DType::kF32, shape.tokens, config_.hidden);
  for (int64_t i = 0; i < config_.layers; i++) {
    attention_block(layers_[static_cast<size_t>(i)], i, shape, pages);
    ffn_block(layers_[static_cast<size_t>(i)], i, shape);
  }
}

void Decoder::attention_block(const Layer& layer, int64_t index, const StepShape& shape, const KvPages& pages) {
  const ModelConfig& c = config_;
  RmsNormArgs norm;
  norm.x = residual_.data<float>();
  norm.weight = layer.attention_norm.data<float>();
  norm.count = shape.tokens;
  norm.n = c.hidden;
  norm.eps = c.norm_eps;
  norm.out_type = c.type;
  norm.out = normed_.data<uint16_t>();

  GemmArgs project;
  project.x = normed_.data<uint16_t>();
  project.m = shape.tokens;
  project.w = layer.qkv.get();
  project.bias = layer.qkv_bias.data<float>();
  project.type = c.type;
  project.out = qkv_.data();

  RopeCacheArgs rope;
  rope.qkv = qkv_.data<float>();
  rope.positions = inputs_.positions.data<int32_t>();
  rope.slots = inputs_.slots.data<int64_t>();
  rope.count = shape.tokens;
  rope.q_heads = c.q_heads;
  rope.cos = rope_cos_.data<float>();
  rope.sin = rope_sin_.data<float>();
  rope.rope_dim = c.rope.dim;
  rope.max_position = limits_.positions;
  rope.layout = c.rope.layout;
  rope.q_norm = layer.q_norm.data<float>();
  rope.k_norm = layer.k_norm.data<float>();
  rope.norm_eps = c.norm_eps;
  rope.cache = pages.layer(index);
  rope.type = c.type;
  rope.q = q_.data<uint16_t>();
  rope.nonfinite = nonfinite_.data<int32_t>();
  if (tracer_) {
    backend_.rms_norm(norm);
    trace(index, "attn_norm", norm.out, c.type, shape.tokens, c.hidden);
    backend_.gemm(project);
    trace(index, "qkv", project.out, DType::kF32, shape.tokens, c.qkv_columns());
    backend_.rope_cache(rope);
  } else {
    backend_.norm_gemm_rope(norm, project, rope);
  }
  trace(index, "rope", rope.q, c.type, shape.tokens, static_cast<int64_t>(c.q_heads) * c.head_dim);

  AttentionArgs attend;
  attend.q = q_.data<uint16_t>();
  attend.cache = pages.layer(index);
  attend.query_start = inputs_.query_start.data<int32_t>();
  attend.kv_len = inputs_.kv_len.data<int32_t>();
  attend.page_table = inputs_.page_table.data<int32_t>();
  attend.tokens = shape.tokens;
  attend.requests = shape.requests;
  attend.q_heads = c.q_heads;
  attend.table_stride = limits_.table_stride;
  attend.max_query = shape.max_query;
  attend.max_kv = shape.max_kv;
  attend.scale = c.attention_scale;
  attend.type = c.type;
  attend.out = attended_.data<uint16_t>();
  backend_.attention(attend);
  trace(index, "attention", attend.out, c.type, shape.tokens, static_cast<int64_t>(c.q_heads) * c.head_dim);

  GemmArgs out;
  out.x = attended_.data<uint16_t>();
  out.m = shape.tokens;
  out.w = layer.out.get();
  out.epilogue = Epilogue::kAddResidual;
  out.type = c.type;
  out.out = residual_.data();
  backend_.gemm(out);
  trace(index, "attn_output", out.out, DType::kF32, shape.tokens, c.hidden);
}

void Decoder::ffn_block(const Layer& layer, int64_t index, const StepShape& shape) {
  const ModelConfig& c = config_;
  RmsNormArgs norm;
  norm.x = residual_.data<float>();
  norm.weight = layer.ffn_norm.data<float>();
  norm.count = shape.tokens;
  norm.n = c.hidden;
  norm.eps = c.norm_eps;
  norm.out_type = c.type;
  norm.out = normed_.data<uint16_t>();

  GemmArgs up;
  up.x = normed_.data<uint16_t>();
  up.m = shape.tokens;
  up.w = layer.gate_up.get();
  up.epilogue = c.activation == GatedActivation::kSilu ? Epilogue::kSiluMul : Epilogue::kGeluMul;
  up.type = c.type;
  up.out = hidden_.data();
  if (tracer_) {
    backend_.rms_norm(norm);
    trace(index, "ffn_norm", norm.out, c.type, shape.tokens, c.hidden);
    backend_.gemm(up);
  } else {
    backend_.norm_gemm(norm, up);
  }
  trace(index, "ffn_gate_up", up.out, c.type, shape.tokens, c.ffn);

  GemmArgs down;
  down.x = hidden_.data<uint16_t>();
  down.m = shape.tokens;
  down.w = layer.down.get();
  down.epilogue = Epilogue::kAddResidual;
  down.type = c.type;
  down.out = residual_.data();
  backend_.gemm(down);
  trace(index, "ffn_down", down.out, DType::kF32, shape.tokens, c.hidden);
}

void Decoder::head(int32_t rows) {
  const ModelConfig& c = config_;
  require(rows <= limits_.logit_rows, "head: {} rows of logits; buffers were made for {}", rows, limits_.logit_rows);
  RmsNormArgs norm;
  norm.x = residual_.data<float>();
  norm.rows = inputs_.logit_rows.data<int32_t>();
  norm.weight = output_norm_.data<float>();
  norm.count = rows;
  norm.n = c.hidden;
  norm.eps = c.norm_eps;
  norm.out_type = c.type;
  norm.out = head_normed_.data<uint16_t>();

  GemmArgs head;
  head.x = head_normed_.data<uint16_t>();
  head.m = rows;
  head.w = head_weights();
  head.type = c.type;
  head.out = logits_.data();
  backend_.norm_gemm(norm, head);
}

}  // namespace isobit
