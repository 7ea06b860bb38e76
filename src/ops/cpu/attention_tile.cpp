// Attention by rule N10, vectorised: scores with a lane per key, P·V with a lane per column. bf16 is used as it lies in
// memory (attention_words-inl.h); of f16, panels of f32 are made (attention-inl.h).
#include "ops/cpu/attention_tile.h"

#include <hwy/aligned_allocator.h>

#include <algorithm>

#include "numerics/attention.h"
#include "ops/cpu/ahead.h"
#include "ops/cpu/simd_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/attention_tile.cpp"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Once for each target:
#include "ops/cpu/attention-inl.h"
#include "ops/cpu/attention_words-inl.h"

HWY_BEFORE_NAMESPACE();
namespace isobit::cpu {
namespace HWY_NAMESPACE {

#if HWY_TARGET == HWY_SCALAR

void RunTile(const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile) {
  attention_tile_scalar(args, plan, tile);
}

#else

constexpr size_t kKeys = 64;       // keys of one panel
constexpr size_t kMaxBlock = 128;  // the contract's largest block
constexpr uint64_t kAllLanes = ~uint64_t{0} >> (64 - kPanelLanes);

template <Operand kind>
class TileRun {
 public:
  TileRun(const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile);
  void run();

 private:
  struct Row {
    const AttentionQuery* query = nullptr;
    int32_t head = 0;
    numerics::AttentionSums sums;
    float folded_r = numerics::kMinusInf, folded_l = 0.0f, alpha = 1.0f;
    bool active = false;  // in this block
  };
  using D = F32;
  static constexpr bool kWords = kind == Operand::kBF16;
  static constexpr size_t kChunk = words::kMostRows;

  struct Run {  // keys that follow each other in the cache, the first of them `element` elements from its start
    int64_t key, end, element;
  };

  void find_runs(int64_t block_start, std::vector<Run>& runs) const;
  void locate(bool value, int64_t low, int64_t high, const uint16_t** rows);
  void aim(bool value, const std::vector<Run>& runs, size_t calls);
  void set_queries();
  void block(int64_t start);
  void scores(int64_t start);
  void dot_words(const uint16_t* const* keys, size_t count, size_t part);
  void dot_panels(const uint16_t* const* keys, size_t part);
  void redo_scores(const Row& row, const uint16_t* const* keys, size_t begin, size_t end, float* score) const;
  void cap(float* score) const;
  void mask(const Row& row, int64_t start, float* score) const;
  void probabilities(Row& row, size_t count, float* score, float* rounded);
  void values(int64_t start, size_t count);
  void add_words(int64_t start, size_t count, const uint16_t* const* v);
  void run_columns();
  void add_panels(int64_t start, const uint16_t* const* v);
  void redo_columns(const Row& row, int64_t start, const uint16_t* const* v, const float* p, size_t begin, size_t end,
                    float* o) const;
  bool any_odd(const uint16_t* const* v) const;
  void fold();
  void finish(const Row& row, float* folded);

  bool overlaps(const Row& row, int64_t begin, int64_t end) const {
    return row.query->first < end && row.query->last > begin;
  }

