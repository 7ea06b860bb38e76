#pragma once
#include <cstdint>

namespace isobit {

// Of all 2^32 floats, those whose SiLU differs between silu.h's form for several values and device_math.h's for one.
uint64_t silu_differences();

}  // namespace isobit
