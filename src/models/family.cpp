#include "models/family.h"

namespace isobit {
namespace {

constexpr Family kFamilies[] = {
    // GGUF stores Llama's q and k rows reordered for interleaved pairs.
    {.architecture = "llama"},
    {.architecture = "qwen2", .rope = RopeLayout::kHalves, .qkv_bias = true},
    {.architecture = "qwen3", .rope = RopeLayout::kHalves, .qk_norm = true},
};

}  // namespace

std::span<const Family> families() { return kFamilies; }

const Family* find_family(std::string_view architecture) {
  for (const Family& f : kFamilies) {
    if (f.architecture == architecture) return &f;
  }
  return nullptr;
}

}  // namespace isobit
