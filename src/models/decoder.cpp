#include "models/decoder.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/error.h"
#include "models/kv_cache_config.h"
#include "numerics/dequantize.h"
#include "numerics/ieee.h"
#include "numerics/rope.h"
#include "ops/gemm_fp8.h"

namespace isobit {

KvPages::KvPages(Backend& backend, const ModelConfig& config, int64_t pages, int32_t page_size, int64_t window_pages)
    : pages_(pages), window_pages_(window_pages), page_size_(page_size) {
  const auto bytes = [&](size_t per_token, int64_t of) { return per_token * static_cast<size_t>(of * page_size); };
  const size_t all = config.kv_bytes_per_token(), apart = has_window_pages() ? config.window_kv_bytes_per_token() : 0;
  buffer_ = backend.allocate(
      bytes(all - apart, pages) + bytes(apart, window_pages),
      fmt::format("the KV cache ({} pages of {} tokens, {} for layers with a window)", pages, page_size, window_pages));
  auto* at = buffer_.data<std::byte>();
  for (const LayerConfig& layer : config.layers) {
    KvCacheView view;
    in_window_.push_back(has_window_pages() && layer.window > 0);
    view.pages = in_window_.back() ? window_pages : pages;
    view.kv_heads = layer.kv_heads;
    view.page_size = page_size;
    view.head_dim = layer.head_dim;
    view.type = config.cache_type();
    const size_t plane = dtype_bytes(view.type, static_cast<size_t>(view.pages * view.page_elements()));
    view.k = at;
    view.v = at + plane;
    at += 2 * plane;
    views_.push_back(view);
  }
  if (config.fp8_cache) set_scales(backend, config);
}

void KvPages::move(Backend& backend, std::span<const CacheMove> moves, std::span<const CacheMove> in_window) const {
  for (size_t i = 0; i < views_.size(); i++) backend.move_cache({views_[i], in_window_[i] ? in_window : moves});
}

// Of all layers in turn, k's before v's.
void KvPages::set_scales(Backend& backend, const ModelConfig& config) {
  std::vector<float> all;
  for (const LayerConfig& layer : config.layers) {
    for (const auto* s : {&layer.k_scale, &layer.v_scale}) all.insert(all.end(), s->begin(), s->end());
  }
  scales_ = backend.allocate(all.size() * sizeof(float), "the KV cache's scales");
  backend.upload(scales_.data(), all.data(), scales_.bytes());
  const float* at = scales_.data<float>();
  for (KvCacheView& view : views_) {
    view.k_scale = at;
    view.v_scale = at + view.kv_heads;
    at += 2 * view.kv_heads;
  }
}

// Reads tensors out of the file, checks their shapes and hands them to the backend.
class Decoder::Loader {
 public:
  Loader(Decoder& decoder, const Checkpoint& file, const Progress& progress)
      : decoder_(decoder), file_(file), progress_(progress) {
    for (const Tensor& t : file.tensors()) total_ += t.bytes;
  }

  // Rows [first, first + rows) of a matrix in the file, of which it has `of` (0: just these).
  struct Rows {
    std::string name;  // without ".weight"
    int64_t rows = 0, first = 0, of = 0;
  };

  std::unique_ptr<Linear> linear(const std::vector<Rows>& wanted, int64_t columns,
                                 LinearForm form = LinearForm::kStacked) {
    std::vector<WeightPart> parts;
    for (const Rows& r : wanted) {
      const Tensor& t = checked(r.name + ".weight", r.of > 0 ? r.of : r.rows, columns);
      parts.push_back(
          {t.dtype, r.rows, columns, t.data + static_cast<size_t>(r.first) * t.row_bytes(), scales_from(t, r.first)});
    }
    auto made = decoder_.backend_.load_linear(parts, form, decoder_.config_.type);
    decoder_.weight_bytes_ += made->bytes();
    for (const Rows& r : wanted) done(r.name + ".weight");
    return made;
  }

