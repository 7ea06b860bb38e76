#pragma once
// Random attention calls over a paged cache, and the contract's answer row by row, from keys and values in plain order.
#include "ops/attention.h"
#include "ops/cpu_testing.h"

namespace isobit::testing {

struct AttentionShape {
  struct Request {
    int length = 1, added = 1;  // length 0: padding
  };
  std::vector<Request> requests;
  int head_dim = 64, kv_heads = 1, group = 1, page_size = 16;
  DType type = DType::kBF16, cache_type = DType::kBF16;
  int window = 0;
  float soft_cap = 0.0f, sharpness = 1.0f;
  bool causal = true, sinks = false, mask = false, tree = false;
  int values = 0;  // 0 ordinary, 1 wide exponents and zeros, 2 huge, 3 tiny, 4 ties, 5 with infinities and NaN

  std::string describe() const;
};

AttentionShape random_attention_shape(Random& random);

class AttentionProblem {
 public:
  AttentionProblem(const AttentionShape& shape, Random& random);

  // Output with the rows past it still poisoned.
  std::vector<uint16_t> run(Backend& backend);
  // Defects that the comparison must find.
  enum class Defect {
    kNone,
    kShiftedBlocks,
    kWindowOffByOne,
    kStaleKey,
    kSinkInMaximum,
    kTreeBySlot,
    kSeam,
    kValueScale
  };
  std::vector<uint16_t> expected(int token, int head, Defect defect = Defect::kNone) const;

  const AttentionShape& shape() const { return shape_; }
  int tokens() const { return tokens_; }
  int q_heads() const { return shape_.kv_heads * shape_.group; }
  int64_t cost(int token) const;  // dot16 steps of one row
  // Rows that differ from the rule; looks at rows in random order until `budget` steps are spent.
  std::optional<std::string> compare(const std::vector<uint16_t>& out, Random& random, int64_t budget,
                                     Defect defect = Defect::kNone) const;

 private:
  int request_of(int token) const;
  void fill_cache(Random& random);

  AttentionShape shape_;
  AttentionArgs args_;
  int tokens_ = 0;
  std::vector<uint16_t> q_;
  std::vector<std::vector<uint16_t>> keys_, values_;  // [request]: [slot in order][kv_head][dim], widened
  std::vector<std::byte> k_pages_, v_pages_;
  std::vector<int32_t> query_start_, lengths_, table_, parents_;
  std::vector<float> sinks_, k_scale_, v_scale_;
  std::vector<uint64_t> mask_;
};

}  // namespace isobit::testing
