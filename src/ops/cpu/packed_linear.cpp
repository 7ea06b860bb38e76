#include "ops/cpu/packed_linear.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "numerics/convert.h"
#include "numerics/dequantize.h"
#include "ops/cpu/gemm_kernel.h"
#include "ops/cpu/simd_target.h"
#include "ops/cpu/twelve.h"

namespace isobit::cpu {
namespace {

using numerics::f16_to_f32;

uint16_t load16(const std::byte* p) {
  uint16_t x;
  std::memcpy(&x, p, 2);
  return x;
}
uint32_t load32(const std::byte* p) {
  uint32_t x;
  std::memcpy(&x, p, 4);
  return x;
}
uint64_t load64(const std::byte* p) {
  uint64_t x;
  std::memcpy(&x, p, 8);
  return x;
}
void store16(std::byte* p, uint16_t x) { std::memcpy(p, &x, 2); }
void store32(std::byte* p, uint32_t x) { std::memcpy(p, &x, 4); }
void store_f32(std::byte* p, float x) { std::memcpy(p, &x, 4); }

bool finite16(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

// The low nibbles of eight bytes, the first byte's lowest.
uint32_t squeeze(uint64_t x) {
  x &= 0x0f0f0f0f0f0f0f0f;
  x = (x | x >> 4) & 0x00ff00ff00ff00ff;
  x = (x | x >> 8) & 0x0000ffff0000ffff;
  return static_cast<uint32_t>(x | x >> 16);
}

// One output's 32 weights of the file, written into a group. `column` is 0 to 15.
void put_nibbles(const std::byte* q, std::byte* codes, int column) {  // 16 bytes: elements 0-15 low, 16-31 high
  const uint64_t a = load64(q), b = load64(q + 8);
  const uint32_t words[4] = {squeeze(a), squeeze(b), squeeze(a >> 4), squeeze(b >> 4)};
  for (int j = 0; j < 4; j++) store32(codes + (j * kPanel + column) * 4, words[j]);
}

void put_bytes(const uint8_t* q, std::byte* codes, int column) {  // 32 codes
  for (int j = 0; j < 8; j++) std::memcpy(codes + (j * kPanel + column) * 4, q + 4 * j, 4);
}

// A scale's f16 times -2^shift, exact unless it overflows (false).
bool negated(uint16_t d, int shift, uint16_t* m) {
  const float x = f16_to_f32(d) * -static_cast<float>(1 << shift);
  *m = numerics::f32_to_f16(x);
  return finite16(d) && finite16(*m);
}

bool put_q4_0(const std::byte* block, std::byte* to, int column) {
  const uint16_t d = load16(block);
  uint16_t m;
  if (!negated(d, 3, &m)) return false;
  store16(to + column * 2, d);
  store16(to + (kPanel + column) * 2, m);
  put_nibbles(block + 2, to + kPanel * 4, column);
  return true;
}

bool put_q4_1(const std::byte* block, std::byte* to, int column) {
  const uint16_t d = load16(block), m = load16(block + 2);
  store16(to + column * 2, d);
  store16(to + (kPanel + column) * 2, m);
  put_nibbles(block + 4, to + kPanel * 4, column);
  return finite16(d) && finite16(m);
}

bool put_q5(const std::byte* block, std::byte* to, int column, bool has_min) {
  const uint16_t d = load16(block);
  uint16_t m = has_min ? load16(block + 2) : uint16_t{0};
  if (has_min ? !finite16(d) || !finite16(m) : !negated(d, 4, &m)) return false;
  const std::byte* rest = block + (has_min ? 4 : 2);
  const uint32_t high = load32(rest);
  uint8_t q[32];
  for (int i = 0; i < 16; i++) {
    const auto x = static_cast<uint8_t>(rest[4 + i]);
    q[i] = static_cast<uint8_t>((x & 15) | ((high >> i) & 1) << 4);
    q[i + 16] = static_cast<uint8_t>((x >> 4) | ((high >> (i + 16)) & 1) << 4);
  }
  store16(to + column * 2, d);
  store16(to + (kPanel + column) * 2, m);
  put_bytes(q, to + kPanel * 4, column);
  return true;
}

bool put_q8_0(const std::byte* block, std::byte* to, int column) {
  const uint16_t d = load16(block);
  store16(to + column * 2, d);
  std::byte* codes = to + kPanel * 2;
  for (int j = 0; j < 8; j++) store32(codes + (j * kPanel + column) * 4, load32(block + 2 + 4 * j) ^ 0x80808080u);
  return finite16(d);
}

// The 6-bit scale and minimum of sub-block j of a Q4_K or Q5_K block.
void k_scale(const std::byte* s, int j, int* scale, int* min) {
  const auto at = [&](int i) { return static_cast<int>(s[i]); };
  if (j < 4) {
    *scale = at(j) & 63;
    *min = at(j + 4) & 63;
  } else {
    *scale = (at(j + 4) & 15) | (at(j - 4) >> 6) << 4;
    *min = (at(j + 4) >> 4) | (at(j) >> 6) << 4;
  }
}

// Sub-block j (32 weights) of a Q4_K or Q5_K block.
bool put_k45(const std::byte* block, int j, std::byte* to, int column, bool five) {
  const uint16_t d = load16(block), dmin = load16(block + 2);
  int scale, min;
  k_scale(block + 4, j, &scale, &min);
  const float dd = f16_to_f32(d) * static_cast<float>(scale), mm = -(f16_to_f32(dmin) * static_cast<float>(min));
  const std::byte* qs = block + (five ? 48 : 16) + 32 * (j / 2);
  uint8_t q[32];
  for (int i = 0; i < 32; i++) {
    const auto x = static_cast<uint8_t>(qs[i]);
    q[i] = (j & 1) != 0 ? x >> 4 : x & 15;
    if (five) q[i] = static_cast<uint8_t>(q[i] | ((static_cast<uint8_t>(block[16 + i]) >> j) & 1) << 4);
  }
  const int sets = five ? 2 : 1;
  for (int h = 0; h < sets; h++) {
    store_f32(to + (2 * h * kPanel + column) * 4, dd);
    store_f32(to + ((2 * h + 1) * kPanel + column) * 4, mm);
  }
  std::byte* codes = to + kPanel * 8 * sets;
  if (five) {
    put_bytes(q, codes, column);
  } else {
    for (int w = 0; w < 4; w++) {
      uint32_t x = 0;
      for (int i = 0; i < 8; i++) x |= static_cast<uint32_t>(q[8 * w + i]) << (4 * i);
      store32(codes + (w * kPanel + column) * 4, x);
    }
  }
  return finite16(d) && finite16(dmin);
}

// Elements 32·j to 32·j+31 of a Q6_K block.
bool put_q6_k(const std::byte* block, int j, std::byte* to, int column) {
  const uint16_t d = load16(block + 208);
  const int half = j / 4, quarter = j % 4;
  const auto* ql = reinterpret_cast<const uint8_t*>(block) + 64 * half + 32 * (quarter & 1);
  const auto* qh = reinterpret_cast<const uint8_t*>(block) + 128 + 32 * half;
  uint8_t q[32];
  for (int i = 0; i < 32; i++) {
    const int low = quarter < 2 ? ql[i] & 15 : ql[i] >> 4;
    q[i] = static_cast<uint8_t>(low | ((qh[i] >> (2 * quarter)) & 3) << 4);
  }
  for (int h = 0; h < 2; h++) {
    const auto scale = static_cast<int8_t>(block[192 + 2 * j + h]);
    const float dd = f16_to_f32(d) * static_cast<float>(scale);
    store_f32(to + (2 * h * kPanel + column) * 4, dd);
    store_f32(to + ((2 * h + 1) * kPanel + column) * 4, -32.0f * dd);
  }
  put_bytes(q, to + kPanel * 16, column);
  return finite16(d);
}

PanelFormat format_of(DType t) {
  switch (t) {
    case DType::kQ4_0:
    case DType::kQ4_1:
      return PanelFormat::kNibble;
    case DType::kQ4_K:
      return PanelFormat::kNibbleF;
    case DType::kQ8_0:
      return PanelFormat::kByte;
    case DType::kQ5_0:
    case DType::kQ5_1:
      return PanelFormat::kByteA;
    case DType::kQ5_K:
    case DType::kQ6_K:
      return PanelFormat::kByteF;
    default:
      return PanelFormat::kBF16;
  }
}

// Group g of one row. False: a scale is not finite, the packed form cannot hold it.
bool put_group(DType t, const std::byte* row, int64_t g, std::byte* to, int column) {
  const DTypeInfo info = dtype_info(t);
  const std::byte* block = row + g * kGroup / info.block_elements * info.block_bytes;
  const int sub = static_cast<int>(g % 8);
  switch (t) {
    case DType::kQ4_0:
      return put_q4_0(block, to, column);
    case DType::kQ4_1:
      return put_q4_1(block, to, column);
    case DType::kQ5_0:
    case DType::kQ5_1:
      return put_q5(block, to, column, t == DType::kQ5_1);
    case DType::kQ8_0:
      return put_q8_0(block, to, column);
    case DType::kQ4_K:
    case DType::kQ5_K:
      return put_k45(block, sub, to, column, t == DType::kQ5_K);
    case DType::kQ6_K:
      return put_q6_k(block, sub, to, column);
    default:
      return false;
  }
}

// Weights outside the exponents of the vector kernel.
bool unusual(const uint16_t* w, int64_t n) {
  int low = 255, high = 0;
  for (int64_t i = 0; i < n; i++) {
    const int e = (w[i] >> 7) & 255;
    const bool zero = (w[i] & 0x7fff) == 0;
    low = std::min(low, zero ? 255 : e);
    high = std::max(high, e);
  }
  return low < kWeightExponentMin || high > kWeightExponentMax;
}

}  // namespace

class Packer {
 public:
  Packer(ThreadPool& pool, std::span<const WeightPart> parts, Storage storage, WeightArena& arena, PackedLinear& to)
      : pool_(pool), parts_(parts), storage_(storage), arena_(arena), to_(to) {}