  Buffer norm(const std::string& name, int64_t elements) {
    std::vector<float> values = read(name + ".weight", elements);
    if (decoder_.config_.weights_less_one) {
      for (float& v : values) v = numerics::fadd(1.0f, v);
    }
    return keep(values, name);
  }

  // The named vectors, one after the other.
  Buffer vector(const std::vector<std::pair<std::string, int64_t>>& names_and_elements) {
    std::vector<float> all;
    for (const auto& [name, elements] : names_and_elements) {
      const std::vector<float> values = read(name, elements);
      all.insert(all.end(), values.begin(), values.end());
    }
    return keep(all, names_and_elements.front().first);
  }

  // The scales of a block-scaled matrix's rows from `first` on; null for others.
  const std::byte* scales_from(const Tensor& t, int64_t first) const {
    if (t.scale == nullptr) return nullptr;
    if (first % kFp8Block != 0) {
      throw fail(ErrorCode::kUnsupported,
                 "{}: tensor {} is cut at row {}, inside a block of {} rows that share a scale", file_.path(), t.name,
                 first, kFp8Block);
    }
    return t.scale + static_cast<size_t>(first / kFp8Block * fp8_blocks(t.columns())) * sizeof(float);
  }

  // A tensor of a layer that nothing asked for would silently be left out of the model. Throws Error(kUnsupported).
  void expect_all_used() const {
    const std::string& prefix = decoder_.config_.names.layer;
    for (const Tensor& t : file_.tensors()) {
      if (!t.name.starts_with(prefix) || used_.contains(t.name) || t.name.ends_with("rotary_emb.inv_freq")) continue;
      if (t.name.ends_with(kScaleSuffix) || is_kv_scale(t.name)) continue;  // go with a matrix; with an FP8 cache
      throw fail(ErrorCode::kUnsupported,
                 "{}: tensor {} is not part of {} as isobit runs it; the model would be wrong "
                 "without it",
                 file_.path(), t.name, decoder_.config_.family);
    }
  }

 private:
  std::vector<float> read(const std::string& name, int64_t elements) {
    const Tensor& t = checked(name, 1, elements);
    std::vector<float> values(static_cast<size_t>(elements));
    numerics::dequantize_row_f32(t.dtype, t.data, elements, values.data());
    done(name);
    return values;
  }

  Buffer keep(const std::vector<float>& values, const std::string& what) {
    Buffer b = decoder_.backend_.allocate(values.size() * sizeof(float), what);
    decoder_.backend_.upload(b.data(), values.data(), b.bytes());
    decoder_.weight_bytes_ += b.bytes();
    return b;
  }

  const Tensor& checked(const std::string& name, int64_t rows, int64_t columns) const {
    const Tensor& t = file_.tensor(name);
    if (t.columns() != columns || t.rows() != rows) {
      throw fail(ErrorCode::kBadFile, "{}: tensor {} is {} × {}; the model's metadata says {} × {}", file_.path(), name,
                 t.rows(), t.columns(), rows, columns);
    }
    return t;
  }

  void done(const std::string& name) {
    if (!used_.insert(name).second) return;
    const Tensor& t = file_.tensor(name);
    if (!decoder_.backend_.keeps_file_pages()) file_.release_pages(t);
    done_ += t.bytes;
    if (progress_) progress_(done_, total_);
  }

