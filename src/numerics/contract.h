#pragma once
// The contract's version and its choices. docs/numerics.md states every rule; a change of any bit is a new version.
#include <cstdint>
#include <string_view>

namespace isobit::numerics {

constexpr std::string_view kContractVersion = "isobit-1";

constexpr float kLog2E = 1.44269504088896340736f;  // 0x3fb8aa3b

// N7. GEMM: the K axis of a narrow matrix is cut in chunks, so that few outputs still make short chains.
constexpr int64_t kGemmNarrowN = 1024;
constexpr int64_t kGemmChunkK = 2048;

// N10. Attention: keys per block and per super-block, at absolute multiples.
constexpr int attention_block(int head_dim) { return head_dim <= 128 ? 128 : 64; }
constexpr int kAttentionSuperBlock = 2048;

// N8. Lanes of the sum of squares.
constexpr int kSumLanes = 1024;

// N13. Fixed-point masses: probability 1 is 2^44.
constexpr int kMassBits = 44;
constexpr int64_t kMaxVocabulary = int64_t{1} << 19;  // sums of masses stay below 2^64

// N15. Noise.
constexpr int kPhiloxRounds = 7;

}  // namespace isobit::numerics
