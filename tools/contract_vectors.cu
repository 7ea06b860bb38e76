// Records and counts what Hopper's units do, against the contract's scalar functions (docs/numerics.md N3, N4, N5).
//   contract_vectors --out FILE     the vectors that tests/numerics replays (format: tests/numerics/contract_vectors.h)
//   contract_vectors --count N      N random dot16/dot32 cases, all 2^32 inputs of ex2, and the other rules' scalar
//                                   functions compiled for the device against the host's; prints one line of JSON.
//                                   Exit status 1 if anything differs.
// Build: nvcc -std=c++20 -O2 -fmad=false --expt-relaxed-constexpr -gencode=arch=compute_90a,code=sm_90a -Isrc
//        -cudart static -o contract_vectors tools/contract_vectors.cu
#include <cuda_runtime.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../tests/numerics/contract_vectors.h"
#include "../tests/numerics/rule_stream.h"
#include "numerics/contract.h"
#include "numerics/ex2.h"

namespace {

using namespace isobit::vectors;

void check(cudaError_t e, const char* what) {
  if (e == cudaSuccess) return;
  std::fprintf(stderr, "contract_vectors: %s: %s\n", what, cudaGetErrorString(e));
  std::exit(2);
}

struct __align__(128) TileOperands {
  uint8_t b_core[256];  // B as wgmma wants it: two core matrices of 8 rows by 16 bytes, side by side in K
  uint8_t a[kTileM][kRowBytes];
  uint8_t b[kTileN][kRowBytes];
};

template <Operand kind>
__device__ void fill(TileOperands& s, int cls, uint64_t seed, int step) {
  constexpr int count = kind == Operand::kE4M3 ? 32 : 16, bytes = 32 / count;
  for (int i = threadIdx.x; i < (kTileM + kTileN) * count; i += blockDim.x) {
    const int row = i / count, k = i % count;
    const bool is_a = row < kTileM;
    const uint32_t u = operand(kind, cls, seed, is_a ? kA : kB, is_a ? row : row - kTileM, step, k);
    for (int j = 0; j < bytes; j++) {
      const uint8_t byte = static_cast<uint8_t>(u >> (8 * j));
      const int at = k * bytes + j;
      if (is_a) {
        s.a[row][at] = byte;
      } else {
        const int n = row - kTileM;
        s.b[n][at] = byte;
        s.b_core[at / 16 * 128 + n * 16 + at % 16] = byte;
      }
    }
  }
}

// The matrix descriptor of b_core: no swizzle, 128 bytes from one core matrix to the next in K.
__device__ uint64_t descriptor(const void* p) {
  const uint64_t address = __cvta_generic_to_shared(p);
  return ((address & 0x3ffff) >> 4) | (uint64_t{128 >> 4} << 16) | (uint64_t{256 >> 4} << 32);
}

#define ISOBIT_WGMMA(SHAPE_AND_TYPES, TAIL)                                                         \
  asm volatile("{ .reg .pred p; setp.ne.b32 p, 1, 0; wgmma.mma_async.sync.aligned." SHAPE_AND_TYPES \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, %8, p, 1, 1" TAIL "; }"                        \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                     \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b_descriptor))
#define ISOBIT_MMA(TYPES)                                                             \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." TYPES                         \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))

template <Operand kind>
__device__ void wgmma_step(float* d, const uint32_t* a, uint64_t b_descriptor) {
  for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[i])::"memory");
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  if constexpr (kind == Operand::kBF16) ISOBIT_WGMMA("m64n8k16.f32.bf16.bf16", ", 0");
  if constexpr (kind == Operand::kF16) ISOBIT_WGMMA("m64n8k16.f32.f16.f16", ", 0");
  if constexpr (kind == Operand::kE4M3) ISOBIT_WGMMA("m64n8k32.f32.e4m3.e4m3", "");
  asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;" ::: "memory");
  for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[i])::"memory");
}