  void run() {
    plan({});
    std::vector<uint8_t> refused(parts_.size());
    pool_.parallel_for(chunks(), [&](int, int64_t c) { pack_chunk(c, refused); });
    if (std::none_of(refused.begin(), refused.end(), [](uint8_t r) { return r != 0; })) return;
    plan(refused);  // infinite or NaN scales: those parts as plain bf16
    pool_.parallel_for(chunks(), [&](int, int64_t c) { pack_chunk(c, refused); });
  }

 private:
  static constexpr int64_t kChunk = 8;  // panels
  int64_t chunks() const { return (static_cast<int64_t>(to_.panels_.size()) + kChunk - 1) / kChunk; }

  // A panel's bases come right before its data, so that the one stream of reading brings both.
  size_t bases_bytes(PanelFormat f) const {
    return f == PanelFormat::kTwelve ? static_cast<size_t>(to_.groups() + 63) / 64 * 64 : 0;
  }

  void plan(const std::vector<uint8_t>& plain) {
    to_.panels_.clear();
    part_of_.clear();
    std::vector<size_t> offsets;
    size_t size = 0;
    int64_t row = 0;
    for (size_t i = 0; i < parts_.size(); i++) {
      const WeightPart& p = parts_[i];
      PanelFormat f = !plain.empty() && plain[i] != 0 ? PanelFormat::kBF16 : format_of(p.dtype);
      if (f != PanelFormat::kBF16 && storage_ == Storage::kFast) f = PanelFormat::kTwelve;
      for (int64_t r = 0; r < p.rows; r += kPanel) {
        const int rows = static_cast<int>(std::min<int64_t>(kPanel, p.rows - r));
        to_.panels_.push_back({f, false, rows, row + r, nullptr});
        part_of_.push_back({i, r});
        offsets.push_back(size);
        size += bases_bytes(f) + group_bytes(f) * static_cast<size_t>(to_.groups());
      }
      row += p.rows;
    }
    to_.size_ = (size + 63) / 64 * 64;
    to_.data_ = arena_.allocate(to_.size_);
    for (size_t i = 0; i < offsets.size(); i++) {
      PackedLinear::Panel& panel = to_.panels_[i];
      const std::byte* at = to_.data_.get() + offsets[i];
      panel.data = at + bases_bytes(panel.format);
      if (panel.format == PanelFormat::kTwelve) panel.bases = reinterpret_cast<const uint8_t*>(at);
    }
    to_.spills_.clear();
    to_.spills_.resize(to_.panels_.size());
  }

