#include "engine/memory_fit.h"

#include <algorithm>

#include "base/error.h"
#include "cache/page_pool.h"

namespace isobit {
namespace {

// Of what is free; the rest is for the step's own arrays and the driver.
constexpr double kUsable = 0.95;

size_t megabytes(size_t bytes) { return (bytes + (size_t{1} << 20) - 1) >> 20; }

}  // namespace

size_t weight_bytes_on_device(const Checkpoint& file) {
  size_t bytes = 0;
  for (const Tensor& t : file.tensors()) {
    const auto elements = static_cast<size_t>(t.rows() * t.columns());
    if (t.shape.size() < 2) {
      bytes += elements * sizeof(float);
    } else {
      bytes += t.scale != nullptr ? t.bytes : elements * sizeof(uint16_t);
    }
  }
  return bytes;
}

std::string cache_that_fits(const CacheAsked& asked, size_t free) {
  const auto usable = static_cast<size_t>(static_cast<double>(free) * kUsable);
  const auto pages = static_cast<int64_t>(usable / std::max<size_t>(asked.page_bytes, 1));
  const int64_t tokens = pages * asked.page_size;
  const int64_t whole = pages_for(asked.context, asked.page_size);
  std::string text = fmt::format("a context of {} tokens takes {} MB", asked.context,
                                 megabytes(static_cast<size_t>(whole) * asked.page_bytes));
  if (pages >= whole) {
    return text + fmt::format(": {} of the {} sequences asked for fit at full length, or {} pages of {} tokens",
                              std::min<int64_t>(pages / whole, asked.max_requests), asked.max_requests, pages,
                              asked.page_size);
  }
  if (tokens == 0) return text + ": none fits; free memory on the device, or choose another device or a smaller model";
  return text + fmt::format(": one of {} tokens would fit (--context {})", tokens, tokens);
}

std::string model_that_fits(size_t weight_bytes, size_t free) {
  if (weight_bytes > free) {
    return fmt::format(
        "the model's weights take {} MB and {} MB were free, {} MB are missing: no context fits; free memory on the "
        "device, quantise the model (isobit quantize halves it), or use --device cpu",
        megabytes(weight_bytes), free >> 20, megabytes(weight_bytes - free));
  }
  return fmt::format(
      "the model's weights take {} of the {} MB that were free, so that {} MB are left for a step's buffers: ask for a "
      "shorter context or fewer sequences at once",
      megabytes(weight_bytes), free >> 20, (free - weight_bytes) >> 20);
}

}  // namespace isobit
