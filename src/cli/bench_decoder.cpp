// A whole decoder's step on random weights of a published shape: embedding to sampled token.
#include <algorithm>
#include <chrono>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "cache/page_pool.h"
#include "cli/bench.h"
#include "cli/step_floor.h"
#include "engine/engine.h"
#include "models/decoder.h"
#include "models/synthetic.h"
#include "numerics/ieee.h"
#include "numerics/philox.h"
#include "ops/linear_fp8.h"

namespace isobit::cli {
namespace {

struct DecoderFlags {
  std::string shape = "llama-1b", device = "auto", kv_cache_dtype = "auto";
  int threads = 0;
  int32_t batch = 1, context = 1024, prefill = 0, repetitions = 20, steps = 20, page_size = 64;
  bool fp8 = false, json = false, profile = false, engine = false;
};

double floor_us(const ModelConfig& config, const DecoderFlags& f) {
  const StepFloor floor(config, f.fp8);
  const double keys = static_cast<double>(f.batch) * f.context, prefill = f.prefill;
  if (f.prefill > 0)
    return floor.us({.tokens = prefill, .sampled = 1, .keys = prefill, .pairs = prefill * prefill / 2});
  return floor.us(
      {.tokens = static_cast<double>(f.batch), .sampled = static_cast<double>(f.batch), .keys = keys, .pairs = keys});
}

// A backend that leaves out the operator `without`: what a step then lacks is what the operator takes in it.
class LeavingOut final : public Backend {
 public:
  explicit LeavingOut(Backend& to) : to_(to) {}
  std::string without;
  std::vector<std::string> seen;  // operators in the order of their first call

  BackendInfo info() const override { return to_.info(); }
  Buffer allocate(size_t bytes, std::string_view what) override { return to_.allocate(bytes, what); }
  void upload(void* to, const void* from, size_t bytes) override { to_.upload(to, from, bytes); }
  void download(void* to, const void* from, size_t bytes) override { to_.download(to, from, bytes); }
  void copy(void* to, const void* from, size_t bytes) override { to_.copy(to, from, bytes); }
  void synchronize() override { to_.synchronize(); }
  std::unique_ptr<Linear> load_linear(std::span<const WeightPart> parts, LinearForm form, DType type) override {
    return to_.load_linear(parts, form, type);
  }
  bool keeps_file_pages() const override { return to_.keeps_file_pages(); }
  void embed(const EmbedArgs& a) override {
    if (wanted("embed")) to_.embed(a);
  }
  void rms_norm(const RmsNormArgs& a) override {
    if (wanted("rms_norm")) to_.rms_norm(a);
  }
  void norm_gemm(const RmsNormArgs& n, const GemmArgs& g) override {
    if (wanted(fmt::format("rms_norm + gemm {}x{}", g.w->n(), g.w->k()))) to_.norm_gemm(n, g);
  }
  void norm_gemm_rope(const RmsNormArgs& n, const GemmArgs& g, const RopeCacheArgs& r) override {
    if (wanted(fmt::format("rms_norm + gemm {}x{} + rope_cache", g.w->n(), g.w->k()))) to_.norm_gemm_rope(n, g, r);
  }
  void norm_gemm_gemm(const RmsNormArgs& n, const GemmArgs& up, const GemmArgs& down) override {
    if (as_fp8(up.w) == nullptr) return Backend::norm_gemm_gemm(n, up, down);  // one by one, as the backend runs them
    if (wanted(fmt::format("rms_norm + gemm {}x{} + gemm {}x{}", up.w->n(), up.w->k(), down.w->n(), down.w->k()))) {
      to_.norm_gemm_gemm(n, up, down);
    }
  }
  void gemm(const GemmArgs& a) override {
    if (wanted(fmt::format("gemm {}x{}", a.w->n(), a.w->k()))) to_.gemm(a);
  }
  void rope_cache(const RopeCacheArgs& a) override {
    if (wanted("rope_cache")) to_.rope_cache(a);
  }
  void attention(const AttentionArgs& a) override {
    if (wanted("attention")) to_.attention(a);
  }
  void soft_cap(const SoftCapArgs& a) override {
    if (wanted("soft_cap")) to_.soft_cap(a);
  }
  std::unique_ptr<SamplerSlots> make_sampler(int slots, int64_t vocab) override {
    return to_.make_sampler(slots, vocab);
  }
  void sample(SamplerSlots& slots, const SampleArgs& a) override {
    if (wanted("sample")) to_.sample(slots, a);
  }
  void log_probs(const LogProbArgs& a) override { to_.log_probs(a); }
  void topk_per_row(const TopkPerRowArgs& a) override { to_.topk_per_row(a); }
  int32_t bucket(int32_t count) const override { return to_.bucket(count); }
  void run_step(const StepKey& key, const std::function<void()>& operators) override { to_.run_step(key, operators); }

