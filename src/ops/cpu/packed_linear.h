#pragma once
// A weight matrix kept packed for the CPU's GEMM, at about the size of its file. Rows (outputs) go in panels of 16, so
// that SIMD lanes are outputs; a panel is a sequence of groups of 32 along K, each with its scales first and then its
// codes, 4 or 8 bits, in one 32-bit lane an output. K is filled to a multiple of 32 with zeros, rows to 16.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/weight_arena.h"
#include "ops/linear.h"

namespace isobit::cpu {

constexpr int kPanel = 16;  // outputs of a panel
constexpr int kGroup = 32;  // k of a group

// w = bf16(D·code + M), D and M per output and group. The product and, for the formats whose sum has one rounding, the
// sum are as weights/dequantize.h states; for the others D·code + M is exact, so adding M last is the same value.
enum class PanelFormat : uint8_t {
  kBF16,     // plain bf16, in pairs of k
  kNibble,   // Q4_0, Q4_1: D, M f16; 4-bit codes: 20 bytes for 32 weights
  kNibbleF,  // Q4_K: D, M f32
  kByte,     // Q8_0: D f16, M = -128·D
  kByteA,    // Q5_0, Q5_1: D, M f16; 8-bit codes
  kByteF,    // Q5_K, Q6_K: D, M f32, twice: for each 16 of the group's k
  kTwelve,   // any of the above, ready to multiply: bf16 in 12 bits (twelve.h)
};

// Quantised weights as the file has them, or as kTwelve: 1.75 times the speed of a single row and 2.4 times the memory
// of 4-bit formats.
enum class Storage : uint8_t { kCompact, kFast };

constexpr size_t group_bytes(PanelFormat f) {
  switch (f) {
    case PanelFormat::kBF16:
      return kPanel * kGroup * 2;
    case PanelFormat::kNibble:
      return kPanel * (4 + 16);
    case PanelFormat::kNibbleF:
      return kPanel * (8 + 16);
    case PanelFormat::kByte:
      return kPanel * (2 + 32);
    case PanelFormat::kByteA:
      return kPanel * (4 + 32);
    case PanelFormat::kByteF:
      return kPanel * (16 + 32);
    case PanelFormat::kTwelve:
      return kPanel * kGroup * 3 / 2;
  }
  return 0;
}

// The exponents (biased) of the non-zero weights and activations for which the vector kernel is exact; see
// gemm_kernel.cpp. What lies outside takes the general step.
constexpr int kWeightExponentMin = 127 - 26, kWeightExponentMax = 127 + 29;

class PackedLinear final : public Linear {
 public:
  struct Part {
    PanelFormat format;
    int64_t row, rows;  // of the matrix
    size_t offset;      // bytes
  };
  struct Panel {
    PanelFormat format;
    bool general;  // holds weights outside the exponents above
    int rows;      // 1 to 16
    int64_t row;   // the first
    const std::byte* data;
    // kTwelve:
    const uint8_t* bases = nullptr;  // of each group
    // Spilled groups, null if there is none; a spilled group's data begins with its number among them.
    const uint16_t* spill = nullptr;
  };

  PackedLinear(int64_t n, int64_t k, LinearForm form) : Linear(n, k, form) {}
  size_t bytes() const override { return size_; }

  int64_t groups() const { return (k() + kGroup - 1) / kGroup; }
  std::span<const Panel> panels() const { return panels_; }
  // bf16 bits of one row, as the GEMM takes them.
  void row(int64_t r, uint16_t* out) const;

 private:
  friend class Packer;
  std::shared_ptr<std::byte> data_;
  size_t size_ = 0;
  std::vector<Panel> panels_;
  std::vector<std::vector<uint16_t>> spills_;  // by panel
};

// Rows of all parts. Throws Error unless they are what Backend::load_linear takes.
int64_t check_parts(std::span<const WeightPart> parts, LinearForm form);

// bf16 weights of a GGUF or plain matrix. Parts as for Backend::load_linear. The parts' bytes are not needed
// afterwards.
std::unique_ptr<PackedLinear> pack_linear(ThreadPool& pool, std::span<const WeightPart> parts, LinearForm form,
                                          Storage storage, WeightArena& arena);

}  // namespace isobit::cpu
