// Every format's values, bit for bit: against a slow second writing of the format's definition (one element at a time,
// in exact float64), and against the values that llama.cpp's gguf-py gives (dequantize_golden.gguf).
#include "numerics/dequantize.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

#include "weights/expect_error.h"
#include "weights/gguf.h"
#include "weights/gguf_builder.h"

namespace isobit::test {
namespace {

uint64_t fresh_seed() {
  const uint64_t seed = (uint64_t{std::random_device{}()} << 32) | std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

// ---- the second writing
// ----------------------------------------------------------------------------------------------

double half(const std::vector<uint8_t>& block, size_t at) {
  const int bits = block[at] | block[at + 1] << 8;
  const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
  double value = exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
  if (exponent == 31) {
    value = mantissa != 0 ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
  }
  return (bits & 0x8000) != 0 ? -value : value;
}

// `count` bits from bit `start` of the bytes at `at`, little-endian.
int field(const std::vector<uint8_t>& block, size_t at, size_t start, size_t count) {
  int value = 0;
  for (size_t b = 0; b < count; ++b) {
    const size_t bit = at * 8 + start + b;
    value |= (block[bit / 8] >> (bit % 8) & 1) << b;
  }
  return value;
}

// Nibble of element i among 32: the low halves of 16 bytes, then the high halves.
int nibble32(const std::vector<uint8_t>& block, size_t at, size_t i) {
  return field(block, at, i % 16 * 8 + i / 16 * 4, 4);
}

// Nibble of element i among 256 of a K format: 64 elements share 32 bytes.
int nibble256(const std::vector<uint8_t>& block, size_t at, size_t i) {
  return field(block, at, (i / 64 * 32 + i % 32) * 8 + i % 64 / 32 * 4, 4);
}

// The j-th 6-bit scale (or minimum) of Q4_K and Q5_K, whose 12 bytes start at `at`.
int six_bits(const std::vector<uint8_t>& block, size_t at, size_t j, bool minimum) {
  if (j < 4) return field(block, at + j + (minimum ? 4 : 0), 0, 6);
  return field(block, at + 8 + (j - 4), minimum ? 4 : 0, 4) + 16 * field(block, at + (j - 4) + (minimum ? 4 : 0), 6, 2);
}

int signed_byte(int byte) { return byte < 128 ? byte : byte - 256; }

// The value of element i, exact: no product or sum of these needs more than float64's 53 bits.
double element(DType type, const std::vector<uint8_t>& b, size_t i) {
  switch (type) {
    case DType::kQ4_0:
      return half(b, 0) * (nibble32(b, 2, i) - 8);
    case DType::kQ4_1:
      return half(b, 0) * nibble32(b, 4, i) + half(b, 2);
    case DType::kQ5_0:
      return half(b, 0) * (nibble32(b, 6, i) + 16 * field(b, 2, i, 1) - 16);
    case DType::kQ5_1:
      return half(b, 0) * (nibble32(b, 8, i) + 16 * field(b, 4, i, 1)) + half(b, 2);
    case DType::kQ8_0:
      return half(b, 0) * signed_byte(b[2 + i]);
    case DType::kQ4_K: {
      const double d = half(b, 0) * six_bits(b, 4, i / 32, false), m = half(b, 2) * six_bits(b, 4, i / 32, true);
      return d * nibble256(b, 16, i) - m;
    }
    case DType::kQ5_K: {
      const double d = half(b, 0) * six_bits(b, 4, i / 32, false), m = half(b, 2) * six_bits(b, 4, i / 32, true);
      return d * (nibble256(b, 48, i) + 16 * field(b, 16 + i % 32, i / 32, 1)) - m;
    }
    case DType::kQ6_K: {
      const size_t in_half = i % 128, group = in_half / 32;
      const int low = field(b, i / 128 * 64 + in_half % 64, group / 2 * 4, 4);
      const int high = field(b, 128 + i / 128 * 32 + i % 32, group * 2, 2);
      return half(b, 208) * signed_byte(b[192 + i / 16]) * (low + 16 * high - 32);
    }
    default:
      throw std::logic_error("not a block format");
  }
}

uint32_t f32_bits(double exact) {
  const auto rounded = static_cast<float>(exact);  // the one rounding
  return std::isnan(rounded) ? 0x7fffffff : std::bit_cast<uint32_t>(rounded);
}

// The nearer of the two neighbours in bf16, the even one when both are as near.
uint16_t bf16_bits(uint32_t bits) {
  const auto x = std::bit_cast<float>(bits);
  if (std::isnan(x)) return 0x7fff;
  if (std::isinf(x)) return static_cast<uint16_t>(bits >> 16);
  const auto low = static_cast<uint16_t>(bits >> 16 & 0x7fff);
  const double below = std::bit_cast<float>(uint32_t{low} << 16);
  const double quantum = std::ldexp(1.0, std::max(low >> 7, 1) - 134);  // 2^(e-127) / 128, subnormals as e = 1
  const double above_by = std::fabs(static_cast<double>(x)) - below;
  const bool up = above_by > quantum / 2 || (above_by == quantum / 2 && (low & 1) != 0);
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | (low + (up ? 1 : 0)));
}

struct Format {
  DType type;
  std::vector<size_t> scales;  // byte offsets of the block's f16 scales
};

std::vector<Format> block_formats() {
  return {{DType::kQ4_0, {0}}, {DType::kQ4_1, {0, 2}}, {DType::kQ5_0, {0}},    {DType::kQ5_1, {0, 2}},
          {DType::kQ8_0, {0}}, {DType::kQ4_K, {0, 2}}, {DType::kQ5_K, {0, 2}}, {DType::kQ6_K, {208}}};
}

// Both outputs of `blocks` laid end to end, in poisoned and guarded buffers, off by one byte from any alignment.
void check_blocks(DType type, const std::vector<std::vector<uint8_t>>& blocks) {
  const size_t per = dtype_info(type).block_elements, n = per * blocks.size();
  std::vector<std::byte> row(1);
  for (const auto& b : blocks)
    row.insert(row.end(), reinterpret_cast<const std::byte*>(b.data()),
               reinterpret_cast<const std::byte*>(b.data()) + b.size());
  constexpr uint32_t kPoison32 = 0xdeadbeef;
  constexpr uint16_t kPoison16 = 0xbeef;
  std::vector<float> wide(n + 1, std::bit_cast<float>(kPoison32));
  std::vector<uint16_t> narrow(n + 1, kPoison16);
  numerics::dequantize_row_f32(type, row.data() + 1, static_cast<int64_t>(n), wide.data());
  numerics::dequantize_row_bf16(type, row.data() + 1, static_cast<int64_t>(n), narrow.data());
  for (size_t i = 0; i < n; ++i) {
    const uint32_t want = f32_bits(element(type, blocks[i / per], i % per));
    ASSERT_EQ(std::bit_cast<uint32_t>(wide[i]), want) << "element " << i;
    ASSERT_EQ(narrow[i], bf16_bits(want)) << "element " << i;
  }
  EXPECT_EQ(std::bit_cast<uint32_t>(wide[n]), kPoison32);
  EXPECT_EQ(narrow[n], kPoison16);
}

TEST(Dequantize, EqualsTheDefinitionOnRandomBits) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (const Format& format : block_formats()) {
    SCOPED_TRACE(std::string(dtype_info(format.type).name));
    std::vector<std::vector<uint8_t>> blocks(2000, std::vector<uint8_t>(dtype_info(format.type).block_bytes));
    for (auto& block : blocks) {
      for (uint8_t& byte : block) byte = static_cast<uint8_t>(random());
    }
    check_blocks(format.type, blocks);
  }
}

// Zeros of both signs, the smallest and largest magnitudes, infinities and NaN in every scale, with equal quants at
// both ends of their range.
TEST(Dequantize, EqualsTheDefinitionOnExtremeScales) {
  constexpr uint16_t kScales[] = {0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x3c00, 0xbc00,
                                  0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0xfe01, 0x7c01};
  for (const Format& format : block_formats()) {
    SCOPED_TRACE(std::string(dtype_info(format.type).name));
    std::vector<std::vector<uint8_t>> blocks;
    for (const uint16_t first : kScales) {
      for (const uint16_t second : kScales) {
        for (const int fill : {0x00, 0xff, 0x80, 0x7f, 0x88, 0x10}) {
          std::vector<uint8_t> block(dtype_info(format.type).block_bytes, static_cast<uint8_t>(fill));
          std::memcpy(block.data() + format.scales[0], &first, 2);
          if (format.scales.size() > 1) std::memcpy(block.data() + format.scales[1], &second, 2);
          blocks.push_back(std::move(block));
        }
      }
    }
    check_blocks(format.type, blocks);
  }
}

TEST(Dequantize, EveryF16AndBF16) {
  std::vector<uint8_t> pair(2);
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto h = static_cast<uint16_t>(bits);
    std::memcpy(pair.data(), &h, 2);
    float wide = 0;
    uint16_t narrow = 0;
    numerics::dequantize_row_f32(DType::kF16, reinterpret_cast<const std::byte*>(&h), 1, &wide);
    numerics::dequantize_row_bf16(DType::kF16, reinterpret_cast<const std::byte*>(&h), 1, &narrow);
    const uint32_t f16 = f32_bits(half(pair, 0));
    ASSERT_EQ(std::bit_cast<uint32_t>(wide), f16) << bits;
    ASSERT_EQ(narrow, bf16_bits(f16)) << bits;

    numerics::dequantize_row_f32(DType::kBF16, reinterpret_cast<const std::byte*>(&h), 1, &wide);
    numerics::dequantize_row_bf16(DType::kBF16, reinterpret_cast<const std::byte*>(&h), 1, &narrow);
    const bool nan = (bits & 0x7fff) > 0x7f80;
    ASSERT_EQ(std::bit_cast<uint32_t>(wide), nan ? 0x7fffffff : bits << 16);
    ASSERT_EQ(narrow, nan ? 0x7fff : bits);
  }
}

