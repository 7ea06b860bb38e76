#include "models/quantize_fp8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/thread_pool.h"
#include "models/config.h"
#include "models/hf_documents.h"
#include "numerics/convert.h"
#include "numerics/dequantize.h"
#include "numerics/quantize.h"
#include "ops/gemm_fp8.h"
#include "weights/hf_folder.h"
#include "weights/safetensors_writer.h"

namespace isobit {
namespace {

namespace fs = std::filesystem;

// Rows of a matrix as another file orders them: row r of the output is row_of(r) of the source.
using RowOrder = std::function<int64_t(int64_t)>;

// GGUF's Llama files have the rows of a head of q and k as interleaved pairs, transformers as halves.
RowOrder halves_of_pairs(int64_t head_dim) {
  return [head_dim](int64_t r) {
    const int64_t half = head_dim / 2, in_head = r % head_dim;
    return r - in_head + 2 * (in_head % half) + in_head / half;
  };
}

struct Source {
  const Tensor* tensor = nullptr;
  RowOrder order;  // empty: as they are

  void row_bf16(int64_t r, uint16_t* out) const {
    const int64_t from = order ? order(r) : r;
    numerics::dequantize_row_bf16(tensor->dtype, tensor->data + static_cast<size_t>(from) * tensor->row_bytes(),
                                  tensor->columns(), out);
  }
};

// 128 rows of a matrix, quantised: every 128 × 128 by the largest magnitude in it.
class BlockRow {
 public:
  BlockRow(const Source& source, int64_t first)
      : columns_(source.tensor->columns()),
        rows_(std::min<int64_t>(kFp8Block, source.tensor->rows() - first)),
        values_(static_cast<size_t>(rows_ * columns_)) {
    std::vector<uint16_t> row(static_cast<size_t>(columns_));
    for (int64_t r = 0; r < rows_; r++) {
      source.row_bf16(first + r, row.data());
      std::transform(row.begin(), row.end(), values_.begin() + r * columns_, numerics::bf16_to_f32);
    }
  }

  float scale(int64_t block) const {
    float largest = 0.0f;
    for_each(block, [&](size_t at) { largest = numerics::fmax(largest, std::fabs(values_[at])); });
    return numerics::e4m3_scale(largest);
  }
  void quantise(int64_t block, std::byte* out) const {
    const float s = scale(block);
    for_each(block, [&](size_t at) { out[at] = std::byte{numerics::e4m3_value(values_[at], s)}; });
  }

 private:
  template <typename Body>
  void for_each(int64_t block, const Body& body) const {
    const int64_t begin = block * kFp8Block, end = std::min(begin + kFp8Block, columns_);
    for (int64_t r = 0; r < rows_; r++) {
      for (int64_t c = begin; c < end; c++) body(static_cast<size_t>(r * columns_ + c));
    }
  }

  int64_t columns_, rows_;
  std::vector<float> values_;
};

class Quantizer {
 public:
  Quantizer(const Checkpoint& from, const Fp8Options& options)
      : from_(from), config_(read_config(from)), options_(options) {
    for (const Tensor& t : from.tensors()) {
      total_ += t.bytes;
      if (t.dtype == DType::kF8E4M3) {
        throw fail(ErrorCode::kInvalidArgument, "{}: is a block-scaled FP8 model already (tensor {})", from.path(),
                   t.name);
      }
    }
  }

  void write(const std::string& folder) {
    std::map<std::string, std::string> documents;  // before the weights: what cannot be written is said at once
    if (from_.document("config.json")) {
      documents = copied_documents();
      plan_copy();
    } else {
      documents = hf_documents(from_, config_);
      plan_conversion();
    }
    documents["config.json"] = with_quantization(documents.at("config.json"));
    make_folder(folder);
    write_safetensors((fs::path(folder) / "model.safetensors").string(), std::move(tensors_));
    for (const auto& [name, text] : documents) {
      std::ofstream out(fs::path(folder) / name, std::ios::binary);
      if (!(out << text)) throw fail(ErrorCode::kIo, "{}/{}: cannot be written; is the disk full?", folder, name);
    }
  }

 private:
  static void make_folder(const std::string& folder) {
    std::error_code error;
    fs::create_directories(folder, error);
    if (error) throw fail(ErrorCode::kIo, "{}: cannot be made: {}", folder, error.message());
    if (!fs::is_empty(folder, error)) {
      throw fail(ErrorCode::kInvalidArgument, "{}: is not empty; name a new folder", folder);
    }
  }

  std::map<std::string, std::string> copied_documents() const {
    std::map<std::string, std::string> all;
    for (const std::string_view name : kHfDocuments) {
      if (const auto text = from_.document(name)) all[std::string(name)] = std::string(*text);
    }
    return all;
  }

