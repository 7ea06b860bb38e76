// Errors of rule N10's attention against float64, on the contract's scalar form (every backend has its bits).
//   attention_error              of several blocks B and super-blocks S (the table in docs/numerics.md)
//   attention_error FILE...      beside another's, on inputs and answers that tools/attention_flash.py has left in FILE
// Build: g++ -std=c++20 -O2 -ffp-contract=off -Isrc -o attention_error tools/attention_error.cpp
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "numerics/attention.h"
#include "numerics/convert.h"

namespace {

using namespace isobit::numerics;

// One head, causal; row i's query stands at position[i]. All bf16.
struct Problem {
  int dim = 0, keys = 0;
  std::vector<int32_t> position;
  std::vector<uint16_t> q, k, v;
  int rows() const { return static_cast<int>(position.size()); }
};

struct Error {
  double largest = 0, sum = 0;
  int64_t count = 0;
  void add(double got, double want) {
    const double e = std::abs(got - want);
    largest = std::max(largest, e);
    sum += e * e;
    count++;
  }
  double rms() const { return std::sqrt(sum / static_cast<double>(count)); }
};

std::vector<double> exact_row(const Problem& p, int row) {
  const int n = p.position[row] + 1;
  std::vector<double> score(n), out(p.dim);
  const double scale = 1.0 / std::sqrt(static_cast<double>(p.dim));
  for (int j = 0; j < n; j++) {
    for (int d = 0; d < p.dim; d++) {
      score[j] += static_cast<double>(bf16_to_f32(p.q[static_cast<size_t>(row) * p.dim + d])) *
                  static_cast<double>(bf16_to_f32(p.k[static_cast<size_t>(j) * p.dim + d]));
    }
    score[j] *= scale;
  }
  const double largest = *std::max_element(score.begin(), score.end());
  double sum = 0;
  for (int j = 0; j < n; j++) {
    const double w = std::exp(score[j] - largest);
    sum += w;
    for (int d = 0; d < p.dim; d++) {
      out[d] += w * static_cast<double>(bf16_to_f32(p.v[static_cast<size_t>(j) * p.dim + d]));
    }
  }
  for (double& o : out) o /= sum;
  return out;
}

std::vector<uint16_t> contract_row(const Problem& p, int row, const AttentionBlocks& blocks) {
  std::vector<uint16_t> out(p.dim);
  const auto at = [&](const std::vector<uint16_t>& m) {
    return [&m, d = p.dim](int64_t j) { return m.data() + j * d; };
  };
  const AttentionScale scale{1.0f / std::sqrt(static_cast<float>(p.dim))};
  attention_row<Operand::kBF16>(
      p.q.data() + static_cast<size_t>(row) * p.dim, p.dim, p.position[row] + 1, at(p.k), at(p.v),
      [](int64_t) { return true; }, scale, nullptr, out.data(), blocks);
  return out;
}

void add(Error& e, const uint16_t* got, const std::vector<double>& want) {
  for (size_t d = 0; d < want.size(); d++) e.add(bf16_to_f32(got[d]), want[d]);
}

Problem random_problem(int dim, int keys, int rows, float sharpness) {
  std::mt19937_64 random(static_cast<uint64_t>(dim));
  std::normal_distribution<float> normal;
  Problem p;
  p.dim = dim, p.keys = keys;
  p.position.assign(rows, keys - 1);
  const auto fill = [&](std::vector<uint16_t>& m, int count, float amplitude) {
    m.resize(static_cast<size_t>(count) * dim);
    for (uint16_t& x : m) x = f32_to_bf16(amplitude * normal(random));
  };
  fill(p.q, rows, std::sqrt(sharpness));
  fill(p.k, keys, std::sqrt(sharpness));
  fill(p.v, keys, 1.0f);
  return p;
}

void weigh_choices() {
  constexpr int kKeys = 8192, kRows = 16;
  std::printf("largest and root mean square error, bf16, %d queries on %d keys\n", kRows, kKeys);
  for (const int dim : {64, 128, 256}) {
    for (const float sharpness : {1.0f, 4.0f}) {
      const Problem p = random_problem(dim, kKeys, kRows, sharpness);
      std::vector<std::vector<double>> exact;
      for (int row = 0; row < p.rows(); row++) exact.push_back(exact_row(p, row));
      for (const int block : {64, 128}) {
        for (const int super : {512, 1024, 2048, 4096}) {
          Error e;
          for (int row = 0; row < p.rows(); row++) add(e, contract_row(p, row, {block, super}).data(), exact[row]);
          std::printf("D %d sharpness %g B %d S %d: %.3g %.4g\n", dim, static_cast<double>(sharpness), block, super,
                      e.largest, e.rms());
        }
      }
    }
  }
}

template <typename T>
std::vector<T> read(std::ifstream& in, size_t count) {
  std::vector<T> v(count);
  in.read(reinterpret_cast<char*>(v.data()), static_cast<std::streamsize>(count * sizeof(T)));
  return v;
}

// Little-endian: head_dim, keys, rows (int32), positions (int32), q, k, v, the other's output (bf16).
bool compare(const char* path) {
  std::ifstream in(path, std::ios::binary);
  const std::vector<int32_t> sizes = read<int32_t>(in, 3);
  if (!in) {
    std::fprintf(stderr, "attention_error: %s cannot be read\n", path);
    return false;
  }
  Problem p;
  p.dim = sizes[0], p.keys = sizes[1];
  p.position = read<int32_t>(in, static_cast<size_t>(sizes[2]));
  const size_t rows = static_cast<size_t>(p.rows()) * p.dim, keys = static_cast<size_t>(p.keys) * p.dim;
  p.q = read<uint16_t>(in, rows), p.k = read<uint16_t>(in, keys), p.v = read<uint16_t>(in, keys);
  const std::vector<uint16_t> other = read<uint16_t>(in, rows);
  if (!in) {
    std::fprintf(stderr, "attention_error: %s is too short\n", path);
    return false;
  }
  Error ours, theirs;
  for (int row = 0; row < p.rows(); row++) {
    const std::vector<double> exact = exact_row(p, row);
    add(ours, contract_row(p, row, attention_blocks(p.dim)).data(), exact);
    add(theirs, other.data() + static_cast<size_t>(row) * p.dim, exact);
  }
  std::printf("%s: D %d, %d of %d rows: isobit %.4g %.5g, the other %.4g %.5g (largest, rms)\n", path, p.dim, p.rows(),
              p.keys, ours.largest, ours.rms(), theirs.largest, theirs.rms());
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) weigh_choices();
  bool good = true;
  for (int i = 1; i < argc; i++) good = compare(argv[i]) && good;
  return good ? 0 : 1;
}
