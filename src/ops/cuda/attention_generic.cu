// Attention for every shape: any head_dim that is a multiple of 16 up to 1024, any page size, tree, mask, FP8 cache.
// Design: a CTA of 8 warps takes 16 rows (a row is one query of one head; the heads of a KV head and neighbouring
// tokens share a tile) and walks their keys block by block. A block's scores go to shared memory, 16 threads a row make
// probabilities of them (a lane holds the keys ≡ lane mod 16, so the row sum's pairing is two shuffles), then the warps
// split P·V by columns. K and V share one buffer: simple rather than fast; the other kernels are for speed.
#include "ops/cuda/attention_device.cuh"
#include "ops/cuda/attention_launch.h"
#include "ops/cuda/hopper/mma.h"
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/launch.h"

namespace isobit::cuda {
namespace {

constexpr int kThreads = 256, kWarps = 8, kRows = 16;

struct Params {
  AttentionArgs args;
  ScoreScale score;
  int block, path_capacity;
  int least_rows;  // requests of fewer are another kernel's
};

struct RowState {  // shared by the threads of a row, read by the warps of P·V
  float alpha[kRows];
  float fold_a[kRows], fold_b[kRows], inv_l[kRows];
};

__host__ __device__ constexpr size_t align16(size_t x) { return (x + 15) / 16 * 16; }

struct Layout {
  size_t kv, q, scores, p, rows, path, total;
  int pitch, score_pitch, p_pitch;  // in elements
};
__host__ __device__ inline Layout make_layout(int head_dim, int block, int path_capacity) {
  Layout l = {};
  l.pitch = head_dim + 8;
  l.score_pitch = block + 4;
  l.p_pitch = block + 8;
  size_t at = 0;
  l.kv = at, at += align16(static_cast<size_t>(block) * l.pitch * 2);
  l.q = at, at += align16(static_cast<size_t>(kRows) * l.pitch * 2);
  l.scores = at, at += align16(static_cast<size_t>(kRows) * l.score_pitch * 4);
  l.p = at, at += align16(static_cast<size_t>(kRows) * l.p_pitch * 2);
  l.rows = at, at += align16(sizeof(RowState));
  l.path = at, at += align16(static_cast<size_t>(path_capacity) * 4);
  l.total = at;
  return l;
}

struct Tile {
  int request, index, query_start, new_tokens;
};

// Tiles of all requests in order; found by every warp alike. request < 0: this CTA has none.
__device__ Tile find_tile(const AttentionArgs& a, int group, int least_rows, int cta) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int before = 0;
  for (int first = 0; first < a.requests; first += 32) {
    const int b = first + lane;
    int start = 0, count = 0, tiles = 0;
    if (b < a.requests) {
      start = a.query_start[b];
      count = a.query_start[b + 1] - start;
      tiles = a.tree_parent != nullptr ? count * ((group + kRows - 1) / kRows) : (count * group + kRows - 1) / kRows;
      if (count * group < least_rows) tiles = 0;
    }
    int sum = tiles;
    for (int d = 1; d < 32; d *= 2) {
      const int other = __shfl_up_sync(~0u, sum, d);
      if (lane >= d) sum += other;
    }
    const unsigned found = __ballot_sync(~0u, before + sum > cta);
    if (found != 0) {
      const int l = __ffs(static_cast<int>(found)) - 1;
      Tile t;
      t.request = first + l;
      t.index = cta - (before + __shfl_sync(~0u, sum - tiles, l));
      t.query_start = __shfl_sync(~0u, start, l);
      t.new_tokens = __shfl_sync(~0u, count, l);
      return t;
    }
    before += __shfl_sync(~0u, sum, 31);
  }
  return {-1, 0, 0, 0};
}

template <bool kF16>
struct Loader {
  const AttentionArgs& a;
  const int* path;
  int64_t head_offset, page_stride;
  const int32_t* table;
  int prefix;

  // Rows first..first+block-1 of K or V; rows outside [begin, end) are zeros and not read (their pages may be gone).
  __device__ void load(uint16_t* to, int pitch, const void* from, int first, int block, int begin, int end) const {
    const int chunks = a.cache.head_dim / 8;
    for (int i = static_cast<int>(threadIdx.x); i < block * chunks; i += kThreads) {
      const int row = i / chunks, chunk = i % chunks, position = first + row;
      uint4 value = make_uint4(0, 0, 0, 0);
      if (position >= begin && position < end) {
        const int slot = path != nullptr && position >= prefix ? prefix + path[position - prefix] : position;
        const int64_t page = table[slot / a.cache.page_size];
        const int64_t element = page * page_stride + head_offset +
                                static_cast<int64_t>(slot % a.cache.page_size) * a.cache.head_dim + chunk * 8;
        if (a.cache.type == DType::kF8E4M3) {
          const uint2 packed = *reinterpret_cast<const uint2*>(static_cast<const uint8_t*>(from) + element);
          value = widen_e4m3<kF16>(packed);
        } else {
          value = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(from) + element);
        }
      }
      *reinterpret_cast<uint4*>(to + row * pitch + chunk * 8) = value;
    }
  }
};