  Decoder& decoder_;
  const Checkpoint& file_;
  const Progress& progress_;
  std::set<std::string> used_;
  size_t total_ = 0, done_ = 0;
};

Decoder::Layer Decoder::load_layer(Loader& load, int64_t index) const {
  const ModelConfig& c = config_;
  const LayerConfig& shape = c.layers[static_cast<size_t>(index)];
  const auto name = [&](const std::string& part) { return c.names.of_layer(index, part); };
  const int64_t q = shape.q_columns(), kv = shape.kv_columns(), ffn = shape.ffn;
  Layer l;
  l.attention_norm = load.norm(name(c.names.attention_norm), c.hidden);
  l.qkv = c.fused_qkv ? load.linear({{name(c.names.qkv), shape.qkv_columns()}}, c.hidden)
                      : load.linear({{name(c.names.q), q}, {name(c.names.k), kv}, {name(c.names.v), kv}}, c.hidden);
  if (c.qkv_bias && c.fused_qkv) {
    l.qkv_bias = load.vector({{name(c.names.qkv) + ".bias", shape.qkv_columns()}});
  } else if (c.qkv_bias) {
    l.qkv_bias =
        load.vector({{name(c.names.q) + ".bias", q}, {name(c.names.k) + ".bias", kv}, {name(c.names.v) + ".bias", kv}});
  }
  if (c.qk_norm) {
    l.q_norm = load.norm(name(c.names.q_norm), shape.head_dim);
    l.k_norm = load.norm(name(c.names.k_norm), shape.head_dim);
  }
  if (c.sinks) l.sinks = load.vector({{name(c.names.sinks), shape.q_heads}});
  l.out = load.linear({{name(c.names.out), c.hidden}}, q);
  if (c.output_bias) l.out_bias = load.vector({{name(c.names.out) + ".bias", c.hidden}});
  if (c.post_norms) l.attention_post_norm = load.norm(name(c.names.attention_post_norm), c.hidden);
  l.ffn_norm = load.norm(name(c.names.ffn_norm), c.hidden);
  l.gate_up = c.fused_gate_up
                  ? load.linear({{name(c.names.gate_up), ffn, 0, 2 * ffn}, {name(c.names.gate_up), ffn, ffn, 2 * ffn}},
                                c.hidden, LinearForm::kGated)
                  : load.linear({{name(c.names.gate), ffn}, {name(c.names.up), ffn}}, c.hidden, LinearForm::kGated);
  l.down = load.linear({{name(c.names.down), c.hidden}}, ffn);
  if (c.post_norms) l.ffn_post_norm = load.norm(name(c.names.ffn_post_norm), c.hidden);
  return l;
}

Decoder::Decoder(Backend& backend, const Checkpoint& file, const ModelConfig& config, const StepLimits& limits,
                 const Progress& progress)
    : backend_(backend), config_(config), limits_(limits) {
  const ModelConfig& c = config_;
  Loader load(*this, file, progress);
  // The largest matrices first: while one is converted it is there twice, and now little else is there yet.
  embedding_ = load.linear({{c.names.embedding, c.vocab}}, c.hidden);
  if (!c.tied) head_ = load.linear({{c.names.head, c.vocab}}, c.hidden);
  for (int64_t i = 0; i < c.layer_count(); i++) layers_.push_back(load_layer(load, i));
  output_norm_ = load.norm(c.names.output_norm, c.hidden);
  load.expect_all_used();
  if (!backend_.keeps_file_pages()) file.release_all_pages();
  for (const RopeConfig& rope : c.ropes) ropes_.push_back(make_rope_tables(rope));
  make_buffers();
}

Buffer Decoder::buffer(size_t bytes, std::string_view what) {
  buffer_bytes_ += bytes;
  return backend_.allocate(bytes, what);
}

// A context longer than LongRoPE's original takes its long frequencies for every position, short prompts included: the
// choice is the engine's, once, and not a sequence's, whose cached keys could not be turned again (N25).
Decoder::RopeTables Decoder::make_rope_tables(const RopeConfig& r) {
  const std::vector<double>& frequencies = r.is_long(limits_.positions) ? r.long_frequencies : r.frequencies;
  const size_t half = frequencies.size(), count = static_cast<size_t>(limits_.positions) * half;
  std::vector<float> cos(count), sin(count);
  for (int64_t p = 0; p < limits_.positions; p++) {
    for (size_t i = 0; i < half; i++) {
      const numerics::RopeEntry e = numerics::rope_entry(p, frequencies[i], r.magnitude);
      cos[static_cast<size_t>(p) * half + i] = e.cos;
      sin[static_cast<size_t>(p) * half + i] = e.sin;
    }
  }
  RopeTables tables{buffer(count * sizeof(float), "the rotary tables"),
                    buffer(count * sizeof(float), "the rotary tables")};
  backend_.upload(tables.cos.data(), cos.data(), tables.cos.bytes());
  backend_.upload(tables.sin.data(), sin.data(), tables.sin.bytes());
  return tables;
}

void Decoder::make_buffers() {
  const ModelConfig& c = config_;
  const auto tokens = static_cast<size_t>(limits_.tokens), requests = static_cast<size_t>(limits_.requests),
             rows = static_cast<size_t>(limits_.logit_rows), hidden = static_cast<size_t>(c.hidden);
  const auto widest = [&](auto columns) {
    int64_t most = 0;
    for (const LayerConfig& l : c.layers) most = std::max(most, columns(l));
    return static_cast<size_t>(most);
  };
  const size_t q_columns = widest([](const LayerConfig& l) { return l.q_columns(); });
  inputs_.tokens = buffer(tokens * 4, "step inputs");
  inputs_.positions = buffer(tokens * 4, "step inputs");
  inputs_.slots = buffer(tokens * 8, "step inputs");
  inputs_.query_start = buffer((requests + 1) * 4, "step inputs");
  inputs_.kv_len = buffer(requests * 4, "step inputs");
  inputs_.tree_parents = buffer(tokens * 4, "step inputs");
  inputs_.page_table = buffer(requests * static_cast<size_t>(limits_.table_stride) * 4, "page tables");
  if (c.longest_window() > 0) {
    inputs_.window_slots = buffer(inputs_.slots.bytes(), "step inputs");
    inputs_.window_table = buffer(inputs_.page_table.bytes(), "page tables");
  }
  inputs_.logit_rows = buffer(rows * 4, "step inputs");
  inputs_.sampled = buffer(rows * 4, "sampling");
  residual_ = buffer(tokens * hidden * 4, "the residual stream");
  normed_ = buffer(tokens * hidden * 2, "normed activations");
  qkv_ = buffer(tokens * widest([](const LayerConfig& l) { return l.qkv_columns(); }) * 4, "q, k, v");
  q_ = buffer(tokens * q_columns * 2, "queries");
  attended_ = buffer(tokens * q_columns * 2, "attention outputs");
  hidden_ = buffer(tokens * widest([](const LayerConfig& l) { return l.ffn; }) * 2, "FFN activations");
  if (c.post_norms) projected_ = buffer(tokens * hidden * 4, "sublayer outputs");
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
  for (int64_t i = 0; i < config_.layer_count(); i++) {
    attention_block(layers_[static_cast<size_t>(i)], i, shape, pages);
    ffn_block(layers_[static_cast<size_t>(i)], i, shape);
  }
}

RmsNormArgs Decoder::norm_of_residual(const Buffer& weight, int32_t tokens) const {
  RmsNormArgs norm;
  norm.x = residual_.data<float>();
  norm.weight = weight.data<float>();
  norm.count = tokens;
  norm.n = config_.hidden;
  norm.eps = config_.norm_eps;
  norm.out_type = config_.type;
  norm.out = normed_.data<uint16_t>();
  return norm;
}

GemmArgs Decoder::onto_residual(GemmArgs project) const {
  project.epilogue = config_.post_norms ? Epilogue::kStoreF32 : Epilogue::kAddResidual;
  project.out = config_.post_norms ? projected_.data() : residual_.data();
  return project;
}

void Decoder::add_normed(const Buffer& post_norm, int32_t tokens) {
  if (!config_.post_norms) return;  // added already
  RmsNormArgs norm = norm_of_residual(post_norm, tokens);
  norm.x = projected_.data<float>();
  norm.out = nullptr;
  norm.add_to = residual_.data<float>();
  backend_.rms_norm(norm);
}

void Decoder::attention_block(const Layer& layer, int64_t index, const StepShape& shape, const KvPages& pages) {
  const ModelConfig& c = config_;
  const LayerConfig& l = c.layers[static_cast<size_t>(index)];
  const RmsNormArgs norm = norm_of_residual(layer.attention_norm, shape.tokens);
  const bool own_pages = l.window > 0 && pages.has_window_pages();

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
  rope.slots = (own_pages ? inputs_.window_slots : inputs_.slots).data<int64_t>();
  rope.count = shape.tokens;
  rope.q_heads = l.q_heads;
  if (l.rope >= 0) {
    const auto at = static_cast<size_t>(l.rope);
    rope.cos = ropes_[at].cos.data<float>();
    rope.sin = ropes_[at].sin.data<float>();
    rope.rope_dim = c.ropes[at].dim;
    rope.layout = c.ropes[at].layout;
  }
  rope.max_position = limits_.positions;
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
    trace(index, "qkv", project.out, DType::kF32, shape.tokens, l.qkv_columns());
    backend_.rope_cache(rope);
  } else {
    backend_.norm_gemm_rope(norm, project, rope);
  }
  trace(index, "rope", rope.q, c.type, shape.tokens, l.q_columns());

