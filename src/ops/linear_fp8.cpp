#include "ops/linear_fp8.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "ops/backend.h"

namespace isobit {
namespace {

size_t scale_bytes(int64_t rows, int64_t k) {
  return static_cast<size_t>(fp8_blocks(rows) * fp8_blocks(k)) * sizeof(float);
}
size_t stored_bytes(int64_t rows, int64_t k) { return static_cast<size_t>(fp8_stored_rows(rows) * fp8_row_bytes(k)); }

void check_parts(std::span<const WeightPart> parts, LinearForm form) {
  require(!parts.empty(), "load_linear: no parts");
  require(form == LinearForm::kStacked || (parts.size() == 2 && parts[0].rows == parts[1].rows),
          "load_linear: a gated pair needs two parts of equal rows");
  for (const WeightPart& p : parts) {
    require(p.cols == parts[0].cols, "load_linear: parts of {} and {} columns; they must be equal", parts[0].cols,
            p.cols);
    require(p.rows > 0 && p.cols > 0, "load_linear: a part of {} x {}; both must be positive", p.rows, p.cols);
    require(p.data != nullptr && p.scale != nullptr, "load_linear: a part's data or scales are null");
  }
}

// Where each part's piece begins; parts of whole blocks are joined with the next.
std::vector<Fp8Linear::Piece> cut(std::span<const WeightPart> parts) {
  std::vector<Fp8Linear::Piece> pieces;
  int64_t row = 0;
  for (const WeightPart& p : parts) {
    if (pieces.empty() || pieces.back().rows % kFp8Block != 0) pieces.push_back({row, 0, nullptr, nullptr});
    pieces.back().rows += p.rows;
    row += p.rows;
  }
  return pieces;
}

// A part's rows, each filled with zeros to whole blocks; without copying where the file has them so.
void upload_rows(Backend& backend, const WeightPart& p, uint8_t* to) {
  const int64_t row_bytes = fp8_row_bytes(p.cols);
  if (row_bytes == p.cols) return backend.upload(to, p.data, static_cast<size_t>(p.rows * p.cols));
  std::vector<std::byte> rows(static_cast<size_t>(p.rows * row_bytes));
  for (int64_t r = 0; r < p.rows; r++) {
    std::memcpy(&rows[static_cast<size_t>(r * row_bytes)], p.data + r * p.cols, static_cast<size_t>(p.cols));
  }
  backend.upload(to, rows.data(), rows.size());
}

// Consecutive pieces of scratch.
class Carver {
 public:
  explicit Carver(std::span<std::byte> memory) : memory_(memory) {}
  template <typename T>
  T* take(int64_t count) {
    auto* p = reinterpret_cast<T*>(memory_.data());
    const size_t bytes = padded(static_cast<size_t>(count) * sizeof(T));
    require(bytes <= memory_.size(), "fp8: scratch of {} bytes is too small for {} more", memory_.size(), bytes);
    memory_ = memory_.subspan(bytes);
    return p;
  }
  static size_t padded(size_t bytes) { return (bytes + 255) / 256 * 256; }

 private:
  std::span<std::byte> memory_;
};

// Activations of `rows` rows of k, quantised.
struct Quantised {
  uint8_t* x = nullptr;
  float* scale = nullptr;
  int64_t stride = 0, k = 0;