template <Operand kind>
__device__ void mma_step(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
  if constexpr (kind == Operand::kBF16) ISOBIT_MMA("bf16.bf16");
  if constexpr (kind == Operand::kF16) ISOBIT_MMA("f16.f16");
}

template <Operand kind>
__device__ float scalar_step(float c, const uint8_t* a, const uint8_t* b) {
  if constexpr (kind == Operand::kE4M3) {
    return num::dot32(c, a, b);
  } else {
    return num::dot16<kind>(c, reinterpret_cast<const uint16_t*>(a), reinterpret_cast<const uint16_t*>(b));
  }
}

// A thread's four outputs of the tile: rows r, r + 8, columns x, x + 1.
struct Place {
  int row, column;
};
__device__ Place place(int i) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  return {warp * 16 + lane / 4 + (i / 2) * 8, lane % 4 * 2 + i % 2};
}

// One tile through both instructions, and through the scalar function where `scalar`.
template <Operand kind, bool scalar>
__device__ void tile(TileOperands& s, int cls, uint64_t seed, float* by_wgmma, float* by_mma, float* by_scalar) {
  for (int i = 0; i < 4; i++) {
    const Place p = place(i);
    by_wgmma[i] = by_mma[i] = by_scalar[i] = __uint_as_float(accumulator(kind, cls, seed, p.row, p.column));
  }
  for (int step = 0; step < class_steps(cls); step++) {
    __syncthreads();
    fill<kind>(s, cls, seed, step);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const int t = threadIdx.x % 4, g = threadIdx.x % 32 / 4, row = place(0).row;
    const auto word = [](const uint8_t* r, int at) { return *reinterpret_cast<const uint32_t*>(r + at); };
    const uint32_t a[4] = {word(s.a[row], 4 * t), word(s.a[row + 8], 4 * t), word(s.a[row], 16 + 4 * t),
                           word(s.a[row + 8], 16 + 4 * t)};
    wgmma_step<kind>(by_wgmma, a, descriptor(s.b_core));
    mma_step<kind>(by_mma, a, word(s.b[g], 4 * t), word(s.b[g], 16 + 4 * t));
    if constexpr (scalar) {
      for (int i = 0; i < 4; i++) {
        const Place p = place(i);
        by_scalar[i] = scalar_step<kind>(by_scalar[i], s.a[p.row], s.b[p.column]);
      }
    }
  }
}

// out: [tiles][512] by wgmma; out_mma the same by mma.sync (bf16, f16).
template <Operand kind>
__global__ void record(int cls, uint64_t seed, uint32_t* out, uint32_t* out_mma) {
  __shared__ TileOperands s;
  float w[4], m[4], unused[4];
  tile<kind, false>(s, cls, seed + blockIdx.x, w, m, unused);
  for (int i = 0; i < 4; i++) {
    const Place p = place(i);
    const int at = blockIdx.x * kTileOutputs + p.row * kTileN + p.column;
    out[at] = __float_as_uint(w[i]);
    out_mma[at] = __float_as_uint(m[i]);
  }
}

struct Tally {
  unsigned long long cases, wgmma_mismatches, mma_mismatches;
  uint32_t seen, example[3];  // of the first mismatch: wgmma, mma.sync, scalar
};

template <Operand kind>
__global__ void count(int cls, uint64_t seed, int tiles, Tally* tally) {
  __shared__ TileOperands s;
  for (int t = 0; t < tiles; t++) {
    float w[4], m[4], c[4];
    tile<kind, true>(s, cls, seed + static_cast<uint64_t>(blockIdx.x) * tiles + t, w, m, c);
    for (int i = 0; i < 4; i++) {
      const uint32_t wb = __float_as_uint(w[i]), mb = __float_as_uint(m[i]), cb = __float_as_uint(c[i]);
      const bool bad_w = wb != cb, bad_m = kind != Operand::kE4M3 && mb != cb;
      if (bad_w) atomicAdd(&tally->wgmma_mismatches, 1ull);
      if (bad_m) atomicAdd(&tally->mma_mismatches, 1ull);
      if ((bad_w || bad_m) && atomicExch(&tally->seen, 1u) == 0) {
        tally->example[0] = wb, tally->example[1] = mb, tally->example[2] = cb;
      }
    }
  }
  if (threadIdx.x == 0) {
    atomicAdd(&tally->cases, static_cast<unsigned long long>(tiles) * kTileOutputs * class_steps(cls));
  }
}

