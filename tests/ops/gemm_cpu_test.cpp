// The CPU's GEMM against the scalar rule, by bytes: every weight format, epilogue and SIMD target, ordinary and
// adversarial values, ragged shapes.
#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "numerics/convert.h"
#include "numerics/dequantize.h"
#include "numerics/testing.h"
#include "ops/cpu/gemm.h"
#include "ops/cpu/reference_linear.h"
#include "ops/cpu/simd_target.h"

namespace isobit::cpu {
namespace {

using numerics::f32_to_bf16;
using numerics::f32_to_f16;

using isobit::testing::Random;

enum class Values { kNormal, kSpread, kFull, kTiny, kSpecial, kAnything };
constexpr Values kValues[] = {Values::kNormal, Values::kSpread,  Values::kFull,
                              Values::kTiny,   Values::kSpecial, Values::kAnything};

uint16_t draw(Random& r, Values v) {
  switch (v) {
    case Values::kNormal:
      return f32_to_bf16(r.normal());
    case Values::kSpread:  // octaves apart, with zeros of both signs
      if (r.bits() % 4 == 0) return static_cast<uint16_t>(r.bits() & 0x8000);
      return f32_to_bf16(std::ldexp(r.normal(), static_cast<int>(r.range(-24, 8))));
    case Values::kFull:  // nearly full mantissas of one sign: sums at the end of int32
      return static_cast<uint16_t>(0x3fff - r.bits() % 2);
    case Values::kTiny:  // around the vector kernel's limits
      return f32_to_bf16(std::ldexp(r.normal(), static_cast<int>(r.range(-60, -40))));
    case Values::kSpecial:
      if (r.bits() % 512 == 0) return static_cast<uint16_t>(0x7f80 | (r.bits() & 0x8001));
      if (r.bits() % 64 == 0) return static_cast<uint16_t>(r.bits() & 0x80ff);
      return f32_to_bf16(r.normal());
    case Values::kAnything:
      return static_cast<uint16_t>(r.bits());
  }
  return 0;
}

std::vector<std::byte> draw_weights(Random& r, DType t, int64_t rows, int64_t cols, Values v) {
  std::vector<std::byte> data(static_cast<size_t>(rows) * dtype_bytes(t, static_cast<size_t>(cols)));
  const DTypeInfo info = dtype_info(t);
  const size_t count = data.size() / info.block_bytes;
  for (size_t i = 0; i < count; i++) {
    std::byte* block = data.data() + i * info.block_bytes;
    if (t == DType::kBF16 || t == DType::kF16 || t == DType::kF32) {
      const uint16_t h = draw(r, v);
      const float x = t == DType::kF32 && v == Values::kNormal ? r.normal() : numerics::bf16_to_f32(h);
      const uint16_t half = t == DType::kF16 ? f32_to_f16(x) : h;
      if (t == DType::kF32) {
        std::memcpy(block, &x, 4);
      } else {
        std::memcpy(block, &half, 2);
      }
      continue;
    }
    for (uint32_t b = 0; b < info.block_bytes; b++) block[b] = static_cast<std::byte>(r.bits());
    if (v == Values::kAnything) continue;  // any scales, infinite and NaN among them
    uint16_t d = f32_to_f16(0.01f + 0.001f * std::abs(r.normal())),
             m = f32_to_f16(-8 * numerics::f16_to_f32(d) + 0.003f * r.normal());
    if (v == Values::kSpread)
      d = static_cast<uint16_t>(r.bits() & 0xbbff), m = static_cast<uint16_t>(r.bits() & 0xbbff);
    std::memcpy(block + (t == DType::kQ6_K ? 208 : 0), &d, 2);
    if (t == DType::kQ4_1 || t == DType::kQ5_1 || t == DType::kQ4_K || t == DType::kQ5_K) std::memcpy(block + 2, &m, 2);
  }
  return data;
}

struct Case {
  std::vector<DType> types;
  std::vector<int64_t> rows;
  int64_t k, m;
  LinearForm form = LinearForm::kStacked;
  Epilogue epilogue = Epilogue::kStoreF32;
  bool bias = false;
  Values weights = Values::kNormal, x = Values::kNormal;
  Storage storage = Storage::kFast;
};

std::vector<int64_t> simd_targets() {
  std::vector<int64_t> all;
  for (const std::string& name : simd_target_names()) all.push_back(simd_target(name));
  return all;
}

bool rounded(Epilogue e) { return e != Epilogue::kStoreF32 && e != Epilogue::kAddResidual; }

void check(Random& r, const Case& c, ThreadPool& pool) {
  std::vector<std::vector<std::byte>> data;
  std::vector<WeightPart> parts;
  for (size_t i = 0; i < c.types.size(); i++) {
    data.push_back(draw_weights(r, c.types[i], c.rows[i], c.k, c.weights));
    parts.push_back({c.types[i], c.rows[i], c.k, data.back().data()});
  }
  const auto want_w = load_reference(parts, c.form, DType::kBF16);
  WeightArena arena;
  const auto packed = pack_linear(pool, parts, c.form, c.storage, arena);
  for (auto& d : data) std::fill(d.begin(), d.end(), std::byte{0xff});  // not needed any more
  std::vector<uint16_t> row(static_cast<size_t>(c.k));
  for (int64_t n = 0; n < packed->n(); n++) {
    packed->row(n, row.data());
    const uint16_t* want = static_cast<const ReferenceLinear&>(*want_w).row(n);
    for (int64_t k = 0; k < c.k; k++) {
      // a zero's sign never reaches a result
      ASSERT_TRUE(row[k] == want[k] || ((row[k] | want[k]) & 0x7fff) == 0) << "weight " << n << ' ' << k;
    }
  }
  std::vector<uint16_t> x(static_cast<size_t>(c.m * c.k));
  for (auto& v : x) v = draw(r, c.x);
  std::vector<float> bias(static_cast<size_t>(packed->n()));
  for (auto& b : bias) b = r.normal();
  const size_t outputs = static_cast<size_t>(c.m * packed->outputs());
  std::vector<float> start(outputs);
  for (auto& v : start) v = c.epilogue == Epilogue::kAddResidual ? r.normal() : numerics::from_bits(0xdeadbeef);
  GemmArgs a{x.data(), c.m, want_w.get(), c.bias ? bias.data() : nullptr, c.epilogue, DType::kBF16, nullptr};
  std::vector<float> want = start;
  a.out = want.data();
  gemm_reference({pool, 0}, a);
  a.w = packed.get();
  for (const int64_t target : simd_targets()) {
    SCOPED_TRACE(simd_target_name(target));
    std::vector<float> got = start;
    a.out = got.data();
    gemm({pool, target}, a);
    const size_t bytes = outputs * (rounded(c.epilogue) ? 2 : 4);
    if (std::memcmp(got.data(), want.data(), bytes) == 0) continue;
    for (size_t i = 0; i < bytes / 2; i++) {
      ASSERT_EQ(reinterpret_cast<uint16_t*>(got.data())[i], reinterpret_cast<uint16_t*>(want.data())[i])
          << "half " << i;
    }
  }
}

constexpr DType kTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ4_0, DType::kQ4_1, DType::kQ5_0,
                            DType::kQ5_1, DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K};

struct GemmCpu : ::testing::Test {
  Random r;
  ThreadPool pool{3};
  void SetUp() override { printf("%s\n", r.note().c_str()); }
};

TEST_F(GemmCpu, EveryFormatAndKindOfValue) {
  for (const DType t : kTypes) {
    for (const Values v : kValues) {
      for (int i = 0; i < 8; i++) {
        const Values x = i % 2 == 0 ? Values::kNormal : v;
        const Storage storage = i % 4 < 2 ? Storage::kFast : Storage::kCompact;
        SCOPED_TRACE(::testing::Message() << dtype_info(t).name << " values " << static_cast<int>(v) << ' '
                                          << static_cast<int>(x) << " storage " << static_cast<int>(storage));
        const int64_t block = std::max<int64_t>(dtype_info(t).block_elements, 8);
        check(r,
              {{t},
               {r.range(1, 40)},
               block * r.range(1, 640 / block),
               i < 4 ? 1 : r.range(2, 6),
               LinearForm::kStacked,
               Epilogue::kStoreF32,
               r.bits() % 4 == 0,
               v,
               x,
               storage},
              pool);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(GemmCpu, EveryEpilogueAndRaggedShapes) {
  for (const Epilogue e :
       {Epilogue::kStoreF32, Epilogue::kStoreRounded, Epilogue::kAddResidual, Epilogue::kSiluMul, Epilogue::kGeluMul}) {
    for (int i = 0; i < 12; i++) {
      const bool gated = e == Epilogue::kSiluMul || e == Epilogue::kGeluMul;
      const int64_t n = r.range(1, 70);
      const Values v = kValues[r.bits() % 5];
      Case c{{DType::kBF16, DType::kBF16},
             {n, gated ? n : r.range(1, 40)},
             r.range(1, 300),
             r.range(1, 9),
             gated ? LinearForm::kGated : LinearForm::kStacked,
             e,
             !gated && i % 2 == 0,
             v,
             v};
      if (i % 3 == 0) c.types = {DType::kQ4_1, DType::kQ8_0}, c.k = 32 * r.range(1, 9);
      check(r, c, pool);
      if (HasFatalFailure()) return;
    }
  }
}

// Rule N7's chunks of 2048 for narrow matrices, at K around their ends.
TEST_F(GemmCpu, ChunksOfK) {
  for (const int64_t k : {2048, 2050, 2064, 4096, 4100, 6144}) {
    check(r, {{DType::kBF16}, {33}, k, 3, LinearForm::kStacked, Epilogue::kStoreF32, false}, pool);
  }
  check(r, {{DType::kBF16}, {1040}, 2080, 2, LinearForm::kStacked, Epilogue::kStoreF32, false}, pool);
}

TEST_F(GemmCpu, ManyRows) {
  check(r,
        {{DType::kQ4_1, DType::kQ4_1, DType::kQ4_1},
         {32, 16, 16},
         96,
         300,
         LinearForm::kStacked,
         Epilogue::kStoreRounded},
        pool);
  check(r, {{DType::kQ4_1, DType::kQ4_1}, {48, 48}, 288, 131, LinearForm::kGated, Epilogue::kSiluMul}, pool);
}

// A row's bits do not depend on its neighbours, nor on the number of threads.
TEST_F(GemmCpu, RowsStandAlone) {
  const auto data = draw_weights(r, DType::kQ4_1, 80, 576, Values::kNormal);
  const WeightPart part{DType::kQ4_1, 80, 576, data.data()};
  WeightArena arena;
  const auto w = pack_linear(pool, {&part, 1}, LinearForm::kStacked, Storage::kFast, arena);
  std::vector<uint16_t> x(150 * 576);
  for (auto& v : x) v = draw(r, Values::kSpread);
  std::vector<float> all(150 * 80), one(80);
  const int64_t simd = simd_target("");
  gemm({pool, simd}, {x.data(), 150, w.get(), nullptr, Epilogue::kStoreF32, DType::kBF16, all.data()});
  ThreadPool alone(1);
  for (int64_t m = 0; m < 150; m++) {
    gemm({alone, simd}, {x.data() + m * 576, 1, w.get(), nullptr, Epilogue::kStoreF32, DType::kBF16, one.data()});
    ASSERT_EQ(std::memcmp(one.data(), all.data() + m * 80, 320), 0) << m;
  }
}

// A single row against kTwelve at the edges of its vector form: activations under every weight's reach, from none to
// all, with weights that are zero, share no binade (spilled) or have few.
TEST_F(GemmCpu, SingleRowAtTheEdges) {
  WeightArena arena;
  const int64_t k = 32 * 12, n = 48;
  for (int round = 0; round < 60; round++) {
    auto data = draw_weights(r, DType::kQ8_0, n, k, round % 3 == 0 ? Values::kSpread : Values::kNormal);
    for (size_t block = 0; block < data.size(); block += 34) {  // d of any size, codes of which many are 0
      const uint16_t d =
          f32_to_f16(std::ldexp(1.0f + 0.5f * std::abs(r.normal()), static_cast<int>(r.range(0, 28)) - 22));
      if (round % 2 == 0) std::memcpy(data.data() + block, &d, 2);
      for (size_t i = 2; i < 34; i++) {
        if (r.bits() % 3 == 0) data[block + i] = std::byte{0};
      }
    }
    const WeightPart part{DType::kQ8_0, n, k, data.data()};
    const auto w = pack_linear(pool, {&part, 1}, LinearForm::kStacked, Storage::kFast, arena);
    const auto reference = load_reference({&part, 1}, LinearForm::kStacked, DType::kBF16);
    std::vector<uint16_t> x(static_cast<size_t>(k));
    const int low = -static_cast<int>(r.range(0, 130)), high = static_cast<int>(r.range(low + 1, 17));
    for (size_t i = 0; i < x.size(); i++) {
      if (static_cast<int64_t>(i) < 16 * (round % 5) || r.bits() % 4 == 0) continue;  // steps of zeros at the start
      x[i] = numerics::f32_to_bf16(std::ldexp(r.normal(), static_cast<int>(r.range(low, high))));
    }
    std::vector<float> want(static_cast<size_t>(n)), got(static_cast<size_t>(n));
    gemm_reference({pool, 0}, {x.data(), 1, reference.get(), nullptr, Epilogue::kStoreF32, DType::kBF16, want.data()});
    for (const int64_t target : simd_targets()) {
      std::fill(got.begin(), got.end(), numerics::from_bits(0xdeadbeef));
      gemm({pool, target}, {x.data(), 1, w.get(), nullptr, Epilogue::kStoreF32, DType::kBF16, got.data()});
      ASSERT_EQ(std::memcmp(got.data(), want.data(), want.size() * 4), 0)
          << simd_target_name(target) << " round " << round << " exponents " << low << ".." << high;
    }
  }
}

TEST_F(GemmCpu, RefusesWhatDoesNotFit) {
  WeightArena arena;
  const std::vector<std::byte> data(1024);
  const WeightPart odd{DType::kQ4_1, 2, 40, data.data()}, even{DType::kQ4_1, 2, 64, data.data()};
  const WeightPart both[] = {even, {DType::kQ4_1, 2, 32, data.data()}},
                   gated[] = {even, {DType::kQ4_1, 1, 64, data.data()}};
  EXPECT_THROW(pack_linear(pool, {&odd, 1}, LinearForm::kStacked, Storage::kFast, arena), Error);
  EXPECT_THROW(pack_linear(pool, both, LinearForm::kStacked, Storage::kFast, arena), Error);
  EXPECT_THROW(pack_linear(pool, gated, LinearForm::kGated, Storage::kFast, arena), Error);
  EXPECT_THROW(pack_linear(pool, {&even, 1}, LinearForm::kGated, Storage::kFast, arena), Error);
  EXPECT_THROW(pack_linear(pool, {}, LinearForm::kStacked, Storage::kFast, arena), Error);
}

}  // namespace
}  // namespace isobit::cpu
