// isobit show: what a model is, what it takes, and what keeps it from running.
#include <fmt/ranges.h>

#include <algorithm>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/json.h"
#include "cli/cli.h"
#include "models/load_check.h"
#include "models/outline.h"
#include "models/registry.h"
#include "models/sampling_defaults.h"
#include "models/tokenizer_spec.h"

namespace isobit::cli {
namespace {

using Json = nlohmann::json;

// What of a file could be read, and everything that stops it from running, not the first thing alone.
struct Findings {
  std::optional<ModelConfig> config;
  std::optional<ModelOutline> outline;  // where there is no config
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
  if (f.config) {
    attempt([&] { check_loads(file, *f.config); });
  } else {
    f.outline = read_outline(file);
    found.insert(found.end(), f.outline->not_built.begin(), f.outline->not_built.end());
  }
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
          {"kv_bytes_per_token", c.kv_bytes_per_token()},
          {"window_kv_bytes_per_token", c.window_kv_bytes_per_token()}};
}

Json outline_json(const ModelOutline& o) {
  Json j = {{"architecture", o.architecture}, {"bytes_by_part", o.bytes_by_part}};
  const auto add = [&](const char* name, const auto& value) {
    if (value) j[name] = *value;
  };
  add("layers", o.layers);
  add("hidden", o.hidden);
  add("vocab", o.vocab);
  add("context", o.context);
  add("experts", o.experts);
  add("experts_used", o.experts_used);
  add("kv_bytes_per_token", o.kv_bytes_per_token);
  j["q_heads"] = o.q_heads;
  j["kv_heads"] = o.kv_heads;
  j["head_dim"] = o.head_dim;
  j["ffn"] = o.ffn;
  return j;
}

// Null where there is none, or none that may be read: then that is among the obstacles.
Json config_json(const Checkpoint& file) {
  const auto text = file.document("config.json");
  if (!text) return nullptr;
  try {
    return parse_json_file(*text, "config.json");
  } catch (const Error&) {
    return nullptr;
  }
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
  if (Json config = config_json(file); !config.is_null()) j["config"] = std::move(config);
  if (f.config) j["model"] = model_json(file, *f.config);
  if (f.outline) j["outline"] = outline_json(*f.outline);
  for (const Tensor& t : file.tensors()) {
    if (!tensors) break;
    j["tensors"].push_back({{"name", t.name}, {"type", t.type_name()}, {"shape", t.shape}, {"bytes", t.bytes}});
  }
  std::cout << json_text(j) << "\n";
}

// windowed: of the KV bytes those of layers that keep no more than their window.
void show_memory(std::optional<size_t> kv_bytes_per_token, size_t windowed, std::optional<int64_t> context,
                 const std::map<std::string, size_t>& by_part) {
  if (kv_bytes_per_token) {
    std::cout << fmt::format("  KV cache: {} bytes a token", *kv_bytes_per_token);
    if (windowed > 0) std::cout << fmt::format(" ({} of them in layers with a window)", windowed);
    if (context && *context > 0) {
      std::cout << fmt::format(", {} at full context",
                               human_bytes(*kv_bytes_per_token * static_cast<size_t>(*context)));
    }
    std::cout << "\n";
  }
  for (const auto& [part, bytes] : by_part) std::cout << fmt::format("  {:<30} {:>12}\n", part, human_bytes(bytes));
}

void show_model(const Checkpoint& file, const ModelConfig& c) {
  const std::string name = c.name == c.family ? "" : fmt::format("{}: ", c.name);  // some files give none
  std::cout << fmt::format("  {}family {} ({}), computed in {}\n", name, c.family, c.architecture,
                           dtype_info(c.type).name);
  std::cout << fmt::format("  {} layers, hidden {}, vocabulary {}, context {}\n{}", c.layer_count(), c.hidden, c.vocab,
                           c.context, describe_layers(c));
  if (const std::string list = features(c); !list.empty()) std::cout << "  " << list << "\n";
  show_memory(c.kv_bytes_per_token(), c.window_kv_bytes_per_token(), c.context, bytes_by_part(file, c));
}

// "4", "0 to 8" where layers differ.
std::string range_of(const std::vector<int64_t>& values) {
  const auto [low, high] = std::ranges::minmax(values);
  return low == high ? fmt::format("{}", low) : fmt::format("{} to {}", low, high);
}

void show_outline(const ModelOutline& o) {
  std::cout << fmt::format("  architecture {}\n", o.architecture.empty() ? "not stated" : o.architecture);
  std::vector<std::string> shapes;
  const auto add = [&](const char* format, const std::optional<int64_t>& value) {
    if (value) shapes.push_back(fmt::format(fmt::runtime(format), *value));
  };
  const auto add_range = [&](const char* format, const std::vector<int64_t>& values) {
    if (!values.empty()) shapes.push_back(fmt::format(fmt::runtime(format), range_of(values)));
  };
  add("{} layers", o.layers);
  add("hidden {}", o.hidden);
  add("vocabulary {}", o.vocab);
  add("context {}", o.context);
  add_range("query heads {}", o.q_heads);
  add_range("KV heads {}", o.kv_heads);
  add_range("heads of {}", o.head_dim);
  add_range("FFN {}", o.ffn);
  add("{} experts a layer", o.experts);
  add("{} of them for a token", o.experts_used);
  if (!shapes.empty()) std::cout << fmt::format("  {}\n", fmt::join(shapes, ", "));
  show_memory(o.kv_bytes_per_token, 0, o.context, o.bytes_by_part);
}

void show_text(const Checkpoint& file, const Findings& f, bool tensors) {
  const Counted all = count(file);
  std::cout << fmt::format("{}\n  {}, {}, {:.1f} M parameters, digest {}\n", file.path(), file.format(),
                           human_bytes(file.file_bytes()), static_cast<double>(all.parameters) / 1e6, file.digest());
  for (const std::string& why : f.obstacles) std::cout << "  cannot be run: " << why << "\n";
  if (f.config) show_model(file, *f.config);
  if (f.outline) show_outline(*f.outline);
  if (!f.sampling.empty()) std::cout << "  sampled with " << f.sampling.describe() << "\n";
  for (const auto& [type, entry] : all.types)
    std::cout << fmt::format("  {:<8} {:>5} tensors {:>12}\n", type, entry.first, human_bytes(entry.second));
  std::cout << "metadata\n";
  for (const MetadataEntry& e : file.metadata().entries())
    std::cout << fmt::format("  {} = {}\n", e.key, e.value.display());
  if (const Json config = config_json(file); config.is_object()) {
    for (const auto& [key, value] : config.items()) std::cout << fmt::format("  {} = {:.80}\n", key, value.dump());
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