  AttentionArgs attend;
  attend.q = q_.data<uint16_t>();
  attend.cache = pages.layer(index);
  attend.query_start = inputs_.query_start.data<int32_t>();
  attend.kv_len = inputs_.kv_len.data<int32_t>();
  attend.page_table = (own_pages ? inputs_.window_table : inputs_.page_table).data<int32_t>();
  attend.tokens = shape.tokens;
  attend.requests = shape.requests;
  attend.q_heads = l.q_heads;
  attend.table_stride = limits_.table_stride;
  attend.max_query = shape.max_query;
  attend.max_kv = shape.max_kv;
  attend.scale = l.attention_scale;
  if (shape.trees) attend.tree_parent = inputs_.tree_parents.data<int32_t>();
  attend.soft_cap = c.attention_soft_cap;
  attend.window = l.window;
  attend.sinks = layer.sinks.data<float>();
  attend.type = c.type;
  attend.out = attended_.data<uint16_t>();
  backend_.attention(attend);
  trace(index, "attention", attend.out, c.type, shape.tokens, l.q_columns());

  GemmArgs out;
  out.x = attended_.data<uint16_t>();
  out.m = shape.tokens;
  out.w = layer.out.get();
  out.bias = layer.out_bias.data<float>();
  out.type = c.type;
  backend_.gemm(onto_residual(out));
  add_normed(layer.attention_post_norm, shape.tokens);
  trace(index, "attn_output", residual_.data(), DType::kF32, shape.tokens, c.hidden);
}

