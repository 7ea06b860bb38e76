// isobit show: what a model is, what it takes, and what keeps it from running.
#include <fmt/ranges.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/cli.h"
#include "models/load_check.h"
#include "models/registry.h"
#include "models/sampling_defaults.h"
#include "models/tokenizer_spec.h"

namespace isobit::cli {
namespace {

using Json = nlohmann::json;

// What of a file could be read, and everything that stops it from running, not the first thing alone.
struct Findings {
  std::optional<ModelConfig> config;
  SamplingDefaults sampling;
  std::vector<std::string> obstacles;
};

Findings examine(const Checkpoint& file) {
  Findings f;
  std::vector<std::string>& found = f.obstacles;
  const auto attempt = [&](const auto& step) {
    try {
      step();
    } catch (const std::exception& e) {
      found.emplace_back(e.what());
    }
  };
  attempt([&] { f.config = read_config(file); });
  if (f.config) attempt([&] { check_loads(file, *f.config); });
  attempt([&] { Tokenizer::create(read_tokenizer_spec(file)); });
  attempt([&] { f.sampling = read_sampling_defaults(file); });
  attempt([&] {
    if (const auto source = read_chat_template(file)) ChatTemplate{*source};
  });
  std::map<std::string, int> types;
  for (const Tensor& t : file.tensors()) {
    if (!t.supported()) types[t.unsupported_type]++;
  }
  for (const auto& [type, count] : types) {
    found.push_back(fmt::format("{} tensors are of type {}; isobit runs {}", count, type, supported_type_names()));
  }
  return f;
}

// Bytes in the file by the part of the model they belong to.
std::map<std::string, size_t> bytes_by_part(const Checkpoint& file, const ModelConfig& c) {
  std::map<std::string, size_t> parts;
  const TensorNames& n = c.names;
  for (const Tensor& t : file.tensors()) {
    const size_t dot = t.name.starts_with(n.layer) ? t.name.find('.', n.layer.size()) : std::string::npos;
    const std::string_view inner = dot == std::string::npos ? "" : std::string_view(t.name).substr(dot + 1);
    const auto is = [&](const std::string& name) { return !name.empty() && inner.starts_with(name + "."); };
    const bool ffn = is(n.gate) || is(n.up) || is(n.down) || is(n.gate_up);
    const bool attention = is(n.q) || is(n.k) || is(n.v) || is(n.qkv) || is(n.out);
    const std::string part = t.name == n.embedding + ".weight" ? "embedding"
                             : t.name == n.head + ".weight"    ? "head"
                             : ffn                             ? "ffn"
                             : attention                       ? "attention"
                             : !inner.empty()                  ? "norms and others of the layers"
                                                               : "other";
    parts[part] += t.bytes;
  }
  return parts;
}

// "18 layers: 15 with a window of 512, 3 without": what the layers share and where they differ.
std::string describe_layers(const ModelConfig& c) {
  std::map<std::string, int> kinds;
  for (const LayerConfig& l : c.layers) {
    const std::string window = l.window > 0 ? fmt::format(", window {}", l.window) : "";
    kinds[fmt::format("{} query and {} KV heads of {}, FFN {}{}{}", l.q_heads, l.kv_heads, l.head_dim, l.ffn, window,
                      l.rope < 0 ? ", no rotation" : "")]++;
  }
  std::string text;
  for (const auto& [kind, count] : kinds) text += fmt::format("    {} × {}\n", count, kind);
  return text;
}

std::string features(const ModelConfig& c) {
  std::vector<std::string> list;
  if (c.qkv_bias) list.emplace_back("biases on q, k, v");
  if (c.output_bias) list.emplace_back("bias after attention");
  if (c.qk_norm) list.emplace_back("norms on q and k");
  if (c.post_norms) list.emplace_back("norms after sublayers");
  if (c.sinks) list.emplace_back("attention sinks");
  if (c.attention_soft_cap > 0) list.push_back(fmt::format("scores capped at {}", c.attention_soft_cap));
  if (c.logit_soft_cap > 0) list.push_back(fmt::format("logits capped at {}", c.logit_soft_cap));
  if (c.ropes.size() > 1) list.push_back(fmt::format("{} rotary tables", c.ropes.size()));
  if (c.tied) list.emplace_back("head tied to the embedding");
  return fmt::format("{}", fmt::join(list, ", "));
}

Json model_json(const Checkpoint& file, const ModelConfig& c) {
  Json layers = Json::array();
  for (const LayerConfig& l : c.layers) {
    layers.push_back({{"q_heads", l.q_heads},
                      {"kv_heads", l.kv_heads},
                      {"head_dim", l.head_dim},
                      {"ffn", l.ffn},
                      {"window", l.window},
                      {"rotates", l.rope >= 0}});
  }
  const LayerConfig& first = c.layers.front();
  return {{"family", c.family},
          {"architecture", c.architecture},
          {"dtype", dtype_info(c.type).name},
          {"layers", c.layer_count()},
          {"hidden", c.hidden},
          {"ffn", first.ffn},
          {"vocab", c.vocab},
          {"q_heads", first.q_heads},
          {"kv_heads", first.kv_heads},
          {"head_dim", first.head_dim},
          {"each_layer", layers},
          {"context", c.context},
          {"bytes_by_part", bytes_by_part(file, c)},
          {"kv_bytes_per_token", c.kv_bytes_per_token()}};
}

struct Counted {
  std::map<std::string, std::pair<int64_t, size_t>> types;  // tensors, bytes
  int64_t parameters = 0;
};

Counted count(const Checkpoint& file) {
  Counted all;
  for (const Tensor& t : file.tensors()) {
    auto& entry = all.types[std::string(t.type_name())];
    entry.first++;
    entry.second += t.bytes;
    all.parameters += t.elements();
  }
  return all;
}

void show_json(const Checkpoint& file, const Findings& f, bool tensors) {
  const Counted all = count(file);
  Json j = {{"path", file.path()},
            {"format", file.format()},
            {"bytes", file.file_bytes()},
            {"digest", file.digest()},
            {"parameters", all.parameters},
            {"runs", f.obstacles.empty()},
            {"obstacle", f.obstacles.empty() ? "" : f.obstacles.front()},
            {"obstacles", f.obstacles},
            {"sampling", f.sampling.describe()}};
  for (const auto& [type, entry] : all.types) j["types"][type] = {{"tensors", entry.first}, {"bytes", entry.second}};
  for (const MetadataEntry& e : file.metadata().entries()) j["metadata"][std::string(e.key)] = e.value.display();
  if (const auto text = file.document("config.json")) j["config"] = Json::parse(*text, nullptr, false);
  if (f.config) j["model"] = model_json(file, *f.config);
  for (const Tensor& t : file.tensors()) {
    if (!tensors) break;
    j["tensors"].push_back({{"name", t.name}, {"type", t.type_name()}, {"shape", t.shape}, {"bytes", t.bytes}});
  }
  std::cout << json_text(j) << "\n";
}

void show_model(const Checkpoint& file, const ModelConfig& c) {
  std::cout << fmt::format("  {} ({}, {}), computed in {}\n", c.name, c.family, c.architecture,
                           dtype_info(c.type).name);
  std::cout << fmt::format("  {} layers, hidden {}, vocabulary {}, context {}\n{}", c.layer_count(), c.hidden, c.vocab,
                           c.context, describe_layers(c));
  if (const std::string list = features(c); !list.empty()) std::cout << "  " << list << "\n";
  std::cout << fmt::format("  KV cache: {} a token, {} at full context\n", human_bytes(c.kv_bytes_per_token()),
                           human_bytes(c.kv_bytes_per_token() * static_cast<uint64_t>(c.context)));
  for (const auto& [part, bytes] : bytes_by_part(file, c)) {
    std::cout << fmt::format("  {:<30} {:>12}\n", part, human_bytes(bytes));
  }
}

void show_text(const Checkpoint& file, const Findings& f, bool tensors) {
  const Counted all = count(file);
  std::cout << fmt::format("{}\n  {}, {}, {:.1f} M parameters, digest {}\n", file.path(), file.format(),
                           human_bytes(file.file_bytes()), static_cast<double>(all.parameters) / 1e6, file.digest());
  for (const std::string& why : f.obstacles) std::cout << "  cannot be run: " << why << "\n";
  if (f.config) show_model(file, *f.config);
  if (!f.sampling.empty()) std::cout << "  sampled with " << f.sampling.describe() << "\n";
  for (const auto& [type, entry] : all.types)
    std::cout << fmt::format("  {:<8} {:>5} tensors {:>12}\n", type, entry.first, human_bytes(entry.second));
  std::cout << "metadata\n";
  for (const MetadataEntry& e : file.metadata().entries())
    std::cout << fmt::format("  {} = {}\n", e.key, e.value.display());
  if (const auto text = file.document("config.json")) {
    const Json config = Json::parse(*text, nullptr, false);
    if (config.is_object()) {
      for (const auto& [key, value] : config.items()) std::cout << fmt::format("  {} = {:.80}\n", key, value.dump());
    }
  }
  if (!tensors) return;
  std::cout << "tensors\n";
  for (const Tensor& t : file.tensors()) {
    std::cout << fmt::format("  {:<32} {:<6} [{}] {}\n", t.name, t.type_name(), fmt::join(t.shape, ", "),
                             human_bytes(t.bytes));
  }
}

int show(const std::string& name, bool json, bool tensors) {
  const auto file = open_checkpoint(resolve_model(name));
  (json ? show_json : show_text)(*file, examine(*file), tensors);
  return kOk;
}

}  // namespace

void add_show(CLI::App& app, Command& command) {
  auto name = std::make_shared<std::string>("smollm2");
  auto json = std::make_shared<bool>(false), tensors = std::make_shared<bool>(false);
  CLI::App* sub = app.add_subcommand("show", "What is in a model, and whether it runs");
  sub->add_option("name", *name, "Model's name, file or folder")->capture_default_str();
  sub->add_flag("--json", *json, "As JSON");
  sub->add_flag("--tensors", *tensors, "Every tensor");
  sub->footer("Examples:\n  isobit show smollm2\n  isobit show ./model.gguf --tensors\n  isobit show ./Qwen3-0.6B");
  sub->callback([=, &command] { command.run = [=] { return show(*name, *json, *tensors); }; });
}

}  // namespace isobit::cli
