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
    Fp8LayerProblem first = Fp8LayerProblem::draw(r, 6, 300, 300);
    first.form = LinearForm::kGated;
    first.rows = {1 + r.below(300)};
    first.rows.push_back(first.rows[0]);
    first.epilogue = r.below(2) == 0 ? Epilogue::kSiluMul : Epilogue::kGeluMul;
    first.biased = false;
    Fp8LayerProblem second = first;
    second.k = first.rows[0];
    second.rows = {first.k};
    second.form = LinearForm::kStacked;
    second.epilogue = Epilogue::kAddResidual;
    SCOPED_TRACE(r.note() + " " + first.text());
    const Fp8LayerData up_data(r, first), down_data(r, second);
    Backend& b = backends.random(r);
    const WeightPart up_parts[] = {up_data.parts[0].part(), up_data.parts[1].part()},
                     down_parts[] = {down_data.parts[0].part()};
    const auto up_weights = b.load_linear(up_parts, first.form, first.type);
    const auto down_weights = b.load_linear(down_parts, second.form, first.type);
    std::vector<std::vector<std::byte>> results;
    for (const bool fused : {false, true}) {
      const Buffer residual = testing::to_backend(b, up_data.residual),
                   weight = testing::to_backend(b, up_data.norm_weight);
      const Buffer normed = b.allocate(static_cast<size_t>(first.m * first.k) * 2, "normed"),
                   hidden = b.allocate(static_cast<size_t>(first.m * second.k) * 2, "hidden");
      RmsNormArgs n;
      n.x = residual.data<float>();
      n.weight = weight.data<float>();
      n.count = first.m;
      n.n = first.k;
      n.out_type = first.type;
      n.out = normed.data<uint16_t>();
      GemmArgs up;
      up.x = normed.data<uint16_t>();
      up.m = first.m;
      up.w = up_weights.get();
      up.epilogue = first.epilogue;
      up.type = first.type;
      up.out = hidden.data();
      GemmArgs down;
      down.x = hidden.data<uint16_t>();
      down.m = first.m;
      down.w = down_weights.get();
      down.epilogue = Epilogue::kAddResidual;
      down.type = first.type;
      down.out = residual.data();
      if (fused) {
        b.norm_gemm_gemm(n, up, down);
      } else {
        b.rms_norm(n);
        b.gemm(up);
        b.gemm(down);
      }
      results.push_back(testing::from_backend(b, residual));
    }
    ASSERT_EQ(results[0] == results[1], true);
  }
}

}  // namespace
}  // namespace isobit