TEST(Dequantize, F32RoundsToNearestEven) {
  const uint64_t seed = fresh_seed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  std::vector<uint32_t> in = {0,          0x80000000, 1,          0x00008000, 0x00018000, 0x00008001, 0x3f808000,
                              0x3f818000, 0x3f807fff, 0x7f7fffff, 0x7f7f8000, 0x7f7f7fff, 0x7f800000, 0xff800000,
                              0x7f800001, 0xffffffff, 0x7fc00000, 0x007f8000, 0x007fffff, 0xbf808000};
  for (int i = 0; i < 100000; ++i) in.push_back(static_cast<uint32_t>(random()));
  for (int i = 0; i < 10000; ++i) in.push_back((static_cast<uint32_t>(random()) & 0xffff0000) | 0x8000);  // ties
  std::vector<float> wide(in.size());
  std::vector<uint16_t> narrow(in.size());
  const auto* bytes = reinterpret_cast<const std::byte*>(in.data());
  numerics::dequantize_row_f32(DType::kF32, bytes, std::ssize(in), wide.data());
  numerics::dequantize_row_bf16(DType::kF32, bytes, std::ssize(in), narrow.data());
  for (size_t i = 0; i < in.size(); ++i) {
    const bool nan = std::isnan(std::bit_cast<float>(in[i]));
    ASSERT_EQ(std::bit_cast<uint32_t>(wide[i]), nan ? 0x7fffffff : in[i]);
    ASSERT_EQ(narrow[i], bf16_bits(in[i])) << std::hex << in[i];
  }
}

