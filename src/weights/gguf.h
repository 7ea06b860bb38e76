#pragma once
// GGUF v2 and v3, little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The file is not trusted:
// every count, length, offset and name is checked before use, and the memory taken is at most about ten times what the
// metadata and the tensor table take in the file (vocabularies are views, not copies).
#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "weights/checkpoint.h"

namespace isobit {

// Limits of ours, far above any real model, so that a hostile table cannot cost more than it should.
struct GgufLimits {
  static constexpr uint64_t kMaxPairs = 1 << 20;    // metadata pairs
  static constexpr uint64_t kMaxTensors = 1 << 20;  // tensors
  static constexpr uint64_t kMaxKeyBytes = 65535;   // the specification's
  static constexpr uint64_t kMaxNameBytes = 1024;   // a tensor's name
  static constexpr uint32_t kMaxDimensions = 4;     // the specification's
  static constexpr int kMaxArrayDepth = 4;          // arrays in arrays
  static constexpr uint32_t kMinAlignment = 8, kMaxAlignment = 1 << 30;
};

// Maps the file and reads its metadata and tensor table; tensor data is not touched. Throws Error whose message opens
// with the path and names the field, its value and the limit: kNotFound, kIo, kInvalidArgument (see MappedFile),
// kBadFile (not a GGUF, truncated, inconsistent), kUnsupported (version 1, a newer version, big-endian).
Checkpoint load_gguf(const std::string& path);

// The same from memory, which must outlive the Checkpoint. `name` opens messages.
Checkpoint parse_gguf(std::span<const std::byte> file, std::string_view name = "<memory>");

}  // namespace isobit
