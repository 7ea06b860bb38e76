#include "ops/cuda/attention_decode.cuh"

namespace isobit::cuda::decode {

template void launch_config<Config<256, 1, 1, false>>(const AttentionArgs&, int, const KernelContext&);
template void launch_config<Config<256, 1, 4, false>>(const AttentionArgs&, int, const KernelContext&);
template void launch_config<Config<256, 2, 1, false>>(const AttentionArgs&, int, const KernelContext&);
template void launch_config<Config<256, 2, 4, false>>(const AttentionArgs&, int, const KernelContext&);

}  // namespace isobit::cuda::decode