__device__ uint32_t hardware_ex2(uint32_t x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(__uint_as_float(x)));
  return __float_as_uint(y);
}

__global__ void record_ex2(uint64_t seed, uint32_t n, uint32_t* out) {
  for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) {
    out[i] = hardware_ex2(ex2_input(seed, i));
  }
}

__global__ void count_ex2(Tally* tally) {
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t i = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < (uint64_t{1} << 32);
       i += stride) {
    const uint32_t x = static_cast<uint32_t>(i), h = hardware_ex2(x), s = __float_as_uint(num::ex2(__uint_as_float(x)));
    if (h == s) continue;
    atomicAdd(&tally->wgmma_mismatches, 1ull);
    if (atomicExch(&tally->seen, 1u) == 0) tally->example[0] = x, tally->example[1] = h, tally->example[2] = s;
  }
}

// The other rules, by the same source on both sides (tests/numerics/rule_stream.h).
__global__ void scalar_rules(int rule, uint64_t n, uint64_t* out) {
  for (uint64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += static_cast<uint64_t>(gridDim.x) * blockDim.x) {
    out[i] = scalar_rule(rule, i);
  }
}

template <typename T>
struct Managed {
  T* data;
  explicit Managed(size_t n) {
    check(cudaMallocManaged(&data, n * sizeof(T)), "allocation");
    std::memset(static_cast<void*>(data), 0, n * sizeof(T));
  }
  ~Managed() { cudaFree(data); }
  Managed(const Managed&) = delete;
  Managed& operator=(const Managed&) = delete;
};

void synchronize(const char* what) {
  check(cudaGetLastError(), what);
  check(cudaDeviceSynchronize(), what);
}

void put(std::string& s, const void* p, size_t bytes) { s.append(static_cast<const char*>(p), bytes); }

void launch_record(int kind, int cls, uint64_t seed, int tiles, uint32_t* out, uint32_t* out_mma) {
  if (kind == 0) record<Operand::kBF16><<<tiles, 128>>>(cls, seed, out, out_mma);
  if (kind == 1) record<Operand::kF16><<<tiles, 128>>>(cls, seed, out, out_mma);
  if (kind == 2) record<Operand::kE4M3><<<tiles, 128>>>(cls, seed, out, out_mma);
  synchronize("recording a tile");
}

// One tile with its inputs (chains of 8 steps take too much room for that), then `tiles` without.
uint32_t add_tile_sections(std::string& file, uint32_t& sections, int kind, int cls, int tiles) {
  const Operand operand_kind = static_cast<Operand>(kind);
  const uint32_t steps = static_cast<uint32_t>(class_steps(cls));
  const uint64_t seed = 1000003ull * static_cast<uint64_t>(kind + 1) + 7919ull * static_cast<uint64_t>(cls);
  Managed<uint32_t> out(static_cast<size_t>(tiles) * kTileOutputs), mma(static_cast<size_t>(tiles) * kTileOutputs);
  launch_record(kind, cls, seed, tiles, out.data, mma.data);
  uint32_t differ = 0;
  for (int i = 0; kind != 2 && i < tiles * kTileOutputs; i++) differ += out.data[i] != mma.data[i];
  if (steps == 1) {
    std::string body;
    for (int matrix : {kA, kB}) {
      const int count = kind == 2 ? 32 : 16;
      for (int row = 0; row < (matrix == kA ? kTileM : kTileN); row++) {
        for (int k = 0; k < count; k++) {
          const uint32_t u = operand(operand_kind, cls, seed, matrix, row, 0, k);
          put(body, &u, kind == 2 ? 1 : 2);
        }
      }
    }
    for (int i = 0; i < kTileOutputs; i++) {
      const uint32_t c = accumulator(operand_kind, cls, seed, i / kTileN, i % kTileN);
      put(body, &c, 4);
    }
    put(body, out.data, kTileOutputs * 4);
    if (kind != 2) put(body, mma.data, kTileOutputs * 4);
    const SectionHeader h{
        static_cast<uint32_t>(kind), static_cast<uint32_t>(cls), 1, 1, 1, static_cast<uint32_t>(body.size()), seed};
    put(file, &h, sizeof h);
    file += body;
    sections++;
  }
  const SectionHeader h{static_cast<uint32_t>(kind),
                        static_cast<uint32_t>(cls),
                        steps,
                        static_cast<uint32_t>(tiles),
                        0,
                        static_cast<uint32_t>(tiles) * kTileOutputs * 4,
                        seed};
  put(file, &h, sizeof h);
  put(file, out.data, h.bytes);
  sections++;
  return differ;
}

