// Embedding, RMSNorm, rotation and the cache's write on the CPU, against the scalar rules, by bytes.
#include <gtest/gtest.h>

#include "base/error.h"
#include "numerics/activation.h"
#include "numerics/norm.h"
#include "numerics/quantize.h"
#include "numerics/rope.h"
#include "ops/cpu/simd_target.h"
#include "ops/cpu_testing.h"

namespace isobit::testing {
namespace {

using namespace numerics;

float any_float(Random& random, int kind) {
  switch (kind) {
    case 0:
      return random.normal();
    case 1:
      return std::ldexp(random.normal(), random.below(60) - 30);
    case 2:
      return std::ldexp(random.normal(), 100 + random.below(28));  // sums overflow
    case 3:
      return std::ldexp(random.normal(), -120 - random.below(29));  // squares vanish
    default:
      return random.below(50) == 0 ? from_bits(random.bits32()) : random.normal();  // infinities and NaN among them
  }
}

std::vector<float> floats(Random& random, size_t n, int kind) {
  std::vector<float> v(n);
  for (float& x : v) x = any_float(random, kind);
  return v;
}

// The sum of squares over sixteen lanes in place of 1024: the bits that the tree is there to pin down.
float narrow_sum(const float* x, int64_t n) {
  float lane[16] = {};
  for (int64_t i = 0; i < n; i++) lane[i % 16] = ffma(x[i], x[i], lane[i % 16]);
  float sum = 0.0f;
  for (const float l : lane) sum = fadd(sum, l);
  return sum;
}

// The norm after a sublayer: added to the residual stream, unrounded.
TEST(NormCpu, AddsToTheResidual) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (int round = 0; round < 60; round++) {
    const int n = round % 3 == 0 ? pick(random, {32, 640, 1025, 2304}) : log_uniform(random, 1, 5000);
    const int count = 1 + random.below(5), kind = random.below(5);
    const std::vector<float> x = floats(random, static_cast<size_t>(count * n), kind);
    const std::vector<float> weight = floats(random, static_cast<size_t>(n), 0);
    const std::vector<float> residual = floats(random, x.size(), random.below(5));
    std::vector<float> want(x.size());
    for (int i = 0; i < count; i++) {
      const float scale = rms_scale(sum_of_squares(&x[static_cast<size_t>(i * n)], n), n, 1e-6f);
      for (int j = 0; j < n; j++) {
        const auto at = static_cast<size_t>(i * n + j);
        want[at] = canonical(fadd(residual[at], rms_value(x[at], scale, weight[static_cast<size_t>(j)])));
      }
    }
    for (const std::string& target : backends.targets()) {
      std::vector<float> got = residual;
      RmsNormArgs a;
      a.x = x.data();
      a.weight = weight.data();
      a.count = count;
      a.n = n;
      a.eps = 1e-6f;
      a.add_to = got.data();
      backends.get(target, 2).rms_norm(a);
      ASSERT_EQ(0, std::memcmp(got.data(), want.data(), want.size() * sizeof(float)))
          << target << ", " << n << " kind " << kind;
    }
  }
}

TEST(SoftCapCpu, EqualsTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (int round = 0; round < 40; round++) {
    const std::vector<float> x = floats(random, static_cast<size_t>(log_uniform(random, 1, 20000)), round % 5);
    const float cap = round % 2 == 0 ? 30.0f : std::ldexp(1.0f + std::fabs(random.normal()), random.below(20) - 5);
    std::vector<float> want = x;
    for (float& v : want) v = canonical(soft_capped(v, cap));
    for (const std::string& target : backends.targets()) {
      std::vector<float> got = x;
      SoftCapArgs a;
      a.x = got.data();
      a.count = static_cast<int64_t>(got.size());
      a.cap = cap;
      backends.get(target, 2).soft_cap(a);
      ASSERT_EQ(0, std::memcmp(got.data(), want.data(), want.size() * sizeof(float))) << target << ", cap " << cap;
    }
  }
}

TEST(NormCpu, EqualsTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (int round = 0; round < 120; round++) {
    const int n = round % 3 == 0 ? pick(random, {576, 1024, 1023, 1025, 2048, 4096}) : log_uniform(random, 1, 9000);
    const int rows = 1 + random.below(4), count = 1 + random.below(6), kind = random.below(5);
    const std::vector<float> x = floats(random, static_cast<size_t>(rows * n), kind);
    const std::vector<float> weight = floats(random, static_cast<size_t>(n), random.below(2));
    std::vector<int32_t> index(static_cast<size_t>(count));
    for (int32_t& i : index) i = random.below(rows + 1) - 1;
    RmsNormArgs a;
    a.x = x.data();
    a.rows = random.below(3) == 0 && count <= rows ? nullptr : index.data();
    a.weight = weight.data();
    a.count = count;
    a.n = n;
    a.eps = pick(random, {1e-5f, 1e-6f, 0.0f});
    a.out_type = random.below(4) == 0 ? DType::kF16 : DType::kBF16;
    std::vector<uint16_t> want(static_cast<size_t>(count * n), 0);
    for (int i = 0; i < count; i++) {
      const int row = a.rows != nullptr ? index[static_cast<size_t>(i)] : i;
      if (row < 0) continue;
      const float* from = x.data() + row * n;
      const float scale = rms_scale(sum_of_squares(from, n), n, a.eps);
      for (int j = 0; j < n; j++) {
        const size_t at = static_cast<size_t>(i * n + j);
        want[at] = round_to(a.out_type, rms_value(from[j], scale, weight[static_cast<size_t>(j)]));
      }
    }
    std::vector<uint16_t> out(want.size(), 0xdead);
    a.out = out.data();
    backends.random(random).rms_norm(a);
    const auto difference = first_difference(out, want);
    ASSERT_FALSE(difference) << backends.last() << " n " << n << " kind " << kind << " at " << *difference;
  }
}

TEST(NormCpu, AnotherOrderOfTheSumIsSeen) {
  Random random;
  SCOPED_TRACE(random.note());
  const int64_t n = 4096, count = 400;
  const std::vector<float> x = floats(random, static_cast<size_t>(n * count), 0), weight(static_cast<size_t>(n), 1.0f);
  std::vector<uint16_t> out(x.size()), defect(x.size());
  RmsNormArgs a;
  a.x = x.data();
  a.weight = weight.data();
  a.count = count;
  a.n = n;
  a.out = out.data();
  make_cpu_backend()->rms_norm(a);
  for (int64_t i = 0; i < count * n; i += n) {
    const float scale = rms_scale(narrow_sum(x.data() + i, n), n, a.eps);
    for (int64_t j = i; j < i + n; j++) {
      defect[static_cast<size_t>(j)] = f32_to_bf16(rms_value(x[static_cast<size_t>(j)], scale, 1.0f));
    }
  }
  EXPECT_TRUE(first_difference(out, defect));
}

TEST(EmbedCpu, ReadsRowsOfEveryFormat) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  for (int round = 0; round < 40; round++) {
    const int64_t vocab = 1 + random.below(70), hidden = 1 + random.below(200);
    const DType type = random.below(4) == 0 ? DType::kF16 : DType::kBF16;
    const DType stored = pick(random, {DType::kF32, DType::kBF16, DType::kF16});
    std::vector<float> wide = floats(random, static_cast<size_t>(vocab * hidden), random.below(3) == 0 ? 4 : 0);
    std::vector<uint16_t> narrow;
    for (float& x : wide) {
      if (stored == DType::kF32) continue;
      narrow.push_back(round_to(stored, x));
      x = stored == DType::kF16 ? f16_to_f32(narrow.back()) : bf16_to_f32(narrow.back());
    }
    const void* data = stored == DType::kF32 ? static_cast<const void*>(wide.data()) : narrow.data();
    const WeightPart part{stored, vocab, hidden, static_cast<const std::byte*>(data)};
    Backend& backend = backends.random(random);
    const auto table = backend.load_linear({&part, 1}, LinearForm::kStacked, type);
    std::vector<int32_t> tokens(8);
    for (int32_t& t : tokens) t = random.below(static_cast<int>(vocab) + 1) - 1;
    EmbedArgs a{table.get(), tokens.data(), 8, pick(random, {1.0f, 24.0f, 25.25f}), nullptr};
    std::vector<float> out(static_cast<size_t>(8 * hidden), from_bits(0xdeadbeef)), want(out.size(), 0.0f);
    for (size_t i = 0; i < 8; i++) {
      for (int64_t j = 0; tokens[i] >= 0 && j < hidden; j++) {
        const uint16_t w = round_to(type, wide[static_cast<size_t>(tokens[i] * hidden + j)]);
        const float x = type == DType::kF16 ? f16_to_f32(w) : bf16_to_f32(w);
        want[i * static_cast<size_t>(hidden) + static_cast<size_t>(j)] =
            canonical(a.scale == 1.0f ? x : fmul(x, a.scale));
      }
    }
    a.out = out.data();
    backend.embed(a);
    const auto difference = first_difference(out, want);
    ASSERT_FALSE(difference) << backends.last() << " " << dtype_info(stored).name << " at " << *difference;
    tokens[3] = static_cast<int32_t>(vocab);
    EXPECT_THROW(backend.embed(a), Error);
  }
}