void Decoder::ffn_block(const Layer& layer, int64_t index, const StepShape& shape) {
  const ModelConfig& c = config_;
  const RmsNormArgs norm = norm_of_residual(layer.ffn_norm, shape.tokens);

  GemmArgs up;
  up.x = normed_.data<uint16_t>();
  up.m = shape.tokens;
  up.w = layer.gate_up.get();
  up.epilogue = c.activation == GatedActivation::kSilu ? Epilogue::kSiluMul : Epilogue::kGeluMul;
  up.type = c.type;
  up.out = hidden_.data();
  GemmArgs down;
  down.x = hidden_.data<uint16_t>();
  down.m = shape.tokens;
  down.w = layer.down.get();
  down.type = c.type;
  down = onto_residual(down);

  if (tracer_) {
    backend_.rms_norm(norm);
    trace(index, "ffn_norm", norm.out, c.type, shape.tokens, c.hidden);
    backend_.gemm(up);
    trace(index, "ffn_gate_up", up.out, c.type, shape.tokens, c.layers[static_cast<size_t>(index)].ffn);
    backend_.gemm(down);
  } else {
    backend_.norm_gemm_gemm(norm, up, down);
  }
  add_normed(layer.ffn_post_norm, shape.tokens);
  trace(index, "ffn_down", residual_.data(), DType::kF32, shape.tokens, c.hidden);
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
  if (c.logit_soft_cap > 0.0f) {
    SoftCapArgs cap;
    cap.x = logits_.data<float>();
    cap.count = rows * c.vocab;
    cap.cap = c.logit_soft_cap;
    backend_.soft_cap(cap);
  }
}

}  // namespace isobit
