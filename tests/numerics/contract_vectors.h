#pragma once
// The vectors recorded on an H200: their file format and the generator of their operands, shared by the recorder
// (tools/contract_vectors.cu) and the test that replays them. Everything is little-endian.
//
//   FileHeader, then `sections` times: SectionHeader, `bytes` bytes.
//
// Section of a tile kind (bf16, f16, e4m3). A tile is C[64][8] + Σ over `steps` of A[step][64][32 bytes] ·
// B[step][8][32 bytes]ᵀ, one tensor-core step after the other; a row of 32 bytes is 16 bf16/f16 or 32 e4m3 operands.
//   explicit_inputs = 1: one tile: A, B, C (u32 bits of f32), the 512 outputs of wgmma, and for bf16 and f16 the 512
//     outputs of mma.sync.
//   explicit_inputs = 0: `count` tiles; tile t is made by the generator from seed + t; 512 outputs of wgmma for each.
// Section of ex2: explicit_inputs = 1: `count` pairs (x, 2^x); 0: `count` outputs of ex2_input(seed, i).
#include <cstdint>

#include "numerics/dot.h"

namespace isobit::vectors {

using numerics::Operand;

struct FileHeader {
  char magic[8];              // "ISOBITV1"
  uint32_t version;           // 1
  uint32_t sections;          //
  uint32_t shape_mismatches;  // outputs in which wgmma and mma.sync differed while recording (bf16, f16): 0
  uint32_t driver;            // CUDA version of the driver
  char device[40];
};
static_assert(sizeof(FileHeader) == 64);

struct SectionHeader {
  uint32_t kind;  // 0 bf16, 1 f16, 2 e4m3, 3 ex2
  uint32_t cls;   // of the generator; 0 for ex2
  uint32_t steps;
  uint32_t count;
  uint32_t explicit_inputs;
  uint32_t bytes;
  uint64_t seed;
};
static_assert(sizeof(SectionHeader) == 32);

constexpr char kMagic[9] = "ISOBITV1";
constexpr uint32_t kVersion = 1;
constexpr int kTileM = 64, kTileN = 8, kRowBytes = 32, kTileOutputs = kTileM * kTileN;

// What a tile's operands are like.
enum Class : int {
  kModerate,      // exponents within 8 powers of two
  kAnyBits,       // any bits, infinities and NaN included
  kAnyFinite,     // any finite bits
  kTiny,          // zeros, subnormals, the smallest normals
  kHuge,          // the largest exponents: overflow
  kSpread,        // exponents over 30 powers of two: many products are cut
  kFullMantissa,  // mantissas of ones: the largest sums
  kCancelPairs,   // products that cancel their neighbours, nearly or wholly
  kCancelC,       // one large product that c cancels, nearly or wholly
  kInfinities,    // a few infinities and zeros, no NaN
  kFloor,         // bf16: product exponents about the floor of emax, -133
  kChain,         // 8 steps, moderate
  kChainSpread,   // 8 steps, spread and cancelling
  kClasses
};
inline const char* class_name(int cls) {
  constexpr const char* kNames[kClasses] = {"moderate",     "any bits",   "any finite",    "zero, subnormal, tiny",
                                            "huge",         "spread",     "full mantissa", "cancelling pairs",
                                            "cancelling c", "infinities", "floor",         "chain",
                                            "chain, spread"};
  return kNames[cls];
}
ISOBIT_HD int class_steps(int cls) { return cls == kChain || cls == kChainSpread ? 8 : 1; }

ISOBIT_HD uint64_t mix(uint64_t x) {  // splitmix64's finaliser
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

// A storage format's fields.
struct Format {
  int mantissa, exponent;  // bits
  ISOBIT_HD uint32_t mantissa_mask() const { return (1u << mantissa) - 1; }
  ISOBIT_HD int bias() const { return (1 << (exponent - 1)) - 1; }
  ISOBIT_HD int top() const { return (1 << exponent) - 1; }  // the exponent field of ones
  ISOBIT_HD uint32_t make(uint32_t sign, int e, uint32_t m) const {
    return ((sign & 1) << (mantissa + exponent)) | (static_cast<uint32_t>(e) << mantissa) | (m & mantissa_mask());
  }
};
ISOBIT_HD Format format_of(Operand kind) {
  return kind == Operand::kBF16 ? Format{7, 8} : kind == Operand::kF16 ? Format{10, 5} : Format{3, 4};
}

enum Matrix : int { kA, kB, kC };

ISOBIT_HD uint64_t draw(uint64_t seed, int matrix, int row, int step, int k) {
  return mix(mix(seed) ^ (static_cast<uint64_t>(matrix) << 60) ^ (static_cast<uint64_t>(row) << 40) ^
             (static_cast<uint64_t>(step) << 20) ^ static_cast<uint64_t>(k));
}

// An operand's bits: matrix A (row 0..63) or B (row 0..7), element k of the step.
ISOBIT_HD uint32_t operand(Operand kind, int cls, uint64_t seed, int matrix, int row, int step, int k) {
  const Format f = format_of(kind);
  const bool e4m3 = kind == Operand::kE4M3;
  const bool pairs = cls == kCancelPairs || cls == kChainSpread;
  const uint64_t r = draw(seed, matrix, row, step, pairs ? k & ~1 : k);
  const uint32_t sign = static_cast<uint32_t>(r & 1), m = static_cast<uint32_t>(r >> 8) & f.mantissa_mask();
  const int any = static_cast<int>((r >> 32) & 0xffff);  // for choices
  int e = f.bias() - 4 + any % 8;
  uint32_t u = f.make(sign, e, m);
  switch (cls) {
    case kAnyBits:
      return f.make(sign, any & f.top(), m);
    case kAnyFinite:
      e = any & f.top();
      if (!e4m3 && e == f.top()) e = any >> 12;  // 0..15
      u = f.make(sign, e, m);
      break;
    case kTiny:
      e = any % 4 < 2 ? 0 : 1 + any / 4 % 4;
      u = f.make(sign, e, any % 4 == 0 ? 0 : m);
      break;
    case kHuge:
      e = f.top() - 1 - any % 2;
      u = f.make(sign, e, m);
      break;
    case kFullMantissa:
      e = f.bias() + (any % 8 == 0) - (any % 8 == 1);
      u = f.make(any / 8 % 8 == 0, e, f.mantissa_mask() ^ static_cast<uint32_t>(any / 64 % 2));
      break;
    case kSpread:
    case kCancelPairs:
    case kChainSpread: {
      const int reach = e4m3 ? 6 : kind == Operand::kF16 ? 13 : 15;
      e = f.bias() - reach + any % (2 * reach + 1);
      u = f.make(sign, e, m);
      if (pairs && matrix == kB && (k & 1) != 0) {
        u ^= 1u << (f.mantissa + f.exponent);
        if ((r >> 50) % 4 == 0) u ^= 1;
      }
      break;
    }
    case kCancelC:
      if (matrix == kB && k != row) u = k == row + 5 ? f.make(sign, 1 + any % 8, m) : 0;
      break;
    case kInfinities:
      if (any % 64 == 0) u = e4m3 ? f.make(sign, 15, 6) : f.make(sign, f.top(), 0);
      if (any % 512 == 1) u = f.make(sign, 0, 0);
      break;
    case kFloor:
      e = kind == Operand::kBF16 ? f.bias() - 74 + any % 16 : 0;
      u = f.make(sign, e, m);
      break;
    default:
      break;
  }
  if (e4m3 && (u & 0x7f) == 0x7f) u ^= 1;  // the NaN
  return u;
}

ISOBIT_HD float operand_value(Operand kind, uint32_t u) {
  if (kind == Operand::kBF16) return numerics::bf16_to_f32(static_cast<uint16_t>(u));
  if (kind == Operand::kF16) return numerics::f16_to_f32(static_cast<uint16_t>(u));
  return numerics::e4m3_to_f32(static_cast<uint8_t>(u));
}

// The accumulator's bits.
ISOBIT_HD uint32_t accumulator(Operand kind, int cls, uint64_t seed, int row, int column) {
  const uint64_t r = draw(seed, kC, row, 0, column);
  const uint32_t sign_mantissa = static_cast<uint32_t>(r) & 0x807fffff;
  const uint32_t any = static_cast<uint32_t>(r >> 32) & 0xffff;
  const auto with_exponent = [&](uint32_t e) { return sign_mantissa | (e << 23); };
  switch (cls) {
    case kAnyBits:
      return static_cast<uint32_t>(r);
    case kAnyFinite:
      return with_exponent(any % 255);
    case kTiny:
      return any % 4 == 0 ? sign_mantissa & 0x80000000 : with_exponent(any % 4 == 1 ? 0 : 1 + any / 4 % 8);
    case kHuge:
      return with_exponent(253 + any % 2);
    case kSpread:
    case kCancelPairs:
    case kChainSpread:
      return with_exponent(127 - 30 + any % 61);
    case kFullMantissa:
      return with_exponent(127 + any % 8) | 0x7ffff0;
    case kCancelC: {
      const float a = operand_value(kind, operand(kind, cls, seed, kA, row, 0, column));
      const float b = operand_value(kind, operand(kind, cls, seed, kB, column, 0, column));
      const uint32_t c = numerics::bits(-numerics::fmul(a, b));
      return any % 4 == 0 ? c : c ^ (any / 4 % 8);
    }
    case kInfinities:
      return any % 8 == 0 ? (sign_mantissa & 0x80000000) | numerics::kInf32 : with_exponent(120 + any / 8 % 16);
    case kFloor:
      return any % 2 == 0 ? sign_mantissa & 0x80000000 : with_exponent(any / 2 % 4);
    default:
      return with_exponent(120 + any % 16);
  }
}

// Inputs of ex2: whole range, the range where 2^x is normal, near integers, at segment edges, small, special.
ISOBIT_HD uint32_t ex2_input(uint64_t seed, uint32_t i) {
  const uint64_t r = mix(mix(seed) ^ i);
  const uint32_t u = static_cast<uint32_t>(r), choice = static_cast<uint32_t>(r >> 32);
  const float sign = (u & 1) != 0 ? -1.0f : 1.0f;
  switch (i % 8) {
    case 0:
      return u;
    case 1:
    case 2:
      return numerics::bits(numerics::fmul(sign, static_cast<float>(u >> 8)) * 0x1p-17f);  // |x| < 128
    case 3:
      return numerics::bits(sign * static_cast<float>(u % 152)) + choice % 5 - (u % 152 != 0 ? 2 : 0);
    case 4:
      return numerics::bits(sign * (static_cast<float>(u % 8192) * 0x1p-6f)) + choice % 5;  // multiples of 2^-6
    case 5:
      return (u & 0x80ffffff) | 0x3e000000;  // about 2^-3 to 2^1
    case 6:
      return (u & 0x807fffff) | ((choice % 32 + 95) << 23);  // 2^-32 to 2^-1
    default:
      return (u & 0x807fffff) | ((choice % 4 + (u >> 8) % 2 * 251) << 23);  // subnormal, tiny, huge, Inf, NaN
  }
}

}  // namespace isobit::vectors
