#pragma once
// A weight matrix as plain rows, and the GEMM over it by the contract's scalar rule: what tests compare the backend's
// own forms (packed_linear.h, f16_linear.h) with.
#include <vector>

#include "ops/cpu/cpu_ops.h"

namespace isobit::cpu {

class ReferenceLinear final : public Linear {
 public:
  ReferenceLinear(int64_t n, int64_t k, LinearForm form, DType type, std::vector<uint16_t> data)
      : Linear(n, k, form), type_(type), data_(std::move(data)) {}
  size_t bytes() const override { return data_.size() * sizeof(uint16_t); }
  const uint16_t* row(int64_t r) const { return data_.data() + r * k(); }
  DType type() const { return type_; }

 private:
  DType type_;
  std::vector<uint16_t> data_;
};

std::unique_ptr<Linear> load_reference(std::span<const WeightPart> parts, LinearForm form, DType type);
void gemm_reference(const Cpu& cpu, const GemmArgs& a);

}  // namespace isobit::cpu
