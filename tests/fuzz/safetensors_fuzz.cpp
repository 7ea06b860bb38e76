// Any bytes as a safetensors file: either an Error, or a Checkpoint whose every view lies inside the file and can be
// read.
#include <cstddef>
#include <cstdint>

#include "fuzz/read_checkpoint.h"
#include "weights/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  isobit::fuzz::ignore_errors([&] {
    const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
    isobit::fuzz::read_checkpoint(isobit::parse_safetensors(bytes, "fuzz.safetensors"), data, size);
  });
  return 0;
}
