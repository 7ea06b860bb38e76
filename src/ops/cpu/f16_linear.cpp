#include "ops/cpu/f16_linear.h"

#include <algorithm>
#include <cstring>

#include "numerics/convert.h"
#include "numerics/dequantize.h"

namespace isobit::cpu {
namespace {

void read_f16(std::span<const WeightPart> parts, int64_t row, uint16_t* to, float* wide) {
  const WeightPart* p = parts.data();
  for (; row >= p->rows; p++) row -= p->rows;
  const auto k = static_cast<size_t>(p->cols);
  const std::byte* from = p->data + static_cast<size_t>(row) * dtype_bytes(p->dtype, k);
  if (p->dtype == DType::kF16) {
    std::memcpy(to, from, k * sizeof(uint16_t));
    return;
  }
  numerics::dequantize_row_f32(p->dtype, from, p->cols, wide);
  std::transform(wide, wide + k, to, numerics::f32_to_f16);
}

bool is_finite(uint16_t h) { return (h & 0x7c00) != 0x7c00; }

// Sixteen rows, made one panel.
class PanelWriter {
 public:
  explicit PanelWriter(int64_t k) : row_(static_cast<size_t>(k)), wide_(row_.size()) {}

  void write(std::span<const WeightPart> parts, F16Linear::Panel& panel, uint16_t* to, int64_t padded) {
    std::fill_n(to, padded * kPanel, uint16_t{0});
    panel.finite = true;
    for (int r = 0; r < panel.rows; r++) {
      read_f16(parts, panel.row + r, row_.data(), wide_.data());
      for (size_t k = 0; k < row_.size(); k++) to[k * kPanel + static_cast<size_t>(r)] = row_[k];
      panel.finite = panel.finite && std::ranges::all_of(row_, is_finite);
    }
    panel.words = to;
  }

 private:
  std::vector<uint16_t> row_;
  std::vector<float> wide_;
};

}  // namespace

void F16Linear::row(int64_t r, uint16_t* out) const {
  const int64_t half = outputs(), in_half = r % half;
  const Panel& p = panels_[static_cast<size_t>(r / half * ((half + kPanel - 1) / kPanel) + in_half / kPanel)];
  for (int64_t i = 0; i < k(); i++) out[i] = p.words[i * kPanel + in_half % kPanel];
}

std::unique_ptr<F16Linear> load_f16(ThreadPool& pool, std::span<const WeightPart> parts, LinearForm form,
                                    WeightArena& arena) {
  const int64_t n = check_parts(parts, form), k = parts[0].cols;
  auto w = std::make_unique<F16Linear>(n, k, form);
  for (int64_t begin = 0; begin < n; begin += w->outputs()) {
    for (int64_t r = 0; r < w->outputs(); r += kPanel) {
      w->panels_.push_back({begin + r, static_cast<int>(std::min<int64_t>(kPanel, w->outputs() - r)), false, nullptr});
    }
  }
  w->data_ = arena.allocate(w->bytes());
  auto* words = reinterpret_cast<uint16_t*>(w->data_.get());
  const int64_t padded = w->padded(), count = static_cast<int64_t>(w->panels_.size()), threads = pool.size();
  pool.parallel_for(threads, [&](int, int64_t t) {
    PanelWriter writer(k);
    for (int64_t i = count * t / threads; i < count * (t + 1) / threads; i++) {
      writer.write(parts, w->panels_[static_cast<size_t>(i)], words + i * padded * kPanel, padded);
    }
  });
  return w;
}

}  // namespace isobit::cpu
