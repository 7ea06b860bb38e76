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
    Fp8LayerProblem p = Fp8LayerProblem::draw(r, 4, 5000, 3000);
    p.m = 1 + i % 3;
    SCOPED_TRACE(r.note() + " " + p.text());
    const Fp8LayerData d(r, p);
    ASSERT_EQ(run_fp8_layer(*gpu, d, i % 2 == 0) == run_fp8_layer(*cpu, d, i % 2 == 0), true);
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
