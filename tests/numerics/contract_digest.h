#pragma once
// A digest of every rule on a fixed pseudo-random stream. One value for all compilers, flags and machines; a change of
// any bit of the contract changes it.
#include <vector>

#include "contract_vectors.h"
#include "numerics/attention.h"
#include "numerics/gemm.h"
#include "numerics/norm.h"
#include "rule_stream.h"

namespace isobit::vectors {

class StreamDigest {
 public:
  void add(uint64_t x) { state_ = mix(state_ ^ x); }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0;
};

inline float moderate(uint64_t r) {  // about ±2, many exponents
  return num::from_bits((static_cast<uint32_t>(r) & 0x807fffff) | (static_cast<uint32_t>(120 + (r >> 40) % 8) << 23));
}

inline void digest_dots(StreamDigest& d) {
  for (Operand kind : {Operand::kBF16, Operand::kF16, Operand::kE4M3}) {
    for (int cls = 0; cls < kClasses; cls++) {
      for (int i = 0; i < 64; i++) {
        uint16_t a[16], b[16];
        uint8_t a8[32], b8[32];
        for (int k = 0; k < 32; k++) {
          const uint32_t x = operand(kind, cls, 5, kA, i, 0, k % 32), y = operand(kind, cls, 5, kB, i % 8, 0, k % 32);
          if (k < 16) a[k] = static_cast<uint16_t>(x), b[k] = static_cast<uint16_t>(y);
          a8[k] = static_cast<uint8_t>(x), b8[k] = static_cast<uint8_t>(y);
        }
        const float c = num::from_bits(accumulator(kind, cls, 5, i, i % 8));
        d.add(num::bits(kind == Operand::kBF16  ? num::dot16<Operand::kBF16>(c, a, b)
                        : kind == Operand::kF16 ? num::dot16<Operand::kF16>(c, a, b)
                                                : num::dot32(c, a8, b8)));
      }
    }
  }
}

inline void digest_rows(StreamDigest& d) {
  constexpr int k = 2100;  // ragged, more than one chunk
  std::vector<uint16_t> x(k), w(k);
  std::vector<uint8_t> x8(k), w8(k);
  std::vector<float> row(k), scales(17);
  for (int i = 0; i < k; i++) {
    const uint64_t r = mix(static_cast<uint64_t>(i));
    row[i] = moderate(r);
    x[i] = num::f32_to_bf16(row[i]), w[i] = num::f32_to_bf16(moderate(mix(r)));
    x8[i] = num::f32_to_e4m3(row[i]), w8[i] = num::f32_to_e4m3(moderate(mix(r)));
    scales[i % 17] = num::e4m3_scale(row[i]);
  }
  d.add(num::bits(num::gemm_dot(x.data(), w.data(), k, num::gemm_chunk_k(64, k))));
  d.add(num::bits(num::gemm_dot(x.data(), w.data(), k, num::gemm_chunk_k(4096, k))));
  d.add(num::bits(num::gemm_fp8_dot(x8.data(), w8.data(), scales.data(), scales.data(), k)));
  d.add(num::bits(num::sum_of_squares(row.data(), k)));
  for (const float cap : {0.0f, 30.0f}) {
    constexpr int dim = 16, n = 2 * num::kAttentionSuperBlock + 100;
    const auto at = [](int64_t j, uint64_t salt) {
      static thread_local uint16_t v[2][dim];
      for (uint64_t e = 0; e < dim; e++) {
        v[salt][e] = num::f32_to_bf16(moderate(mix(static_cast<uint64_t>(j) * 64 + e * 2 + salt)));
      }
      return v[salt];
    };
    uint16_t query[dim], out[dim];
    for (uint64_t e = 0; e < dim; e++) query[e] = num::f32_to_bf16(moderate(mix(e + 999)));
    const float sink = 1.5f;
    num::attention_row<Operand::kBF16>(
        query, dim, n, [&](int64_t j) { return at(j, 0); }, [&](int64_t j) { return at(j, 1); },
        [](int64_t j) { return j > 70 && j % 7 != 3; }, {0.25f, cap}, &sink, out);
    for (const uint16_t o : out) d.add(o);
  }
}

inline uint64_t contract_digest() {
  StreamDigest d;
  for (int rule = 0; rule < kScalarRules; rule++) {
    for (uint64_t i = 0; i < 4000; i++) d.add(scalar_rule(rule, i));
  }
  for (uint32_t i = 0; i < 20000; i++) d.add(num::bits(num::ex2(num::from_bits(ex2_input(3, i)))));
  digest_dots(d);
  digest_rows(d);
  d.add(num::environment_is_ieee() ? 1 : 0);
  return d.value();
}

}  // namespace isobit::vectors