  void pack_chunk(int64_t c, std::vector<uint8_t>& refused) {
    const size_t end = std::min(to_.panels_.size(), static_cast<size_t>((c + 1) * kChunk));
    for (size_t i = static_cast<size_t>(c * kChunk); i < end; i++) {
      // Another thread may set the same byte; it only ever becomes 1.
      if (!pack_panel(i)) std::atomic_ref(refused[part_of_[i].part]).store(1, std::memory_order_relaxed);
    }
  }

  bool pack_panel(size_t i) {
    PackedLinear::Panel& panel = to_.panels_[i];
    const WeightPart& part = parts_[part_of_[i].part];
    const size_t stride = dtype_bytes(part.dtype, static_cast<size_t>(to_.k()));
    const std::byte* from = part.data + static_cast<size_t>(part_of_[i].row) * stride;
    auto* data = const_cast<std::byte*>(panel.data);
    if (panel.format == PanelFormat::kBF16) {
      pack_plain(part.dtype, from, stride, data, panel);
      return true;
    }
    if (panel.format != PanelFormat::kTwelve) return pack_compact(part.dtype, from, stride, data, panel);
    const PanelFormat compact = format_of(part.dtype);
    const auto groups = static_cast<size_t>(to_.groups());
    std::vector<std::byte> scratch(group_bytes(compact) * groups);
    if (!pack_compact(part.dtype, from, stride, scratch.data(), panel)) return false;
    pack_twelve_(compact, scratch.data(), to_.groups(), data, const_cast<uint8_t*>(panel.bases), to_.spills_[i]);
    panel.spill = to_.spills_[i].empty() ? nullptr : to_.spills_[i].data();
    return true;
  }

