#pragma once
// A block-scaled FP8 matrix in a backend's memory, and a layer's operators on it (rules N16, N18, N25): written once
// for all backends, which bring three kernels and some memory.
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "ops/buffer.h"
#include "ops/gemm.h"
#include "ops/gemm_fp8.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/rope.h"

namespace isobit {

class Backend;

class Fp8Linear final : public Linear {
 public:
  // Rows that begin a block of 128 of their scales: one call of the GEMM. A stack of parts is one piece where all parts
  // but the last are whole blocks, as in most models.
  struct Piece {
    int64_t row = 0, rows = 0;
    const uint8_t* w = nullptr;
    const float* scale = nullptr;
  };
  Fp8Linear(int64_t n, int64_t k, LinearForm form, std::vector<Piece> pieces, Buffer weights, Buffer scales)
      : Linear(n, k, form), pieces_(std::move(pieces)), weights_(std::move(weights)), scales_(std::move(scales)) {}

  std::span<const Piece> pieces() const { return pieces_; }
  size_t bytes() const override { return weights_.bytes() + scales_.bytes(); }

 private:
  std::vector<Piece> pieces_;
  Buffer weights_, scales_;
};

// True where all parts are kF8E4M3. Throws Error kUnsupported where only some are.
bool is_block_scaled(std::span<const WeightPart> parts);
std::unique_ptr<Linear> load_fp8_linear(Backend& backend, std::span<const WeightPart> parts, LinearForm form);
// Null where the matrix is of another kind.
const Fp8Linear* as_fp8(const Linear* linear);

// What becomes of a GEMM's output.
struct Fp8After {
  GatedKind gated = GatedKind::kNone;   // out is [m, n / 2], round(fmul(act(gate), up)) of its row's halves
  const RopeCacheArgs* rope = nullptr;  // they are q, k and v: rope_cache
};

// What a backend brings.
class Fp8Kernels {
 public:
  virtual ~Fp8Kernels() = default;
  virtual void quantize(const QuantizeFp8Args& a) = 0;
  virtual void gemm(const GemmFp8Args& a) = 0;
  virtual void gate(const GateArgs& a) = 0;
  // quantize(q), then gemm(g) of its output, then what is `after`; outputs between need not be written. False, and
  // nothing done, where the backend does no better than one after the other.
  virtual bool quantized_gemm(const QuantizeFp8Args&, const GemmFp8Args&, const Fp8After&) { return false; }
  // Memory for one operator, aligned to 256 bytes: `bytes`, or less where there is less; rows are then taken in turns.
  virtual std::span<std::byte> scratch(size_t bytes) = 0;
};

// GemmArgs whose w is an Fp8Linear: x quantised, multiplied, then the epilogue.
void fp8_gemm(Fp8Kernels& kernels, const GemmArgs& g);
// The same behind a norm, whose output is not written. False, and nothing done, where the norm gathers rows.
bool fp8_norm_gemm(Fp8Kernels& kernels, const RmsNormArgs& n, const GemmArgs& g);
// The same before rope_cache, by one kernel: false, and nothing done, where the backend has none for it.
bool fp8_norm_gemm_rope(Fp8Kernels& kernels, const RmsNormArgs& n, const GemmArgs& g, const RopeCacheArgs& r);
// An FFN, of which neither the norm's output nor the gated product is written. False, and nothing done, where `down` is
// not block-scaled or `up` not gated.
bool fp8_norm_gemm_gemm(Fp8Kernels& kernels, const RmsNormArgs& n, const GemmArgs& up, const GemmArgs& down);

}  // namespace isobit
