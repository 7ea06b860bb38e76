#include "ops/cuda/linear_cuda.h"

#include "base/error.h"

namespace isobit::cuda {

CudaLinear::CudaLinear(int64_t n, int64_t k, LinearForm form, DType type, Buffer storage)
    : Linear(n, k, form), type_(type), storage_(std::move(storage)) {}

const CudaLinear& as_cuda(const Linear* linear, const char* op) {
  const auto* w = dynamic_cast<const CudaLinear*>(linear);
  if (w == nullptr) {
    throw fail(ErrorCode::kInvalidArgument, "{}: the matrix was loaded by another backend; load it by this one", op);
  }
  return *w;
}

}  // namespace isobit::cuda
