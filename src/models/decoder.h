#pragma once
// The decoder: a transformer written once as a sequence of operators. What differs between models is data
// (ModelConfig); where it runs is the Backend's affair.
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "models/config.h"
#include "ops/backend.h"
#include "weights/checkpoint.h"

namespace isobit {

// Largest shapes of a step; buffers are made for them once.
struct StepLimits {
  int32_t tokens = 512;      // tokens computed in a step
  int32_t requests = 1;      // sequences in a step
  int32_t logit_rows = 64;   // rows of logits at a time
  int32_t table_stride = 1;  // pages of the longest sequence
  int64_t positions = 2048;  // longest sequence: size of the rotary tables
};

// What a step works on, in the backend's memory. The host fills these arrays, the operators read them.
struct StepInputs {
  Buffer tokens;       // int32 [tokens], -1: padding
  Buffer positions;    // int32 [tokens]
  Buffer slots;        // int64 [tokens], -1: padding
  Buffer query_start;  // int32 [requests + 1]
  Buffer kv_len;       // int32 [requests], 0: padding
  Buffer page_table;   // int32 [requests, table_stride]
  // The same for the layers with a window, where they have pages of their own; null in a model without any.
  Buffer window_slots, window_table;
  Buffer tree_parents;  // int32 [tokens]: AttentionArgs::tree_parent, where a step has trees
  Buffer logit_rows;    // int32 [logit_rows], -1: padding
  Buffer sampled;       // int32 [logit_rows]: what the step before drew; not the host's
};

struct StepShape {
  int32_t tokens = 0, requests = 0, max_query = 0, max_kv = 0;
  bool trees = false;  // inputs().tree_parents says what each token follows; else the one before it
};

// The keys and values of all layers: page p of every layer belongs to the same tokens. Layers may differ in shape. With
// `window_pages` the layers with a window have so many pages, numbered by themselves.
class KvPages {
 public:
  KvPages(Backend& backend, const ModelConfig& config, int64_t pages, int32_t page_size, int64_t window_pages = 0);
  const KvCacheView& layer(int64_t i) const { return views_[static_cast<size_t>(i)]; }
  // In all layers; `in_window`: of those with pages of their own.
  void move(Backend& backend, std::span<const CacheMove> moves, std::span<const CacheMove> in_window) const;
  bool has_window_pages() const { return window_pages_ > 0; }
  int64_t pages() const { return pages_; }
  int32_t page_size() const { return page_size_; }
  size_t bytes() const { return buffer_.bytes(); }

 private:
  void set_scales(Backend& backend, const ModelConfig& config);

  Buffer buffer_, scales_;
  std::vector<KvCacheView> views_;
  std::vector<bool> in_window_;  // whose pages are the window's
  int64_t pages_, window_pages_;
  int32_t page_size_;
};

// Sees every operator's output as it is made: layer (-1: embedding and head), operator, rows × columns of `type` in the
// backend's memory. Slow; for finding where two runs part.
using Tracer = std::function<void(int64_t layer, std::string_view op, const void* data, DType type, int64_t rows,
                                  int64_t columns)>;
using Progress = std::function<void(size_t done_bytes, size_t total_bytes)>;

class Decoder {
 public:
  // Loads the weights. Throws Error kBadFile for tensors that are missing or of the wrong shape, named.
  Decoder(Backend& backend, const Checkpoint& file, const ModelConfig& config, const StepLimits& limits,
          const Progress& progress = {});

  const ModelConfig& config() const { return config_; }
  const StepLimits& limits() const { return limits_; }
  const StepInputs& inputs() const { return inputs_; }
  float* logits() const { return logits_.data<float>(); }            // [limits.logit_rows, vocab]
  const float* residual() const { return residual_.data<float>(); }  // [limits.tokens, hidden], of the last forward()
  int32_t* nonfinite() const {
    return nonfinite_.data<int32_t>();
  }  // [limits.tokens]: tokens whose k or v was not finite
  size_t weight_bytes() const { return weight_bytes_; }
  size_t buffer_bytes() const { return buffer_bytes_; }

  // Runs the layers over the step in inputs(); the residual stream stays in the decoder.
  void forward(const StepShape& shape, const KvPages& pages);
  // Final norm and LM head for the first `rows` of inputs().logit_rows (indices of the step's tokens) into logits().
  void head(int32_t rows);

  void set_tracer(Tracer tracer) { tracer_ = std::move(tracer); }

 private:
  struct Layer {
    std::unique_ptr<Linear> qkv, out, gate_up, down;
    Buffer attention_norm, attention_post_norm, ffn_norm, ffn_post_norm;
    Buffer qkv_bias, out_bias, q_norm, k_norm, sinks;  // where the model has them
  };
  struct RopeTables {
    Buffer cos, sin;  // [limits.positions, dim / 2]
  };
  class Loader;

  Layer load_layer(Loader& load, int64_t index) const;
  void attention_block(const Layer& layer, int64_t index, const StepShape& shape, const KvPages& pages);
  void ffn_block(const Layer& layer, int64_t index, const StepShape& shape);
  RmsNormArgs norm_of_residual(const Buffer& weight, int32_t tokens) const;
  // A sublayer's last projection adds to the residual stream, through its norm where the model has one there.
  GemmArgs onto_residual(GemmArgs project) const;
  void add_normed(const Buffer& post_norm, int32_t tokens);
  const Linear* head_weights() const { return config_.tied ? embedding_.get() : head_.get(); }
  void trace(int64_t layer, std::string_view op, const void* data, DType type, int64_t rows, int64_t columns);
  Buffer buffer(size_t bytes, std::string_view what);
  RopeTables make_rope_tables(const RopeConfig& rope);
  void make_buffers();

  Backend& backend_;
  ModelConfig config_;
  StepLimits limits_;
  StepInputs inputs_;
  std::vector<Layer> layers_;
  std::vector<RopeTables> ropes_;
  std::unique_ptr<Linear> embedding_, head_;  // head_ is null when tied
  Buffer output_norm_;
  Buffer residual_, normed_, qkv_, q_, attended_, hidden_, projected_, head_normed_, logits_, nonfinite_;
  size_t weight_bytes_ = 0, buffer_bytes_ = 0;
  Tracer tracer_;
};

}  // namespace isobit