struct RopeProblem {
  RopeCacheArgs a;
  std::vector<float> qkv, cos, sin, q_norm, k_norm, k_scale, v_scale;
  std::vector<int32_t> positions, nonfinite;
  std::vector<int64_t> slots;
  std::vector<uint16_t> q;
  std::vector<std::byte> k, v;

  void point() {
    a.qkv = qkv.data();
    a.positions = positions.data();
    a.slots = slots.data();
    a.q = q.data();
    a.nonfinite = nonfinite.empty() ? nullptr : nonfinite.data();
    a.cache.k = k.data();
    a.cache.v = v.data();
  }
};

RopeProblem random_rope(Random& random) {
  RopeProblem p;
  RopeCacheArgs& a = p.a;
  const int dim = pick(random, {16, 64, 64, 80, 96, 128, 256});
  a.cache.head_dim = dim;
  a.cache.kv_heads = 1 + random.below(3);
  a.q_heads = a.cache.kv_heads * (1 + random.below(4));
  a.cache.page_size = pick(random, {1, 7, 16});
  a.count = 1 + random.below(12);
  a.cache.pages = 1 + (a.count + 3) / a.cache.page_size;
  a.type = random.below(4) == 0 ? DType::kF16 : DType::kBF16;
  a.cache.type = random.below(4) == 0 ? DType::kF8E4M3 : a.type;
  a.layout = random.below(2) == 0 ? RopeLayout::kInterleaved : RopeLayout::kHalves;
  a.max_position = 200;
  if (random.below(5) != 0) {
    a.rope_dim = random.below(3) == 0 ? 2 * (1 + random.below(dim / 2)) : dim;
    for (int64_t at = 0; at < a.max_position; at++) {
      for (int i = 0; i < a.rope_dim / 2; i++) {
        const RopeEntry e = rope_entry(at, rope_frequency(i, a.rope_dim, 10000.0), 1.0);
        p.cos.push_back(e.cos);
        p.sin.push_back(e.sin);
      }
    }
    a.cos = p.cos.data();
    a.sin = p.sin.data();
  }
  const size_t d = static_cast<size_t>(dim);
  if (random.below(3) == 0) {
    p.q_norm = floats(random, d, 0);
    p.k_norm = floats(random, d, 0);
    a.q_norm = p.q_norm.data();
    a.k_norm = p.k_norm.data();
  }
  const size_t heads = static_cast<size_t>(a.q_heads + 2 * a.cache.kv_heads);
  p.qkv = floats(random, static_cast<size_t>(a.count) * heads * d, random.below(5));
  for (int h = 0; h < a.cache.kv_heads; h++) {
    p.k_scale.push_back(0.02f * static_cast<float>(1 + random.below(9)));
    p.v_scale.push_back(0.03f * static_cast<float>(1 + random.below(9)));
  }
  a.cache.k_scale = p.k_scale.data();
  a.cache.v_scale = p.v_scale.data();
  const int64_t all = a.cache.pages * a.cache.page_size;
  for (int64_t t = 0; t < a.count; t++) {
    p.positions.push_back(random.below(200));
    const int64_t slot =
        (t * 7 + 3) % all;  // distinct where 7 does not divide `all`; else the last one wins everywhere
    const bool taken = std::count(p.slots.begin(), p.slots.end(), slot) != 0;
    p.slots.push_back(taken || random.below(8) == 0 ? -1 : slot);
  }
  const size_t bytes = a.cache.type == DType::kF8E4M3 ? 1 : 2;
  p.k.assign(static_cast<size_t>(a.cache.pages * a.cache.page_elements()) * bytes, std::byte{0x5a});
  p.v = p.k;
  p.q.assign(static_cast<size_t>(a.count * a.q_heads) * d, 0xdead);
  if (random.below(4) != 0) p.nonfinite.assign(static_cast<size_t>(a.count), 0);
  return p;
}

