// Replays what an H200 gave (tools/contract_vectors.cu) through the scalar functions.
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "contract_vectors.h"
#include "numerics/ex2.h"
#include "testing.h"

namespace isobit::vectors {
namespace {

class Reader {
 public:
  explicit Reader(std::vector<char> bytes) : bytes_(std::move(bytes)) {}
  const char* take(size_t n) {
    if (n > bytes_.size() - at_) throw std::runtime_error("the file ends early");
    at_ += n;
    return bytes_.data() + at_ - n;
  }
  template <typename T>
  T get() {
    T t;
    std::memcpy(&t, take(sizeof t), sizeof t);
    return t;
  }
  bool done() const { return at_ == bytes_.size(); }

 private:
  std::vector<char> bytes_;
  size_t at_ = 0;
};

struct Totals {
  int64_t outputs[4] = {}, mismatches = 0;
  bool classes[3][kClasses] = {};
};

// One output of a tile: the chain of steps over operands that `element` and `c` give.
template <typename Element>
float replay(Operand kind, float c, uint32_t steps, const Element& element) {
  for (uint32_t step = 0; step < steps; step++) {
    uint16_t a[16], b[16];
    uint8_t a8[32], b8[32];
    for (int k = 0; k < (kind == Operand::kE4M3 ? 32 : 16); k++) {
      const uint32_t x = element(kA, step, k), y = element(kB, step, k);
      if (kind == Operand::kE4M3) {
        a8[k] = static_cast<uint8_t>(x), b8[k] = static_cast<uint8_t>(y);
      } else {
        a[k] = static_cast<uint16_t>(x), b[k] = static_cast<uint16_t>(y);
      }
    }
    c = kind == Operand::kBF16  ? numerics::dot16<Operand::kBF16>(c, a, b)
        : kind == Operand::kF16 ? numerics::dot16<Operand::kF16>(c, a, b)
                                : numerics::dot32(c, a8, b8);
  }
  return c;
}

void compare(Totals& t, uint32_t kind, float scalar, uint32_t hardware, uint32_t cls) {
  t.outputs[kind]++;
  if (numerics::bits(scalar) == hardware) return;
  if (t.mismatches++ < 10) {
    ADD_FAILURE() << "kind " << kind << ", " << class_name(static_cast<int>(cls)) << std::hex << ": hardware "
                  << hardware << ", scalar " << numerics::bits(scalar);
  }
}

void tiles_from_the_generator(Totals& t, Reader& in, const SectionHeader& h) {
  const Operand kind = static_cast<Operand>(h.kind);
  const int cls = static_cast<int>(h.cls);
  for (uint64_t tile = 0; tile < h.count; tile++) {
    for (int i = 0; i < kTileOutputs; i++) {
      const int row = i / kTileN, column = i % kTileN;
      const float c = numerics::from_bits(accumulator(kind, cls, h.seed + tile, row, column));
      const float got = replay(kind, c, h.steps, [&](int matrix, uint32_t step, int k) {
        return operand(kind, cls, h.seed + tile, matrix, matrix == kA ? row : column, static_cast<int>(step), k);
      });
      compare(t, h.kind, got, in.get<uint32_t>(), h.cls);
    }
  }
}

// The stored inputs, which must also be the generator's.
void tile_with_inputs(Totals& t, Reader& in, const SectionHeader& h) {
  const Operand kind = static_cast<Operand>(h.kind);
  const int size = kind == Operand::kE4M3 ? 1 : 2, per_row = kRowBytes / size;
  const char* a = in.take(kTileM * kRowBytes);
  const char* b = in.take(kTileN * kRowBytes);
  const auto load = [&](const char* p) {
    uint32_t u = 0;
    std::memcpy(&u, p, static_cast<size_t>(size));
    return u;
  };
  std::vector<uint32_t> c(kTileOutputs);
  std::memcpy(c.data(), in.take(kTileOutputs * 4), kTileOutputs * 4);
  std::vector<float> scalar;
  for (int i = 0; i < kTileOutputs; i++) {
    const int row = i / kTileN, column = i % kTileN;
    scalar.push_back(replay(kind, numerics::from_bits(c[static_cast<size_t>(i)]), 1, [&](int matrix, uint32_t, int k) {
      const int r = matrix == kA ? row : column;
      const uint32_t u = load((matrix == kA ? a : b) + (r * per_row + k) * size);
      EXPECT_EQ(u, operand(kind, static_cast<int>(h.cls), h.seed, matrix, r, 0, k)) << "the generator has changed";
      return u;
    }));
    EXPECT_EQ(c[static_cast<size_t>(i)], accumulator(kind, static_cast<int>(h.cls), h.seed, row, column));
  }
  for (int pass = 0; pass < (kind == Operand::kE4M3 ? 1 : 2); pass++) {  // wgmma, then mma.sync
    for (int i = 0; i < kTileOutputs; i++)
      compare(t, h.kind, scalar[static_cast<size_t>(i)], in.get<uint32_t>(), h.cls);
  }
}

void ex2_section(Totals& t, Reader& in, const SectionHeader& h) {
  for (uint32_t i = 0; i < h.count; i++) {
    const uint32_t x = h.explicit_inputs != 0 ? in.get<uint32_t>() : ex2_input(h.seed, i);
    EXPECT_EQ(x, ex2_input(h.seed, i)) << "the generator has changed";
    compare(t, 3, numerics::ex2(numerics::from_bits(x)), in.get<uint32_t>(), 0);
  }
}

TEST(HardwareVectors, TheScalarFunctionsGiveTheH200sBits) {
  const char* other = std::getenv("ISOBIT_H200_VECTORS");  // a fresh recording, before it is committed
  const std::string path =
      other != nullptr ? other : std::string(ISOBIT_SOURCE_DIR) + "/tests/numerics/data/h200_vectors.bin";
  std::ifstream file(path, std::ios::binary);
  ASSERT_TRUE(file) << path << " is missing; tools/contract_vectors.cu writes it on an H200";
  Reader in(std::vector<char>(std::istreambuf_iterator<char>(file), {}));
  const auto header = in.get<FileHeader>();
  ASSERT_EQ(std::memcmp(header.magic, kMagic, 8), 0);
  ASSERT_EQ(header.version, kVersion);
  EXPECT_EQ(header.shape_mismatches, 0u) << "wgmma and mma.sync differed on the recording machine";
  EXPECT_NE(std::string(header.device).find("H200"), std::string::npos) << header.device;
  Totals t;
  for (uint32_t s = 0; s < header.sections; s++) {
    const auto h = in.get<SectionHeader>();
    ASSERT_LE(h.kind, 3u);
    ASSERT_LT(h.cls, static_cast<uint32_t>(kClasses));
    if (h.kind == 3) {
      ex2_section(t, in, h);
    } else {
      t.classes[h.kind][h.cls] = true;
      h.explicit_inputs != 0 ? tile_with_inputs(t, in, h) : tiles_from_the_generator(t, in, h);
    }
  }
  EXPECT_TRUE(in.done());
  EXPECT_EQ(t.mismatches, 0);
  for (const auto& kind : t.classes) {
    for (const bool seen : kind) EXPECT_TRUE(seen) << "a class of operands is missing";
  }
  for (const int64_t n : t.outputs) EXPECT_GE(n, 20000);
}

}  // namespace
}  // namespace isobit::vectors