  bool pack_compact(DType t, const std::byte* from, size_t stride, std::byte* data, const PackedLinear::Panel& panel) {
    const size_t bytes = group_bytes(format_of(t));
    if (panel.rows < kPanel) std::memset(data, 0, bytes * static_cast<size_t>(to_.groups()));
    bool ok = true;
    for (int64_t g = 0; g < to_.groups(); g++) {
      std::byte* group = data + static_cast<size_t>(g) * bytes;
      for (int r = 0; r < panel.rows; r++) ok &= put_group(t, from + static_cast<size_t>(r) * stride, g, group, r);
    }
    return ok;
  }

  void pack_plain(DType t, const std::byte* from, size_t stride, std::byte* data, PackedLinear::Panel& panel) {
    const int64_t padded = to_.groups() * kGroup;
    std::vector<uint16_t> row(static_cast<size_t>(padded));
    std::memset(data, 0, static_cast<size_t>(padded) * kPanel * 2);
    panel.general = false;
    for (int r = 0; r < panel.rows; r++) {
      numerics::dequantize_row_bf16(t, from + static_cast<size_t>(r) * stride, to_.k(), row.data());
      panel.general |= unusual(row.data(), to_.k());
      for (int64_t k = 0; k < padded; k += 2) std::memcpy(data + (k / 2 * kPanel + r) * 4, row.data() + k, 4);
    }
  }

