#pragma once
// Backends of every SIMD target this machine has, and comparison by bytes.
#include <fmt/format.h>

#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "numerics/convert.h"
#include "numerics/testing.h"
#include "ops/cpu/cpu_backend.h"
#include "ops/cpu/simd_target.h"

namespace isobit::testing {

// A backend for each (target, threads), made when first asked for.
class Backends {
 public:
  const std::vector<std::string>& targets() const { return targets_; }
  Backend& get(const std::string& target, int threads) {
    auto& b = made_[{target, threads}];
    if (!b) b = make_cpu_backend({threads, target});
    return *b;
  }
  Backend& random(Random& random) {
    name_ = targets_[static_cast<size_t>(random.below(static_cast<int>(targets_.size())))];
    threads_ = 1 + random.below(3);
    return get(name_, threads_);
  }
  std::string last() const { return fmt::format("target {}, {} threads", name_, threads_); }

 private:
  std::vector<std::string> targets_ = cpu::simd_target_names();
  std::map<std::pair<std::string, int>, std::unique_ptr<Backend>> made_;
  std::string name_;
  int threads_ = 0;
};

inline int log_uniform(Random& random, int low, int high) {
  return std::min(high, static_cast<int>(std::exp(random.between(std::log(low), std::log(high + 1.0)))));
}

template <typename T>
T pick(Random& random, std::initializer_list<T> of) {
  return of.begin()[random.below(static_cast<int>(of.size()))];
}

inline uint16_t round_to(DType type, float x) {
  return type == DType::kF16 ? numerics::f32_to_f16(x) : numerics::f32_to_bf16(x);
}

// The first element that differs by bytes.
template <typename T>
std::optional<size_t> first_difference(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size() || i < b.size(); i++) {
    if (i >= a.size() || i >= b.size() || std::memcmp(&a[i], &b[i], sizeof(T)) != 0) return i;
  }
  return std::nullopt;
}

}  // namespace isobit::testing
