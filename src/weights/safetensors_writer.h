#pragma once
// Writes safetensors files. Tensors are made one at a time, so a model of any size needs the memory of its largest.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace isobit {

struct TensorToWrite {
  std::string name;
  DType dtype = DType::kBF16;  // kF32, kF16, kBF16 or kF8E4M3
  std::vector<int64_t> shape;
  std::function<void(std::span<std::byte>)> make;  // fills the tensor's bytes

  size_t bytes() const;
};

// Larger elements first, so that every tensor is aligned to its elements, as the reference implementation orders them;
// else in the given order. The file appears under its name when it is whole. Throws Error kIo.
void write_safetensors(const std::string& path, std::vector<TensorToWrite> tensors);

}  // namespace isobit
