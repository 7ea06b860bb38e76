#include "ops/cuda/attention_decode.cuh"

namespace isobit::cuda::decode {

template void launch_config<Config<64, 1, false, false>>(const AttentionArgs&, int, int, const KernelContext&);
template void launch_config<Config<64, 1, true, false>>(const AttentionArgs&, int, int, const KernelContext&);
template void launch_config<Config<64, 2, false, false>>(const AttentionArgs&, int, int, const KernelContext&);
template void launch_config<Config<64, 2, true, false>>(const AttentionArgs&, int, int, const KernelContext&);

}  // namespace isobit::cuda::decode