template <int kTiles, bool kF16>
__global__ void __launch_bounds__(kThreads) attention_generic(const __grid_constant__ Params params) {
  hopper::wait_for_predecessors();
  hopper::launch_dependents();
  const AttentionArgs& a = params.args;
  const int head_dim = a.cache.head_dim, kv_head = static_cast<int>(blockIdx.y), group = a.q_heads / a.cache.kv_heads;
  const Tile tile = find_tile(a, group, params.least_rows, static_cast<int>(blockIdx.x));
  if (tile.request < 0) return;
  const int tid = static_cast<int>(threadIdx.x), warp = tid / 32, lane = tid % 32, g = lane / 4, x = lane % 4;
  const int row = tid / 16, column = tid % 16;  // of the softmax

  extern __shared__ __align__(16) uint8_t shared[];
  const Layout layout = make_layout(head_dim, params.block, params.path_capacity);
  uint16_t* kv = reinterpret_cast<uint16_t*>(shared + layout.kv);
  uint16_t* q = reinterpret_cast<uint16_t*>(shared + layout.q);
  float* scores = reinterpret_cast<float*>(shared + layout.scores);
  uint16_t* p = reinterpret_cast<uint16_t*>(shared + layout.p);
  RowState& rows = *reinterpret_cast<RowState*>(shared + layout.rows);
  int* path = reinterpret_cast<int*>(shared + layout.path);

  // Row r of the tile: which token and head.
  const bool tree = a.tree_parent != nullptr;
  const int tiles_a_token = (group + kRows - 1) / kRows;
  const auto token_of = [&](int r) { return tree ? tile.index / tiles_a_token : (tile.index * kRows + r) / group; };
  const auto head_of = [&](int r) {
    return tree ? tile.index % tiles_a_token * kRows + r : (tile.index * kRows + r) % group;
  };
  const auto valid = [&](int r) { return token_of(r) < tile.new_tokens && head_of(r) < group; };
  const auto out_row = [&](int r) {
    return (static_cast<int64_t>(tile.query_start + token_of(r)) * a.q_heads + kv_head * group + head_of(r)) * head_dim;
  };

  const int kv_len = a.kv_len[tile.request], prefix = kv_len - tile.new_tokens;
  const int last_row = min(kRows, tree ? group : tile.new_tokens * group - tile.index * kRows) - 1;
  if (kv_len <= 0) {
    for (int r = 0; r <= last_row; r++) {
      if (!valid(r)) continue;
      for (int d = tid; d < head_dim; d += kThreads) a.out[out_row(r) + d] = 0;
    }
    return;
  }

  int path_length = 0;
  if (tree) {
    const int node = token_of(0);
    const int32_t* parent = a.tree_parent + tile.query_start;
    for (int n = node; n >= 0; n = parent[n]) path_length++;
    if (tid == 0) {
      int depth = path_length;
      for (int n = node; n >= 0; n = parent[n]) path[--depth] = n;
    }
  }
  const auto position_of = [&](int r) { return prefix + (tree ? path_length - 1 : token_of(r)); };

  // Keys that some row may see.
  const int exist = tree ? prefix + path_length : kv_len;
  const int end = a.causal ? min(exist, position_of(last_row) + 1) : exist;
  const int begin = a.window > 0 ? max(0, position_of(0) - a.window + 1) : 0;

  for (int i = tid; i < kRows * (head_dim / 8); i += kThreads) {
    const int r = i / (head_dim / 8), chunk = i % (head_dim / 8);
    uint4 value = make_uint4(0, 0, 0, 0);
    if (valid(r)) value = *reinterpret_cast<const uint4*>(a.q + out_row(r) + chunk * 8);
    *reinterpret_cast<uint4*>(q + r * layout.pitch + chunk * 8) = value;
  }
  __syncthreads();

  Loader<kF16> loader{a,
                      tree ? path : nullptr,
                      static_cast<int64_t>(kv_head) * a.cache.page_size * head_dim,
                      static_cast<int64_t>(a.cache.kv_heads) * a.cache.page_size * head_dim,
                      a.page_table + static_cast<int64_t>(tile.request) * a.table_stride,
                      prefix};
  const bool fp8 = a.cache.type == DType::kF8E4M3;
  const float k_scale = fp8 ? a.cache.k_scale[kv_head] : 1.0f, v_scale = fp8 ? a.cache.v_scale[kv_head] : 1.0f;
  const ScoreScale score =
      fp8 ? score_scale(numerics::scale_of_cached(a.scale, a.soft_cap, k_scale, v_scale)) : params.score;

  const int position = position_of(row);
  const bool row_valid = valid(row);
  const uint64_t* mask = a.mask == nullptr || !row_valid
                             ? nullptr
                             : a.mask + static_cast<int64_t>(tile.query_start + token_of(row)) * a.mask_stride;
  const auto allowed = [&](int key) {
    if (!row_valid || key >= exist) return false;
    if (a.causal && key > position) return false;
    if (a.window > 0 && key <= position - a.window) return false;
    return mask == nullptr || ((mask[key / 64] >> (key % 64)) & 1) != 0;
  };

  float folded_r = minus_inf(), folded_l = 0.0f, r_run = minus_inf(), l = 0.0f;
  float o[kTiles][4], folded[kTiles][4];
  for (int t = 0; t < kTiles; t++) {
    for (int i = 0; i < 4; i++) o[t][i] = folded[t][i] = 0.0f;
  }

  for (int start = begin - begin % params.block; start < end; start += params.block) {
    // Scores.
    loader.load(kv, layout.pitch, a.cache.k, start, params.block, begin, end);
    __syncthreads();
    for (int n8 = warp; n8 < params.block / 8; n8 += kWarps) {
      float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
      for (int d = 0; d < head_dim; d += 16) {
        const auto word = [&](const uint16_t* m, int r, int c) {
          return *reinterpret_cast<const uint32_t*>(m + r * layout.pitch + c);
        };
        const uint32_t fragment[4] = {word(q, g, d + 2 * x), word(q, g + 8, d + 2 * x), word(q, g, d + 2 * x + 8),
                                      word(q, g + 8, d + 2 * x + 8)};
        hopper::mma_m16n8k16<kF16>(s, fragment, word(kv, n8 * 8 + g, d + 2 * x), word(kv, n8 * 8 + g, d + 2 * x + 8));
      }
      for (int i = 0; i < 4; i++) scores[(g + i / 2 * 8) * layout.score_pitch + n8 * 8 + 2 * x + i % 2] = s[i];
    }
    __syncthreads();

    // Probabilities: thread (row, column) takes the keys ≡ column mod 16. V is loaded meanwhile.
    loader.load(kv, layout.pitch, a.cache.v, start, params.block, begin, end);
    float* row_scores = scores + row * layout.score_pitch;
    float largest = minus_inf();
    for (int k = column; k < params.block; k += 16) {
      float s = minus_inf();
      if (allowed(start + k)) s = score.inner > 0.0f ? capped_score(score, row_scores[k]) : row_scores[k];
      row_scores[k] = s;
      largest = fmaxf(largest, s);
    }
    for (int d = 8; d >= 1; d /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, d));
    const float alpha = attention_grow(r_run, largest, score.factor);
    const float r = r_run == minus_inf() ? 0.0f : -r_run;
    for (int k = column; k < params.block; k += 16) {
      const float v = ex2(__fmaf_rn(row_scores[k], score.factor, r));
      p[row * layout.p_pitch + k] = round16<kF16>(v);
      const float w = __fadd_rn(v, __shfl_xor_sync(~0u, v, 8));
      const float u = __fadd_rn(w, __shfl_xor_sync(~0u, w, 1));
      l = __fmaf_rn(l, k == column ? alpha : 1.0f, u);
    }
    if (column == 0) rows.alpha[row] = alpha;
    const bool last = (start + params.block) % numerics::kAttentionSuperBlock == 0 || start + params.block >= end;
    if (last) {
      // l_x is in the columns 2x and 2x + 1.
      const float odd = __shfl_xor_sync(~0u, l, 2);
      const float pair = __fadd_rn(l, odd);
      const float total = __fadd_rn(pair, __shfl_xor_sync(~0u, pair, 4));
      FoldFactors f = {folded_r, 1.0f, 0.0f};  // nothing new
      bool take = false;
      if (r_run != minus_inf()) {
        take = folded_r == minus_inf();
        f = attention_fold(folded_r, r_run);
        folded_l = take ? total : attention_fold_value(folded_l, total, f);
        folded_r = f.r;
      }
      if (column == 0) {
        rows.fold_a[row] = f.a;
        rows.fold_b[row] = r_run == minus_inf() ? -1.0f : take ? 2.0f : f.b;  // -1: skip, 2: copy
      }
      r_run = minus_inf();
      l = 0.0f;
    }
    __syncthreads();

    // O.
    const float alpha0 = rows.alpha[g], alpha1 = rows.alpha[g + 8];
#pragma unroll
    for (int t = 0; t < kTiles; t++) {
      const int n8 = warp + t * kWarps;
      if (n8 * 8 >= head_dim) continue;
      o[t][0] = __fmul_rn(o[t][0], alpha0), o[t][1] = __fmul_rn(o[t][1], alpha0);
      o[t][2] = __fmul_rn(o[t][2], alpha1), o[t][3] = __fmul_rn(o[t][3], alpha1);
      for (int k = 0; k < params.block; k += 16) {
        const auto word = [&](int r16, int c) {
          return *reinterpret_cast<const uint32_t*>(p + r16 * layout.p_pitch + c);
        };
        const uint32_t fragment[4] = {word(g, k + 2 * x), word(g + 8, k + 2 * x), word(g, k + 2 * x + 8),
                                      word(g + 8, k + 2 * x + 8)};
        uint32_t b0, b1;
        hopper::ldmatrix_x2_trans(b0, b1, hopper::shared_address(kv + (k + lane % 16) * layout.pitch + n8 * 8));
        hopper::mma_m16n8k16<kF16>(o[t], fragment, b0, b1);
      }
      if (!last) continue;
      for (int i = 0; i < 4; i++) {
        const float fa = rows.fold_a[g + i / 2 * 8], fb = rows.fold_b[g + i / 2 * 8];
        if (fb == 2.0f) {
          folded[t][i] = o[t][i];
        } else if (fb != -1.0f) {
          folded[t][i] = attention_fold_value(folded[t][i], o[t][i], {0.0f, fa, fb});
        }
        o[t][i] = 0.0f;
      }
    }
    __syncthreads();
  }

  if (column == 0) {
    if (folded_r == minus_inf()) {
      rows.inv_l[row] = 0.0f;
    } else {
      if (a.sinks != nullptr && row_valid) {
        folded_l = attention_sink(folded_l, a.sinks[kv_head * group + head_of(row)], folded_r);
      }
      rows.inv_l[row] = __fdiv_rn(v_scale, folded_l);
    }
  }
  __syncthreads();
