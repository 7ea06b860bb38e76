#pragma once
// safetensors (https://github.com/huggingface/safetensors): 8 bytes of header length, a JSON header, the tensors'
// bytes. The file is not trusted: sizes, offsets and names are checked before use, and every byte of the data must
// belong to exactly one tensor.
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "weights/checkpoint.h"

namespace isobit {

struct SafetensorsLimits {
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the reference implementation's
  static constexpr uint64_t kMaxNameBytes = 1024;
  static constexpr size_t kMaxDimensions = 8;
};

// Maps the file and reads its header. `__metadata__` becomes the metadata (strings); F32, F16, BF16 and
// block-scaled F8_E4M3 tensors can be used, others can be listed (Tensor::unsupported_type). Tensor data has no
// alignment beyond its element's place in the file. Throws Error as load_gguf does.
Checkpoint load_safetensors(const std::string& path);

// The same from memory, which must outlive the Checkpoint. `name` opens messages.
Checkpoint parse_safetensors(std::span<const std::byte> file, std::string_view name = "<memory>");

}  // namespace isobit
