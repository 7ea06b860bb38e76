// Recomputes every line of the `example` blocks of docs/numerics.md: name(arguments) = results  # remark.
// Hex arguments are the bits of the argument's type, decimal ones the nearest value of it; x*4 is x four times; lists
// are filled up with zeros.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "numerics/activation.h"
#include "numerics/attention.h"
#include "numerics/gemm.h"
#include "numerics/kv_cache.h"
#include "numerics/moe.h"
#include "numerics/norm.h"
#include "numerics/philox.h"
#include "numerics/quantize.h"
#include "numerics/rope.h"
#include "numerics/rope_scaling.h"
#include "numerics/sampling.h"

namespace isobit {
namespace {

using namespace numerics;  // NOLINT: a table of all its functions

bool is_hex(const std::string& s) { return s.rfind("0x", 0) == 0; }
uint64_t as_integer(const std::string& s) { return std::strtoull(s.c_str(), nullptr, 0); }
float as_f32(const std::string& s) {
  return is_hex(s) ? from_bits(static_cast<uint32_t>(as_integer(s))) : std::strtof(s.c_str(), nullptr);
}
double as_f64(const std::string& s) { return is_hex(s) ? from_bits64(as_integer(s)) : std::strtod(s.c_str(), nullptr); }

std::string show(float x) { return fmt::format("0x{:08x}", bits(canonical(x))); }
std::string show(double x) { return fmt::format("0x{:016x}", bits64(x)); }
std::string show(uint8_t x) { return fmt::format("0x{:02x}", x); }
std::string show(uint16_t x) { return fmt::format("0x{:04x}", x); }
std::string show(uint32_t x) { return fmt::format("0x{:08x}", x); }
std::string show(uint64_t x) { return fmt::format("0x{:016x}", x); }
std::string show(int64_t x) { return std::to_string(x); }
std::string show(bool x) { return x ? "yes" : "no"; }
template <typename A, typename B, typename... More>
std::string show(A a, B b, More... more) {
  return fmt::format("{} {}", show(a), show(b, more...));
}

class Arguments {
 public:
  explicit Arguments(const std::string& text) {
    std::string word;
    int depth = 0;
    for (const char c : text + ",") {
      depth += (c == '[') - (c == ']');
      if (c == ',' && depth == 0) {
        words_.push_back(trimmed(word));
        word.clear();
      } else {
        word += c;
      }
    }
  }
  const std::string& operator[](size_t i) const { return words_.at(i); }
  float f(size_t i) const { return as_f32(words_.at(i)); }
  double d(size_t i) const { return as_f64(words_.at(i)); }
  uint64_t u(size_t i) const { return as_integer(words_.at(i)); }
  uint32_t u32(size_t i) const { return static_cast<uint32_t>(u(i)); }
  int n(size_t i) const { return static_cast<int>(std::strtol(words_.at(i).c_str(), nullptr, 0)); }
  std::vector<std::string> list(size_t i) const {
    std::vector<std::string> out;
    std::istringstream in(words_.at(i).substr(1, words_.at(i).size() - 2));
    for (std::string w; in >> w;) {
      const size_t star = w.find('*');
      const uint64_t times = star == std::string::npos ? 1 : as_integer(w.substr(star + 1));
      out.insert(out.end(), times, w.substr(0, star));
    }
    return out;
  }
  template <typename T>
  std::vector<T> integers(size_t i, size_t at_least = 0) const {
    std::vector<T> out;
    for (const auto& w : list(i)) out.push_back(static_cast<T>(as_integer(w)));
    out.resize(std::max(out.size(), at_least));
    return out;
  }
  std::vector<float> floats(size_t i, size_t at_least = 0) const {
    std::vector<float> out;
    for (const auto& w : list(i)) out.push_back(as_f32(w));
    out.resize(std::max(out.size(), at_least));
    return out;
  }

  static std::string trimmed(const std::string& s) {
    const size_t a = s.find_first_not_of(' '), b = s.find_last_not_of(' ');
    return a == std::string::npos ? "" : s.substr(a, b - a + 1);
  }

