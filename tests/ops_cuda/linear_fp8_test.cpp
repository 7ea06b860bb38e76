// Block-scaled matrices behind the Backend interface on the GPU: the CPU backend's bytes.
#include <gtest/gtest.h>

#include "ops/cpu/cpu_backend.h"
#include "ops/cuda/cuda_backend.h"
#include "ops/fp8_layer_problem.h"

namespace isobit {
namespace {

using testing::Fp8LayerData;
using testing::Fp8LayerProblem;
using testing::Random;

TEST(GpuLinearFp8, OperatorsEqualTheCpus) {
  Random r;
  const auto cpu = make_cpu_backend({}), gpu = make_cuda_backend({});
  for (int i = 0; i < 80; i++) {
    const Fp8LayerProblem p = Fp8LayerProblem::draw(r, i % 4 == 0 ? 300 : 40, 500, 600);
    SCOPED_TRACE(r.note() + " " + p.text());
    const Fp8LayerData d(r, p);
    const bool normed = r.below(2) == 0;
    ASSERT_EQ(run_fp8_layer(*gpu, d, normed) == run_fp8_layer(*cpu, d, normed), true) << "normed " << normed;
  }
}

// Rows that the kernel of few rows takes.
TEST(GpuLinearFp8, FewRowsEqualTheCpus) {
  Random r;
  const auto cpu = make_cpu_backend({}), gpu = make_cuda_backend({});
  for (int i = 0; i < 60; i++) {
    Fp8LayerProblem p = Fp8LayerProblem::draw(r, 4, 3000, 9000);
    p.m = 1 + i % 3;
    SCOPED_TRACE(r.note() + " " + p.text());
    const Fp8LayerData d(r, p);
    ASSERT_EQ(run_fp8_layer(*gpu, d, i % 2 == 0) == run_fp8_layer(*cpu, d, i % 2 == 0), true);
  }
}

// An FFN of one row, in kernels that quantise their input and make the gated product.
TEST(GpuLinearFp8, FfnOfOneRowEqualsTheCpus) {
  Random r;
  const auto cpu = make_cpu_backend({}), gpu = make_cuda_backend({});
  for (int i = 0; i < 16; i++) {
    Fp8LayerProblem p = Fp8LayerProblem::draw(r, 1, 1, 1);
    p.k = i % 5 == 4 ? 1 + r.below(700) : i == 0 ? 2052 : 4 + r.below(150) * 4;
    p.epilogue = r.below(3) != 0 ? Epilogue::kSiluMul : Epilogue::kGeluMul;
    const int64_t ffn = i % 4 == 3 ? 1 + r.below(3000) : 128 * r.range(1, 132);
    SCOPED_TRACE(r.note() + " " + p.text() + fmt::format(" ffn {}", ffn));
    const testing::Fp8FfnData d(r, p, ffn);
    ASSERT_EQ(run_fp8_ffn(*gpu, d, true) == run_fp8_ffn(*cpu, d, true), true);
  }
}

// What norm_gemm_rope leaves of one row: q, the cache's k and v, the flag.
struct RotatedRow {
  int q_heads = 1, kv_heads = 1, head_dim = 64, rope_dim = 64;  // rope_dim 0: none
  RopeLayout layout = RopeLayout::kInterleaved;
  int64_t slot = 0;
  int32_t position = 0;

  static constexpr int kPage = 16, kPages = 3, kPositions = 50;
  int64_t n() const { return static_cast<int64_t>(q_heads + 2 * kv_heads) * head_dim; }

