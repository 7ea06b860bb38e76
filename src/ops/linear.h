#pragma once
// A weight matrix as a backend keeps it, made once at load by Backend::load_linear.
#include <cstddef>
#include <cstdint>

#include "base/dtype.h"

namespace isobit {

// One matrix of a model file: [rows, cols] row-major, cols contiguous; rows are outputs (N), cols inputs (K).
struct WeightPart {
  DType dtype = DType::kBF16;
  int64_t rows = 0, cols = 0;
  const std::byte* data = nullptr;
  const std::byte* scale =
      nullptr;  // kF8E4M3: f32 [⌈rows/128⌉, ⌈cols/128⌉], a weight is e4m3 · scale; may be unaligned
};

enum class LinearForm : uint8_t {
  kStacked,  // the parts one under the other: N = sum of rows
  kGated,    // two parts of equal rows, gate then up: the output is act(gate)·up, N = 2·rows by the contract's N7
};

class Linear {
 public:
  Linear(int64_t n, int64_t k, LinearForm form) : n_(n), k_(k), form_(form) {}
  virtual ~Linear() = default;
  Linear(const Linear&) = delete;
  Linear& operator=(const Linear&) = delete;

  int64_t n() const { return n_; }  // rows in all, both parts of a gated pair counted
  int64_t k() const { return k_; }
  int64_t outputs() const { return form_ == LinearForm::kGated ? n_ / 2 : n_; }  // columns of the result
  LinearForm form() const { return form_; }
  virtual size_t bytes() const = 0;  // memory it takes on the backend

 private:
  int64_t n_, k_;
  LinearForm form_;
};

}  // namespace isobit
