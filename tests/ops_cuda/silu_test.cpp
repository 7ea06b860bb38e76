// SiLU of several values at once against that of each, over all floats.
#include <gtest/gtest.h>

#include "ops_cuda/silu_check.h"

namespace isobit {
namespace {

TEST(GpuSilu, OfSeveralIsThatOfEach) { EXPECT_EQ(silu_differences(), 0u) << "of 2^32"; }

}  // namespace
}  // namespace isobit
