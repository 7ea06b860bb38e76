#include "ops/attention_problem.h"

#include <algorithm>
#include <numeric>

#include "numerics/kv_cache.h"

namespace isobit::testing {

using namespace numerics;

namespace {

constexpr uint16_t kPoison = 0xaaab;

float widen(DType type, uint16_t h) { return type == DType::kF16 ? f16_to_f32(h) : bf16_to_f32(h); }

float element(Random& random, int kind, bool f16) {
  const float x = random.normal();
  const int reach = f16 ? 7 : 12, far = f16 ? 12 : 60;
  switch (kind) {
    case 1:
      return random.below(3) == 0 ? 0.0f : std::ldexp(x, random.below(2 * reach) - reach);
    case 2:
      return std::ldexp(x, far - random.below(5));
    case 3:
      return random.below(4) == 0 ? std::ldexp(x, f16 ? -20 : -130) : std::ldexp(x, -far);
    case 4:
      return random.below(2) == 0 ? 0.5f : -0.5f;
    default:
      return x;
  }
}

}  // namespace

std::string AttentionShape::describe() const {
  std::string s = fmt::format(
      "{} cache {} D {} heads {}/{} page {} window {} cap {} sharp {} values {}{}{}{}{}:", dtype_info(type).name,
      dtype_info(cache_type).name, head_dim, kv_heads * group, kv_heads, page_size, window, soft_cap, sharpness, values,
      causal ? "" : " all", sinks ? " sinks" : "", mask ? " mask" : "", tree ? " tree" : "");
  for (const Request& r : requests) s += fmt::format(" {}({} new)", r.length, r.added);
  return s;
}

AttentionShape random_attention_shape(Random& random) {
  AttentionShape s;
  s.head_dim =
      random.below(3) != 0 ? pick(random, {64, 96, 128, 256}) : pick(random, {16, 32, 48, 80, 112, 144, 192, 320, 512});
  s.kv_heads = 1 + random.below(3);
  s.group = pick(random, {1, 2, 3, 4, 5, 7});
  s.page_size = pick(random, {1, 3, 16, 16, 64, 100, 256});
  const int type = random.below(5);
  s.type = type == 0 ? DType::kF16 : DType::kBF16;
  s.cache_type = type == 1 || random.below(8) == 0 ? DType::kF8E4M3 : s.type;
  const int batch = 1 + random.below(random.below(2) == 0 ? 2 : 8);
  s.tree = random.below(6) == 0;
  s.causal = s.tree || random.below(8) != 0;
  int longest = 1;
  for (int b = 0; b < batch; b++) {
    AttentionShape::Request r;
    r.length = random.below(12) == 0 ? 0 : log_uniform(random, 1, 3000);
    r.added = random.below(2) == 0 ? 1 : log_uniform(random, 1, s.tree ? 20 : 70);
    if (r.length > 0) r.added = std::min(r.added, r.length);
    longest = std::max(longest, r.length);
    s.requests.push_back(r);
  }
  if (random.below(3) == 0) {
    const int block = attention_block(s.head_dim);
    s.window =
        random.below(2) == 0 ? log_uniform(random, 1, longest) : block * (1 + random.below(3)) + random.below(3) - 1;
  }
  if (random.below(4) == 0) s.soft_cap = pick(random, {0.5f, 5.0f, 30.0f, 50.0f});
  s.sharpness = pick(random, {0.1f, 1.0f, 1.0f, 4.0f, 30.0f});
  s.sinks = random.below(4) == 0;
  s.mask = random.below(6) == 0;
  s.values = random.below(2) == 0 ? 0 : random.below(6);
  return s;
}

AttentionProblem::AttentionProblem(const AttentionShape& shape, Random& random) : shape_(shape) {
  query_start_.push_back(0);
  int longest = 1, most = 0;
  for (const auto& r : shape.requests) {
    tokens_ += r.added;
    query_start_.push_back(tokens_);
    lengths_.push_back(r.length);
    longest = std::max(longest, r.length);
    most = std::max(most, r.added);
  }
  const int d = shape.head_dim;
  q_.resize(static_cast<size_t>(tokens_) * q_heads() * d);
  const float amplitude = std::sqrt(shape.sharpness);
  for (uint16_t& x : q_)
    x = round_to(shape.type, amplitude * element(random, shape.values % 5, shape.type == DType::kF16));
  if (shape.values == 5) {
    for (int i = 0; i < 3; i++)
      q_[random.bits() % q_.size()] = pick<uint16_t>(random, {0x7fff, 0x7f80, 0xff80, 0x7c00, 1});
  }
  args_.max_kv = longest;
  args_.max_query = most;
  args_.table_stride = (longest + shape.page_size - 1) / shape.page_size + random.below(3);
  if (shape.sinks) {
    for (int h = 0; h < q_heads(); h++) sinks_.push_back(random.normal(4.0f));
  }
  if (shape.tree) {
    for (const auto& r : shape.requests) {
      for (int i = 0; i < r.added; i++) parents_.push_back(random.below(2) == 0 ? i - 1 : random.below(i + 1) - 1);
    }
  }
  if (shape.mask) {
    args_.mask_stride = (longest + 63) / 64 + random.below(2);
    for (int t = 0; t < tokens_; t++) {
      const int kind = random.below(4);  // half, few, long gaps, none
      for (int i = 0; i < args_.mask_stride; i++) {
        uint64_t m = random.bits();
        if (kind == 1) m &= random.bits() & random.bits() & random.bits();
        if (kind == 2 && (i / 3) % 2 == 0) m = 0;
        if (kind == 3 && random.below(2) == 0) m = 0;
        mask_.push_back(kind == 3 && t % 3 == 0 ? 0 : m);
      }
    }
  }
  fill_cache(random);
  args_.q = q_.data();
  args_.query_start = query_start_.data();
  args_.kv_len = lengths_.data();
  args_.page_table = table_.data();
  args_.tokens = tokens_;
  args_.requests = static_cast<int32_t>(shape.requests.size());
  args_.q_heads = q_heads();
  args_.scale = 1.0f / std::sqrt(static_cast<float>(d));
  args_.soft_cap = shape.soft_cap;
  args_.window = shape.window;
  args_.causal = shape.causal;
  args_.sinks = shape.sinks ? sinks_.data() : nullptr;
  args_.mask = shape.mask ? mask_.data() : nullptr;
  args_.tree_parent = shape.tree ? parents_.data() : nullptr;
  args_.type = shape.type;
}

void AttentionProblem::fill_cache(Random& random) {
  const bool fp8 = shape_.cache_type == DType::kF8E4M3;
  const size_t d = static_cast<size_t>(shape_.head_dim), heads = static_cast<size_t>(shape_.kv_heads);
  const size_t page_size = static_cast<size_t>(shape_.page_size), bytes = fp8 ? 1 : 2;
  int pages = 2;
  for (const int length : lengths_) pages += (length + shape_.page_size - 1) / shape_.page_size;
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random.bits() % i]);
  table_.assign(shape_.requests.size() * static_cast<size_t>(args_.table_stride),
                random.below(2) == 0 ? -1 : 0x7f000000);
  // What no key was written to is NaN.
  k_pages_.assign(static_cast<size_t>(pages) * heads * page_size * d * bytes, std::byte{0xff});
  v_pages_ = k_pages_;
  const float amplitude = std::sqrt(shape_.sharpness);
  for (size_t h = 0; fp8 && h < heads; h++) {
    k_scale_.push_back(0.01f * static_cast<float>(1 + random.below(97)) * amplitude);
    v_scale_.push_back(0.013f * static_cast<float>(1 + random.below(97)));
  }
  size_t next = 0;
  const bool f16 = shape_.type == DType::kF16;
  for (size_t b = 0; b < lengths_.size(); b++) {
    const size_t length = static_cast<size_t>(lengths_[b]);
    int32_t* row = table_.data() + b * static_cast<size_t>(args_.table_stride);
    for (size_t p = 0; p * page_size < length; p++) row[p] = order[next++];
    keys_.emplace_back(length * heads * d);
    values_.emplace_back(length * heads * d);
    for (size_t i = 0; i < keys_[b].size(); i++) {
      const size_t slot = i / (heads * d), head = i / d % heads;
      float k = amplitude * element(random, shape_.values % 5, f16), v = element(random, shape_.values % 5, f16);
      if (shape_.values == 5 && random.below(5000) == 0) v = random.below(2) == 0 ? kMinusInf : from_bits(kNaN32);
      if (shape_.values == 5 && random.below(5000) == 0) k = random.below(2) == 0 ? kMinusInf : from_bits(kNaN32);
      const size_t at =
          ((static_cast<size_t>(row[slot / page_size]) * heads + head) * page_size + slot % page_size) * d + i % d;
      if (fp8) {
        bool finite = true;
        const uint8_t k8 = cache_e4m3(k, k_scale_[head], finite), v8 = cache_e4m3(v, v_scale_[head], finite);
        k_pages_[at] = std::byte{k8};
        v_pages_[at] = std::byte{v8};
        k = e4m3_to_f32(k8);
        v = e4m3_to_f32(v8);
      }
      keys_[b][i] = round_to(shape_.type, k);
      values_[b][i] = round_to(shape_.type, v);
      if (fp8) continue;
      std::memcpy(k_pages_.data() + 2 * at, &keys_[b][i], 2);
      std::memcpy(v_pages_.data() + 2 * at, &values_[b][i], 2);
    }
  }
  args_.cache = {k_pages_.data(),
                 v_pages_.data(),
                 pages,
                 shape_.kv_heads,
                 shape_.page_size,
                 shape_.head_dim,
                 shape_.cache_type,
                 fp8 ? k_scale_.data() : nullptr,
                 fp8 ? v_scale_.data() : nullptr};
}

