#include "ops/cpu/simd_target.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "ops/cpu/simd_targets.h"

namespace isobit::cpu {
namespace {

// Highway's names are for its tests; these are the ones people use.
struct Name {
  const char* highway;
  const char* ours;
};
constexpr Name kNames[] = {{"AVX3_DL", "avx512dl"}, {"AVX3", "avx512"}, {"EMU128", "scalar"}, {"SCALAR", "scalar"}};

std::vector<int64_t> targets() {
  std::vector<int64_t> all;
  for (int64_t set = hwy::SupportedTargets() & HWY_TARGETS; set != 0; set &= set - 1) all.push_back(set & -set);
  return all;  // Highway numbers better targets lower
}

}  // namespace

std::string simd_target_name(int64_t target) {
  std::string name = hwy::TargetName(target);
  for (const Name& n : kNames) {
    if (name == n.highway) return n.ours;
  }
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
  return name;
}

std::vector<std::string> simd_target_names() {
  std::vector<std::string> names;
  for (const int64_t t : targets()) names.push_back(simd_target_name(t));
  return names;
}

int64_t simd_target(const std::string& name) {
  const std::vector<int64_t> all = targets();
  if (name.empty()) return all.front();
  for (const int64_t t : all) {
    if (simd_target_name(t) == name) return t;
  }
  throw fail(ErrorCode::kUnsupported, "SIMD target '{}' is not available; this machine has {}", name,
             fmt::join(simd_target_names(), ", "));
}

}  // namespace isobit::cpu