// What the operator must do, element by element.
void rope_rule(RopeProblem& p) {
  const RopeCacheArgs& a = p.a;
  const int dim = a.cache.head_dim, heads = a.q_heads + 2 * a.cache.kv_heads;
  for (int64_t t = 0; t < a.count; t++) {
    const int64_t slot = p.slots[static_cast<size_t>(t)];
    if (slot < 0) continue;
    for (int h = 0; h < heads; h++) {
      const float* from = p.qkv.data() + (t * heads + h) * dim;
      std::vector<float> x(from, from + dim);
      const bool is_q = h < a.q_heads, is_v = h >= a.q_heads + a.cache.kv_heads;
      const float* norm = is_v ? nullptr : is_q ? a.q_norm : a.k_norm;
      if (norm != nullptr) {
        const float scale = rms_scale(sum_of_squares(from, dim), dim, a.norm_eps);
        for (int i = 0; i < dim; i++) x[static_cast<size_t>(i)] = rms_value(from[i], scale, norm[i]);
      }
      for (int i = 0; !is_v && a.cos != nullptr && i < a.rope_dim / 2; i++) {
        const size_t first = static_cast<size_t>(a.layout == RopeLayout::kInterleaved ? 2 * i : i);
        const size_t second =
            a.layout == RopeLayout::kInterleaved ? first + 1 : first + static_cast<size_t>(a.rope_dim / 2);
        const size_t at = static_cast<size_t>(p.positions[static_cast<size_t>(t)] * (a.rope_dim / 2) + i);
        const Rotated r = rope_rotate(x[first], x[second], {p.cos[at], p.sin[at]});
        x[first] = r.x0;
        x[second] = r.x1;
      }
      if (is_q) {
        for (int i = 0; i < dim; i++) {
          const uint16_t bits = round_to(a.type, x[static_cast<size_t>(i)]);
          p.q[static_cast<size_t>((t * a.q_heads + h) * dim + i)] = bits;
          const bool finite = std::isfinite(a.type == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits));
          if (!finite && !p.nonfinite.empty()) p.nonfinite[static_cast<size_t>(t)] = 1;
        }
        continue;
      }
      const int kv = (h - a.q_heads) % a.cache.kv_heads;
      std::vector<std::byte>& pages = is_v ? p.v : p.k;
      const float scale = (is_v ? p.v_scale : p.k_scale)[static_cast<size_t>(kv)];
      const int64_t page = slot / a.cache.page_size, offset = slot % a.cache.page_size;
      for (int i = 0; i < dim; i++) {
        const size_t at = static_cast<size_t>(((page * a.cache.kv_heads + kv) * a.cache.page_size + offset) * dim + i);
        const float y = x[static_cast<size_t>(i)];
        bool finite;
        if (a.cache.type == DType::kF8E4M3) {
          finite = std::isfinite(y);
          pages[at] = std::byte{finite ? e4m3_value(y, scale) : uint8_t{0}};
        } else {
          uint16_t bits = round_to(a.cache.type, y);
          finite = std::isfinite(a.cache.type == DType::kF16 ? f16_to_f32(bits) : bf16_to_f32(bits));
          if (!finite) bits = 0;
          std::memcpy(pages.data() + 2 * at, &bits, 2);
        }
        if (!finite && !p.nonfinite.empty()) p.nonfinite[static_cast<size_t>(t)] = 1;
      }
    }
  }
}

