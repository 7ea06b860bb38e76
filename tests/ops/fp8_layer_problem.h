#pragma once
// A layer's operators on block-scaled matrices, on any backend, and the same by the scalar rules.
#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "numerics/activation.h"
#include "numerics/gemm.h"
#include "numerics/norm.h"
#include "numerics/quantize.h"
#include "numerics/testing.h"
#include "ops/backend.h"
#include "ops/gemm_fp8.h"

namespace isobit::testing {

// A matrix as a file has it: e4m3 [rows, k] and scales [⌈rows/128⌉, ⌈k/128⌉].
struct Fp8Matrix {
  int64_t rows = 0, k = 0;
  std::vector<uint8_t> values;
  std::vector<float> scales;

  Fp8Matrix(Random& r, int64_t rows_, int64_t k_)
      : rows(rows_),
        k(k_),
        values(static_cast<size_t>(rows * k)),
        scales(static_cast<size_t>(fp8_blocks(rows) * fp8_blocks(k))) {
    for (uint8_t& v : values) {
      v = static_cast<uint8_t>(r.bits());
      if ((v & 0x7f) == 0x7f) v = 0x21;
    }
    for (float& s : scales)
      s = std::ldexp(1.0f + static_cast<float>(r.below(1000)) / 1000.0f, static_cast<int>(r.range(-14, -9)));
  }
  WeightPart part() const {
    return {DType::kF8E4M3, rows, k, reinterpret_cast<const std::byte*>(values.data()),
            reinterpret_cast<const std::byte*>(scales.data())};
  }
};

inline uint16_t narrow(DType type, float v) {
  return type == DType::kBF16 ? numerics::f32_to_bf16(v) : numerics::f32_to_f16(v);
}
inline float widen(DType type, uint16_t v) {
  return type == DType::kBF16 ? numerics::bf16_to_f32(v) : numerics::f16_to_f32(v);
}

struct Fp8LayerProblem {
  int64_t m = 0, k = 0;
  std::vector<int64_t> rows;  // of the parts
  LinearForm form = LinearForm::kStacked;
  Epilogue epilogue = Epilogue::kStoreF32;
  DType type = DType::kBF16;
  bool biased = false;

  int64_t n() const {
    int64_t sum = 0;
    for (const int64_t r : rows) sum += r;
    return sum;
  }
  bool gated() const { return form == LinearForm::kGated; }
  int64_t outputs() const { return gated() ? n() / 2 : n(); }
  bool wide() const { return epilogue == Epilogue::kStoreF32 || epilogue == Epilogue::kAddResidual; }
  std::string text() const {
    return fmt::format("m {} k {} rows {} gated {} epilogue {} {} bias {}", m, k, fmt::join(rows, "+"), gated(),
                       static_cast<int>(epilogue), dtype_info(type).name, biased);
  }

  static Fp8LayerProblem draw(Random& r, int64_t most_m, int64_t most_n, int64_t most_k) {
    const auto size = [&](int64_t most) {
      return static_cast<int64_t>(std::exp(r.between(0.0, std::log(static_cast<double>(most)))));
    };
    Fp8LayerProblem p;
    p.m = size(most_m);
    p.k = size(most_k);
    p.form = r.below(3) == 0 ? LinearForm::kGated : LinearForm::kStacked;
    const int parts = p.gated() ? 2 : 1 + r.below(3);
    for (int i = 0; i < parts; i++) p.rows.push_back(p.gated() && i == 1 ? p.rows[0] : size(most_n));
    if (!p.gated() && parts > 1 && r.below(2) == 0) p.rows[0] = (p.rows[0] + 127) / 128 * 128;  // joined with the next
    constexpr Epilogue kPlain[] = {Epilogue::kStoreF32, Epilogue::kStoreRounded, Epilogue::kAddResidual};
    p.epilogue = p.gated() ? (r.below(2) == 0 ? Epilogue::kSiluMul : Epilogue::kGeluMul) : kPlain[r.below(3)];
    p.type = r.below(3) == 0 ? DType::kF16 : DType::kBF16;
    p.biased = !p.gated() && r.below(2) == 0;
    return p;
  }
};

// Drawn inputs of a problem.
struct Fp8LayerData {
  Fp8LayerProblem p;
  std::vector<Fp8Matrix> parts;
  std::vector<float> residual, norm_weight, bias, old;  // residual: the norm's input [m, k]; old: [m, outputs]
  std::vector<uint16_t> x;                              // [m, k]

