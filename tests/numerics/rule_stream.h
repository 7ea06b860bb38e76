#pragma once
// One result of every rule but the tensor core's, from pseudo-random inputs: a stream to compare between compilers,
// flags (tests/numerics/flags_test.cpp) and between host and device (tools/contract_vectors.cu).
#include <cstdint>

#include "contract_vectors.h"
#include "numerics/activation.h"
#include "numerics/ex2.h"
#include "numerics/norm.h"
#include "numerics/philox.h"
#include "numerics/quantize.h"
#include "numerics/rope.h"
#include "numerics/sampling.h"
#include "numerics/softmax.h"

namespace isobit::vectors {

namespace num = numerics;

constexpr int kScalarRules = 21;
constexpr const char* kScalarRuleNames[kScalarRules] = {"fadd",
                                                        "fmul",
                                                        "fdiv",
                                                        "fsqrt",
                                                        "ffma",
                                                        "f32_to_bf16",
                                                        "f32_to_f16",
                                                        "e4m3",
                                                        "silu",
                                                        "tanh",
                                                        "gelu",
                                                        "rms_scale",
                                                        "rope_entry",
                                                        "rope_rotate",
                                                        "mass",
                                                        "log_probability",
                                                        "ln",
                                                        "exp",
                                                        "gumbel",
                                                        "process_logit",
                                                        "multiply, then add"};

ISOBIT_HD uint64_t scalar_rule(int rule, uint64_t i) {
  const uint64_t r = mix(i * kScalarRules + static_cast<uint64_t>(rule)), r2 = mix(r);
  const uint32_t u0 = static_cast<uint32_t>(r), u1 = static_cast<uint32_t>(r >> 32), u2 = static_cast<uint32_t>(r2);
  // Any bits three times of four, moderate values else.
  const bool any = (r2 >> 40) % 4 != 0;
  const auto value = [&](uint32_t u) { return num::from_bits(any ? u : (u & 0x8fffffff) | 0x38000000); };
  const float x = value(u0), y = value(u1), z = value(u2);
  const float small = num::fmul(static_cast<float>(static_cast<int32_t>(u0)), 0x1p-26f);  // ±32
  const float small2 = num::fmul(static_cast<float>(static_cast<int32_t>(u1)), 0x1p-26f);
  const auto f = [](float v) { return static_cast<uint64_t>(num::bits(num::canonical(v))); };
  switch (rule) {
    case 0:
      return f(num::fadd(x, y));
    case 1:
      return f(num::fmul(x, y));
    case 2:
      return f(num::fdiv(x, y));
    case 3:
      return f(num::fsqrt(x));
    case 4:
      return f(num::ffma(x, y, z));
    case 5:
      return num::f32_to_bf16(x);
    case 6:
      return num::f32_to_f16(x) | f(num::f16_to_f32(static_cast<uint16_t>(u1))) << 32;
    case 7:
      return num::f32_to_e4m3(x) | f(num::e4m3_to_f32(static_cast<uint8_t>(u1))) << 32 |
             static_cast<uint64_t>(num::e4m3_value(small, num::e4m3_scale(num::fmul(small2, small2)))) << 8;
    case 8:
      return f(num::silu(any ? x : small));
    case 9:
      return f(num::tanh(any ? x : small));
    case 10:
      return f(num::gelu_tanh(any ? x : small));
    case 11:
      return f(num::rms_scale(num::fmul(small, small), 1 + u1 % 16384, 1e-5f));
    case 12: {
      const num::RopeEntry e = num::rope_entry(u0 % 1000000, num::rope_frequency(u1 % 64, 128, 10000.0 + u2), 1.0);
      return f(e.cos) | f(e.sin) << 32;
    }
    case 13: {
      const num::Rotated e = num::rope_rotate(x, y, {num::fmul(small2, 0x1p-5f), num::fmul(small, 0x1p-5f)});
      return f(e.x0) | f(e.x1) << 32;
    }
    case 14:
      return num::mass(num::fsub(small, 40.0f), num::fadd(small2, 40.0f));
    case 15:
      return f(num::log_probability(small, 32.0f, (uint64_t{1} << 44) + (r2 >> 20)));
    case 16:
      return num::bits64(num::ln(num::from_bits64(r % 0x7fe0000000000000ULL + 0x0010000000000000ULL)));
    case 17:
      return num::bits64(num::exp(static_cast<double>(static_cast<int64_t>(r)) * 0x1p-54));
    case 18:
      return num::bits64(num::gumbel_score(small, num::noise_bits(r, u2, u1, num::NoisePurpose::kSample, u0)));
    case 19:
      return f(num::process_logit(small, small2, {1.3f, 0.3f, 0.7f}, u2 % 2 != 0, static_cast<int>(u2 >> 1 & 3),
                                  1.7f)) |
             num::top_p_keeps(r >> 5, u2, r2 >> 4);
    default:  // never one fused operation
      return f(num::fadd(num::fmul(small, small2), num::fmul(small2, y)));
  }
}

}  // namespace isobit::vectors
