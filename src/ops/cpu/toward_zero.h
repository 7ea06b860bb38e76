#pragma once
#include <cstdint>

namespace isobit::cpu {

// Sets the processor's rounding toward zero for its lifetime. Only code that is compiled apart (not inlined) may run
// inside: the compiler does not know of modes.
class TowardZeroMode {
 public:
#if defined(__x86_64__)
  static constexpr bool kWorks = true;
  TowardZeroMode() : old_(__builtin_ia32_stmxcsr()) { set(old_ | 0x6000); }
  ~TowardZeroMode() { set(old_); }

 private:
  static void set(uint32_t mode) { asm volatile("ldmxcsr %0" : : "m"(mode) : "memory"); }
  uint32_t old_;
#elif defined(__aarch64__)
  static constexpr bool kWorks = true;
  TowardZeroMode() {
    asm volatile("mrs %0, fpcr" : "=r"(old_));
    set(old_ | 3u << 22);
  }
  ~TowardZeroMode() { set(old_); }

 private:
  static void set(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode) : "memory"); }
  uint64_t old_;
#else
  static constexpr bool kWorks = false;
#endif

 public:
  TowardZeroMode(const TowardZeroMode&) = delete;
  TowardZeroMode& operator=(const TowardZeroMode&) = delete;
};

}  // namespace isobit::cpu