std::vector<uint16_t> AttentionProblem::run(Backend& backend) {
  constexpr size_t kGuard = 64;
  std::vector<uint16_t> out(q_.size() + kGuard, kPoison);
  args_.out = out.data();
  backend.attention(args_);
  for (size_t i = q_.size(); i < out.size(); i++) EXPECT_EQ(out[i], kPoison) << "written past the end";
  out.resize(q_.size());
  return out;
}

int AttentionProblem::request_of(int token) const {
  return static_cast<int>(std::upper_bound(query_start_.begin(), query_start_.end(), token) - query_start_.begin()) - 1;
}

int64_t AttentionProblem::cost(int token) const {
  const int length = lengths_[static_cast<size_t>(request_of(token))];
  const int keys = shape_.window > 0 && shape_.causal ? std::min(length, shape_.window) : length;
  return (int64_t{keys} + 128) * (shape_.head_dim / 8);
}

std::vector<uint16_t> AttentionProblem::expected(int token, int head, Defect defect) const {
  const size_t d = static_cast<size_t>(shape_.head_dim), b = static_cast<size_t>(request_of(token));
  std::vector<uint16_t> out(d, 0);
  const int length = lengths_[b], begin = query_start_[b], node = token - begin;
  if (length == 0) return out;
  const int prefix = length - (query_start_[b + 1] - begin);
  int position = prefix + node;
  std::vector<int> slots(static_cast<size_t>(length));
  std::iota(slots.begin(), slots.end(), 0);
  if (shape_.tree) {
    std::vector<int> path;
    for (int n = node; n >= 0; n = parents_[static_cast<size_t>(begin + n)]) path.insert(path.begin(), prefix + n);
    slots.resize(static_cast<size_t>(prefix));
    if (defect == Defect::kTreeBySlot) {
      // An ancestor mask over slots: the right keys in the wrong groups.
      for (int i = prefix; i <= position; i++) slots.push_back(std::count(path.begin(), path.end(), i) != 0 ? i : -1);
    } else {
      slots.insert(slots.end(), path.begin(), path.end());
    }
    position = static_cast<int>(slots.size()) - 1;
  }
  const int window = shape_.window + (defect == Defect::kWindowOffByOne ? 1 : 0);
  const int64_t shift = defect == Defect::kShiftedBlocks ? 1 : 0;  // keys in blocks of other positions
  const auto allowed = [&](int64_t at) {
    const int64_t p = at - shift;
    if (p < 0 || slots[static_cast<size_t>(p)] < 0) return false;
    if (shape_.causal && p > position) return false;
    if (shape_.window > 0 && p <= position - window) return false;
    return mask_.empty() || ((mask_[static_cast<size_t>(token) * args_.mask_stride + p / 64] >> (p % 64)) & 1) != 0;
  };
  const size_t kv_head = static_cast<size_t>(head / shape_.group), heads = static_cast<size_t>(shape_.kv_heads);
  const auto row = [&](const std::vector<std::vector<uint16_t>>& of, int64_t at) {
    int64_t p = at - shift;
    if (defect == Defect::kStaleKey && p == position && p > 0) p--;  // the newest key was not there yet
    return of[b].data() + (static_cast<size_t>(slots[static_cast<size_t>(p)]) * heads + kv_head) * d;
  };
  const auto key = [&](int64_t p) { return row(keys_, p); };
  const auto value = [&](int64_t p) { return row(values_, p); };
  const int64_t n = static_cast<int64_t>(slots.size()) + shift;
  const uint16_t* q = q_.data() + (static_cast<size_t>(token) * q_heads() + head) * d;
  const bool scaled = shape_.cache_type == DType::kF8E4M3;
  const AttentionScale scale = scaled ? scale_of_cached(args_.scale, shape_.soft_cap, k_scale_[kv_head],
                                                        defect == Defect::kValueScale ? 1.0f : v_scale_[kv_head])
                                      : AttentionScale{args_.scale, shape_.soft_cap};
  const float* sink = shape_.sinks && defect != Defect::kSinkInMaximum ? &sinks_[static_cast<size_t>(head)] : nullptr;
  if (defect == Defect::kSeam && prefix > 0) {
    // Two stages, prefix and new tokens, joined by the fold: what one pass replaces.
    std::vector<uint16_t> parts[2] = {std::vector<uint16_t>(d), std::vector<uint16_t>(d)};
    for (int part = 0; part < 2; part++) {
      attention_row<Operand::kBF16>(
          q, shape_.head_dim, n, key, value, [&](int64_t p) { return allowed(p) && (p < prefix) == (part == 0); },
          scale, sink, parts[part].data());
    }
    for (size_t i = 0; i < d; i++) {
      out[i] = f32_to_bf16(fmul(0.5f, fadd(bf16_to_f32(parts[0][i]), bf16_to_f32(parts[1][i]))));
    }
    return out;
  }
  if (shape_.type == DType::kF16) {
    attention_row<Operand::kF16>(q, shape_.head_dim, n, key, value, allowed, scale, sink, out.data());
  } else {
    attention_row<Operand::kBF16>(q, shape_.head_dim, n, key, value, allowed, scale, sink, out.data());
  }
  return out;
}

std::optional<std::string> AttentionProblem::compare(const std::vector<uint16_t>& out, Random& random, int64_t budget,
                                                     Defect defect) const {
  std::vector<int> rows(static_cast<size_t>(tokens_) * q_heads());
  std::iota(rows.begin(), rows.end(), 0);
  for (size_t i = rows.size(); i > 1; i--) std::swap(rows[i - 1], rows[random.bits() % i]);
  const size_t d = static_cast<size_t>(shape_.head_dim);
  for (const int row : rows) {
    const int token = row / q_heads(), head = row % q_heads();
    budget -= cost(token);
    if (budget < 0 && row != rows.front()) break;
    const std::vector<uint16_t> want = expected(token, head, defect);
    const uint16_t* got = out.data() + static_cast<size_t>(row) * d;
    if (std::memcmp(want.data(), got, 2 * d) == 0) continue;
    size_t i = 0;
    while (want[i] == got[i]) i++;
    return fmt::format("token {} head {} element {}: {:04x} ({}), expected {:04x} ({})", token, head, i, got[i],
                       widen(shape_.type, got[i]), want[i], widen(shape_.type, want[i]));
  }
  return std::nullopt;
}

}  // namespace isobit::testing
