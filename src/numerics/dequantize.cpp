#include "numerics/dequantize.h"

#include <cstring>

#include "base/error.h"
#include "numerics/convert.h"

namespace isobit::numerics {
namespace {

constexpr DType kTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                            DType::kQ5_1, DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

constexpr int kSmall = 32, kSuper = 256;  // elements of the two block sizes

template <typename T>
T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

float scale(const uint8_t* p) { return f16_to_f32(load<uint16_t>(p)); }

// Each decode_X writes the f32 values of one block. The products are exact (dequantize.h), so plain * and + have one
// possible result.

// d f16, 16 bytes of nibbles: element i in the low half of byte i, element i + 16 in the high half.
void decode_q4_0(const uint8_t* block, float* out) {
  const float d = scale(block);
  const uint8_t* q = block + 2;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((q[i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((q[i] >> 4) - 8);
  }
}

// d f16, m f16, nibbles as Q4_0.
void decode_q4_1(const uint8_t* block, float* out) {
  const float d = scale(block), m = scale(block + 2);
  const uint8_t* q = block + 4;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(q[i] & 15) + m;
    out[i + 16] = d * static_cast<float>(q[i] >> 4) + m;
  }
}

// The fifth bit of element i is bit i of a u32.
int with_fifth_bit(int nibble, uint32_t high, int i) { return nibble | static_cast<int>((high >> i & 1) << 4); }

// d f16, u32 of fifth bits, nibbles as Q4_0.
void decode_q5_0(const uint8_t* block, float* out) {
  const float d = scale(block);
  const auto high = load<uint32_t>(block + 2);
  const uint8_t* q = block + 6;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(with_fifth_bit(q[i] & 15, high, i) - 16);
    out[i + 16] = d * static_cast<float>(with_fifth_bit(q[i] >> 4, high, i + 16) - 16);
  }
}

// d f16, m f16, u32 of fifth bits, nibbles as Q4_0.
void decode_q5_1(const uint8_t* block, float* out) {
  const float d = scale(block), m = scale(block + 2);
  const auto high = load<uint32_t>(block + 4);
  const uint8_t* q = block + 8;
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(with_fifth_bit(q[i] & 15, high, i)) + m;
    out[i + 16] = d * static_cast<float>(with_fifth_bit(q[i] >> 4, high, i + 16)) + m;
  }
}

// d f16, 32 signed bytes.
void decode_q8_0(const uint8_t* block, float* out) {
  const float d = scale(block);
  for (int i = 0; i < kSmall; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
}

struct ScaleMin {
  float scale, min;
};

// d f16, dmin f16, then eight 6-bit scales and eight 6-bit minima in 12 bytes: numbers 0-3 are the low six bits of
// bytes 0-3 (scales) and 4-7 (minima); numbers 4-7 have their low four bits in the halves of bytes 8-11 and their high
// two in the top bits of bytes 0-3 and 4-7.
ScaleMin k_scale(const uint8_t* block, int j) {
  const uint8_t* p = block + 4;
  const int sc = j < 4 ? p[j] & 63 : (p[j + 4] & 15) | (p[j - 4] >> 6 << 4);
  const int mn = j < 4 ? p[j + 4] & 63 : (p[j + 4] >> 4) | (p[j] >> 6 << 4);
  return {scale(block) * static_cast<float>(sc), scale(block + 2) * static_cast<float>(mn)};
}

// Eight groups of 32; each 32 bytes of nibbles hold an even group in their low halves and the next in their high
// halves.
void decode_q4_k(const uint8_t* block, float* out) {
  const uint8_t* q = block + 16;
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = k_scale(block, j);
    const int shift = (j & 1) * 4;
    for (int i = 0; i < 32; ++i) {
      out[j * 32 + i] = s.scale * static_cast<float>(q[j / 2 * 32 + i] >> shift & 15) - s.min;
    }
  }
}

// As Q4_K, with 32 bytes before the nibbles whose bit j is the fifth bit of group j.
void decode_q5_k(const uint8_t* block, float* out) {
  const uint8_t *high = block + 16, *q = block + 48;
  for (int j = 0; j < 8; ++j) {
    const ScaleMin s = k_scale(block, j);
    const int shift = (j & 1) * 4;
    for (int i = 0; i < 32; ++i) {
      const int value = (q[j / 2 * 32 + i] >> shift & 15) | (high[i] >> j & 1) << 4;
      out[j * 32 + i] = s.scale * static_cast<float>(value) - s.min;
    }
  }
}

// 128 bytes of low nibbles, 64 of high pairs, 16 signed scales (one per 16 elements), d f16. Elements go in two halves
// of 128, each in four groups g of 32: nibbles of groups 0 and 1 are the low halves of the half's 64 bytes, 2 and 3 the
// high ones; the pair of group g is at bits 2g of the half's 32 high bytes.
void decode_q6_k(const uint8_t* block, float* out) {
  const uint8_t *low = block, *high = block + 128, *scales = block + 192;
  const float d = scale(block + 208);
  for (int group = 0; group < 8; ++group) {
    const int half = group / 4, g = group % 4;
    for (int i = 0; i < 32; ++i) {
      const int nibble = low[half * 64 + (g & 1) * 32 + i] >> (g / 2 * 4) & 15;
      const int pair = high[half * 32 + i] >> (g * 2) & 3;
      const float s = d * static_cast<float>(static_cast<int8_t>(scales[group * 2 + i / 16]));
      out[group * 32 + i] = s * static_cast<float>((nibble | pair << 4) - 32);
    }
  }
}

float decode_f32(const uint8_t* p) { return load<float>(p); }
float decode_f16(const uint8_t* p) { return f16_to_f32(load<uint16_t>(p)); }
float decode_bf16(const uint8_t* p) { return bf16_to_f32(load<uint16_t>(p)); }

void store(float x, float* out) { *out = canonical(x); }
void store(float x, uint16_t* out) { *out = f32_to_bf16(x); }

template <int kElements, int kBytes, auto kDecode, typename Out>
void blocks(const uint8_t* row, int64_t n, Out* out) {
  float values[kElements];
  for (int64_t begin = 0; begin < n; begin += kElements, row += kBytes) {
    kDecode(row, values);
    for (int i = 0; i < kElements; ++i) store(values[i], out + begin + i);
  }
}

template <int kBytes, auto kDecode, typename Out>
void plain(const uint8_t* row, int64_t n, Out* out) {
  for (int64_t i = 0; i < n; ++i) store(kDecode(row + i * kBytes), out + i);
}

template <typename Out>
void dequantize_row(DType dtype, const std::byte* bytes, int64_t n, Out* out) {
  const DTypeInfo info = dtype_info(dtype);
  require(n >= 0 && n % info.block_elements == 0, "dequantize: {} elements of {}; a multiple of {} is needed", n,
          info.name, info.block_elements);
  const auto* row = reinterpret_cast<const uint8_t*>(bytes);
  switch (dtype) {
    case DType::kF32:
      return plain<4, decode_f32>(row, n, out);
    case DType::kF16:
      return plain<2, decode_f16>(row, n, out);
    case DType::kBF16:
      return plain<2, decode_bf16>(row, n, out);
    case DType::kQ4_0:
      return blocks<kSmall, 18, decode_q4_0>(row, n, out);
    case DType::kQ4_1:
      return blocks<kSmall, 20, decode_q4_1>(row, n, out);
    case DType::kQ5_0:
      return blocks<kSmall, 22, decode_q5_0>(row, n, out);
    case DType::kQ5_1:
      return blocks<kSmall, 24, decode_q5_1>(row, n, out);
    case DType::kQ8_0:
      return blocks<kSmall, 34, decode_q8_0>(row, n, out);
    case DType::kQ4_K:
      return blocks<kSuper, 144, decode_q4_k>(row, n, out);
    case DType::kQ5_K:
      return blocks<kSuper, 176, decode_q5_k>(row, n, out);
    case DType::kQ6_K:
      return blocks<kSuper, 210, decode_q6_k>(row, n, out);
    default:
      throw fail(ErrorCode::kInvalidArgument, "dequantize: {} is not a weight's type", info.name);
  }
}

}  // namespace

std::span<const DType> dequantizable_types() { return kTypes; }

void dequantize_row_f32(DType dtype, const std::byte* row, int64_t n, float* out) {
  dequantize_row(dtype, row, n, out);
}

void dequantize_row_bf16(DType dtype, const std::byte* row, int64_t n, uint16_t* out) {
  dequantize_row(dtype, row, n, out);
}

}  // namespace isobit::numerics