#pragma unroll
  for (int t = 0; t < kTiles; t++) {
    const int n8 = warp + t * kWarps;
    if (n8 * 8 >= head_dim) continue;
    for (int h = 0; h < 2; h++) {
      const int r = g + 8 * h;
      if (!valid(r)) continue;
      const float inv = rows.inv_l[r];
      const auto out = [&](float v) { return __fadd_rn(__fmul_rn(v, inv), 0.0f); };
      *reinterpret_cast<uint32_t*>(a.out + out_row(r) + n8 * 8 + 2 * x) =
          round16x2<kF16>(out(folded[t][2 * h]), out(folded[t][2 * h + 1]));
    }
  }
}

template <int kTiles, bool kF16>
void launch_kernel(const Params& params, const LaunchShape& shape, cudaStream_t stream) {
  const auto kernel = attention_generic<kTiles, kF16>;
  allow_shared_memory("attention_generic", kernel, shape.shared_bytes);
  launch("attention_generic", kernel, shape, stream, params);
}

template <bool kF16>
void launch_typed(const Params& params, const LaunchShape& shape, cudaStream_t stream) {
  const int head_dim = params.args.cache.head_dim;
  if (head_dim <= 128) return launch_kernel<2, kF16>(params, shape, stream);
  if (head_dim <= 256) return launch_kernel<4, kF16>(params, shape, stream);
  if (head_dim <= 512) return launch_kernel<8, kF16>(params, shape, stream);
  launch_kernel<16, kF16>(params, shape, stream);
}

}  // namespace

