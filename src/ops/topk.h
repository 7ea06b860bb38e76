#pragma once
// The k largest values of each row of a matrix: which keys a query attends to under sparse attention.
#include <cstdint>
#include <span>

namespace isobit {

constexpr int32_t kMaxTopk = 2048;
constexpr int64_t kMaxTopkLength = int64_t{1} << 20;

enum TopkStatus : int32_t { kTopkDone = 0, kTopkBadRange = 1 };  // kTopkBadRange: not 0 <= start <= end <= stride

// Row r's candidates are its values in [starts[r], ends[r]). Out: the indices of the k largest, relative to the start,
// in ascending order; a row of k candidates or fewer gives all of them, then -1. The order that decides is: NaN (of
// either sign) before every number, then the larger value, -0 and +0 alike, -infinity a value as any other; among
// equals the lower index. Exact, however many ties there are; a row depends on nothing but itself. A row whose range is
// not within the stride gives -1 throughout and says so in its status.
struct TopkPerRowArgs {
  const float* logits = nullptr;    // [rows, stride], not changed; on CUDA aligned to 16 bytes
  const int32_t* starts = nullptr;  // [rows], or null: 0
  const int32_t* ends = nullptr;    // [rows], or null: stride
  int64_t rows = 0;                 // at most 2^31 / k
  int64_t stride = 0;               // in [k, 2^20]
  int32_t k = 0;                    // in [1, 2048]
  int32_t* out = nullptr;           // out [rows, k]
  int32_t* status = nullptr;        // out [rows]: TopkStatus

  // Throws Error naming the argument, its value and its range.
  void check() const;
};

// For ranges that the host knows: throws Error naming the first row whose range is not within the stride.
void check_topk_ranges(std::span<const int32_t> starts, std::span<const int32_t> ends, int64_t stride);

}  // namespace isobit