  std::string with_quantization(const std::string& config) const {
    nlohmann::json json = parse_json_file(config, from_.path() + "/config.json");
    json["quantization_config"] = {{"quant_method", "fp8"},
                                   {"fmt", "e4m3"},
                                   {"activation_scheme", "dynamic"},
                                   {"weight_block_size", {kFp8Block, kFp8Block}}};
    if (!kept_.empty()) json["quantization_config"]["modules_to_not_convert"] = kept_;
    return json.dump(2) + "\n";
  }

  // Names of a layer's matrices, without ".weight"; those of a group are multiplied together.
  static std::vector<std::vector<std::string>> groups(const ModelConfig& c, const TensorNames& names) {
    return {c.fused_qkv ? std::vector{names.qkv} : std::vector{names.q, names.k, names.v},
            {names.out},
            c.fused_gate_up ? std::vector{names.gate_up} : std::vector{names.gate, names.up},
            {names.down}};
  }

  // True where the matrices of a group stay as they are; notes their names.
  bool keeps(const std::vector<std::string>& modules) {
    const auto kept = std::ranges::count_if(modules, [&](const std::string& module) {
      return std::ranges::any_of(options_.keep, [&](const std::string& part) {
        return fmt::format(".{}.", module).find(fmt::format(".{}.", part)) != std::string::npos;
      });
    });
    if (kept == 0) return false;
    if (kept != static_cast<int64_t>(modules.size())) {
      throw fail(ErrorCode::kInvalidArgument, "{} and what is multiplied together with it must all be kept or all go",
                 modules[0]);
    }
    kept_.insert(kept_.end(), modules.begin(), modules.end());
    return true;
  }

  // Of a folder: the layers' matrices are quantised, everything else is copied.
  void plan_copy() {
    std::set<std::string> linear;
    for (int64_t i = 0; i < config_.layer_count(); i++) {
      for (std::vector<std::string> group : groups(config_, config_.names)) {
        for (std::string& m : group) m = config_.names.of_layer(i, m);
        if (keeps(group)) continue;
        for (const std::string& m : group) linear.insert(m + ".weight");
      }
    }
    for (const Tensor& t : from_.tensors()) {
      if (linear.contains(t.name)) {
        add_quantised(t.name, {&from_.tensor(t.name), {}});
      } else {
        add(t.name, t.dtype, t.shape, t, [&t](std::span<std::byte> to) { std::memcpy(to.data(), t.data, t.bytes); });
      }
    }
  }

  // Of a GGUF file: transformers' names and order of rows, plain values as bf16.
  void plan_conversion() {
    const ModelConfig& c = config_;
    const TensorNames &g = c.names, hf = TensorNames::hugging_face("model.", c.post_norms);
    add_plain(hf.embedding + ".weight", g.embedding + ".weight");
    add_plain(hf.output_norm + ".weight", g.output_norm + ".weight");
    if (!c.tied) add_plain(hf.head + ".weight", g.head + ".weight");
    const auto from = groups(c, g), to = groups(c, hf);
    for (int64_t i = 0; i < c.layer_count(); i++) {
      const LayerConfig& l = c.layers[static_cast<size_t>(i)];
      const bool pairs = l.rope >= 0 && c.ropes[static_cast<size_t>(l.rope)].layout == RopeLayout::kInterleaved;
      const RowOrder order = pairs ? halves_of_pairs(l.head_dim) : RowOrder();
      for (size_t group = 0; group < from.size(); group++) {
        std::vector<std::string> modules = to[group];
        for (std::string& m : modules) m = hf.of_layer(i, m);
        const bool kept = keeps(modules);
        for (size_t m = 0; m < modules.size(); m++) {
          const std::string& name = from[group][m];
          const bool turned = name == g.q || name == g.k;
          const Source source{&from_.tensor(g.of_layer(i, name) + ".weight"), turned ? order : RowOrder()};
          if (kept) {
            add_bf16(modules[m] + ".weight", source);
          } else {
            add_quantised(modules[m] + ".weight", source);
          }
        }
      }
      add_plain(hf.of_layer(i, hf.attention_norm) + ".weight", g.of_layer(i, g.attention_norm) + ".weight");
      add_plain(hf.of_layer(i, hf.ffn_norm) + ".weight", g.of_layer(i, g.ffn_norm) + ".weight");
      if (c.qk_norm) {
        add_plain(hf.of_layer(i, hf.q_norm) + ".weight", g.of_layer(i, g.q_norm) + ".weight");
        add_plain(hf.of_layer(i, hf.k_norm) + ".weight", g.of_layer(i, g.k_norm) + ".weight");
      }
      if (c.qkv_bias) {
        for (const auto& [a, b] : {std::pair{&hf.q, &g.q}, {&hf.k, &g.k}, {&hf.v, &g.v}}) {
          add_plain(hf.of_layer(i, *a) + ".bias", g.of_layer(i, *b) + ".bias");
        }
      }
    }
  }

