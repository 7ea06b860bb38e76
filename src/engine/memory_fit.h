#pragma once
// What to say when a device's memory does not suffice: how much is missing, and what would fit.
#include <cstddef>
#include <cstdint>
#include <string>

#include "models/config.h"
#include "weights/checkpoint.h"

namespace isobit {

// Bytes that the weights take in a device's memory: matrices in 16 bits an element or as block-scaled FP8, vectors in
// f32.
size_t weight_bytes_on_device(const Checkpoint& file);

// A KV cache that was asked for.
struct CacheAsked {
  int32_t context = 0;       // tokens of one sequence
  int32_t max_requests = 0;  // sequences at once
  int32_t page_size = 0;
  size_t page_bytes = 0;  // over all layers
};

// For the end of an error message: what of `asked` fits into `free` bytes.
std::string cache_that_fits(const CacheAsked& asked, size_t free);

// The same where not even the weights and a step's buffers fit into the `free` bytes that were there before.
std::string model_that_fits(size_t weight_bytes, size_t free);

}  // namespace isobit
