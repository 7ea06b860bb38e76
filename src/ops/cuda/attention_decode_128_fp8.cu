#include "ops/cuda/attention_decode.cuh"

namespace isobit::cuda::decode {

template void launch_config<Config<128, 1, false, true>>(const AttentionArgs&, int, int, const KernelContext&);
template void launch_config<Config<128, 1, true, true>>(const AttentionArgs&, int, int, const KernelContext&);
template void launch_config<Config<128, 2, false, true>>(const AttentionArgs&, int, int, const KernelContext&);
template void launch_config<Config<128, 2, true, true>>(const AttentionArgs&, int, int, const KernelContext&);

}  // namespace isobit::cuda::decode
