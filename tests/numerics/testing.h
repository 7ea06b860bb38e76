#pragma once
// Random bits from a fresh seed that a failure prints; ISOBIT_TEST_SEED repeats a run.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>

#include "numerics/ieee.h"

namespace isobit::testing {

#if defined(__SANITIZE_ADDRESS__)
#define ISOBIT_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ISOBIT_TEST_SANITIZED 1
#endif
#endif
#ifdef ISOBIT_TEST_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

// How many of `count` like cases to run: sanitized code takes ten times as long and looks for other faults.
constexpr int cases(int count) { return kSanitized ? (count + 7) / 8 : count; }

inline uint64_t fresh_seed() {
  if (const char* s = std::getenv("ISOBIT_TEST_SEED")) return std::strtoull(s, nullptr, 10);
  return (static_cast<uint64_t>(std::random_device{}()) << 32) | std::random_device{}();
}

class Random {
 public:
  Random() : seed_(fresh_seed()), engine_(seed_) {}
  std::string note() const { return "ISOBIT_TEST_SEED=" + std::to_string(seed_); }
  uint64_t bits() { return engine_(); }
  uint32_t bits32() { return static_cast<uint32_t>(engine_()); }
  int64_t range(int64_t low, int64_t high) {  // both ends included
    return low + static_cast<int64_t>(engine_() % static_cast<uint64_t>(high - low + 1));
  }
  int below(int n) { return static_cast<int>(engine_() % static_cast<uint64_t>(n)); }
  double unit() { return static_cast<double>(engine_() >> 11) * 0x1p-53; }
  double between(double low, double high) { return low + (high - low) * unit(); }
  float normal(float scale = 1.0f) { return scale * std::normal_distribution<float>()(engine_); }

 private:
  uint64_t seed_;
  std::mt19937_64 engine_;
};

}  // namespace isobit::testing
