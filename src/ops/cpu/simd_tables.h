#pragma once
// What the vector code reads from memory, and the uniform operand of a step.
#include <array>
#include <cstdint>

#include "numerics/convert.h"
#include "numerics/ex2.h"

namespace isobit::cpu {

struct Ex2Table {
  alignas(64) int32_t row[64][4];  // c0, c1, c2, unused
};

constexpr Ex2Table make_ex2_table() {
  Ex2Table t{};
  for (uint32_t i = 0; i < 64; i++) {
    const numerics::Ex2Segment s = numerics::ex2_segment(i);
    t.row[i][0] = s.c0;
    t.row[i][1] = s.c1;
    t.row[i][2] = s.c2;
  }
  return t;
}
inline constexpr Ex2Table kEx2Table = make_ex2_table();

// Sixteen products nearly full: where the mantissas (128 to 255) of a step's shared values sum to this, the sum with c
// may leave int32; their mean is above 248.9 of 255 then.
constexpr int kFullMantissas = 3983;

// The sixteen values of one step that all lanes share.
struct DotRow {
  alignas(64) float value[16];
  alignas(64) float power[16];  // the value with its mantissa bits cleared: its sign and 2^exponent; 0 where it is 0
  uint16_t bits[16];
  bool zero;       // all are zero
  bool subnormal;  // one is subnormal, or so large that its product with a subnormal could matter: scalar rule
};

// bf16 bits, `count` (at most 16) of them `stride` apart; the rest are zeros.
inline void set_row(DotRow& row, const uint16_t* from, int count = 16, int stride = 1) {
  uint32_t any = 0;
  bool subnormal = false;
  for (int i = 0; i < 16; i++) {
    const uint16_t b = i < count ? from[i * stride] : uint16_t{0};
    const uint32_t magnitude = b & 0x7fffu;
    any |= magnitude;
    subnormal |= (magnitude != 0 && magnitude < 0x80) || magnitude >= (127u + 20) << 7;
    row.bits[i] = b;
    row.value[i] = numerics::bf16_to_f32(b);
    row.power[i] = numerics::bf16_to_f32(b & 0xff80);
  }
  row.zero = any == 0;
  row.subnormal = subnormal;
}

}  // namespace isobit::cpu