 private:
  bool wanted(const std::string& op) {
    if (std::ranges::find(seen, op) == seen.end()) seen.push_back(op);
    return op != without;
  }

  Backend& to_;
};

class Step {
 public:
  Step(Backend& backend, const Checkpoint& file, const DecoderFlags& f)
      : backend_(backend),
        f_(f),
        config_(read_config(file, ComputeType::kAuto, parse_kv_cache_type(f.kv_cache_dtype))) {
    const bool prefill = f.prefill > 0;
    shape_.tokens = backend.bucket(prefill ? f.prefill : f.batch);
    shape_.requests = backend.bucket(prefill ? 1 : f.batch);
    const int32_t length = prefill ? f.prefill : f.context + 1;
    shape_.max_query = prefill ? shape_.tokens : 1;
    const int32_t stride = pages_for(length, f.page_size);
    shape_.max_kv = std::min(backend.bucket(length), stride * f.page_size);
    StepLimits limits;
    limits.tokens = shape_.tokens;
    limits.requests = shape_.requests;
    limits.logit_rows = rows_ = shape_.requests;
    limits.table_stride = stride;
    limits.positions = stride * f.page_size;
    decoder_ = std::make_unique<Decoder>(backend, file, config_, limits);
    pages_ = std::make_unique<KvPages>(backend, config_, static_cast<int64_t>(stride) * limits.requests, f.page_size);
    fill_cache();
    slots_ = backend.make_sampler(limits.requests, config_.vocab);
    for (int32_t i = 0; i < rows_; i++) slots_->assign(i, {.temperature = 1.0f, .seed = static_cast<uint64_t>(i)}, {});
    fill_inputs(length, stride);
  }

  // variant: tells apart steps whose operators differ.
  void run(uint32_t variant = 0) {
    const StepKey key{shape_.tokens, shape_.requests, rows_, shape_.max_query, shape_.max_kv, variant};
    backend_.run_step(key, [&] {
      decoder_->forward(shape_, *pages_);
      decoder_->head(rows_);
      sample();
    });
  }
  // The sampling alone, until the host has the tokens.
  void sample_and_wait() {
    sample();
    std::vector<int32_t> token(static_cast<size_t>(rows_)), status(token.size());
    const Download results[] = {{token.data(), token_.data(), token.size() * 4},
                                {status.data(), status_.data(), status.size() * 4}};
    backend_.download_later(results)();
  }
  const ModelConfig& config() const { return config_; }
  // [rows, vocab] of the last step, as bits.
  std::vector<uint32_t> logits() {
    std::vector<uint32_t> bits(static_cast<size_t>(rows_) * static_cast<size_t>(config_.vocab));
    backend_.download(bits.data(), decoder_->logits(), bits.size() * 4);
    return bits;
  }

 private:
  void sample() {
    SampleArgs a;
    a.logits = decoder_->logits();
    a.slots = slot_.data<int32_t>();
    a.positions = position_.data<int32_t>();
    a.rows = rows_;
    a.vocab = config_.vocab;
    a.tokens = token_.data<int32_t>();
    a.status = status_.data<int32_t>();
    backend_.sample(*slots_, a);
  }

