#include "ops_cuda/attention_case.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <utility>

#include "numerics/kv_cache.h"

namespace isobit::test {

using numerics::Operand;

namespace {

constexpr uint16_t kPoison = 0xffff;  // a NaN that no operator writes

uint16_t round_to(DType type, float x) {
  return type == DType::kF16 ? numerics::f32_to_f16(x) : numerics::f32_to_bf16(x);
}

int upload_count(size_t n) { return static_cast<int>(std::max<size_t>(n, 1)); }

template <typename T>
DeviceBytes to_device(const std::vector<T>& v) {
  DeviceBytes d(static_cast<size_t>(upload_count(v.size())) * sizeof(T));
  if (!v.empty()) cuda_ok(cudaMemcpy(d.as<T>(), v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice), "upload");
  return d;
}

int request_of(const int32_t* query_start, int requests, int token) {
  return static_cast<int>(std::upper_bound(query_start, query_start + requests + 1, token) - query_start) - 1;
}

}  // namespace

std::vector<uint16_t> attention_answer(const AttentionOnHost& a, int token, int head) {
  const KvCacheView& cache = a.args.cache;
  const int d = cache.head_dim, b = request_of(a.query_start, a.args.requests, token);
  const int kv_head = head / (a.args.q_heads / cache.kv_heads);
  std::vector<uint16_t> out(d, 0);
  if (a.kv_len[b] == 0) return out;
  const int added = a.query_start[b + 1] - a.query_start[b], prefix = a.kv_len[b] - added;
  int position = prefix + token - a.query_start[b], exist = a.kv_len[b];
  std::vector<int> path;
  if (a.tree_parent != nullptr) {
    for (int n = token - a.query_start[b]; n >= 0; n = a.tree_parent[a.query_start[b] + n]) path.push_back(n);
    std::reverse(path.begin(), path.end());
    position = prefix + static_cast<int>(path.size()) - 1;
    exist = position + 1;
  }
  const int window = a.args.window, first = window > 0 ? std::max(0, position - window + 1) : 0;
  const auto allowed = [&](int64_t p) {
    if (p < first || (a.args.causal && p > position)) return false;
    return a.mask == nullptr ||
           ((a.mask[static_cast<size_t>(token) * a.args.mask_stride + p / 64] >> (p % 64)) & 1) != 0;
  };
  std::vector<uint16_t> keys(static_cast<size_t>(exist) * d), values(keys.size());
  for (int p = first; p < exist; p++) {
    const int slot = !path.empty() && p >= prefix ? prefix + path[p - prefix] : p;
    const int64_t page = a.page_table[static_cast<int64_t>(b) * a.args.table_stride + slot / cache.page_size];
    const int64_t at = ((page * cache.kv_heads + kv_head) * cache.page_size + slot % cache.page_size) * d;
    a.key(at, keys.data() + static_cast<size_t>(p) * d);
    a.value(at, values.data() + static_cast<size_t>(p) * d);
  }
  const auto key = [&](int64_t p) { return keys.data() + p * d; };
  const auto value = [&](int64_t p) { return values.data() + p * d; };
  const uint16_t* q = a.q + (static_cast<size_t>(token) * a.args.q_heads + head) * d;
  numerics::AttentionScale scale{a.args.scale, a.args.soft_cap};
  if (a.k_scale != nullptr) {
    scale = numerics::scale_of_cached(a.args.scale, a.args.soft_cap, a.k_scale[kv_head], a.v_scale[kv_head]);
  }
  const float* sink = a.sinks != nullptr ? a.sinks + head : nullptr;
  if (a.args.type == DType::kF16) {
    numerics::attention_row<Operand::kF16>(q, d, exist, key, value, allowed, scale, sink, out.data());
  } else {
    numerics::attention_row<Operand::kBF16>(q, d, exist, key, value, allowed, scale, sink, out.data());
  }
  return out;
}

void cuda_ok(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(fmt::format("{}: {}", what, cudaGetErrorString(status)));
}

DeviceBytes::DeviceBytes(size_t bytes) : bytes_(bytes) { cuda_ok(cudaMalloc(&data_, bytes), "cudaMalloc"); }
DeviceBytes::DeviceBytes(const void* from, size_t bytes) : DeviceBytes(bytes) {
  cuda_ok(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice), "upload");
}
DeviceBytes::~DeviceBytes() {
  if (data_ != nullptr) cudaFree(data_);
}
DeviceBytes::DeviceBytes(DeviceBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
DeviceBytes& DeviceBytes::operator=(DeviceBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

std::string AttentionShape::describe() const {
  std::string s = fmt::format(
      "{} cache {} D {} heads {}/{} page {} cap {} sharp {} window {}{}{}{}{} requests {}:", dtype_info(type).name,
      dtype_info(cache_type).name, head_dim, kv_heads * group, kv_heads, page_size, soft_cap, sharpness, window,
      causal ? "" : " not causal", sinks ? " sinks" : "", mask ? " mask" : "", tree ? " tree" : "", requests.size());
  for (size_t i = 0; i < requests.size() && i < 8; i++) {
    s += requests[i].padding ? fmt::format(" pad{}", requests[i].added)
                             : fmt::format(" {}+{}", requests[i].prefix, requests[i].added);
  }
  return s;
}

AttentionCase::AttentionCase(const AttentionShape& shape, std::mt19937_64& random) : shape_(shape) {
  const int d = shape.head_dim;
  std::normal_distribution<float> normal;
  query_start_.push_back(0);
  int pages = 0, max_pages = 1, max_kv = 0, max_query = 0;
  for (const RequestShape& r : shape.requests) {
    tokens_ += r.added;
    query_start_.push_back(tokens_);
    kv_len_.push_back(r.padding ? 0 : r.prefix + r.added);
    const int count = (kv_len_.back() + shape.page_size - 1) / shape.page_size;
    pages += count;
    max_pages = std::max(max_pages, count);
    max_kv = std::max(max_kv, kv_len_.back());
    max_query = std::max(max_query, r.added);
  }
  max_kv += static_cast<int>(random() % 300);  // bounds need not be tight
  max_pages = std::max(max_pages, (max_kv + shape.page_size - 1) / shape.page_size);
  pages += 3;
  table_stride_ = max_pages + static_cast<int>(random() % 3);

  std::vector<int32_t> order(pages);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  // Entries past a request's pages are out of range on purpose: they must not be read as pages.
  table_.assign(shape.requests.size() * static_cast<size_t>(table_stride_), 0x7f000000);
  int next = 0;
  for (size_t b = 0; b < shape.requests.size(); b++) {
    for (int i = 0; i * shape.page_size < kv_len_[b]; i++) table_[b * table_stride_ + i] = order[next++];
  }

  const float amplitude = std::sqrt(shape.sharpness);
  q_.resize(static_cast<size_t>(tokens_) * q_heads() * d);
  for (uint16_t& x : q_) x = round_to(shape.type, amplitude * normal(random));
  const size_t elements = static_cast<size_t>(pages) * shape.kv_heads * shape.page_size * d;
  const uint16_t nan = 0xffff;
  k_.assign(elements, nan), v_.assign(elements, nan);
  const bool fp8 = shape.cache_type == DType::kF8E4M3;
  if (fp8) {
    k8_.assign(elements, 0xff), v8_.assign(elements, 0xff);
    for (int h = 0; h < shape.kv_heads; h++) {
      k_scale_.push_back(0.01f * (1 + static_cast<float>(random() % 97)) * amplitude);
      v_scale_.push_back(0.013f * (1 + static_cast<float>(random() % 89)));
    }
  }
  const int v_kind = static_cast<int>(random() % 3);  // ordinary, widely spread, many zeros
  for (size_t b = 0; b < shape.requests.size(); b++) {
    for (int p = 0; p < kv_len_[b]; p++) {
      const int64_t page = table_[b * table_stride_ + p / shape.page_size];
      for (int h = 0; h < shape.kv_heads; h++) {
        const size_t at =
            static_cast<size_t>(((page * shape.kv_heads + h) * shape.page_size + p % shape.page_size)) * d;
        for (int i = 0; i < d; i++) {
          float k = amplitude * normal(random), v = normal(random);
          if (v_kind == 1) v = std::ldexp(v, static_cast<int>(random() % 24) - 12);
          if (v_kind == 2 && random() % 4 != 0) v = random() % 2 != 0 ? 0.0f : -0.0f;
          if (fp8) {
            bool finite = true;
            k8_[at + i] = numerics::cache_e4m3(k, k_scale_[h], finite);
            v8_[at + i] = numerics::cache_e4m3(v, v_scale_[h], finite);
            k = numerics::e4m3_to_f32(k8_[at + i]);
            v = numerics::e4m3_to_f32(v8_[at + i]);
          }
          k_[at + i] = round_to(shape.type, k), v_[at + i] = round_to(shape.type, v);
        }
      }
    }
  }
  if (shape.sinks) {
    for (int h = 0; h < q_heads(); h++) sinks_.push_back(2 * normal(random));
  }
  if (shape.tree) {
    parent_.resize(tokens_);
    for (size_t b = 0; b < shape.requests.size(); b++) {
      for (int i = 0; i < shape.requests[b].added; i++) {
        // A mixture of chains and bushes.
        parent_[query_start_[b] + i] = random() % 2 != 0 ? i - 1 : static_cast<int>(random() % (i + 1)) - 1;
      }
    }
  }
  if (shape.mask) {
    mask_stride_ = (max_kv + 63) / 64 + static_cast<int>(random() % 2);
    mask_.resize(static_cast<size_t>(tokens_) * mask_stride_);
    for (int t = 0; t < tokens_; t++) {
      const int kind = static_cast<int>(random() % 4);  // random bits, sparse, runs of nothing, nothing at all
      for (int i = 0; i < mask_stride_; i++) {
        uint64_t m = random();
        if (kind == 1) m &= random() & random() & random();
        if (kind == 2 && (i / 3) % 2 == 0) m = 0;
        if (kind == 3 && t % 5 == 0) m = 0;
        mask_[static_cast<size_t>(t) * mask_stride_ + i] = m;
      }
    }
  }

  d_q_ = to_device(q_);
  if (fp8) {
    d_k_ = to_device(k8_), d_v_ = to_device(v8_);
  } else {
    d_k_ = to_device(k_), d_v_ = to_device(v_);
  }
  d_k_scale_ = to_device(k_scale_), d_v_scale_ = to_device(v_scale_), d_sinks_ = to_device(sinks_);
  d_query_start_ = to_device(query_start_), d_kv_len_ = to_device(kv_len_), d_table_ = to_device(table_);
  d_parent_ = to_device(parent_), d_mask_ = to_device(mask_);
  d_out_ = DeviceBytes(q_.size() * 2 + 2);

  args_.q = d_q_.as<uint16_t>();
  args_.cache = {d_k_.as<void>(),
                 d_v_.as<void>(),
                 pages,
                 shape.kv_heads,
                 shape.page_size,
                 d,
                 shape.cache_type,
                 fp8 ? d_k_scale_.as<float>() : nullptr,
                 fp8 ? d_v_scale_.as<float>() : nullptr};
  args_.query_start = d_query_start_.as<int32_t>();
  args_.kv_len = d_kv_len_.as<int32_t>();
  args_.page_table = d_table_.as<int32_t>();
  args_.tokens = tokens_;
  args_.requests = static_cast<int32_t>(shape.requests.size());
  args_.q_heads = q_heads();
  args_.table_stride = table_stride_;
  args_.max_query = max_query;
  args_.max_kv = max_kv;
  args_.scale = 1.0f / std::sqrt(static_cast<float>(d));
  args_.soft_cap = shape.soft_cap;
  args_.window = shape.window;
  args_.causal = shape.causal;
  args_.sinks = shape.sinks ? d_sinks_.as<float>() : nullptr;
  args_.mask = shape.mask ? d_mask_.as<uint64_t>() : nullptr;
  args_.mask_stride = mask_stride_;
  args_.tree_parent = shape.tree ? d_parent_.as<int32_t>() : nullptr;
  args_.type = shape.type;
  args_.out = d_out_.as<uint16_t>();
  args_.check();
  poison();
}

void AttentionCase::poison() { cuda_ok(cudaMemset(d_out_.as<void>(), 0xff, d_out_.bytes()), "poison"); }

std::vector<uint16_t> AttentionCase::output() const {
  std::vector<uint16_t> out(q_.size());
  cuda_ok(cudaMemcpy(out.data(), d_out_.as<void>(), out.size() * 2, cudaMemcpyDeviceToHost), "download");
  return out;
}

int64_t AttentionCase::cost(int token) const {
  const int b = request_of(query_start_.data(), static_cast<int>(kv_len_.size()), token);
  const int keys = shape_.window > 0 ? std::min(kv_len_[b], shape_.window) : kv_len_[b];
  return static_cast<int64_t>(keys) * (shape_.head_dim / 16 + shape_.head_dim / 16) + 1;
}

std::vector<uint16_t> AttentionCase::expected(int token, int head) const {
  AttentionOnHost a{args_};
  a.q = q_.data();
  a.query_start = query_start_.data(), a.kv_len = kv_len_.data(), a.page_table = table_.data();
  if (shape_.tree) a.tree_parent = parent_.data();
  if (shape_.mask) a.mask = mask_.data();
  if (shape_.sinks) a.sinks = sinks_.data();
  a.key = [&](int64_t at, uint16_t* to) { std::copy_n(k_.data() + at, shape_.head_dim, to); };
  a.value = [&](int64_t at, uint16_t* to) { std::copy_n(v_.data() + at, shape_.head_dim, to); };
  if (!k_scale_.empty()) a.k_scale = k_scale_.data(), a.v_scale = v_scale_.data();
  return attention_answer(a, token, head);
}

cuda::KernelContext test_context() {
  static DeviceBytes counters = [] {
    DeviceBytes c(cuda::kCounters * sizeof(uint32_t));
    cuda_ok(cudaMemset(c.as<void>(), 0, c.bytes()), "counters");
    return c;
  }();
  static DeviceBytes workspace = [] {
    DeviceBytes w(size_t{64} << 20);
    cuda_ok(cudaMemset(w.as<void>(), 0xff, w.bytes()), "workspace");
    return w;
  }();
  cuda::KernelContext c;
  cuda_ok(cudaDeviceGetAttribute(&c.sm_count, cudaDevAttrMultiProcessorCount, 0), "SM count");
  c.workspace = workspace.as<void>();
  c.workspace_bytes = workspace.bytes();
  c.counters = counters.as<uint32_t>();
  return c;
}

std::optional<std::string> compare_sampled(const AttentionCase& c, const std::vector<uint16_t>& out, int rows,
                                           int64_t budget, std::mt19937_64& random) {
  const int d = c.shape().head_dim;
  for (size_t i = 0; i < out.size(); i++) {
    if (out[i] == kPoison) {
      const size_t row = i / d;
      return fmt::format("not written: token {} head {} element {}", row / c.q_heads(), row % c.q_heads(), i % d);
    }
  }
  std::vector<std::pair<int, int>> sample;
  int64_t spent = 0;
  while (static_cast<int>(sample.size()) < rows || (spent < budget && sample.size() < 4096)) {
    const int token = static_cast<int>(random() % c.tokens());
    sample.emplace_back(token, static_cast<int>(random() % c.q_heads()));
    spent += c.cost(token);
  }
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::optional<std::string> difference;
  int wrong = 0;
  const auto work = [&] {
    for (size_t i = next++; i < sample.size(); i = next++) {
      const auto [token, head] = sample[i];
      const std::vector<uint16_t> want = c.expected(token, head);
      const uint16_t* got = out.data() + (static_cast<size_t>(token) * c.q_heads() + head) * d;
      if (std::memcmp(want.data(), got, static_cast<size_t>(d) * 2) == 0) continue;
      const std::lock_guard lock(mutex);
      wrong++;
      if (difference) continue;
      int first = 0, count = 0;
      for (int j = d - 1; j >= 0; j--) {
        if (want[j] != got[j]) first = j, count++;
      }
      difference = fmt::format("token {} head {}: {} of {} elements differ, first at {}: {:04x}, expected {:04x}",
                               token, head, count, d, first, got[first], want[first]);
    }
  };
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); t++) threads.emplace_back(work);
  for (std::thread& t : threads) t.join();
  if (difference) *difference += fmt::format(" ({} of {} rows wrong)", wrong, sample.size());
  return difference;
}

}  // namespace isobit::test
