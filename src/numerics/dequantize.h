#pragma once
// The contract's rule for quantised weights (docs/numerics.md, "Quantised weights"): a weight is the value that the
// file's format defines, computed in f32 with at most one rounding, then rounded once to bf16 (to nearest, ties to
// even).
//
// q, l: unsigned integers of the block's packed bits; sc, mn: its small integer scales; d, m, dmin: its f16 scales,
// widened exactly. An f16 has at most 11 significant bits, and its magnitude is 0 or 2^-24 … 65504, so no product below
// can underflow or overflow an f32, and each is exact because its factors' significant bits add up to at most 24:
//   F32, F16, BF16  x                              widened exactly
//   Q4_0   d·(q-8)            11 + 4 bits = 15     exact
//   Q5_0   d·(q-16)           11 + 5      = 16     exact
//   Q8_0   d·q                11 + 8      = 19     exact (q signed)
//   Q4_1   d·q + m            11 + 4      = 15     one rounding: the sum
//   Q5_1   d·q + m            11 + 5      = 16     one rounding: the sum
//   Q4_K   (d·sc)·q - dmin·mn  11 + 6 + 4 = 21, 11 + 6 = 17   one rounding: the difference
//   Q5_K   (d·sc)·q - dmin·mn  11 + 6 + 5 = 22, 11 + 6 = 17   one rounding: the difference
//   Q6_K   (d·sc)·(q-32)      11 + 7 + 5  = 23     exact (sc and q-32 signed; -128 and -32 are powers of two)
// Because the products are exact, fusing one with the sum gives the same bits, so neither -ffp-contract nor the choice
// between mul+add and fma matters: any backend may use either.
//
// Zeros keep IEEE's sign (a zero times a negative scale is -0). A NaN or infinity among a block's scales follows IEEE
// (an infinite scale times 0 is NaN); every NaN is stored as 0x7fffffff, in bf16 as 0x7fff. Integers are stored as
// 8-bit or packed fields, so no other value can be NaN.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/dtype.h"

namespace isobit::numerics {

// The types below accept.
std::span<const DType> dequantizable_types();

// n consecutive elements from a row's start (n a multiple of the block), `row` need not be aligned. Throws Error
// kInvalidArgument for another n or a type that is not a weight's.
void dequantize_row_f32(DType dtype, const std::byte* row, int64_t n, float* out);
// The weight itself: the same, rounded to bf16 and stored as its bits.
void dequantize_row_bf16(DType dtype, const std::byte* row, int64_t n, uint16_t* out);

}  // namespace isobit::numerics
