// Block-scaled matrices behind the Backend interface: any parts, epilogues and neighbours, by bytes.
#include <gtest/gtest.h>

#include <cstring>

#include "base/error.h"
#include "ops/cpu_testing.h"
#include "ops/fp8_layer_problem.h"
#include "ops/linear_fp8.h"

namespace isobit {
namespace {

using testing::Backends;
using testing::Fp8LayerData;
using testing::Fp8LayerProblem;
using testing::Fp8LayerReference;
using testing::Random;

TEST(LinearFp8, OperatorsFollowTheRules) {
  Random r;
  Backends backends;
  for (int i = 0; i < 60; i++) {
    const Fp8LayerProblem p = Fp8LayerProblem::draw(r, 9, 300, 400);
    SCOPED_TRACE(r.note() + " " + p.text());
    const Fp8LayerData d(r, p);
    const bool normed = r.below(2) == 0;
    const Fp8LayerReference want(d, normed);
    const std::vector<std::byte> got = run_fp8_layer(backends.random(r), d, normed);
    const size_t bytes = p.wide() ? 4 : 2;
    for (int64_t at = 0; at < p.m * p.outputs(); at++) {
      uint32_t v = 0;
      std::memcpy(&v, &got[static_cast<size_t>(at) * bytes], bytes);
      ASSERT_EQ(v, want.at(at / p.outputs(), at % p.outputs())) << "output " << at << ", normed " << normed;
    }
  }
}

TEST(LinearFp8, PartsOfWholeBlocksAreOnePiece) {
  Random r;
  const auto backend = make_cpu_backend({1, ""});
  const auto pieces = [&](std::initializer_list<int64_t> rows) {
    std::vector<testing::Fp8Matrix> parts;
    std::vector<WeightPart> views;
    for (const int64_t n : rows) parts.emplace_back(r, n, 200);
    for (const auto& m : parts) views.push_back(m.part());
    const auto w = backend->load_linear(views, LinearForm::kStacked, DType::kBF16);
    return as_fp8(w.get())->pieces().size();
  };
  EXPECT_EQ(pieces({256, 128, 128}), 1u);
  EXPECT_EQ(pieces({128, 100}), 1u);
  EXPECT_EQ(pieces({576, 192, 192}), 3u);
  EXPECT_EQ(pieces({64, 128, 128}), 2u);
}

TEST(LinearFp8, TypesThatDoNotMixAreRefused) {
  Random r;
  const auto backend = make_cpu_backend({1, ""});
  const testing::Fp8Matrix m(r, 128, 128);
  const std::vector<uint16_t> plain(128 * 128);
  const WeightPart parts[] = {m.part(), {DType::kBF16, 128, 128, reinterpret_cast<const std::byte*>(plain.data())}};
  try {
    (void)backend->load_linear(parts, LinearForm::kStacked, DType::kBF16);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
    EXPECT_NE(std::string(e.what()).find("F8_E4M3"), std::string::npos) << e.what();
  }
}

// An FFN in one call: the bytes of its operators one by one.
TEST(LinearFp8, FusedFfnEqualsItsOperators) {
  Random r;
  Backends backends;
  for (int i = 0; i < 12; i++) {
    Fp8LayerProblem p = Fp8LayerProblem::draw(r, 6, 300, 300);
    p.epilogue = r.below(2) == 0 ? Epilogue::kSiluMul : Epilogue::kGeluMul;
    const int64_t ffn = 1 + r.below(300);
    SCOPED_TRACE(r.note() + " " + p.text() + fmt::format(" ffn {}", ffn));
    const testing::Fp8FfnData d(r, p, ffn);
    Backend& b = backends.random(r);
    ASSERT_EQ(run_fp8_ffn(b, d, true) == run_fp8_ffn(b, d, false), true);
  }
}

}  // namespace
}  // namespace isobit
