#pragma once
// What grouped GEMMs of any type are given: rows sorted by expert, or each expert's from the start of its capacity.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "base/dtype.h"
#include "numerics/testing.h"

namespace isobit::testing {

struct GroupedRows {
  std::vector<int32_t> counts;  // rows of each expert
  int64_t capacity = 0;         // 0: contiguous
  int64_t n = 0, k = 0;
  DType out_type = DType::kBF16;
  std::vector<int32_t> rows;  // as the operator reads them

  GroupedRows(std::vector<int32_t> counts_, int64_t capacity_, int64_t n_, int64_t k_, DType out_type_)
      : counts(std::move(counts_)), capacity(capacity_), n(n_), k(k_), out_type(out_type_) {
    int32_t sum = 0;
    if (capacity == 0) rows.push_back(0);
    for (const int32_t c : counts) rows.push_back(capacity == 0 ? sum += c : c);
  }
  virtual ~GroupedRows() = default;
  virtual std::string text() const = 0;
  // The bits of output (i, j), i being expert e's, by the operator's rule.
  virtual uint32_t expected(int64_t e, int64_t i, int64_t j) const = 0;

  int64_t experts() const { return static_cast<int64_t>(counts.size()); }
  int64_t m() const {
    if (capacity > 0) return experts() * capacity;
    int64_t sum = 0;
    for (const int32_t c : counts) sum += c;
    return sum;
  }
  int64_t first_row(int64_t e) const { return capacity > 0 ? e * capacity : rows[static_cast<size_t>(e)]; }
  size_t element() const { return dtype_info(out_type).block_bytes; }
  size_t out_bytes() const { return static_cast<size_t>(m() * n) * element(); }

  // Compares up to `samples` outputs of each expert with the rule, and that the rows of no expert are still 0xcd.
  void check(Random& r, const std::vector<uint8_t>& out, int64_t samples) const {
    std::vector<bool> owned(static_cast<size_t>(m()), false);
    for (int64_t e = 0; e < experts(); e++) {
      const int64_t count = counts[static_cast<size_t>(e)], total = count * n;
      for (int64_t i = 0; i < count; i++) owned[static_cast<size_t>(first_row(e) + i)] = true;
      for (int64_t s = 0; s < std::min(samples, total); s++) {
        const int64_t at = total <= samples ? s : s == 0 ? total - 1 : r.range(0, total - 1);
        const int64_t i = first_row(e) + at / n, j = at % n;
        uint32_t got = 0;
        std::memcpy(&got, &out[static_cast<size_t>(i * n + j) * element()], element());
        ASSERT_EQ(got, expected(e, i, j)) << "expert " << e << " row " << i << " column " << j << "; " << text();
      }
    }
    const size_t row_bytes = static_cast<size_t>(n) * element();
    for (int64_t i = 0; i < m(); i++) {
      if (owned[static_cast<size_t>(i)]) continue;
      for (size_t b = 0; b < row_bytes; b++)
        ASSERT_EQ(out[static_cast<size_t>(i) * row_bytes + b], 0xcd) << "row " << i;
    }
  }

  // Row counts with empty experts, experts of one row and, for tiles of 8 to 128 rows, ends in the middle of a tile.
  static std::vector<int32_t> draw_counts(Random& r, int experts, int most) {
    std::vector<int32_t> counts;
    for (int e = 0; e < experts; e++) {
      const int kind = r.below(5);
      counts.push_back(kind == 0 ? 0 : kind == 1 ? 1 : 1 + r.below(most));
    }
    return counts;
  }

 protected:
  // What all grouped GEMMs' arguments have in common.
  template <typename Args>
  Args shape() const {
    Args a;
    a.m = m();
    a.experts = experts();
    a.n = n;
    a.k = k;
    a.capacity = capacity;
    a.out_type = out_type;
    return a;
  }
};

}  // namespace isobit::testing
