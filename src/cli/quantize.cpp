#include <filesystem>
#include <iostream>
#include <memory>

#include "cli/cli.h"
#include "models/config.h"
#include "models/quantize_fp8.h"
#include "models/registry.h"

namespace isobit::cli {
namespace {

struct QuantizeFlags {
  std::string model = "smollm2", to = "fp8", out;
  std::vector<std::string> keep;
};

std::vector<std::string> kept_modules(const QuantizeFlags& f, const Checkpoint& file) {
  if (f.keep.empty()) return default_kept_modules(read_config(file));
  return f.keep == std::vector<std::string>{"none"} ? std::vector<std::string>() : f.keep;
}

int quantize(const QuantizeFlags& f) {
  require(f.to == "fp8", "--to is '{}'; it must be fp8", f.to);
  const std::string path = resolve_model(f.model);
  const auto file = open_checkpoint(path);
  const std::string stem = std::filesystem::path(path.ends_with('/') ? path.substr(0, path.size() - 1) : path)
                               .filename()
                               .replace_extension()
                               .string();
  const std::string folder = f.out.empty() ? stem + "-FP8" : f.out;
  const bool shown = stderr_is_terminal();
  Fp8Options options;
  options.keep = kept_modules(f, *file);
  options.progress = [shown](size_t done, size_t total) {
    if (shown) {
      std::cerr << fmt::format("\rquantizing {:3.0f}% ",
                               100.0 * static_cast<double>(done) / static_cast<double>(total));
    }
  };
  quantize_to_fp8(*file, folder, options);
  if (shown) std::cerr << "\r\033[K";
  std::cout << folder << "\n";
  return kOk;
}

}  // namespace

void add_quantize(CLI::App& app, Command& command) {
  auto f = std::make_shared<QuantizeFlags>();
  CLI::App* sub = app.add_subcommand("quantize", "Write a model's matrices as block-scaled FP8");
  sub->add_option("model", f->model, "A model's name or path")->capture_default_str();
  sub->add_option("--to", f->to, "fp8: e4m3 with a scale for each 128 x 128, as DeepSeek publishes")
      ->capture_default_str();
  sub->add_option("-o,--out", f->out, "The folder to write; by default the model's name with -FP8, here");
  sub->add_option(
         "--keep", f->keep,
         "Modules to leave as they are, by a part of their names: self_attn, layers.0, mlp.down_proj; or none. "
         "By default none, of models narrower than 1024 attention and a fifth of the layers at either end")
      ->type_name("NAME...");
  sub->footer(R"(Examples:
  isobit quantize smollm2 --to fp8 -o smollm2-fp8
  isobit quantize smollm2 --keep none -o smollm2-all-fp8
  isobit run -m smollm2-fp8 "Why is the sky blue?")");
  sub->callback([f, &command] { command.run = [f] { return quantize(*f); }; });
}

}  // namespace isobit::cli
