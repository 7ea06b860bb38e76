#pragma once
// What is said of a machine that cannot run the CUDA backend; apart from device.h so that it can be tested on one that
// can.
#include <driver_types.h>

#include <string>

namespace isobit::cuda {

// Why there is no device: what cudaGetDeviceCount answered, and the driver's version (13000 is CUDA 13.0; 0: no driver
// is loaded).
std::string why_no_device(cudaError_t status, int driver_version);

}  // namespace isobit::cuda