  struct Place {
    size_t part;
    int64_t row;
  };
  ThreadPool& pool_;
  std::span<const WeightPart> parts_;
  Storage storage_;
  WeightArena& arena_;
  PackedLinear& to_;
  PackTwelveFn pack_twelve_ = pack_twelve_for(simd_target(""));
  std::vector<Place> part_of_;
};

int64_t check_parts(std::span<const WeightPart> parts, LinearForm form) {
  require(!parts.empty(), "load_linear: no parts");
  require(form == LinearForm::kStacked || (parts.size() == 2 && parts[0].rows == parts[1].rows),
          "load_linear: a gated pair needs two parts of equal rows");
  int64_t n = 0;
  const int64_t k = parts[0].cols;
  for (const WeightPart& p : parts) {
    require(p.rows > 0 && p.cols > 0, "load_linear: a part is {} x {}; both must be positive", p.rows, p.cols);
    require(p.cols == k, "load_linear: parts of {} and {} columns; they must be equal", k, p.cols);
    const uint32_t block = dtype_info(p.dtype).block_elements;
    require(k % block == 0, "load_linear: {} columns of {}; they must be a multiple of {}", k, dtype_info(p.dtype).name,
            block);
    n += p.rows;
  }
  return n;
}

std::unique_ptr<PackedLinear> pack_linear(ThreadPool& pool, std::span<const WeightPart> parts, LinearForm form,
                                          Storage storage, WeightArena& arena) {
  const int64_t n = check_parts(parts, form);
  auto linear = std::make_unique<PackedLinear>(n, parts[0].cols, form);
  Packer(pool, parts, storage, arena, *linear).run();
  return linear;
}

namespace {

float scale16(const std::byte* p, int i) { return f16_to_f32(load16(p + 2 * i)); }
float scale32(const std::byte* p, int i) { return std::bit_cast<float>(load32(p + 4 * i)); }

// Weight k (0 to 31) of a group's column.
uint16_t weight(PanelFormat f, const std::byte* group, int column, int k) {
  const auto nibble = [&](const std::byte* codes) {
    return static_cast<float>((load32(codes + (k / 8 * kPanel + column) * 4) >> (4 * (k % 8))) & 15);
  };
  const auto byte = [&](const std::byte* codes) {
    return static_cast<float>(static_cast<uint8_t>(codes[(k / 4 * kPanel + column) * 4 + k % 4]));
  };
  float d = 0, m = 0, q = 0;
  switch (f) {
    case PanelFormat::kBF16:
      return load16(group + (k / 2 * kPanel + column) * 4 + k % 2 * 2);
    case PanelFormat::kNibble:
      d = scale16(group, column), m = scale16(group, kPanel + column), q = nibble(group + kPanel * 4);
      break;
    case PanelFormat::kNibbleF:
      d = scale32(group, column), m = scale32(group, kPanel + column), q = nibble(group + kPanel * 8);
      break;
    case PanelFormat::kByte:
      d = scale16(group, column), m = -128.0f * d, q = byte(group + kPanel * 2);
      break;
    case PanelFormat::kByteA:
      d = scale16(group, column), m = scale16(group, kPanel + column), q = byte(group + kPanel * 4);
      break;
    case PanelFormat::kByteF: {
      const int set = k / 16 * 2 * kPanel;
      d = scale32(group, set + column), m = scale32(group, set + kPanel + column), q = byte(group + kPanel * 16);
      break;
    }
    case PanelFormat::kTwelve:
      break;  // twelve_weight
  }
  return numerics::f32_to_bf16(numerics::fadd(numerics::fmul(d, q), m));
}

// Weight k of a column, in group g of a kTwelve panel.
uint16_t twelve_weight(const PackedLinear::Panel& panel, int64_t g, int column, int k) {
  const auto* group = reinterpret_cast<const uint8_t*>(panel.data) + g * int64_t{group_bytes(PanelFormat::kTwelve)};
  const uint8_t base = panel.bases[g];
  if (base == kSpilled) {
    return panel.spill[load32(reinterpret_cast<const std::byte*>(group)) * size_t{kSpill} +
                       static_cast<size_t>(k * kPanel + column)];
  }
  const uint8_t* step = group + k / 16 * kTwelveStep;
  const int code = (step[twelve_code(k % 16, column)] >> twelve_shift(k)) & 15;
  if ((base & kHasZeros) != 0 && code % 8 == 0) return 0;
  return static_cast<uint16_t>(kTwelve.high[base][code] << 8 | step[twelve_low(k % 16, column)]);
}

}  // namespace

void PackedLinear::row(int64_t r, uint16_t* out) const {
  const auto after =
      std::upper_bound(panels_.begin(), panels_.end(), r, [](int64_t value, const Panel& p) { return value < p.row; });
  const Panel& panel = *(after - 1);
  const int column = static_cast<int>(r - panel.row);
  const size_t bytes = group_bytes(panel.format);
  for (int64_t i = 0; i < k(); i++) {
    if (panel.format == PanelFormat::kTwelve) {
      out[i] = twelve_weight(panel, i / kGroup, column, static_cast<int>(i % kGroup));
      continue;
    }
    const std::byte* group = panel.data + static_cast<size_t>(i / kGroup) * bytes;
    out[i] = weight(panel.format, group, column, static_cast<int>(i % kGroup));
  }
}

}  // namespace isobit::cpu
