#pragma once
// The CPU's operators, one .cpp each. Arguments are checked by the caller; `simd` is a bit of Highway's target set.
#include <memory>

#include "base/thread_pool.h"
#include "ops/backend.h"

namespace isobit::cpu {

struct Cpu {
  ThreadPool& pool;
  int64_t simd;
};

void embed(const Cpu& cpu, const EmbedArgs& a);
void rms_norm(const Cpu& cpu, const RmsNormArgs& a);
void rope_cache(const Cpu& cpu, const RopeCacheArgs& a);
void attention(const Cpu& cpu, const AttentionArgs& a);
void soft_cap(const Cpu& cpu, const SoftCapArgs& a);
std::unique_ptr<SamplerSlots> make_sampler(int slots, int64_t vocab);
void sample(const Cpu& cpu, SamplerSlots& slots, const SampleArgs& a);
void log_probs(const Cpu& cpu, const LogProbArgs& a);
void topk_per_row(const Cpu& cpu, const TopkPerRowArgs& a);

}  // namespace isobit::cpu