  std::vector<std::vector<std::byte>> run(Backend& b, const Fp8LayerData& d, const std::vector<float>& table) const {
    const auto w = b.load_linear(std::vector<WeightPart>{d.parts[0].part()}, LinearForm::kStacked, d.p.type);
    const Buffer x = testing::to_backend(b, d.residual), weight = testing::to_backend(b, d.norm_weight),
                 bias = testing::to_backend(b, d.bias), turns = testing::to_backend(b, table),
                 slots = testing::to_backend(b, std::vector<int64_t>{slot}),
                 positions = testing::to_backend(b, std::vector<int32_t>{position});
    const auto cache = static_cast<size_t>(kPages * kPage * kv_heads * head_dim) * 2;
    const Buffer normed = b.allocate(static_cast<size_t>(d.p.k) * 2, "normed"),
                 qkv = b.allocate(static_cast<size_t>(n()) * 4, "qkv"), k = b.allocate(cache, "k"),
                 v = b.allocate(cache, "v"), flag = b.allocate(4, "flag"),
                 q = b.allocate(static_cast<size_t>(q_heads * head_dim) * 2, "q");
    RmsNormArgs norm;
    norm.x = x.data<float>(), norm.weight = weight.data<float>(), norm.count = 1, norm.n = d.p.k;
    norm.out_type = d.p.type, norm.out = normed.data<uint16_t>();
    GemmArgs g;
    g.x = norm.out, g.m = 1, g.w = w.get(), g.type = d.p.type, g.out = qkv.data();
    g.bias = d.p.biased ? bias.data<float>() : nullptr;
    RopeCacheArgs r;
    r.qkv = qkv.data<float>(), r.positions = positions.data<int32_t>(), r.slots = slots.data<int64_t>(), r.count = 1;
    r.q_heads = q_heads, r.rope_dim = rope_dim, r.max_position = kPositions, r.layout = layout;
    if (rope_dim > 0) r.cos = turns.data<float>(), r.sin = r.cos + kPositions * rope_dim / 2;
    r.cache.k = k.data(), r.cache.v = v.data(), r.cache.pages = kPages, r.cache.kv_heads = kv_heads;
    r.cache.page_size = kPage, r.cache.head_dim = head_dim, r.cache.type = d.p.type;
    r.type = d.p.type, r.q = q.data<uint16_t>(), r.nonfinite = flag.data<int32_t>();
    b.norm_gemm_rope(norm, g, r);
    return {testing::from_backend(b, q), testing::from_backend(b, k), testing::from_backend(b, v),
            testing::from_backend(b, flag)};
  }
};

TEST(GpuLinearFp8, RotatedRowEqualsTheCpus) {
  Random r;
  const auto cpu = make_cpu_backend({}), gpu = make_cuda_backend({});
  for (int i = 0; i < 40; i++) {
    RotatedRow row;
    row.q_heads = static_cast<int>(1 + r.below(10));
    row.kv_heads = static_cast<int>(1 + r.below(4));
    row.q_heads *= row.kv_heads;
    row.head_dim = r.below(2) == 0 ? 64 : 128;
    row.rope_dim = i % 7 == 0 ? 0 : i % 3 == 0 ? 32 : row.head_dim;
    row.layout = i % 6 == 5 ? RopeLayout::kHalves : RopeLayout::kInterleaved;
    row.slot = i % 9 == 8 ? -1 : r.below(RotatedRow::kPage * RotatedRow::kPages);
    row.position = static_cast<int32_t>(r.below(RotatedRow::kPositions));
    Fp8LayerProblem p = Fp8LayerProblem::draw(r, 1, 1, 3000);
    p.form = LinearForm::kStacked;
    p.rows = {row.n()};
    p.k = (p.k + 3) / 4 * 4;
    SCOPED_TRACE(r.note() + " " + p.text() +
                 fmt::format(" heads {}+{} of {}", row.q_heads, row.kv_heads, row.head_dim));
    Fp8LayerData d(r, p);
    if (i % 8 == 3) d.parts[0].scales[r.below(static_cast<int>(d.parts[0].scales.size()))] = 1e38f;  // flagged
    std::vector<float> table(static_cast<size_t>(RotatedRow::kPositions * 128));
    for (float& t : table) t = static_cast<float>(r.normal());
    ASSERT_EQ(row.run(*gpu, d, table) == row.run(*cpu, d, table), true);
  }
}

// So little workspace that rows are taken in turns.
TEST(GpuLinearFp8, RowsInTurnsAreTheSameRows) {
  Random r;
  CudaOptions options;
  options.workspace_bytes = size_t{256} << 10;
  const auto small = make_cuda_backend(options), whole = make_cuda_backend({});
  for (int i = 0; i < 6; i++) {
    Fp8LayerProblem p = Fp8LayerProblem::draw(r, 900, 400, 500);
    p.m = 500 + r.below(500);
    SCOPED_TRACE(r.note() + " " + p.text());
    const Fp8LayerData d(r, p);
    ASSERT_EQ(run_fp8_layer(*small, d, i % 2 == 0) == run_fp8_layer(*whole, d, i % 2 == 0), true);
  }
}

}  // namespace
}  // namespace isobit
