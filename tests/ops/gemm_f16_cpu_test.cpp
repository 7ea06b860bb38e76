// The CPU's f16 GEMM against the scalar rule, by bytes: every SIMD target, epilogue and kind of value, ragged shapes.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "ops/cpu/f16_linear.h"
#include "ops/cpu/reference_linear.h"
#include "ops/cpu_testing.h"

namespace isobit::cpu {
namespace {

using isobit::testing::Random;

enum class Halves { kNormal, kSpread, kSubnormal, kFull, kSpecial, kAnything };
constexpr Halves kHalves[] = {Halves::kNormal, Halves::kSpread,  Halves::kSubnormal,
                              Halves::kFull,   Halves::kSpecial, Halves::kAnything};

uint16_t draw(Random& r, Halves v) {
  const auto sign = static_cast<uint16_t>(r.bits() & 0x8000);
  switch (v) {
    case Halves::kNormal:
      return numerics::f32_to_f16(r.normal());
    case Halves::kSpread:  // all binades, and zeros of both signs
      return r.bits() % 4 == 0 ? sign : static_cast<uint16_t>(sign | r.bits() % 0x7c00);
    case Halves::kSubnormal:
      return static_cast<uint16_t>(sign | r.bits() % 0x800);
    case Halves::kFull:  // of one sign: sums at the end of int32, on both sides of it
      return static_cast<uint16_t>(0x3fff - (r.bits() % 16 == 0 ? r.bits() % 64 : 0));
    case Halves::kSpecial:
      if (r.bits() % 256 == 0) return static_cast<uint16_t>(sign | 0x7c00 | (r.bits() % 4 == 0 ? r.bits() & 0x3ff : 0));
      return numerics::f32_to_f16(r.normal());
    case Halves::kAnything:
      return static_cast<uint16_t>(r.bits());
  }
  return 0;
}

struct Shape {
  std::vector<int64_t> rows;
  int64_t k = 0, m = 0;
  LinearForm form = LinearForm::kStacked;
  Epilogue epilogue = Epilogue::kStoreF32;
  bool bias = false;
  Halves weights = Halves::kNormal, x = Halves::kNormal;
};

class GemmF16Cpu : public ::testing::Test {
 protected:
  void SetUp() override { printf("%s\n", r.note().c_str()); }

  void check(const Shape& c) {
    SCOPED_TRACE(fmt::format("k {}, m {}, epilogue {}, weights {}, x {}", c.k, c.m, static_cast<int>(c.epilogue),
                             static_cast<int>(c.weights), static_cast<int>(c.x)));
    std::vector<std::vector<uint16_t>> data;
    std::vector<WeightPart> parts;
    for (const int64_t rows : c.rows) {
      std::vector<uint16_t>& d = data.emplace_back(static_cast<size_t>(rows * c.k));
      for (uint16_t& h : d) h = draw(r, c.weights);
      parts.push_back({DType::kF16, rows, c.k, reinterpret_cast<const std::byte*>(d.data())});
    }
    const auto reference = load_reference(parts, c.form, DType::kF16);
    WeightArena arena;
    const auto w = load_f16(pool, parts, c.form, arena);
    for (auto& d : data) std::fill(d.begin(), d.end(), uint16_t{0x7fff});  // not needed any more
    std::vector<uint16_t> row(static_cast<size_t>(c.k)), x(static_cast<size_t>(c.m * c.k));
    for (int64_t n = 0; n < w->n(); n++) {
      w->row(n, row.data());
      const uint16_t* want = static_cast<const ReferenceLinear&>(*reference).row(n);
      const auto nan = [](uint16_t h) { return (h & 0x7fff) > 0x7c00; };  // its payload never reaches a result
      const auto same = [&](uint16_t a, uint16_t b) { return a == b || (nan(a) && nan(b)); };
      ASSERT_TRUE(std::equal(row.begin(), row.end(), want, same)) << "row " << n;
    }
    for (uint16_t& h : x) h = draw(r, c.x);
    std::vector<float> bias(static_cast<size_t>(w->n())), start(static_cast<size_t>(c.m * w->outputs()));
    for (float& b : bias) b = r.normal();
    for (float& v : start) v = c.epilogue == Epilogue::kAddResidual ? r.normal() : numerics::from_bits(0xdeadbeef);
    GemmArgs a{x.data(), c.m, reference.get(), c.bias ? bias.data() : nullptr, c.epilogue, DType::kF16, nullptr};
    std::vector<float> want = start;
    a.out = want.data();
    gemm_reference({pool, 0}, a);
    a.w = w.get();
    for (const std::string& target : simd_target_names()) {
      std::vector<float> got = start;
      a.out = got.data();
      gemm_f16({pool, simd_target(target)}, a);
      const auto differs = isobit::testing::first_difference(got, want);
      ASSERT_FALSE(differs) << target << ": output " << *differs;
    }
  }

  Random r;
  ThreadPool pool{3};
};

TEST_F(GemmF16Cpu, EveryKindOfValue) {
  for (const Halves w : kHalves) {
    for (const Halves x : kHalves) {
      for (const int64_t m : {int64_t{1}, r.range(2, 6)}) {  // a single row has a chain of its own
        check({.rows = {r.range(1, 40)}, .k = r.range(1, 400), .m = m, .weights = w, .x = x});
      }
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(GemmF16Cpu, EveryEpilogueAndRaggedShapes) {
  for (const Epilogue e :
       {Epilogue::kStoreF32, Epilogue::kStoreRounded, Epilogue::kAddResidual, Epilogue::kSiluMul, Epilogue::kGeluMul}) {
    const bool gated = e == Epilogue::kSiluMul || e == Epilogue::kGeluMul;
    for (int i = 0; i < 4; i++) {
      const int64_t n = r.range(1, 50);
      check({.rows = {n, gated ? n : r.range(1, 40)},
             .k = r.range(1, 300),
             .m = i % 2 == 0 ? 1 : r.range(2, 9),
             .form = gated ? LinearForm::kGated : LinearForm::kStacked,
             .epilogue = e,
             .bias = !gated && i % 2 == 0,
             .weights = i == 3 ? Halves::kSpread : Halves::kNormal});
      if (HasFatalFailure()) return;
    }
  }
}

// Rule N7's chunks of 2048 for narrow matrices, and more rows than a task takes.
TEST_F(GemmF16Cpu, ChunksOfKAndManyRows) {
  for (const int64_t k : {2050, 4100}) check({.rows = {17}, .k = k, .m = 2});
  check({.rows = {1025}, .k = 2064, .m = 1});
  check({.rows = {20}, .k = 48, .m = 150});
}

TEST_F(GemmF16Cpu, OtherTypesAreRounded) {
  std::vector<float> f(7 * 5);
  for (float& v : f) v = r.normal();
  const WeightPart part{DType::kF32, 5, 7, reinterpret_cast<const std::byte*>(f.data())};
  WeightArena arena;
  const auto w = load_f16(pool, {&part, 1}, LinearForm::kStacked, arena);
  std::vector<uint16_t> row(7);
  for (int64_t n = 0; n < 5; n++) {
    w->row(n, row.data());
    for (size_t k = 0; k < 7; k++) EXPECT_EQ(row[k], numerics::f32_to_f16(f[static_cast<size_t>(n) * 7 + k]));
  }
}

}  // namespace
}  // namespace isobit::cpu
