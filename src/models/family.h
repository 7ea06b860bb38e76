#pragma once
// How an architecture differs from the plain pre-norm, gated decoder. A new family is an entry in family.cpp.
#include <span>
#include <string_view>

#include "models/config.h"

namespace isobit {

struct Family {
  std::string_view architecture;  // general.architecture
  RopeLayout rope = RopeLayout::kInterleaved;
  GatedActivation activation = GatedActivation::kSilu;
  bool qkv_bias = false;
  bool qk_norm = false;
};

std::span<const Family> families();
const Family* find_family(std::string_view architecture);

}  // namespace isobit