TEST(RopeCacheCpu, EqualsTheRule) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  int flagged = 0;
  for (int round = 0; round < 250; round++) {
    RopeProblem p = random_rope(random), want = p;
    p.point();
    backends.random(random).rope_cache(p.a);
    rope_rule(want);
    SCOPED_TRACE(fmt::format("round {} {}", round, backends.last()));
    ASSERT_FALSE(first_difference(p.q, want.q));
    ASSERT_FALSE(first_difference(p.k, want.k));
    ASSERT_FALSE(first_difference(p.v, want.v));
    ASSERT_FALSE(first_difference(p.nonfinite, want.nonfinite));
    for (const int32_t f : p.nonfinite) flagged += f;
  }
  EXPECT_GT(flagged, 0);
}

TEST(RopeCacheCpu, AComparisonSeesTheOtherLayout) {
  Random random;
  SCOPED_TRACE(random.note());
  Backends backends;
  RopeProblem p = random_rope(random);
  while (p.a.cos == nullptr || p.a.rope_dim < 16 || p.slots[0] < 0) p = random_rope(random);
  RopeProblem want = p;
  want.a.layout = p.a.layout == RopeLayout::kHalves ? RopeLayout::kInterleaved : RopeLayout::kHalves;
  for (float& x : p.qkv) x = random.normal();
  want.qkv = p.qkv;
  p.point();
  backends.get("", 1).rope_cache(p.a);
  rope_rule(want);
  EXPECT_TRUE(first_difference(p.q, want.q));
}

TEST(BackendCpu, MemoryIsZeroAlignedAndTheSizeIsReported) {
  const auto backend = make_cpu_backend({1, ""});
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{255}, size_t{4097}}) {
    const Buffer b = backend->allocate(bytes, "test");
    ASSERT_EQ(b.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(b.data()) % 256, 0u);
    for (size_t i = 0; i < bytes; i++) EXPECT_EQ(b.data<char>()[i], 0);
  }
  try {
    backend->allocate(size_t{1} << 60, "a cache too large");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kOutOfMemory);
    EXPECT_NE(std::string(e.what()).find("a cache too large"), std::string::npos);
  }
}

TEST(BackendCpu, UnknownTargetsAreNamed) {
  try {
    make_cpu_backend({1, "mmx"});
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kUnsupported);
    for (const std::string& name : cpu::simd_target_names()) {
      EXPECT_NE(std::string(e.what()).find(name), std::string::npos) << e.what();
    }
  }
  EXPECT_THROW(make_cpu_backend({-1, ""}), Error);
}

}  // namespace
}  // namespace isobit::testing