 private:
  std::vector<std::string> words_;
};

std::string attention(const Arguments& a) {
  const auto q = a.integers<uint16_t>(0), k = a.integers<uint16_t>(1), v = a.integers<uint16_t>(2);
  const int dim = static_cast<int>(q.size());
  std::vector<uint16_t> out(q.size());
  attention_row<Operand::kBF16>(
      q.data(), dim, static_cast<int64_t>(k.size() / q.size()), [&](int64_t j) { return k.data() + j * dim; },
      [&](int64_t j) { return v.data() + j * dim; }, [](int64_t) { return true; }, {a.f(3), 0.0f}, nullptr, out.data());
  return show(out[0]);
}

// Over an FP8 cache with scales of k and v.
std::string attention_fp8(const Arguments& a) {
  const auto q = a.integers<uint16_t>(0);
  const auto k = a.integers<uint8_t>(1), v = a.integers<uint8_t>(2);
  const int dim = static_cast<int>(q.size());
  std::vector<uint16_t> keys, values, out(q.size());
  std::transform(k.begin(), k.end(), std::back_inserter(keys), cached_bf16);
  std::transform(v.begin(), v.end(), std::back_inserter(values), cached_bf16);
  attention_row<Operand::kBF16>(
      q.data(), dim, static_cast<int64_t>(keys.size() / q.size()), [&](int64_t j) { return keys.data() + j * dim; },
      [&](int64_t j) { return values.data() + j * dim; }, [](int64_t) { return true; },
      scale_of_cached(a.f(3), 0.0f, a.f(4), a.f(5)), nullptr, out.data());
  return show(out[0]);
}

std::string grow(const Arguments& a) {
  AttentionSums s;
  s.r = a.f(0);
  const float alpha = attention_grow(s, a.f(1), 1.0f);
  return show(alpha, s.r);
}

std::string add_16(const Arguments& a) {
  AttentionSums s;
  attention_add_16(s, a.floats(0, 16).data(), a.f(1));
  return show(s.l[0], s.l[1], s.l[2], s.l[3]);
}

using Function = std::function<std::string(const Arguments&)>;

std::map<std::string, Function> functions() {
  using A = const Arguments&;
  std::map<std::string, Function> f;
  f["fadd"] = [](A a) { return show(fadd(a.f(0), a.f(1))); };
  f["fmul"] = [](A a) { return show(fmul(a.f(0), a.f(1))); };
  f["fmax"] = [](A a) { return show(numerics::fmax(a.f(0), a.f(1))); };
  f["ffma"] = [](A a) { return show(ffma(a.f(0), a.f(1), a.f(2))); };
  f["f32_to_bf16"] = [](A a) { return show(f32_to_bf16(a.f(0))); };
  f["f32_to_f16"] = [](A a) { return show(f32_to_f16(a.f(0))); };
  f["f32_to_e4m3"] = [](A a) { return show(f32_to_e4m3(a.f(0))); };
  f["f16_to_f32"] = [](A a) { return show(f16_to_f32(static_cast<uint16_t>(a.u(0)))); };
  f["e4m3_to_f32"] = [](A a) { return show(e4m3_to_f32(static_cast<uint8_t>(a.u(0)))); };
  f["dot16_bf16"] = [](A a) {
    return show(dot16<Operand::kBF16>(a.f(0), a.integers<uint16_t>(1, 16).data(), a.integers<uint16_t>(2, 16).data()));
  };
  f["dot16_f16"] = [](A a) {
    return show(dot16<Operand::kF16>(a.f(0), a.integers<uint16_t>(1, 16).data(), a.integers<uint16_t>(2, 16).data()));
  };
  f["dot32"] = [](A a) {
    return show(dot32(a.f(0), a.integers<uint8_t>(1, 32).data(), a.integers<uint8_t>(2, 32).data()));
  };
  f["ex2"] = [](A a) { return show(ex2(a.f(0))); };
  f["ln"] = [](A a) { return show(ln(a.d(0))); };
  f["exp"] = [](A a) { return show(numerics::exp(a.d(0))); };
  f["sin"] = [](A a) { return show(sin_cos(a.d(0)).sin); };
  f["cos"] = [](A a) { return show(sin_cos(a.d(0)).cos); };
  f["round_even"] = [](A a) { return show(round_even(a.d(0))); };
  f["gemm_chunk_k"] = [](A a) { return show(gemm_chunk_k(a.n(0), a.n(1))); };
  f["gemm_dot"] = [](A a) {
    return show(gemm_dot(a.integers<uint16_t>(0).data(), a.integers<uint16_t>(1).data(), a.n(2), a.n(2)));
  };
  f["gemm_fp8_dot"] = [](A a) {
    return show(gemm_fp8_dot(a.integers<uint8_t>(0).data(), a.integers<uint8_t>(1).data(), a.floats(2).data(),
                             a.floats(3).data(), a.n(4)));
  };
  f["combine"] = [](A a) {
    const auto weight = a.floats(0);
    return show(combine(weight.data(), a.floats(1).data(), static_cast<int64_t>(weight.size())));
  };
  f["sum_of_squares"] = [](A a) {
    const auto x = a.floats(0);
    return show(sum_of_squares(x.data(), static_cast<int64_t>(x.size())));
  };
  f["rms_scale"] = [](A a) { return show(rms_scale(a.f(0), a.n(1), a.f(2))); };
  f["rms_value"] = [](A a) { return show(rms_value(a.f(0), a.f(1), a.f(2))); };
  f["rope_frequency"] = [](A a) { return show(rope_frequency(a.n(0), a.n(1), a.d(2))); };
  f["rope_entry"] = [](A a) {
    const RopeEntry e = rope_entry(a.n(0), a.d(1), a.d(2));
    return show(e.cos, e.sin);
  };
  f["rope_rotate"] = [](A a) {
    const Rotated r = rope_rotate(a.f(0), a.f(1), {a.f(2), a.f(3)});
    return show(r.x0, r.x1);
  };
  f["rope_linear"] = [](A a) { return show(rope_linear(a.d(0), a.d(1))); };
  f["rope_long"] = [](A a) { return show(rope_long(a.d(0), a.f(1))); };
  f["rope_llama3"] = [](A a) { return show(rope_llama3(a.d(0), a.d(1), a.d(2), a.d(3), a.d(4))); };
  f["yarn_range"] = [](A a) {
    const YarnRange r = yarn_range(a.d(0), a.d(1), a.n(2), a.d(3), a.d(4), a.n(5) != 0);
    return show(r.low, r.high);
  };
  f["rope_yarn"] = [](A a) { return show(rope_yarn(a.d(0), a.n(1), a.d(2), {a.d(3), a.d(4)})); };
  f["yarn_magnitude"] = [](A a) { return show(yarn_magnitude(a.d(0), a.d(1))); };
  f["long_magnitude"] = [](A a) { return show(long_magnitude(a.d(0), a.d(1))); };
  f["attention_grow"] = grow;
  f["attention_p"] = [](A a) { return show(attention_p(a.f(0), a.f(1), a.f(2))); };
  f["attention_add_16"] = add_16;
  f["attention"] = attention;
  f["attention_fp8"] = attention_fp8;
  f["cache_e4m3"] = [](A a) {
    bool finite = true;
    const uint8_t e = cache_e4m3(a.f(0), a.f(1), finite);
    return show(e, finite);
  };
  f["cached_bf16"] = [](A a) { return show(cached_bf16(static_cast<uint8_t>(a.u(0)))); };
  f["scale_of_cached"] = [](A a) {
    const AttentionScale s = scale_of_cached(a.f(0), 0.0f, a.f(1), a.f(2));
    return show(s.scale, s.value);
  };
  f["silu"] = [](A a) { return show(silu(a.f(0))); };
  f["tanh"] = [](A a) { return show(numerics::tanh(a.f(0))); };
  f["gelu_tanh"] = [](A a) { return show(gelu_tanh(a.f(0))); };
  f["soft_capped"] = [](A a) { return show(soft_capped(a.f(0), a.f(1))); };
  f["process_logit"] = [](A a) {
    return show(process_logit(a.f(0), a.f(1), {a.f(2), a.f(3), a.f(4)}, a.n(5) != 0, a.n(6), a.f(7)));
  };
  f["order_key"] = [](A a) { return show(order_key(a.f(0))); };
  f["relative_log2"] = [](A a) { return show(relative_log2(a.f(0), a.f(1))); };
  f["mass"] = [](A a) { return show(mass(a.f(0), a.f(1))); };
  f["log_probability"] = [](A a) { return show(log_probability(a.f(0), a.f(1), a.u(2))); };
  f["philox"] = [](A a) {
    const PhiloxWords w = philox4x32(a.u(0), {{a.u32(1), a.u32(2), a.u32(3), a.u32(4)}});
    return show(w.w[0], w.w[1], w.w[2], w.w[3]);
  };
  f["noise_bits"] = [](A a) {
    return show(noise_bits(a.u(0), a.u32(1), a.u32(2), static_cast<NoisePurpose>(a.u(3)), a.u32(4)));
  };
  f["gumbel"] = [](A a) { return show(gumbel(a.u32(0))); };
  f["top_p_threshold"] = [](A a) { return show(top_p_threshold(a.f(0))); };
  f["top_p_keeps"] = [](A a) { return show(top_p_keeps(a.u(0), a.u(1), a.u(2))); };
  f["min_p_threshold"] = [](A a) { return show(min_p_threshold(a.f(0))); };
  f["min_p_keeps"] = [](A a) { return show(min_p_keeps(a.f(0), a.f(1), a.f(2))); };
  f["candidate_key"] = [](A a) { return show(candidate_key(a.f(0), a.u32(1))); };
  f["e4m3_scale"] = [](A a) { return show(e4m3_scale(a.f(0))); };
  f["e4m3_value"] = [](A a) { return show(e4m3_value(a.f(0), a.f(1))); };
  return f;
}

TEST(DocExamples, AreWhatTheFunctionsGive) {
  std::ifstream in(std::string(ISOBIT_SOURCE_DIR) + "/docs/numerics.md");
  ASSERT_TRUE(in);
  const auto table = functions();
  std::map<std::string, int> seen;
  std::string line, section;
  std::map<std::string, int> in_section;
  bool example = false;
  for (int number = 1; std::getline(in, line); number++) {
    if (line.rfind("## ", 0) == 0)
      section = line.substr(3, line.find('.') == std::string::npos ? 3 : line.find('.') - 3);
    if (line.rfind("```", 0) == 0) {
      example = line == "```example";
      continue;
    }
    if (!example || line.empty()) continue;
    const size_t open = line.find('('), close = line.find(") = ");
    ASSERT_NE(open, std::string::npos) << "line " << number;
    ASSERT_NE(close, std::string::npos) << "line " << number;
    const std::string name = line.substr(0, open);
    ASSERT_TRUE(table.contains(name)) << "line " << number << ": " << name;
    const std::string expected = Arguments::trimmed(line.substr(close + 4, line.find('#') - close - 4));
    const std::string got = table.at(name)(Arguments(line.substr(open + 1, close - open - 1)));
    EXPECT_EQ(got, expected) << "EXAMPLE " << number << " " << got;
    seen[name]++;
    in_section[section]++;
  }
  for (const auto& [name, unused] : table) EXPECT_GT(seen[name], 0) << name << " has no example";
  for (int n = 1; n <= 21; n++) {
    EXPECT_GT(in_section["N" + std::to_string(n)], 0) << "rule N" << n << " has no worked example";
  }
}

TEST(DocExamples, TheDocumentNamesThisVersion) {
  std::ifstream in(std::string(ISOBIT_SOURCE_DIR) + "/docs/numerics.md");
  std::stringstream text;
  text << in.rdbuf();
  EXPECT_NE(text.str().find("**Version `" + std::string(kContractVersion) + "`.**"), std::string::npos);
}

}  // namespace
}  // namespace isobit