void add_ex2_sections(std::string& file, uint32_t& sections) {
  for (uint32_t with_inputs : {1u, 0u}) {
    const uint32_t n = with_inputs != 0 ? 4096 : 16384;
    const uint64_t seed = 77 + with_inputs;
    Managed<uint32_t> out(n);
    record_ex2<<<64, 128>>>(seed, n, out.data);
    synchronize("recording ex2");
    const SectionHeader h{3, 0, 1, n, with_inputs, with_inputs != 0 ? n * 8 : n * 4, seed};
    put(file, &h, sizeof h);
    for (uint32_t i = 0; i < n; i++) {
      const uint32_t x = ex2_input(seed, i);
      if (with_inputs != 0) put(file, &x, 4);
      put(file, out.data + i, 4);
    }
    sections++;
  }
}

cudaDeviceProp device_properties() {
  cudaDeviceProp p;
  check(cudaGetDeviceProperties(&p, 0), "no device");
  if (p.major != 9) {
    std::fprintf(stderr, "contract_vectors: %s has compute capability %d.%d; a Hopper GPU (9.0) is needed\n", p.name,
                 p.major, p.minor);
    std::exit(2);
  }
  return p;
}

int run_record(const char* path) {
  const cudaDeviceProp p = device_properties();
  FileHeader header{};
  std::memcpy(header.magic, kMagic, 8);
  header.version = kVersion;
  int driver = 0;
  check(cudaDriverGetVersion(&driver), "driver version");
  header.driver = static_cast<uint32_t>(driver);
  std::snprintf(header.device, sizeof header.device, "%.39s", p.name);
  std::string body;
  for (int kind = 0; kind < 3; kind++) {
    for (int cls = 0; cls < kClasses; cls++) {
      header.shape_mismatches += add_tile_sections(body, header.sections, kind, cls, 7);
    }
  }
  add_ex2_sections(body, header.sections);
  std::FILE* f = std::fopen(path, "wb");
  if (f == nullptr || std::fwrite(&header, 1, sizeof header, f) != sizeof header ||
      std::fwrite(body.data(), 1, body.size(), f) != body.size() || std::fclose(f) != 0) {
    std::fprintf(stderr, "contract_vectors: cannot write %s\n", path);
    return 2;
  }
  std::printf(
      "{\"device\": \"%s\", \"driver\": %d, \"file\": \"%s\", \"bytes\": %zu, \"sections\": %u, \"shape_mismatches\": "
      "%u}\n",
      p.name, driver, path, body.size() + sizeof header, header.sections, header.shape_mismatches);
  return header.shape_mismatches == 0 ? 0 : 1;
}

