#include "models/family.h"

#include <algorithm>
#include <array>

namespace isobit {
namespace {

constexpr std::array<const Family*, 9> kFamilies = {&kLlama,  &kMistral, &kQwen2,   &kQwen3, &kGemma2,
                                                    &kGemma3, &kPhi3,    &kSmolLM3, &kGptOss};

const Family* find(std::string_view Family::*field, std::string_view value) {
  const auto* found = std::ranges::find_if(kFamilies, [&](const Family* f) { return f->*field == value; });
  return value.empty() || found == kFamilies.end() ? nullptr : *found;
}

}  // namespace

std::span<const Family* const> families() { return kFamilies; }
const Family* find_gguf_family(std::string_view architecture) { return find(&Family::gguf, architecture); }
const Family* find_hf_family(std::string_view model_type) { return find(&Family::model_type, model_type); }

}  // namespace isobit
