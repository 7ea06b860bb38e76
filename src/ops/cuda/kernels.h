#pragma once
// The kernels behind the CUDA backend, one function an operator. Arguments were checked (Args::check) by the caller;
// pointers are device pointers. A launch neither allocates nor synchronises, so that it can be captured in a graph.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>

#include "ops/attention.h"
#include "ops/embed.h"
#include "ops/gemm.h"
#include "ops/norm.h"
#include "ops/rope.h"
#include "ops/sampling.h"
#include "ops/soft_cap.h"
#include "ops/topk.h"

namespace isobit::cuda {

// What a launch may use. The workspace is one for all operators: each may overwrite it, nothing in it survives an
// operator.
struct KernelContext {
  cudaStream_t stream = nullptr;
  int sm_count = 0;
  void* workspace = nullptr;
  size_t workspace_bytes = 0;
  // kCounters counters that are zero between operators: zero-filled when allocated, and whoever counts sets them back.
  uint32_t* counters = nullptr;
};
constexpr int kCounters = 1 << 16;

void launch_gemm(const GemmArgs& args, const KernelContext& context);  // gemm.cpp
// The same after `norm` and before `rope`, either of which may be null: one kernel where it can be.
void launch_gemm_between(const RmsNormArgs* norm, const GemmArgs& args, const RopeCacheArgs* rope,
                         const KernelContext& context);                                         // gemm.cpp
void launch_embed(const EmbedArgs& args, const KernelContext& context);                         // embed.cu
void launch_rms_norm(const RmsNormArgs& args, const KernelContext& context);                    // rms_norm.cu
void launch_rope_cache(const RopeCacheArgs& args, const KernelContext& context);                // rope_cache.cu
void launch_attention(const AttentionArgs& args, const KernelContext& context);                 // attention.cu
void launch_soft_cap(const SoftCapArgs& args, const KernelContext& context);                    // soft_cap.cu
void launch_topk_per_row(const TopkPerRowArgs& args, const KernelContext& context);             // topk_per_row.cu
void launch_sample(SamplerSlots& slots, const SampleArgs& args, const KernelContext& context);  // sampling.cu
void launch_log_probs(const LogProbArgs& args, const KernelContext& context);                   // sampling.cu
std::unique_ptr<SamplerSlots> make_sampler_slots(int slots, int64_t vocab,
                                                 const KernelContext& context);  // sampling.cu

}  // namespace isobit::cuda