bool count_kind(int kind, unsigned long long cases) {
  constexpr const char* kNames[3] = {"dot16_bf16", "dot16_f16", "dot32_e4m3"};
  Managed<Tally> total(1);
  unsigned long long done = 0, wgmma = 0, mma = 0;
  for (int cls = 0; cls < kClasses; cls++) {
    const unsigned long long per_tile = static_cast<unsigned long long>(kTileOutputs) * class_steps(cls);
    constexpr int kBlocks = 132 * 8;
    const unsigned long long want = cases / kClasses + 1;
    const int tiles = static_cast<int>(want / (per_tile * kBlocks) + 1);
    const uint64_t seed = mix(static_cast<uint64_t>(kind) * 100 + static_cast<uint64_t>(cls) + 12345);
    *total.data = Tally{};
    if (kind == 0) count<Operand::kBF16><<<kBlocks, 128>>>(cls, seed, tiles, total.data);
    if (kind == 1) count<Operand::kF16><<<kBlocks, 128>>>(cls, seed, tiles, total.data);
    if (kind == 2) count<Operand::kE4M3><<<kBlocks, 128>>>(cls, seed, tiles, total.data);
    synchronize("counting");
    done += total.data->cases, wgmma += total.data->wgmma_mismatches, mma += total.data->mma_mismatches;
    if (total.data->seen != 0) {
      std::fprintf(stderr, "%s, %s: wgmma %08x, mma.sync %08x, scalar %08x\n", kNames[kind], class_name(cls),
                   total.data->example[0], total.data->example[1], total.data->example[2]);
    }
  }
  std::printf(", \"%s\": {\"cases\": %llu, \"wgmma_mismatches\": %llu", kNames[kind], done, wgmma);
  if (kind != 2) std::printf(", \"mma_sync_mismatches\": %llu", mma);
  std::printf("}");
  return wgmma == 0 && mma == 0;
}

bool count_scalar_rules() {
  constexpr uint64_t kCases = 1 << 18;
  Managed<uint64_t> out(kCases);
  bool good = true;
  std::printf(", \"scalar_rules\": {\"cases_each\": %llu", static_cast<unsigned long long>(kCases));
  for (int rule = 0; rule < kScalarRules; rule++) {
    scalar_rules<<<132, 128>>>(rule, kCases, out.data);
    synchronize("scalar rules");
    uint64_t bad = 0;
    for (uint64_t i = 0; i < kCases; i++) {
      const uint64_t host = scalar_rule(rule, i);
      if (host != out.data[i] && bad++ == 0) {
        std::fprintf(stderr, "%s, case %llu: device %016llx, host %016llx\n", kScalarRuleNames[rule],
                     static_cast<unsigned long long>(i), static_cast<unsigned long long>(out.data[i]),
                     static_cast<unsigned long long>(host));
      }
    }
    good = good && bad == 0;
    std::printf(", \"%s\": %llu", kScalarRuleNames[rule], static_cast<unsigned long long>(bad));
  }
  std::printf("}");
  return good;
}

int run_count(unsigned long long cases) {
  const cudaDeviceProp p = device_properties();
  std::printf("{\"device\": \"%s\", \"contract\": \"%s\"", p.name, num::kContractVersion.data());
  bool good = true;
  for (int kind = 0; kind < 3; kind++) good &= count_kind(kind, cases / 3);
  Managed<Tally> tally(1);
  count_ex2<<<132 * 16, 256>>>(tally.data);
  synchronize("counting ex2");
  if (tally.data->seen != 0) {
    std::fprintf(stderr, "ex2 of %08x: hardware %08x, scalar %08x\n", tally.data->example[0], tally.data->example[1],
                 tally.data->example[2]);
  }
  std::printf(", \"ex2\": {\"cases\": 4294967296, \"mismatches\": %llu}", tally.data->wgmma_mismatches);
  good = good && tally.data->wgmma_mismatches == 0;
  good &= count_scalar_rules();
  std::printf("}\n");
  return good ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::strcmp(argv[1], "--out") == 0) return run_record(argv[2]);
  if (argc == 3 && std::strcmp(argv[1], "--count") == 0) return run_count(std::strtoull(argv[2], nullptr, 10));
  std::fprintf(stderr, "usage: contract_vectors --out FILE | --count N\n");
  return 2;
}