void launch_attention_generic(const AttentionArgs& args, const KernelContext& context, int least_rows) {
  Params params = {args, score_scale(args), numerics::attention_block(args.cache.head_dim), 0, least_rows};
  if (args.tree_parent != nullptr) params.path_capacity = args.max_query;
  const Layout layout = make_layout(args.cache.head_dim, params.block, params.path_capacity);
  if (layout.total > 227 * 1024) {
    throw_unsupported("attention: a tree of " + std::to_string(args.max_query) + " nodes at head_dim " +
                      std::to_string(args.cache.head_dim) + " needs " + std::to_string(layout.total) +
                      " bytes of shared memory, more than the 232448 there are; draft fewer tokens");
  }
  const int group = args.q_heads / args.cache.kv_heads;
  const int64_t tiles = args.tree_parent != nullptr
                            ? static_cast<int64_t>(args.tokens) * ((group + kRows - 1) / kRows)
                            : (static_cast<int64_t>(args.tokens) * group + (kRows - 1) * args.requests) / kRows;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(args.cache.kv_heads));
  shape.block = kThreads;
  shape.shared_bytes = layout.total;
  if (args.type == DType::kF16) return launch_typed<true>(params, shape, context.stream);
  launch_typed<false>(params, shape, context.stream);
}

}  // namespace isobit::cuda