// Worked by hand: d = 0.5, m = -1, quants 0…15 twice.
TEST(Dequantize, WorkedExampleOfQ4_1) {
  std::vector<uint8_t> block = {0x00, 0x38, 0x00, 0xbc};
  for (int i = 0; i < 16; ++i) block.push_back(static_cast<uint8_t>(i | (15 - i) << 4));
  float out[32];
  numerics::dequantize_row_f32(DType::kQ4_1, reinterpret_cast<const std::byte*>(block.data()), 32, out);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(out[i], 0.5f * static_cast<float>(i) - 1.0f);
    EXPECT_EQ(out[i + 16], 0.5f * static_cast<float>(15 - i) - 1.0f);
  }
}

TEST(Dequantize, EqualsLlamaCppsReference) {
  const Checkpoint golden = load_gguf(ISOBIT_SOURCE_DIR "/tests/weights/dequantize_golden.gguf");
  ASSERT_EQ(golden.tensors().size(), 20u);
  for (size_t t = 0; t < golden.tensors().size(); t += 2) {
    const Tensor &packed = golden.tensors()[t], &expected = golden.tensors()[t + 1];
    SCOPED_TRACE(packed.name);
    ASSERT_EQ(packed.name, std::string(dtype_info(packed.dtype).name) + ".packed");
    ASSERT_EQ(packed.shape, expected.shape);
    std::vector<uint32_t> want(static_cast<size_t>(expected.elements()));
    ASSERT_EQ(expected.bytes, want.size() * 4);
    std::memcpy(want.data(), expected.data, expected.bytes);
    std::vector<float> wide(want.size());
    std::vector<uint16_t> narrow(want.size());
    numerics::dequantize_row_f32(packed.dtype, packed.data, packed.elements(), wide.data());
    numerics::dequantize_row_bf16(packed.dtype, packed.data, packed.elements(), narrow.data());
    for (size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(wide[i]), want[i]) << "element " << i;
      ASSERT_EQ(narrow[i], bf16_bits(want[i])) << "element " << i;
    }
  }
}

TEST(Dequantize, RefusesPartsOfABlockAndOtherTypes) {
  std::byte block[256] = {};
  float out[256];
  uint16_t narrow[256];
  constexpr ErrorCode kInvalid = ErrorCode::kInvalidArgument;
  expect_error(kInvalid, {"31 elements of Q4_1", "multiple of 32"},
               [&] { numerics::dequantize_row_f32(DType::kQ4_1, block, 31, out); });
  expect_error(kInvalid, {"-256 elements of Q6_K"},
               [&] { numerics::dequantize_row_bf16(DType::kQ6_K, block, -256, narrow); });
  expect_error(kInvalid, {"I32 is not a weight's type"},
               [&] { numerics::dequantize_row_f32(DType::kI32, block, 4, out); });
  numerics::dequantize_row_f32(DType::kQ4_1, block, 0, out);  // nothing to do
}

}  // namespace
}  // namespace isobit::test