  const AttentionArgs& args_;
  const AttentionPlan& plan_;
  const AttentionTile& tile_;
  const numerics::AttentionScale scale_;
  const size_t dim_, block_;
  const size_t columns_;  // dim_, filled up to whole steps
  const bool fp8_;
  int64_t first_ = 0, last_ = 0;  // keys that any row sees
  std::vector<Row> rows_;
  Ahead ahead_;
  std::vector<Run> runs_, next_runs_;  // of this block and of the next
  std::vector<size_t> busy_;           // rows at work
  std::vector<words::ColumnsJob> jobs_;
  hwy::AlignedFreeUniquePtr<words::Words16[]> words_, weights_;  // queries: [rows][dim / 16]; [rows][kKeys / 16]
  hwy::AlignedFreeUniquePtr<uint32_t[]> key_pairs_;              // [dim / 2][kKeys]
  std::vector<uint16_t> zeros_;                                  // instead of values not there
  hwy::AlignedFreeUniquePtr<Shared16[]> queries_;                // [rows][dim / 16]
  hwy::AlignedFreeUniquePtr<float[]> key_panel_, value_panel_, score_, o_, folded_;  // score_: [rows][kMaxBlock]
  hwy::AlignedFreeUniquePtr<uint8_t[]> key_exponents_, value_exponents_;
  hwy::AlignedFreeUniquePtr<uint16_t[]> rows_of_fp8_;  // [kKeys][dim]
  uint16_t of_fp8_[256];
};

template <Operand kind>
TileRun<kind>::TileRun(const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile)
    : args_(args),
      plan_(plan),
      tile_(tile),
      scale_(score_scale(args, tile.kv_head)),
      dim_(static_cast<size_t>(args.cache.head_dim)),
      block_(static_cast<size_t>(numerics::attention_block(args.cache.head_dim))),
      columns_(kWords ? dim_ : (dim_ + kPanelLanes - 1) / kPanelLanes * kPanelLanes),
      fp8_(args.cache.type == DType::kF8E4M3) {
  first_ = tile.queries[0].first;
  last_ = tile.queries[0].last;
  for (int32_t t = 0; t < tile.tokens; t++) {
    first_ = std::min(first_, tile.queries[t].first);
    last_ = std::max(last_, tile.queries[t].last);
    for (int32_t h = tile.head_begin; h < tile.head_end; h++) {
      Row row;
      row.query = tile.queries + t;
      row.head = h;
      rows_.push_back(row);
    }
  }
  const size_t n = rows_.size();
  if constexpr (kWords) {
    words_ = hwy::AllocateAligned<words::Words16>(n * dim_ / 16);
    weights_ = hwy::AllocateAligned<words::Words16>(n * kKeys / 16);
    key_pairs_ = hwy::AllocateAligned<uint32_t>(dim_ / 2 * kKeys);
    zeros_.resize(dim_);
  } else {
    queries_ = hwy::AllocateAligned<Shared16>(n * dim_ / 16);
    key_panel_ = hwy::AllocateAligned<float>(dim_ * kKeys);
    key_exponents_ = hwy::AllocateAligned<uint8_t>(dim_ * kKeys);
    value_panel_ = hwy::AllocateAligned<float>(16 * columns_);
    value_exponents_ = hwy::AllocateAligned<uint8_t>(16 * columns_);
    // Columns past the head's have ordinary values, so that their steps are ordinary.
    std::fill_n(value_panel_.get(), 16 * columns_, 1.0f);
  }
  score_ = hwy::AllocateAligned<float>(n * kMaxBlock);
  o_ = hwy::AllocateAligned<float>(n * columns_);
  folded_ = hwy::AllocateAligned<float>(n * columns_);
  if (!fp8_) return;
  rows_of_fp8_ = hwy::AllocateAligned<uint16_t>(kKeys * dim_);
  for (int i = 0; i < 256; i++) {
    const auto e = static_cast<uint8_t>(i);
    of_fp8_[i] = kind == Operand::kBF16 ? numerics::cached_bf16(e) : numerics::cached_f16(e);
  }
}

// The keys of a block that any row sees, page by page.
template <Operand kind>
void TileRun<kind>::find_runs(int64_t block_start, std::vector<Run>& runs) const {
  const AttentionQuery& q = tile_.queries[0];
  const int64_t high = std::min(block_start + static_cast<int64_t>(block_), last_);
  runs.clear();
  for (int64_t key = std::max(block_start, first_); key < high;) {
    const int64_t index = q.cache_index(key);
    int64_t end = std::min(high, key + args_.cache.page_size - index % args_.cache.page_size);
    if (q.path != nullptr) end = key < q.prefix ? std::min(end, q.prefix) : key + 1;
    runs.push_back({key, end, plan_.element(q.request, index, tile_.kv_head)});
    key = end;
  }
}

// Where the keys (or values) low..high-1 of this block lie, at most kKeys of them; FP8 is widened into scratch.
template <Operand kind>
void TileRun<kind>::locate(bool value, int64_t low, int64_t high, const uint16_t** rows) {
  const auto dim = static_cast<int64_t>(dim_);
  const void* base = value ? args_.cache.v : args_.cache.k;
  uint16_t* scratch = rows_of_fp8_.get();
  for (const Run& run : runs_) {
    const int64_t begin = std::max(low, run.key), end = std::min(high, run.end);
    int64_t at = run.element + (begin - run.key) * dim;
    for (int64_t key = begin; key < end; key++, at += dim) {
      if (!fp8_) {
        rows[key - low] = static_cast<const uint16_t*>(base) + at;
        continue;
      }
      const uint8_t* from = static_cast<const uint8_t*>(base) + at;
      for (size_t i = 0; i < dim_; i++) scratch[i] = of_fp8_[from[i]];
      rows[key - low] = scratch;
      scratch += dim_;
    }
  }
}

// Takes aim at the keys (or values) of a block. With few query heads the time is that of reading them, page by page,
// where the hardware sees no pattern.
template <Operand kind>
void TileRun<kind>::aim(bool value, const std::vector<Run>& runs, size_t calls) {
  const int64_t width = fp8_ ? 1 : 2, row = args_.cache.head_dim * width;
  const auto* base = static_cast<const char*>(value ? args_.cache.v : args_.cache.k);
  ahead_.begin(calls);
  for (const Run& run : runs) {
    ahead_.add(base + run.element * width, static_cast<size_t>((run.end - run.key) * row));
  }
}

template <Operand kind>
void TileRun<kind>::set_queries() {
  float x[16];
  for (size_t r = 0; r < rows_.size(); r++) {
    const uint16_t* q = args_.q + (rows_[r].query->token * args_.q_heads + rows_[r].head) * static_cast<int64_t>(dim_);
    for (size_t i = 0; i < dim_; i += 16) {
      for (size_t j = 0; j < 16; j++) {
        x[j] = kind == Operand::kBF16 ? numerics::bf16_to_f32(q[i + j]) : numerics::f16_to_f32(q[i + j]);
      }
      const size_t at = (r * dim_ + i) / 16;
      if constexpr (kWords) {
        words::SetWords(x, words_[at]);
        words::SetPairs(words_[at]);
      } else {
        SetShared<kind>(D(), x, queries_[at]);
      }
    }
  }
}

template <Operand kind>
void TileRun<kind>::mask(const Row& row, int64_t start, float* score) const {
  const AttentionQuery& q = *row.query;
  if (q.mask == nullptr && q.first <= start && start + static_cast<int64_t>(kKeys) <= q.last) return;
  const auto inside = [start](int64_t key) { return static_cast<size_t>(std::clamp<int64_t>(key - start, 0, kKeys)); };
  const size_t first = inside(q.first), last = std::max(first, inside(q.last));
  std::fill(score, score + first, numerics::kMinusInf);
  std::fill(score + last, score + kKeys, numerics::kMinusInf);
  for (size_t j = first; q.mask != nullptr && j < last; j++) {
    if (!q.allowed(start + static_cast<int64_t>(j))) score[j] = numerics::kMinusInf;
  }
}

// Scores [begin, end) of a part, by the scalar rule.
template <Operand kind>
void TileRun<kind>::redo_scores(const Row& row, const uint16_t* const* keys, size_t begin, size_t end,
                                float* score) const {
  const uint16_t* q = args_.q + (row.query->token * args_.q_heads + row.head) * static_cast<int64_t>(dim_);
  for (size_t j = begin; j < end; j++) {
    score[j] = 0.0f;
    for (size_t i = 0; i < dim_; i += 16) score[j] = numerics::dot16<kind>(score[j], q + i, keys[j] + i);
  }
}

// The busy rows' dot products with `keys_count` keys (whole vectors of them), from `part` on in their scores.
template <Operand kind>
void TileRun<kind>::dot_words(const uint16_t* const* keys, size_t keys_count, size_t part) {
  const size_t steps = dim_ / 16;
  words::KeyPairs(keys, keys_count, dim_, key_pairs_.get());
  for (size_t n = 0; n < busy_.size(); n += kChunk) {
    const size_t count = std::min(kChunk, busy_.size() - n);
    const words::Words16* q[kChunk];
    float* score[kChunk];
    bool plain = true;
    for (size_t i = 0; i < count; i++) {
      const size_t r = busy_[n + i];
      q[i] = words_.get() + r * steps;
      score[i] = score_.get() + r * kMaxBlock + part;
      plain &= std::all_of(q[i], q[i] + steps, [](const words::Words16& w) { return w.plain; });
    }
    uint64_t undone = ~uint64_t{0};
    if (HWY_LIKELY(plain)) {
      const TowardZeroMode mode;
      undone = words::Keys(key_pairs_.get(), keys_count, dim_, q, score, count, ahead_);
    }
    if (HWY_LIKELY(undone == 0)) continue;
    for (size_t k = 0; k < keys_count; k += words::kLanes) {
      if ((undone >> (k / words::kLanes) & 1) == 0) continue;
      for (size_t i = 0; i < count; i++) redo_scores(rows_[busy_[n + i]], keys, k, k + words::kLanes, score[i]);
    }
  }
}

template <Operand kind>
void TileRun<kind>::dot_panels(const uint16_t* const* keys, size_t part) {
  const D d;
  const bool odd = KeyPanel<kind>(d, keys, kKeys, dim_, key_panel_.get(), key_exponents_.get());
  for (const size_t r : busy_) {
    float* score = score_.get() + r * kMaxBlock + part;
    std::fill_n(score, kKeys, 0.0f);
    for (size_t i = 0; i < dim_ / 16; i++) {
      const Shared16& q = queries_[r * dim_ / 16 + i];
      ahead_.go();
      for (size_t j = 0; j < kKeys; j += kPanelLanes) {
        const size_t at = j * dim_ + i * 16 * kPanelLanes;
        if (HWY_LIKELY(!odd && !q.odd)) {
          StepPanel<kind>(d, score + j, q, key_panel_.get() + at, key_exponents_.get() + at);
        } else {
          StepScalar<kind>(score + j, kAllLanes, q, key_panel_.get() + at, 0xffff);
        }
      }
    }
  }
}

template <Operand kind>
void TileRun<kind>::cap(float* score) const {
  const D d;
  const auto cap = hn::Set(d, numerics::fmul(scale_.soft_cap, numerics::kLog2E));
  const auto inner = hn::Set(d, numerics::fdiv(scale_.scale, scale_.soft_cap));
  for (size_t j = 0; j < kKeys; j += hn::Lanes(d)) {
    hn::Store(hn::Mul(cap, Tanh(d, hn::Mul(hn::Load(d, score + j), inner))), d, score + j);
  }
}

// The scores of the block, in powers of two after factor(); masked keys are -infinity.
template <Operand kind>
void TileRun<kind>::scores(int64_t block_start) {
  for (size_t part = 0; part < block_; part += kKeys) {
    const int64_t start = block_start + static_cast<int64_t>(part), end = start + static_cast<int64_t>(kKeys);
    const int64_t low = std::max(start, first_), high = std::min(end, last_);
    busy_.clear();
    for (size_t r = 0; r < rows_.size(); r++) {
      if (!rows_[r].active) continue;
      if (overlaps(rows_[r], start, end)) {
        busy_.push_back(r);
      } else {
        std::fill_n(score_.get() + r * kMaxBlock + part, kKeys, numerics::kMinusInf);
      }
    }
    if (busy_.empty()) continue;
    // Keys that no row sees are masked afterwards: any readable one will do in their place.
    const uint16_t* keys[kKeys];
    locate(false, low, high, keys + (low - start));
    std::fill_n(keys, low - start, keys[low - start]);
    std::fill(keys + (high - start), keys + kKeys, keys[low - start]);
    if constexpr (kWords) {
      const size_t live = static_cast<size_t>(high - start);
      dot_words(keys, (live + words::kLanes - 1) / words::kLanes * words::kLanes, part);
    } else {
      dot_panels(keys, part);
    }
    for (const size_t r : busy_) {
      float* score = score_.get() + r * kMaxBlock + part;
      if (scale_.soft_cap > 0.0f) cap(score);
      mask(rows_[r], start, score);
    }
  }
}

// From scores to rounded probabilities (as f32), and the row sum. count: of the block's keys, in whole groups of 16;
// those behind have probability 0, which changes no sum.
template <Operand kind>
void TileRun<kind>::probabilities(Row& row, size_t count, float* score, float* rounded) {
  const D d;
  const hn::FixedTag<float, 4> d4;
  auto largest = hn::Set(d, numerics::kMinusInf);
  for (size_t j = 0; j < count; j += hn::Lanes(d)) {
    const auto s = hn::Load(d, score + j);
    largest = hn::IfThenElse(hn::Gt(s, largest), s, largest);  // a NaN loses
  }
  const float factor = scale_.factor();
  row.alpha = numerics::attention_grow(row.sums, LargestLane(d, largest), factor);
  const float r = row.sums.r;
  const auto minus_r = hn::Set(d, r == numerics::kMinusInf ? 0.0f : -r), scale = hn::Set(d, factor);
  for (size_t j = 0; j < count; j += hn::Lanes(d)) {
    hn::Store(Ex2(d, Fma(d, hn::Load(d, score + j), scale, minus_r)), d, score + j);
  }
  auto l = hn::LoadU(d4, row.sums.l);
  auto alpha = hn::Set(d4, row.alpha);
  for (size_t j = 0; j < count; j += 16) {
    const float* v = score + j;
    const auto low = hn::Add(hn::Load(d4, v), hn::Load(d4, v + 8));
    const auto high = hn::Add(hn::Load(d4, v + 4), hn::Load(d4, v + 12));
    const auto u = hn::Add(hn::ConcatEven(d4, high, low), hn::ConcatOdd(d4, high, low));
    l = Fma(d4, l, alpha, u);
    alpha = hn::Set(d4, 1.0f);
  }
  hn::StoreU(l, d4, row.sums.l);
  for (size_t j = 0; j < count; j += hn::Lanes(d)) {
    if constexpr (kind == Operand::kBF16) {
      const auto bits = hn::ShiftLeft<16>(RoundBF16(d, hn::Load(d, score + j)));
      hn::Store(hn::BitCast(d, bits), d, rounded + j);
    } else {
      for (size_t i = j; i < j + hn::Lanes(d); i++) rounded[i] = numerics::f16_to_f32(numerics::f32_to_f16(score[i]));
    }
  }
}

template <Operand kind>
bool TileRun<kind>::any_odd(const uint16_t* const* v) const {
  uint32_t largest = 0;
  for (int i = 0; i < 16; i++) {
    for (size_t j = 0; j < dim_; j++) largest = std::max(largest, v[i][j] & 0x7fffu);
  }
  return largest >> 7 >= words::kLaneEnd;
}

// Columns [begin, end) of a group, by the scalar rule.
template <Operand kind>
void TileRun<kind>::redo_columns(const Row& row, int64_t start, const uint16_t* const* v, const float* p, size_t begin,
                                 size_t end, float* o) const {
  uint16_t x[16], y[16];
  bool allowed[16];
  for (int i = 0; i < 16; i++) {
    x[i] = OperandBits<kind>(p[i]);
    allowed[i] = row.query->allowed(start + i);
  }
  for (size_t j = begin; j < end; j++) {
    for (int i = 0; i < 16; i++) y[i] = allowed[i] ? v[i][j] : uint16_t{0};
    float& sum = o[words::column_at(j)];
    sum = numerics::dot16<kind>(sum, x, y);
  }
}

// The jobs so far; what a job leaves undone is done before the next one, which may add to the same sums.
template <Operand kind>
void TileRun<kind>::run_columns() {
  constexpr size_t kColumns = 2 * words::kLanes;
  for (size_t next = 0; next < jobs_.size();) {
    words::Blocks undone;
    {
      const TowardZeroMode mode;
      next += words::Columns(jobs_.data() + next, jobs_.size() - next, dim_, ahead_, undone);
    }
    if (HWY_LIKELY(undone.none())) continue;
    const words::ColumnsJob& job = jobs_[next - 1];
    for (size_t i = 0; i < job.rows; i++) {
      const size_t r = static_cast<size_t>(job.o[i] - o_.get()) / columns_;
      const float* p = score_.get() + r * kMaxBlock + static_cast<size_t>(job.start) % block_;
      for (size_t j = 0; j < dim_; j += kColumns) {
        if (undone[j / kColumns]) redo_columns(rows_[r], job.start, job.v, p, j, j + kColumns, job.o[i]);
      }
    }
  }
  jobs_.clear();
}

template <Operand kind>
void TileRun<kind>::add_words(int64_t start, size_t count, const uint16_t* const* v) {
  for (size_t g = 0; g < count; g += 16) {
    const int64_t group = start + static_cast<int64_t>(g);
    const size_t in_block = static_cast<size_t>(group) % block_;
    words::ColumnsJob job{v + g, group};
    const auto add = [&] {
      if (job.rows > 0) jobs_.push_back(job);
      job.rows = 0;
    };
    for (const size_t r : busy_) {
      if (!overlaps(rows_[r], group, group + 16)) continue;
      const float* p = score_.get() + r * kMaxBlock + in_block;
      float* o = o_.get() + r * columns_;
      words::Words16& weights = weights_[r * (kKeys / 16) + g / 16];
      words::SetWords(p, weights);
      if (HWY_UNLIKELY(weights.zero || !weights.plain)) {
        if (weights.zero && !any_odd(v + g)) continue;
        run_columns();  // the row's sums so far
        redo_columns(rows_[r], group, v + g, p, 0, dim_, o);
        continue;
      }
      job.p[job.rows] = &weights;
      job.o[job.rows++] = o;
      if (job.rows == kChunk) add();
    }
    add();
  }
  run_columns();
}

template <Operand kind>
void TileRun<kind>::add_panels(int64_t start, const uint16_t* const* v) {
  const D d;
  const bool odd = ValuePanel<kind>(d, v, dim_, columns_, value_panel_.get(), value_exponents_.get());
  const size_t in_block = static_cast<size_t>(start) % block_;
  Shared16 p;
  for (const size_t r : busy_) {
    SetShared<kind>(d, score_.get() + r * kMaxBlock + in_block, p);
    ahead_.go();
    float* o = o_.get() + r * columns_;
    if (HWY_UNLIKELY(odd || p.odd)) {
      uint32_t allowed = 0;
      for (int i = 0; i < 16; i++) allowed |= (rows_[r].query->allowed(start + i) ? 1u : 0u) << i;
      for (size_t j = 0; j < columns_; j += kPanelLanes) {
        StepScalar<kind>(o + j, kAllLanes, p, value_panel_.get() + j * 16, allowed);
      }
      continue;
    }
    if (p.zero) continue;
    for (size_t j = 0; j < columns_; j += kPanelLanes) {
      StepPanel<kind>(d, o + j, p, value_panel_.get() + j * 16, value_exponents_.get() + j * 16);
    }
  }
}

// P·V of `count` keys, in whole groups of 16 and at most kKeys of them. Probabilities are in score_.
template <Operand kind>
void TileRun<kind>::values(int64_t start, size_t count) {
  const int64_t end = start + static_cast<int64_t>(count);
  const int64_t low = std::max(start, first_), high = std::min(end, last_);
  if (low >= high) return;
  const uint16_t* v[kKeys] = {};
  locate(true, low, high, v + (low - start));
  busy_.clear();
  for (size_t r = 0; r < rows_.size(); r++) {
    if (rows_[r].active && overlaps(rows_[r], start, end)) busy_.push_back(r);
  }
  if constexpr (kWords) {
    std::replace(v, v + count, static_cast<const uint16_t*>(nullptr), static_cast<const uint16_t*>(zeros_.data()));
    add_words(start, count, v);
  } else {
    add_panels(start, v);
  }
}

template <Operand kind>
void TileRun<kind>::block(int64_t start) {
  const D d;
  const int64_t end = start + static_cast<int64_t>(block_);
  for (Row& row : rows_) row.active = overlaps(row, start, end);
  const size_t chunks = (rows_.size() + kChunk - 1) / kChunk;
  const int64_t live = (std::min(end, last_) - start + 15) / 16 * 16;  // no row sees a key behind these
  std::swap(runs_, next_runs_);
  aim(true, runs_, kWords ? chunks * block_ / words::kLanes : rows_.size() * block_ / kKeys * dim_ / 16);
  scores(start);
  find_runs(end, next_runs_);
  aim(false, next_runs_, kWords ? chunks * block_ / 16 * dim_ / (2 * words::kLanes) : rows_.size() * block_ / 16);
  for (size_t r = 0; r < rows_.size(); r++) {
    Row& row = rows_[r];
    if (!row.active) continue;
    float* score = score_.get() + r * kMaxBlock;
    probabilities(row, static_cast<size_t>(live), score, score);
    if (row.alpha == 1.0f) continue;
    const auto alpha = hn::Set(d, row.alpha);
    float* o = o_.get() + r * columns_;
    for (size_t j = 0; j < columns_; j += hn::Lanes(d)) hn::Store(hn::Mul(hn::Load(d, o + j), alpha), d, o + j);
  }
  constexpr int64_t kAtOnce = kWords ? kKeys : 16;
  for (int64_t at = 0; at < live; at += kAtOnce) {
    values(start + at, static_cast<size_t>(std::min(kAtOnce, live - at)));
  }
}

// The end of a super-block: joins what the earlier ones gave.
template <Operand kind>
void TileRun<kind>::fold() {
  const D d;
  for (size_t r = 0; r < rows_.size(); r++) {
    Row& row = rows_[r];
    float* o = o_.get() + r * columns_;
    float* folded = folded_.get() + r * columns_;
    if (row.sums.r == numerics::kMinusInf) continue;
    if (row.folded_r == numerics::kMinusInf) {
      row.folded_r = row.sums.r;
      row.folded_l = row.sums.total();
      std::copy_n(o, columns_, folded);
      continue;
    }
    const numerics::AttentionFold f = numerics::attention_fold(row.folded_r, row.sums.r);
    row.folded_r = f.r;
    row.folded_l = numerics::attention_fold_value(row.folded_l, row.sums.total(), f);
    const auto a = hn::Set(d, f.a), b = hn::Set(d, f.b);
    for (size_t j = 0; j < columns_; j += hn::Lanes(d)) {
      hn::Store(Fma(d, hn::Load(d, o + j), b, hn::Mul(hn::Load(d, folded + j), a)), d, folded + j);
    }
  }
}

template <Operand kind>
void TileRun<kind>::finish(const Row& row, float* folded) {
  const D d;
  uint16_t* out = args_.out + (row.query->token * args_.q_heads + row.head) * static_cast<int64_t>(dim_);
  if (row.folded_r == numerics::kMinusInf) {
    std::fill_n(out, dim_, uint16_t{0});
    return;
  }
  float l = row.folded_l;
  if (args_.sinks != nullptr) l = numerics::attention_sink(l, args_.sinks[row.head], row.folded_r);
  const float inv = scale_.inverse(l);
  if constexpr (kWords) words::Order(dim_, folded);
  for (size_t j = 0; j < dim_; j += hn::Lanes(d)) {
    if constexpr (kind == Operand::kBF16) {
      StoreBF16(d, hn::Add(hn::Mul(hn::Load(d, folded + j), hn::Set(d, inv)), hn::Zero(d)), out + j);
    } else {
      for (size_t i = j; i < j + hn::Lanes(d); i++) {
        out[i] = numerics::f32_to_f16(numerics::attention_out(folded[i], inv));
      }
    }
  }
}

template <Operand kind>
void TileRun<kind>::run() {
  const auto block_size = static_cast<int64_t>(block_);
  find_runs(first_ / block_size * block_size, next_runs_);
  aim(false, next_runs_, block_ / 16);  // the first of them while the queries are prepared
  ahead_.go();
  set_queries();
  const int64_t super_size = numerics::kAttentionSuperBlock;
  for (int64_t super = first_ / super_size * super_size; super < last_; super += super_size) {
    for (Row& row : rows_) row.sums = {};
    std::fill_n(o_.get(), rows_.size() * columns_, 0.0f);
    const int64_t begin = std::max(super, first_ / block_size * block_size), end = std::min(super + super_size, last_);
    for (int64_t start = begin; start < end; start += block_size) block(start);
    fold();
  }
  for (size_t r = 0; r < rows_.size(); r++) finish(rows_[r], folded_.get() + r * columns_);
}

void RunTile(const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile) {
  if (args.type == DType::kBF16) {
    TileRun<Operand::kBF16>(args, plan, tile).run();
  } else {
    TileRun<Operand::kF16>(args, plan, tile).run();
  }
}

#endif  // HWY_TARGET != HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace isobit::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace isobit::cpu {

HWY_EXPORT(RunTile);

void attention_tile(int64_t simd, const AttentionArgs& args, const AttentionPlan& plan, const AttentionTile& tile) {
  for_target(HWY_DISPATCH_TABLE(RunTile), simd)(args, plan, tile);
}

}  // namespace isobit::cpu
#endif