  Fp8LayerData(Random& r, const Fp8LayerProblem& problem) : p(problem) {
    for (const int64_t rows : p.rows) parts.emplace_back(r, rows, p.k);
    const auto normal = [&](int64_t count) {
      std::vector<float> v(static_cast<size_t>(count));
      for (float& f : v) f = static_cast<float>(r.normal());
      return v;
    };
    residual = normal(p.m * p.k);
    norm_weight = normal(p.k);
    bias = normal(p.n());
    old = normal(p.m * p.outputs());
    for (const float f : normal(p.m * p.k)) x.push_back(narrow(p.type, f));
  }
};

// Bytes in a backend's memory.
template <typename T>
Buffer to_backend(Backend& b, const std::vector<T>& v) {
  Buffer buffer = b.allocate(v.size() * sizeof(T), "a test's input");
  b.upload(buffer.data(), v.data(), v.size() * sizeof(T));
  return buffer;
}

inline std::vector<std::byte> from_backend(Backend& b, const Buffer& buffer) {
  std::vector<std::byte> v(buffer.bytes());
  b.download(v.data(), buffer.data(), v.size());
  return v;
}

// The norm before a layer of this shape.
inline RmsNormArgs norm_of(const Fp8LayerProblem& p, const Buffer& residual, const Buffer& weight, const Buffer& out) {
  RmsNormArgs n;
  n.x = residual.data<float>();
  n.weight = weight.data<float>();
  n.count = p.m;
  n.n = p.k;
  n.out_type = p.type;
  n.out = out.data<uint16_t>();
  return n;
}

// What the operators make of it; normed: behind the RMSNorm of `residual`, else of x.
inline std::vector<std::byte> run_fp8_layer(Backend& b, const Fp8LayerData& d, bool normed) {
  const Fp8LayerProblem& p = d.p;
  std::vector<WeightPart> parts;
  for (const Fp8Matrix& m : d.parts) parts.push_back(m.part());
  const auto w = b.load_linear(parts, p.form, p.type);
  const Buffer x = to_backend(b, d.x), residual = to_backend(b, d.residual), weight = to_backend(b, d.norm_weight),
               bias = to_backend(b, d.bias);
  const size_t bytes = static_cast<size_t>(p.m * p.outputs()) * (p.wide() ? 4 : 2);
  Buffer out = b.allocate(bytes, "a test's output");
  const std::vector<std::byte> poison(bytes, std::byte{0xcd});
  b.upload(out.data(), p.epilogue == Epilogue::kAddResidual ? static_cast<const void*>(d.old.data()) : poison.data(),
           bytes);
  GemmArgs g;
  g.x = x.data<uint16_t>();
  g.m = p.m;
  g.w = w.get();
  g.bias = p.biased ? bias.data<float>() : nullptr;
  g.epilogue = p.epilogue;
  g.type = p.type;
  g.out = out.data();
  if (normed) {
    b.norm_gemm(norm_of(p, residual, weight, x), g);
  } else {
    b.gemm(g);
  }
  return from_backend(b, out);
}

// An FFN from the residual stream onto it, k wide and with `ffn` hidden values: gate and up, down.
struct Fp8FfnData {
  Fp8LayerData up, down;

  Fp8FfnData(Random& r, const Fp8LayerProblem& shape, int64_t ffn)
      : up(r, with(shape, LinearForm::kGated, {ffn, ffn})), down(r, onto_residual(shape, ffn)) {}

