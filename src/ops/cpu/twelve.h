#pragma once
// bf16 in 12 bits (PanelFormat::kTwelve): what its writers and readers share.
//
// Quantised weights have few exponents, and unpacking their codes costs a vector kernel more than the products. So each
// weight is kept as the bf16 it stands for, without the exponent bits that its group has in common. A group (kPanel
// outputs, kGroup k) is two steps of 16 k, each
//   256 bytes: the low bytes of the bf16 (the last exponent bit and the mantissa),
//   128 bytes: 4 bits a weight (the sign and an exponent code) that a 16-entry table turns into the high bytes.
// In rows of 32 bytes, so that interleaving low and high bytes inside 128-bit blocks gives sixteen outputs in order:
// row i of the low bytes holds [k = 2i, outputs 0-7 | 2i+1, 0-7 | 2i, 8-15 | 2i+1, 8-15]; row j of the codes holds, in
// the same order, k = 4j and 4j+1 in the low halves and 4j+2 and 4j+3 in the high ones.
// The table depends on one byte a group, its base: base + code (0 to 7) is the exponent without its last bit: 16
// binades. With kHasZeros, code 0 is zero, and 14 binades are left. A group whose weights span more is spilled: kept as
// plain bf16 beside (1 in 10,000 of Q4_1's).
#include <array>
#include <cstdint>

#include "ops/cpu/packed_linear.h"

namespace isobit::cpu {

constexpr int kTwelveStep = 384;         // bytes of 16 k
constexpr uint8_t kHasZeros = 0x80;      // in a group's base
constexpr uint8_t kSpilled = 0xff;       // instead of one
constexpr int kZeroExponent = 36;        // biased, of what a zero is unpacked as; see TwelveStream
constexpr int kSpill = kPanel * kGroup;  // bf16 of a spilled group: [k][output]

struct TwelveTables {
  alignas(64) uint8_t high[256][16];
};

constexpr TwelveTables make_twelve_tables() {
  TwelveTables t{};
  for (int base = 0; base < 255; base++) {
    for (int code = 0; code < 16; code++) {
      const bool zero = (base & kHasZeros) != 0 && code % 8 == 0;
      const int exponent = zero ? kZeroExponent / 2 : (base & 127) + code % 8;
      t.high[base][code] = static_cast<uint8_t>((code & 8) << 4 | (exponent & 127));
    }
  }
  return t;
}
inline constexpr TwelveTables kTwelve = make_twelve_tables();

// Where weight (k, output) of a step lies: the byte of its low half, the byte of its code and that code's shift.
constexpr int twelve_low(int k, int output) { return k / 2 * 32 + output / 8 * 16 + k % 2 * 8 + output % 8; }
constexpr int twelve_code(int k, int output) { return 256 + k / 4 * 32 + output / 8 * 16 + k % 2 * 8 + output % 8; }
constexpr int twelve_shift(int k) { return k % 4 / 2 * 4; }

}  // namespace isobit::cpu
