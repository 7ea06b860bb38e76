#pragma once
// N15. Noise: Philox 4x32 (Salmon et al., SC 2011), 7 rounds. key = the request's seed; counter = (token id / 4,
// position, purpose, choice index): never a rank, slot or batch row. Word id mod 4 belongs to the token.
#include "numerics/contract.h"
#include "numerics/f64.h"

namespace isobit::numerics {

struct PhiloxWords {
  uint32_t w[4];
};

enum class NoisePurpose : uint32_t { kSample = 0, kDraft = 1 };

ISOBIT_HD PhiloxWords philox4x32(uint64_t seed, PhiloxWords counter, int rounds = kPhiloxRounds) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  PhiloxWords c = counter;
  for (int round = 0; round < rounds; round++) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c.w[0], p1 = static_cast<uint64_t>(0xCD9E8D57u) * c.w[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.w[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w[3] ^ k1, static_cast<uint32_t>(p0)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

ISOBIT_HD uint32_t noise_bits(uint64_t seed, uint32_t token, uint32_t position, NoisePurpose purpose, uint32_t choice) {
  return philox4x32(seed, {{token / 4, position, static_cast<uint32_t>(purpose), choice}}).w[token % 4];
}

// Gumbel noise -ln(-ln x), x = 1 - (r + ½)/2^32, in double. Its reach is [-3.130, 22.874].
ISOBIT_HD double gumbel(uint32_t r) {
  const double x = dfma(-dadd(static_cast<double>(r), 0.5), 0x1p-32, 1.0);
  return -ln(-ln(x));
}

// The token with the largest score wins, the lowest id among equals. z: the logit after bias, penalties and
// temperature.
ISOBIT_HD double gumbel_score(float z, uint32_t r) { return dadd(static_cast<double>(z), gumbel(r)); }

}  // namespace isobit::numerics