  void add_quantised(const std::string& name, const Source& source) {
    const Tensor& t = *source.tensor;
    const int64_t blocks = fp8_blocks(t.columns()), block_rows = fp8_blocks(t.rows());
    add(name, DType::kF8E4M3, {t.rows(), t.columns()}, t, [this, source, blocks, block_rows](std::span<std::byte> to) {
      pool_.parallel_for(block_rows, [&](int, int64_t i) {
        const BlockRow rows(source, i * kFp8Block);
        std::byte* out = to.data() + i * kFp8Block * source.tensor->columns();
        for (int64_t b = 0; b < blocks; b++) rows.quantise(b, out);
      });
    });
    add(name + "_scale_inv", DType::kF32, {block_rows, blocks}, t,
        [this, source, blocks, block_rows](std::span<std::byte> to) {
          pool_.parallel_for(block_rows, [&](int, int64_t i) {
            const BlockRow rows(source, i * kFp8Block);
            for (int64_t b = 0; b < blocks; b++) {
              const float s = rows.scale(b);
              std::memcpy(to.data() + static_cast<size_t>(i * blocks + b) * sizeof s, &s, sizeof s);
            }
          });
        });
  }

  // Values as bf16; those of a vector that bf16 does not hold as f32.
  void add_plain(const std::string& name, const std::string& source) {
    const Tensor& t = from_.tensor(source);
    if (t.shape.size() == 1 && !fits_bf16(t)) {
      return add(name, DType::kF32, t.shape, t, [&t](std::span<std::byte> to) {
        std::vector<float> v(static_cast<size_t>(t.columns()));
        numerics::dequantize_row_f32(t.dtype, t.data, t.columns(), v.data());
        std::memcpy(to.data(), v.data(), to.size());
      });
    }
    add_bf16(name, {&t, {}});
  }

  void add_bf16(const std::string& name, const Source& source) {
    const Tensor& t = *source.tensor;
    add(name, DType::kBF16, t.shape, t, [source](std::span<std::byte> to) {
      std::vector<uint16_t> row(static_cast<size_t>(source.tensor->columns()));
      for (int64_t r = 0; r < source.tensor->rows(); r++) {
        source.row_bf16(r, row.data());
        std::memcpy(to.data() + static_cast<size_t>(r) * row.size() * 2, row.data(), row.size() * 2);
      }
    });
  }

  static bool fits_bf16(const Tensor& t) {
    std::vector<float> v(static_cast<size_t>(t.columns()));
    numerics::dequantize_row_f32(t.dtype, t.data, t.columns(), v.data());
    return std::ranges::all_of(v, [](float x) {
      return numerics::bits(numerics::bf16_to_f32(numerics::f32_to_bf16(x))) == numerics::bits(x);
    });
  }

  void add(std::string name, DType type, std::vector<int64_t> shape, const Tensor& source,
           std::function<void(std::span<std::byte>)> make) {
    const bool counts = type != DType::kF32 || source.dtype == DType::kF32;  // a matrix once, not with its scales
    tensors_.push_back({std::move(name), type, std::move(shape),
                        [this, &source, counts, make = std::move(make)](std::span<std::byte> to) {
                          make(to);
                          from_.release_pages(source);
                          if (counts) done_ += source.bytes;
                          if (options_.progress) options_.progress(done_, total_);
                        }});
  }

  const Checkpoint& from_;
  ModelConfig config_;
  const Fp8Options& options_;
  std::vector<std::string> kept_;  // modules
  ThreadPool pool_{0};
  std::vector<TensorToWrite> tensors_;
  size_t total_ = 0, done_ = 0;
};

}  // namespace

std::vector<std::string> default_kept_modules(const ModelConfig& config) {
  if (config.hidden >= 1024) return {};
  std::vector<std::string> keep = {"self_attn"};
  const int64_t layers = config.layer_count(), outer = layers / 5;
  for (int64_t i = 0; i < layers; i++) {
    if (i < outer || i >= layers - outer) keep.push_back(fmt::format("layers.{}", i));
  }
  return keep;
}

void quantize_to_fp8(const Checkpoint& from, const std::string& folder, const Fp8Options& options) {
  Quantizer(from, options).write(folder);
}

}  // namespace isobit
