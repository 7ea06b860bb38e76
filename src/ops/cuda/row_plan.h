#pragma once
// How many CTAs of a cluster share one row, and how many clusters there are. Every choice gives the same result.
#include <array>
#include <cstdint>

namespace isobit::cuda {

constexpr int kRowThreads = 512;
constexpr int kMaxRowCluster = 16;

// At [c]: how many clusters of c CTAs the GPU holds at once, as cudaOccupancyMaxActiveClusters says; 0: none, or not
// asked for.
using ClusterPlaces = std::array<int, kMaxRowCluster + 1>;

struct RowPlan {
  int cluster = 1;   // CTAs a row
  int clusters = 1;  // each takes rows i, i + clusters, …
};

// The size that takes the least time by a simple account: whole rounds of rows at the memory's speed, a last round by
// as many CTAs as it has, each at its own. A CTA has at most `longest_part` values of a row.
RowPlan plan_rows(int64_t rows, int64_t length, const ClusterPlaces& places, int64_t longest_part = INT64_MAX);

}  // namespace isobit::cuda