  static size_t bytes(int64_t rows, int64_t k) {
    return Carver::padded(static_cast<size_t>(rows * fp8_row_bytes(k))) +
           Carver::padded(static_cast<size_t>(fp8_blocks(k) * fp8_scale_stride(rows)) * sizeof(float));
  }
  static Quantised take(Carver& from, int64_t rows, int64_t k) {
    Quantised q;
    q.k = k;
    q.stride = fp8_scale_stride(rows);
    q.x = from.take<uint8_t>(rows * fp8_row_bytes(k));
    q.scale = from.take<float>(fp8_blocks(k) * q.stride);
    return q;
  }
  // The arguments of a kernel that makes them of `rows` rows of x.
  QuantizeFp8Args made_of(const void* source, DType type, int64_t rows, DType round_type) const {
    QuantizeFp8Args a;
    a.x = source;
    a.x_type = type;
    a.count = rows;
    a.n = k;
    a.round_type = round_type;
    a.out = x;
    a.scale = scale;
    a.scale_stride = stride;
    return a;
  }
};

size_t pair_bytes(int64_t rows, int64_t n) { return Carver::padded(static_cast<size_t>(rows * n) * sizeof(float)); }

GatedKind gated_kind(Epilogue e) {
  return e == Epilogue::kSiluMul ? GatedKind::kSilu : e == Epilogue::kGeluMul ? GatedKind::kGelu : GatedKind::kNone;
}

// The GEMM of quantised rows with a piece of w, whose columns begin at out + the piece's row.
GemmFp8Args piece_gemm(const Quantised& q, int64_t rows, const Fp8Linear& w, const Fp8Linear::Piece& piece,
                       DType out_type, void* out) {
  GemmFp8Args g;
  g.x = q.x;
  g.x_scale = q.scale;
  g.m = rows;
  g.x_scale_stride = q.stride;
  g.w = piece.w;
  g.w_scale = piece.scale;
  g.n = piece.rows;
  g.k = w.k();
  g.out_type = out_type;
  g.out = static_cast<std::byte*>(out) + piece.row * static_cast<int64_t>(dtype_info(out_type).block_bytes);
  g.out_stride = w.n();
  return g;
}

// out [rows, w.n()] = the rows that `source` quantises times w, by pieces.
void multiply(Fp8Kernels& kernels, const QuantizeFp8Args& source, const Quantised& q, int64_t rows, const Fp8Linear& w,
              DType out_type, void* out, const float* bias, bool add) {
  bool quantised = false;
  for (const Fp8Linear::Piece& piece : w.pieces()) {
    GemmFp8Args g = piece_gemm(q, rows, w, piece, out_type, out);
    g.bias = bias != nullptr ? bias + piece.row : nullptr;
    g.add = add;
    if (w.pieces().size() == 1 && kernels.quantized_gemm(source, g, {})) return;
    if (!quantised) kernels.quantize(source);
    quantised = true;
    kernels.gemm(g);
  }
}

// Gate and up of the quantised rows, in f32: the GEMM's accumulators.
float* multiply_pair(Fp8Kernels& kernels, const QuantizeFp8Args& source, const Quantised& q, int64_t rows,
                     const Fp8Linear& w, Carver& from) {
  auto* pair = from.take<float>(rows * w.n());
  multiply(kernels, source, q, rows, w, DType::kF32, pair, nullptr, false);
  return pair;
}

// Row `first` of a GEMM's output.
void* output_row(const GemmArgs& g, int64_t first) {
  const bool wide = g.epilogue == Epilogue::kStoreF32 || g.epilogue == Epilogue::kAddResidual;
  return static_cast<std::byte*>(g.out) + first * g.w->outputs() * (wide ? 4 : 2);
}

// The GEMM of rows from `first` on, which `source` quantises; with its epilogue.
void finish(Fp8Kernels& kernels, const QuantizeFp8Args& source, const Quantised& q, const GemmArgs& g, int64_t first,
            int64_t rows, Carver& from) {
  const Fp8Linear& w = *as_fp8(g.w);
  void* out = output_row(g, first);
  if (const GatedKind kind = gated_kind(g.epilogue); kind != GatedKind::kNone) {
    if (w.pieces().size() == 1 &&
        kernels.quantized_gemm(source, piece_gemm(q, rows, w, w.pieces()[0], g.type, out), {.gated = kind})) {
      return;
    }
    const float* pair = multiply_pair(kernels, source, q, rows, w, from);
    kernels.gate({pair, rows, w.outputs(), kind, g.type, static_cast<uint16_t*>(out)});
    return;
  }
  multiply(kernels, source, q, rows, w, g.epilogue == Epilogue::kStoreRounded ? g.type : DType::kF32, out, g.bias,
           g.epilogue == Epilogue::kAddResidual);
}

// Calls body(first row, rows, scratch) until all rows are done; bytes_of(rows): the scratch that so many need.
template <typename Bytes, typename Body>
void in_turns(Fp8Kernels& kernels, int64_t rows, const Bytes& bytes_of, const Body& body) {
  if (rows == 0) return;
  const std::span<std::byte> scratch = kernels.scratch(bytes_of(rows));
  int64_t at_once = rows;
  while (at_once > 8 && bytes_of(at_once) > scratch.size()) at_once = (at_once / 2 + 7) / 8 * 8;
  if (bytes_of(at_once) > scratch.size()) {
    throw fail(ErrorCode::kOutOfMemory, "fp8: {} rows need {} bytes of workspace, there are {}; enlarge it", at_once,
               bytes_of(at_once), scratch.size());
  }
  for (int64_t first = 0; first < rows; first += at_once) {
    body(first, std::min(at_once, rows - first), Carver(scratch));
  }
}

size_t gemm_bytes(const GemmArgs& g, int64_t rows) {
  return Quantised::bytes(rows, g.w->k()) +
         (gated_kind(g.epilogue) != GatedKind::kNone ? pair_bytes(rows, g.w->n()) : 0);
}

// How rows from `first` on of the norm's output are quantised.
QuantizeFp8Args normed_source(const RmsNormArgs& n, const Quantised& q, int64_t first, int64_t rows) {
  QuantizeFp8Args a = q.made_of(n.x + first * n.n, DType::kF32, rows, n.out_type);
  a.weight = n.weight;
  a.eps = n.eps;
  return a;
}

bool norm_feeds(const RmsNormArgs& n, const GemmArgs& g) {
  return n.rows == nullptr && n.count == g.m && n.out == g.x && n.out_type == g.type;
}

}  // namespace

bool is_block_scaled(std::span<const WeightPart> parts) {
  const auto fp8 = [](const WeightPart& p) { return p.dtype == DType::kF8E4M3; };
  const auto count = std::count_if(parts.begin(), parts.end(), fp8);
  if (count != 0 && count != static_cast<int64_t>(parts.size())) {
    throw fail(ErrorCode::kUnsupported,
               "load_linear: of {} matrices that are multiplied together {} are F8_E4M3; all or none must be",
               parts.size(), count);
  }
  return count != 0;
}

std::unique_ptr<Linear> load_fp8_linear(Backend& backend, std::span<const WeightPart> parts, LinearForm form) {
  check_parts(parts, form);
  const int64_t k = parts[0].cols, row_bytes = fp8_row_bytes(k), blocks = fp8_blocks(k);
  std::vector<Fp8Linear::Piece> pieces = cut(parts);
  size_t bytes = 0, scales = 0;
  for (const Fp8Linear::Piece& p : pieces) bytes += stored_bytes(p.rows, k), scales += scale_bytes(p.rows, k);
  const int64_t n = pieces.back().row + pieces.back().rows;
  Buffer weights = backend.allocate(bytes, fmt::format("a weight matrix of {} x {}", n, k));
  Buffer scale = backend.allocate(scales, "its scales");
  auto* w = weights.data<uint8_t>();
  auto* s = scale.data<float>();
  for (Fp8Linear::Piece& p : pieces) {
    p.w = w, p.scale = s;
    w += stored_bytes(p.rows, k), s += fp8_blocks(p.rows) * blocks;
  }
  int64_t row = 0;
  auto piece = pieces.begin();
  for (const WeightPart& p : parts) {
    if (row >= piece->row + piece->rows) ++piece;
    const int64_t in_piece = row - piece->row;
    upload_rows(backend, p, const_cast<uint8_t*>(piece->w) + in_piece * row_bytes);
    backend.upload(const_cast<float*>(piece->scale) + in_piece / kFp8Block * blocks, p.scale, scale_bytes(p.rows, k));
    row += p.rows;
  }
  backend.synchronize();  // a GEMM asks for its weights before it waits for the kernels before it
  return std::make_unique<Fp8Linear>(n, k, form, std::move(pieces), std::move(weights), std::move(scale));
}

const Fp8Linear* as_fp8(const Linear* linear) { return dynamic_cast<const Fp8Linear*>(linear); }

void fp8_gemm(Fp8Kernels& kernels, const GemmArgs& g) {
  in_turns(
      kernels, g.m, [&](int64_t rows) { return gemm_bytes(g, rows); },
      [&](int64_t first, int64_t rows, Carver scratch) {
        const Quantised q = Quantised::take(scratch, rows, g.w->k());
        finish(kernels, q.made_of(g.x + first * g.w->k(), g.type, rows, g.type), q, g, first, rows, scratch);
      });
}

bool fp8_norm_gemm(Fp8Kernels& kernels, const RmsNormArgs& n, const GemmArgs& g) {
  if (!norm_feeds(n, g)) return false;
  in_turns(
      kernels, g.m, [&](int64_t rows) { return gemm_bytes(g, rows); },
      [&](int64_t first, int64_t rows, Carver scratch) {
        const Quantised q = Quantised::take(scratch, rows, n.n);
        finish(kernels, normed_source(n, q, first, rows), q, g, first, rows, scratch);
      });
  return true;
}

bool fp8_norm_gemm_rope(Fp8Kernels& kernels, const RmsNormArgs& n, const GemmArgs& g, const RopeCacheArgs& r) {
  const Fp8Linear& w = *as_fp8(g.w);
  if (!norm_feeds(n, g) || g.epilogue != Epilogue::kStoreF32 || r.qkv != g.out || w.pieces().size() != 1) return false;
  const std::span<std::byte> scratch = kernels.scratch(gemm_bytes(g, g.m));
  if (scratch.size() < gemm_bytes(g, g.m)) return false;
  Carver carver(scratch);
  const Quantised q = Quantised::take(carver, g.m, n.n);
  GemmFp8Args product = piece_gemm(q, g.m, w, w.pieces()[0], DType::kF32, g.out);
  product.bias = g.bias;
  return kernels.quantized_gemm(normed_source(n, q, 0, g.m), product, {.rope = &r});
}

bool fp8_norm_gemm_gemm(Fp8Kernels& kernels, const RmsNormArgs& n, const GemmArgs& up, const GemmArgs& down) {
  const GatedKind kind = gated_kind(up.epilogue);
  const Fp8Linear* up_weights = as_fp8(up.w);
  if (up_weights == nullptr || as_fp8(down.w) == nullptr || kind == GatedKind::kNone) return false;
  if (gated_kind(down.epilogue) != GatedKind::kNone || !norm_feeds(n, up) || down.x != up.out) return false;
  // One row: the gated product leaves the GEMM, where the backend can, and is quantised by the next one.
  if (up.m == 1 && fp8_norm_gemm(kernels, n, up)) {
    fp8_gemm(kernels, down);
    return true;
  }
  const int64_t ffn = up.w->outputs();
  in_turns(
      kernels, up.m,
      [&](int64_t rows) {
        return Quantised::bytes(rows, n.n) + pair_bytes(rows, 2 * ffn) + Quantised::bytes(rows, ffn);
      },
      [&](int64_t first, int64_t rows, Carver scratch) {
        const Quantised q = Quantised::take(scratch, rows, n.n);
        const float* pair = multiply_pair(kernels, normed_source(n, q, first, rows), q, rows, *up_weights, scratch);
        const Quantised hidden = Quantised::take(scratch, rows, ffn);
        QuantizeFp8Args a = hidden.made_of(pair, DType::kF32, rows, up.type);
        a.gated = kind;
        finish(kernels, a, hidden, down, first, rows, scratch);
      });
  return true;
}

}  // namespace isobit
