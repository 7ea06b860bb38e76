// Cuts an attention call into tiles for the threads. How it is cut changes no bit.
#include <algorithm>
#include <vector>

#include "base/error.h"
#include "ops/cpu/attention_tile.h"
#include "ops/cpu/cpu_ops.h"

namespace isobit::cpu {
namespace {

// Tokens from `begin` on that can share a tile: of one request, and in a chain.
int32_t run_length(const std::vector<AttentionQuery>& queries, size_t begin, int32_t most) {
  const AttentionQuery& first = queries[begin];
  if (first.path != nullptr) return 1;
  int32_t n = 1;
  for (size_t i = begin + 1; n < most && i < queries.size(); i++, n++) {
    if (queries[i].last == 0 || queries[i].request != first.request) break;
  }
  return n;
}

std::vector<AttentionTile> cut(const AttentionArgs& a, const AttentionPlan& plan, int threads) {
  const std::vector<AttentionQuery>& queries = plan.queries();
  const int32_t group = a.q_heads / a.cache.kv_heads, most = std::max(1, kMaxTileRows / group);
  std::vector<AttentionTile> tiles;
  for (int32_t t = 0; t < a.tokens;) {
    const AttentionQuery& q = queries[static_cast<size_t>(t)];
    if (q.last == 0) {
      t++;
      continue;
    }
    const int32_t n = run_length(queries, static_cast<size_t>(t), most);
    for (int32_t h = 0; h < a.cache.kv_heads; h++) tiles.push_back({&q, n, h, h * group, (h + 1) * group});
    t += n;
  }
  // The last round of the threads, if it is not full, is split by heads.
  const size_t whole = tiles.size() / static_cast<size_t>(threads) * static_cast<size_t>(threads);
  if (group == 1 || whole == tiles.size() || tiles.size() / 8 > static_cast<size_t>(threads)) return tiles;
  const std::vector<AttentionTile> rest(tiles.begin() + static_cast<std::ptrdiff_t>(whole), tiles.end());
  tiles.resize(whole);
  const int32_t pieces = std::min(group, threads);
  for (const AttentionTile& tile : rest) {
    for (int32_t i = 0; i < pieces; i++) {
      AttentionTile part = tile;
      part.head_begin = tile.head_begin + i * group / pieces;
      part.head_end = tile.head_begin + (i + 1) * group / pieces;
      tiles.push_back(part);
    }
  }
  return tiles;
}

}  // namespace

void attention(const Cpu& cpu, const AttentionArgs& a) {
  require(a.cache.type == a.type || a.cache.type == DType::kF8E4M3, "attention: the cache is {}, the queries {}",
          dtype_info(a.cache.type).name, dtype_info(a.type).name);
  const AttentionPlan plan(a);
  const int64_t row = int64_t{a.q_heads} * a.cache.head_dim;
  for (const AttentionQuery& q : plan.queries()) {
    if (q.last == 0) std::fill_n(a.out + q.token * row, row, uint16_t{0});
  }
  const std::vector<AttentionTile> tiles = cut(a, plan, cpu.pool.size());
  cpu.pool.parallel_for(static_cast<int64_t>(tiles.size()),
                        [&](int, int64_t i) { attention_tile(cpu.simd, a, plan, tiles[static_cast<size_t>(i)]); });
}

}  // namespace isobit::cpu