 private:
  static Fp8LayerProblem with(Fp8LayerProblem p, LinearForm form, std::vector<int64_t> rows) {
    p.form = form;
    p.rows = std::move(rows);
    return p;
  }
  static Fp8LayerProblem onto_residual(const Fp8LayerProblem& shape, int64_t ffn) {
    Fp8LayerProblem p = with(shape, LinearForm::kStacked, {shape.k});
    p.k = ffn;
    p.epilogue = Epilogue::kAddResidual;
    return p;
  }
};

// The residual stream behind the FFN, in one call or its operators one by one.
inline std::vector<std::byte> run_fp8_ffn(Backend& b, const Fp8FfnData& d, bool fused) {
  const Fp8LayerProblem& p = d.up.p;
  const WeightPart up_parts[] = {d.up.parts[0].part(), d.up.parts[1].part()}, down_parts[] = {d.down.parts[0].part()};
  const auto up_weights = b.load_linear(up_parts, p.form, p.type);
  const auto down_weights = b.load_linear(down_parts, d.down.p.form, p.type);
  const Buffer residual = to_backend(b, d.up.residual), weight = to_backend(b, d.up.norm_weight),
               bias = to_backend(b, d.down.bias);
  const Buffer normed = b.allocate(static_cast<size_t>(p.m * p.k) * 2, "normed"),
               hidden = b.allocate(static_cast<size_t>(p.m * d.down.p.k) * 2, "hidden");
  const RmsNormArgs n = norm_of(p, residual, weight, normed);
  GemmArgs up;
  up.x = normed.data<uint16_t>();
  up.m = p.m;
  up.w = up_weights.get();
  up.epilogue = p.epilogue;
  up.type = p.type;
  up.out = hidden.data();
  GemmArgs down;
  down.x = hidden.data<uint16_t>();
  down.m = p.m;
  down.w = down_weights.get();
  down.bias = d.down.p.biased ? bias.data<float>() : nullptr;
  down.epilogue = d.down.p.epilogue;
  down.type = p.type;
  down.out = residual.data();
  if (fused) {
    b.norm_gemm_gemm(n, up, down);
  } else {
    b.rms_norm(n);
    b.gemm(up);
    b.gemm(down);
  }
  return from_backend(b, residual);
}

// The same by rules N8, N18, N16 and N7's epilogues.
class Fp8LayerReference {
 public:
  Fp8LayerReference(const Fp8LayerData& d, bool normed) : d_(d) {
    const int64_t k = d.p.k;
    for (int64_t i = 0; i < d.p.m; i++) {
      std::vector<float> row(static_cast<size_t>(k));
      const float* in = &d.residual[static_cast<size_t>(i * k)];
      const float scale = numerics::rms_scale(numerics::sum_of_squares(in, k), k, RmsNormArgs().eps);
      for (int64_t j = 0; j < k; j++) {
        const uint16_t h =
            normed ? narrow(d.p.type, numerics::rms_value(in[j], scale, d.norm_weight[static_cast<size_t>(j)]))
                   : d.x[static_cast<size_t>(i * k + j)];
        row[static_cast<size_t>(j)] = widen(d.p.type, h);
      }
      quantise(row);
    }
  }

  // The bits of output (i, j).
  uint32_t at(int64_t i, int64_t j) const {
    const Fp8LayerProblem& p = d_.p;
    if (p.gated()) {
      const float gate = dot(i, 0, j), up = dot(i, 1, j);
      const float act = p.epilogue == Epilogue::kSiluMul ? numerics::silu(gate) : numerics::gelu_tanh(gate);
      return narrow(p.type, numerics::fmul(act, up));
    }
    size_t part = 0;
    int64_t row = j;
    while (row >= p.rows[part]) row -= p.rows[part++];
    float v = dot(i, part, row);
    if (p.biased) v = numerics::fadd(v, d_.bias[static_cast<size_t>(j)]);
    if (p.epilogue == Epilogue::kAddResidual) v = numerics::fadd(d_.old[static_cast<size_t>(i * p.outputs() + j)], v);
    return p.wide() ? numerics::bits(numerics::canonical(v)) : narrow(p.type, v);
  }

 private:
  void quantise(const std::vector<float>& row) {
    for (size_t b = 0; b < row.size(); b += 128) {
      float amax = 0.0f;
      const size_t end = std::min(b + 128, row.size());
      for (size_t j = b; j < end; j++) amax = numerics::fmax(amax, std::fabs(row[j]));
      scale_.push_back(numerics::e4m3_scale(amax));
      for (size_t j = b; j < end; j++) x_.push_back(numerics::e4m3_value(row[j], scale_.back()));
    }
  }
  float dot(int64_t i, size_t part, int64_t row) const {
    const int64_t k = d_.p.k, blocks = fp8_blocks(k);
    const Fp8Matrix& w = d_.parts[part];
    return numerics::gemm_fp8_dot(&x_[static_cast<size_t>(i * k)], &w.values[static_cast<size_t>(row * k)],
                                  &scale_[static_cast<size_t>(i * blocks)],
                                  &w.scales[static_cast<size_t>(row / 128 * blocks)], k);
  }

  const Fp8LayerData& d_;
  std::vector<uint8_t> x_;
  std::vector<float> scale_;
};

}  // namespace isobit::testing
