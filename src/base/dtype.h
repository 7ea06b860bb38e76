#pragma once
// Element and block types of tensors. Values are isobit's own; weights/gguf.cpp maps the file's numbers to them.
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace isobit {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8E4M3,
  kI32,
  kI8,
  kU8,
  kI64,
  // GGUF block formats
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

struct DTypeInfo {
  std::string_view name;
  uint32_t block_elements;  // elements in one block (1 for plain types)
  uint32_t block_bytes;
};

constexpr DTypeInfo dtype_info(DType t) {
  switch (t) {
    case DType::kF32:
      return {"F32", 1, 4};
    case DType::kF16:
      return {"F16", 1, 2};
    case DType::kBF16:
      return {"BF16", 1, 2};
    case DType::kF8E4M3:
      return {"F8_E4M3", 1, 1};
    case DType::kI32:
      return {"I32", 1, 4};
    case DType::kI8:
      return {"I8", 1, 1};
    case DType::kU8:
      return {"U8", 1, 1};
    case DType::kI64:
      return {"I64", 1, 8};
    case DType::kQ4_0:
      return {"Q4_0", 32, 18};
    case DType::kQ4_1:
      return {"Q4_1", 32, 20};
    case DType::kQ5_0:
      return {"Q5_0", 32, 22};
    case DType::kQ5_1:
      return {"Q5_1", 32, 24};
    case DType::kQ8_0:
      return {"Q8_0", 32, 34};
    case DType::kQ4_K:
      return {"Q4_K", 256, 144};
    case DType::kQ5_K:
      return {"Q5_K", 256, 176};
    case DType::kQ6_K:
      return {"Q6_K", 256, 210};
  }
  return {"?", 1, 1};
}

constexpr bool is_quantized(DType t) { return dtype_info(t).block_elements > 1; }

// Bytes of `elements` consecutive elements; elements must be a multiple of the block.
constexpr size_t dtype_bytes(DType t, size_t elements) {
  const DTypeInfo i = dtype_info(t);
  return elements / i.block_elements * i.block_bytes;
}

}  // namespace isobit