  // Random keys and values: zeros would run faster than real data.
  void fill_cache() {
    std::vector<uint16_t> noise(1 << 20);
    uint32_t n = 0;
    for (uint16_t& x : noise) {
      const uint32_t r = numerics::philox4x32(1, {{n++, 0, 0, 0}}).w[0];
      // ±0.25 to ±1: one bf16, or two e4m3.
      x = static_cast<uint16_t>(config_.fp8_cache ? (r & 0x8080) | 0x2828 | (r >> 16 & 0x0f0f)
                                                  : (r & 0x8000) | 0x3e80 | (r >> 16 & 0xff));
    }
    for (int64_t layer = 0; layer < config_.layer_count(); layer++) {
      const KvCacheView& v = pages_->layer(layer);
      const size_t bytes = dtype_bytes(v.type, static_cast<size_t>(v.pages * v.page_elements()));
      for (void* base : {v.k, v.v}) {
        for (size_t at = 0; at < bytes; at += noise.size() * 2) {
          backend_.upload(static_cast<std::byte*>(base) + at, noise.data(), std::min(bytes - at, noise.size() * 2));
        }
      }
    }
  }

  void put(Buffer& to, const std::vector<int32_t>& v) {
    to = backend_.allocate(v.size() * 4, "the step");
    backend_.upload(to.data(), v.data(), v.size() * 4);
  }

  void fill_inputs(int32_t length, int32_t stride) {
    const bool prefill = f_.prefill > 0;
    const int32_t live = prefill ? f_.prefill : f_.batch, requests = prefill ? 1 : f_.batch;
    std::vector<int32_t> token(static_cast<size_t>(shape_.tokens), -1), position(token.size(), 0),
        kv(static_cast<size_t>(shape_.requests), 0), start(kv.size() + 1, live),
        table(kv.size() * static_cast<size_t>(stride)), row(kv.size(), -1), slot(kv.size(), -1), at(kv.size(), length);
    std::vector<int64_t> place(token.size(), -1);
    std::iota(table.begin(), table.end(), 0);
    for (int32_t b = 0; b < requests; b++) {
      const auto i = static_cast<size_t>(b);
      start[i] = prefill ? 0 : b;
      kv[i] = length;
      row[i] = prefill ? live - 1 : b;
      slot[i] = b;
    }
    for (int32_t t = 0; t < live; t++) {
      const auto i = static_cast<size_t>(t);
      const int32_t p = prefill ? t : length - 1, first = prefill ? 0 : t * stride;
      token[i] = (t * 7919 + 13) % 100000;
      position[i] = p;
      place[i] = static_cast<int64_t>(first + p / f_.page_size) * f_.page_size + p % f_.page_size;
    }
    const StepInputs& in = decoder_->inputs();
    const auto upload = [&](const Buffer& to, const std::vector<int32_t>& v) {
      backend_.upload(to.data(), v.data(), v.size() * 4);
    };
    upload(in.tokens, token);
    upload(in.positions, position);
    upload(in.kv_len, kv);
    upload(in.query_start, start);
    upload(in.page_table, table);
    upload(in.logit_rows, row);
    backend_.upload(in.slots.data(), place.data(), place.size() * 8);
    put(slot_, slot);
    put(position_, at);
    token_ = backend_.allocate(kv.size() * 4, "the step");
    status_ = backend_.allocate(kv.size() * 4, "the step");
  }

