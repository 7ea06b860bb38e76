#pragma once
// Which of Highway's targets are built. Include before hwy/foreach_target.h; one source gives scalar (EMU128), SSE4,
// AVX2, AVX-512 and NEON code, and all must give the same bytes. The left-out ones (SSSE3, SVE) gain nothing here.
// Sanitizers make vector code take minutes to compile: they see one vector target, and no loop unrolled.
#if defined(__SANITIZE_ADDRESS__)
#define ISOBIT_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ISOBIT_SANITIZED 1
#endif
#endif
#ifdef ISOBIT_SANITIZED
#define HWY_DISABLED_TARGETS \
  (HWY_SSSE3 | HWY_SSE4 | HWY_AVX3 | HWY_AVX3_DL | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#define ISOBIT_UNROLL(n)
#else
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128)
#define ISOBIT_UNROLL(n) HWY_UNROLL(n)
#endif
#include "hwy/targets.h"

namespace isobit::cpu {

// The function for one target (a bit of Highway's target set, as Cpu::simd) from a table made by HWY_EXPORT. A target
// that was not built falls back to scalar code.
template <typename Fn, size_t kSize>
Fn for_target(Fn const (&table)[kSize], int64_t target) {
  if constexpr (kSize == 1) {
    return table[0];
  } else {
    const int64_t mask =
        (HWY_CHOSEN_TARGET_SHIFT(target) & HWY_CHOSEN_TARGET_MASK_TARGETS) | HWY_CHOSEN_TARGET_MASK_SCALAR;
    const size_t index = static_cast<size_t>(__builtin_ctzll(static_cast<unsigned long long>(mask)));
    return table[index];
  }
}

// The best target this machine has.
inline int64_t best_target() {
  const int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;
  return targets & -targets;
}

}  // namespace isobit::cpu
