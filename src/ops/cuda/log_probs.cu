// Log-probabilities of given tokens, rule N14: a pass for the maximum, one for the masses (the second from L2). A
// cluster a row. Bytes: 4 a logit from memory; the second pass reads the same from L2.
#include "ops/cuda/hopper/pdl.h"
#include "ops/cuda/kernels.h"
#include "ops/cuda/launch.h"
#include "ops/cuda/sample_select.h"

namespace isobit::cuda {
namespace {

__global__ __launch_bounds__(kSampleThreads, 2) void log_probs_kernel(LogProbArgs a) {
  extern __shared__ __align__(16) uint8_t shared[];
  SampleShared& s = *reinterpret_cast<SampleShared*>(shared);
  const ClusterPart part = cluster_part();
  hopper::cluster_arrive();
  hopper::launch_dependents();
  hopper::wait_for_predecessors();
  hopper::cluster_wait();
  const int64_t i = blockIdx.x / static_cast<unsigned>(part.size);
  const int target = a.targets[i];
  if (target < 0) return;
  const Row row = make_row(a.logits, i, a.vocab, nullptr, nullptr);
  if (threadIdx.x == 0) s.row = row;
  const ThreadScan scan =
      with_reader(row, true, [&](const auto& reader) { return scan_row<false>(s, reader, part, nullptr); });
  const bool bad = __syncthreads_or(scan.bad() || target >= row.vocab) != 0;
  const Winner best = cta_best(s, largest_token(s, scan, true));
  const uint32_t largest = cta_max(s, 0, numerics::order_key(scan.largest));
  const ClusterScan c = exchange_scan(s, 0, part, best, largest, 0, bad);
  const Winner winner = warp_best(c.of_lane);
  uint64_t sum = 0;
  if (c.ok) {
    sum = with_reader(row, true,
                      [&](const auto& reader) { return list_and_sum(s, reader, part, c.largest, -kMinusInfinity); });
  }
  sum = cta_sum(s, sum);
  if (static_cast<int>(threadIdx.x) < part.size) *peer(&s.sums[0][0][part.rank], static_cast<int>(threadIdx.x)) = sum;
  publish();
  sum = sum_over_ranks(s.sums[0][0], part);
  if (part.rank != 0 || threadIdx.x != 0) return;
  a.status[i] = c.ok ? kSampled : kNotFinite;
  a.out[i] = c.ok ? log_probability(row.y[target], c.largest, sum) : numerics::from_bits(numerics::kNaN32);
  if (a.best != nullptr) a.best[i] = c.ok ? static_cast<int32_t>(winner.id) : -1;
}

}  // namespace

void launch_log_probs(const LogProbArgs& args, const KernelContext& context) {
  if (args.rows == 0) return;
  const int cluster = sample_cluster(args.rows, args.vocab, context.sm_count);
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(args.rows * cluster));
  shape.block = dim3(kSampleThreads);
  shape.cluster = dim3(static_cast<unsigned>(cluster));
  shape.shared_bytes = sizeof(SampleShared);
  allow_shared_memory("log_probs", log_probs_kernel, shape.shared_bytes);
  allow_large_clusters("log_probs", log_probs_kernel);
  launch("log_probs", log_probs_kernel, shape, context.stream, args);
}

}  // namespace isobit::cuda