  Backend& backend_;
  DecoderFlags f_;
  ModelConfig config_;
  StepShape shape_;
  int32_t rows_ = 1;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<KvPages> pages_;
  std::unique_ptr<SamplerSlots> slots_;
  Buffer slot_, position_, token_, status_;
};

using Clock = std::chrono::steady_clock;

double us_since(Clock::time_point start) {
  return std::chrono::duration<double, std::micro>(Clock::now() - start).count();
}

// Median microseconds of a step.
double time_step(Backend& backend, Step& step, const DecoderFlags& f, uint32_t variant) {
  for (int i = 0; i < 3; i++) step.run(variant);
  backend.synchronize();
  std::vector<double> us;
  const int32_t steps = f.prefill > 0 ? 1 : f.steps;
  for (int32_t r = 0; r < f.repetitions; r++) {
    const auto start = Clock::now();
    for (int32_t i = 0; i < steps; i++) step.run(variant);
    backend.synchronize();
    us.push_back(us_since(start) / steps);
  }
  std::ranges::sort(us);
  return us[us.size() / 2];
}

// The same step again and again: finite, and the same to the last bit. What overlaps of operators do to each other
// shows in whole steps alone.
void check_repeats(Step& step, const DecoderFlags& f) {
  const int32_t steps = f.prefill > 0 ? 2 : 24;
  step.run();
  const std::vector<uint32_t> first = step.logits();
  const auto finite = [](uint32_t bits) { return (bits & numerics::kInf32) != numerics::kInf32; };
  if (!std::ranges::all_of(first, finite)) {
    throw fail(ErrorCode::kNumerical, "{}: the step's logits are not finite", f.shape);
  }
  for (int32_t i = 1; i < steps; i++) {
    step.run();
    if (step.logits() == first) continue;
    throw fail(ErrorCode::kNumerical, "{}: step {} of the same {} gave other logits than the first", f.shape, i + 1,
               steps);
  }
}

struct EngineTime {
  double us = 0;        // from step to step
  int32_t context = 0;  // keys of a sequence, about
};

// Decoding through a real engine, all that the host does between steps included.
EngineTime time_engine(Engine& engine, const DecoderFlags& f) {
  for (int32_t i = 0; i < f.batch; i++) {
    Request r;
    for (int32_t t = 0; t < f.context; t++) {
      const auto at = static_cast<uint32_t>(i * f.context + t);
      r.prompt.push_back(static_cast<int32_t>(numerics::philox4x32(2, {{at, 0, 0, 0}}).w[0] % engine.config().vocab));
    }
    r.sampling.seed = static_cast<uint64_t>(i);
    r.on_token = [](const TokenOutput&) {};
    engine.submit(std::move(r));
  }
  constexpr int64_t kWarm = 8;  // tokens of the sequence that starts last
  for (int64_t first = -1; first < 0 || engine.stats().sampled_tokens < first + kWarm * f.batch;) {
    engine.step();
    const EngineStats s = engine.stats();
    if (first < 0 && s.computed_tokens >= int64_t{f.batch} * f.context) first = s.sampled_tokens;
  }
  const int32_t steps = f.repetitions * f.steps;
  EngineTime time;
  const auto start = Clock::now();
  for (int32_t i = 0; i < steps; i++) {
    engine.step();
    if (i == steps / 2) time.context = engine.step_rows().front().position;
  }
  time.us = us_since(start) / steps;
  return time;
}

void report(const DecoderFlags& f, const std::string& name, double us, double floor, const std::string& text) {
  if (f.json) {
    std::cout << nlohmann::json{{"op", "decoder"}, {"case", name}, {"us", us}, {"floor_us", floor}}.dump() << "\n";
  } else {
    std::cout << name << ": " << text << "\n";
  }
}

// What the engine adds to its steps: beside it the same step, run again and again with nothing between.
int bench_engine(DecoderFlags f) {
  const auto file = synthetic_checkpoint(synthetic_shape(f.shape), 1, f.fp8);
  const int32_t steps = f.repetitions * f.steps;
  constexpr int32_t kTokensPerStep = 2048, kSpare = 256;
  EngineOptions o;
  o.context = f.context + steps + f.batch * f.context / kTokensPerStep + kSpare;
  o.max_requests = f.batch;
  o.tokens_per_step = std::max(kTokensPerStep, f.batch);
  o.page_size = f.page_size;
  o.kv_cache = parse_kv_cache_type(f.kv_cache_dtype);
  Engine engine(make_backend({f.device, f.threads, {}}), file, o);
  const EngineTime whole = time_engine(engine, f);
  engine.fail_all("enough was measured");
  f.context = whole.context;
  Backend& backend = engine.backend();
  Step step(backend, *file, f);
  constexpr uint32_t kApart = 1U << 16;  // a graph of its own, not the engine's
  const double alone = time_step(backend, step, f, kApart);
  const std::string name =
      fmt::format("{}{}{}-b{}", f.shape, f.fp8 ? "-fp8" : "", step.config().fp8_cache ? "-kv8" : "", f.batch);
  report(f, "engine-idle-" + name, whole.us, alone,
         fmt::format("{:.1f} us from step to step, {:.1f} us the step alone: idle {:.1f}% (context {})", whole.us,
                     alone, 100 * (1 - alone / whole.us), whole.context));
  std::vector<double> calls;
  for (int32_t i = 0; i < steps; i++) {
    const auto start = Clock::now();
    step.sample_and_wait();
    calls.push_back(us_since(start));
  }
  std::ranges::sort(calls);
  const double call = calls[calls.size() / 2],
               bytes = static_cast<double>(f.batch) * static_cast<double>(step.config().vocab) * 4;
  report(f, "engine-sampling-" + name, call, bytes / 4.3e6,
         fmt::format("{:.1f} us from the logits to the tokens on the host, floor {:.1f} us", call, bytes / 4.3e6));
  return kOk;
}

int bench_decoder(const DecoderFlags& f) {
  const auto real = make_backend({f.device, f.threads, {}});
  LeavingOut backend(*real);
  const auto file = synthetic_checkpoint(synthetic_shape(f.shape), 1, f.fp8);
  Step step(backend, *file, f);
  const double median = time_step(backend, step, f, 0), floor = floor_us(step.config(), f);
  check_repeats(step, f);
  const std::string shape = f.shape + (f.fp8 ? "-fp8" : "") + (step.config().fp8_cache ? "-kv8" : "");
  const std::string name = f.prefill > 0 ? fmt::format("{}-prefill-{}", shape, f.prefill)
                                         : fmt::format("{}-decode-b{}-ctx{}", shape, f.batch,
                                                       f.context % 1024 == 0 ? fmt::format("{}k", f.context / 1024)
                                                                             : fmt::format("{}", f.context));
  report(f, name, median, floor,
         fmt::format("{:.1f} us a step on {}, floor {:.1f} us ({:.0f}%)", median, backend.info().description, floor,
                     100 * floor / median));
  const std::vector<std::string> operators = f.profile ? backend.seen : std::vector<std::string>{};
  for (uint32_t i = 0; i < operators.size(); i++) {
    backend.without = operators[i];
    std::cout << fmt::format("  without {}: {:+.1f} us\n", operators[i], time_step(backend, step, f, i + 1) - median);
  }
  return kOk;
}

}  // namespace

void add_bench_decoder(CLI::App& bench, Command& command) {
  auto f = std::make_shared<DecoderFlags>();
  CLI::App* sub =
      bench.add_subcommand("decoder", "One step of a whole decoder with random weights: embedding to sampled token");
  sub->add_option("--shape", f->shape, "llama-1b or llama-8b")->capture_default_str();
  sub->add_option("--device", f->device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  sub->add_option("-t,--threads", f->threads, "CPU threads; 0: one per hardware thread")->capture_default_str();
  sub->add_option("-b,--batch", f->batch, "Sequences")->capture_default_str()->check(CLI::Range(1, 4096));
  sub->add_option("--context", f->context, "Keys each sequence has before the step")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20));
  sub->add_option("--prefill", f->prefill, "Time a prefill of this many tokens instead")->check(CLI::Range(1, 1 << 20));
  sub->add_option("--page-size", f->page_size, "Tokens a page of the KV cache")
      ->capture_default_str()
      ->check(CLI::Range(16, 1024));
  sub->add_option("-r,--repetitions", f->repetitions, "Timings; the median is reported")
      ->capture_default_str()
      ->check(CLI::Range(1, 1000));
  sub->add_option("--steps", f->steps, "Steps in a timing")->capture_default_str()->check(CLI::Range(1, 1000));
  sub->add_flag("--fp8", f->fp8, "Block-scaled FP8 matrices in the layers");
  sub->add_option("--kv-cache-dtype", f->kv_cache_dtype, "auto, or fp8 for keys and values in e4m3")
      ->capture_default_str();
  sub->add_flag("--engine", f->engine,
                "Decode through a real engine instead: how long the device idles between steps, and a sampling call");
  sub->add_flag("--profile", f->profile, "Also leave each operator out in turn: how much shorter is the step?");
  sub->add_flag("--json", f->json, "As a row of the record");
  sub->footer("Example:\n  isobit bench decoder --shape llama-8b --batch 64 --device cuda");
  sub->callback([f, &command] { command.run = [f] { return f->engine ? bench_engine(*f) : bench_decoder(*f); }; });
}

}  // namespace isobit::cli
