#include "ops/cuda/staging.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "ops/cuda/device.h"
#include "ops/cuda/scatter.h"

namespace isobit::cuda {

namespace {

constexpr size_t kLeastLanding = size_t{64} << 10;

}  // namespace

Staging::Staging(cudaStream_t stream, size_t bytes_per_half) : stream_(stream), half_bytes_(bytes_per_half) {
  for (Half& h : halves_) {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, half_bytes_), "allocating pinned host memory for uploads");
    h.memory = static_cast<std::byte*>(memory);
    check(cudaEventCreateWithFlags(&h.copied, cudaEventDisableTiming), "creating an event");
  }
  for (Landing& l : landings_) check(cudaEventCreateWithFlags(&l.arrived, cudaEventDisableTiming), "creating an event");
}

Staging::~Staging() {
  for (Half& h : halves_) {
    if (h.copied != nullptr) cudaEventDestroy(h.copied);
    cudaFreeHost(h.memory);
  }
  for (Landing& l : landings_) {
    if (l.arrived != nullptr) cudaEventDestroy(l.arrived);
    cudaFreeHost(l.memory);
  }
}

std::byte* Staging::take(size_t bytes) {
  if (halves_[current_].used + bytes > half_bytes_) {
    check(cudaEventRecord(halves_[current_].copied, stream_), "upload");
    current_ ^= 1;
    check(cudaEventSynchronize(halves_[current_].copied), "upload");
    halves_[current_].used = 0;
  }
  Half& h = halves_[current_];
  std::byte* p = h.memory + h.used;
  h.used += (bytes + 255) / 256 * 256;
  return p;
}

void Staging::upload(void* to, const void* from, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const size_t part = std::min(bytes - done, half_bytes_);
    std::byte* pinned = take(part);
    std::memcpy(pinned, static_cast<const std::byte*>(from) + done, part);
    check(cudaMemcpyAsync(static_cast<std::byte*>(to) + done, pinned, part, cudaMemcpyHostToDevice, stream_), "upload");
    done += part;
  }
}

void Staging::download(void* to, const void* from, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    const size_t part = std::min(bytes - done, half_bytes_);
    std::byte* pinned = take(part);
    check(cudaMemcpyAsync(pinned, static_cast<const std::byte*>(from) + done, part, cudaMemcpyDeviceToHost, stream_),
          "download");
    check(cudaStreamSynchronize(stream_), "waiting for the GPU");
    std::memcpy(static_cast<std::byte*>(to) + done, pinned, part);
    done += part;
  }
}

void Staging::upload_all(std::span<const Upload> parts) {
  ScatterParts together;
  size_t total = 0;
  for (const Upload& p : parts) total += p.bytes;
  if (parts.size() > together.part.size() || total > half_bytes_ / 2) {
    require(std::ranges::all_of(parts, [](const Upload& p) { return p.drawn == nullptr; }),
            "upload_all: {} parts of {} bytes; with drawn tokens at most {} of {} bytes are supported", parts.size(),
            total, together.part.size(), half_bytes_ / 2);
    for (const Upload& p : parts) upload(p.to, p.from, p.bytes);
    return;
  }
  std::byte* pinned = take(total);
  for (const Upload& p : parts) {
    if (p.bytes == 0) continue;
    std::memcpy(pinned, p.from, p.bytes);
    together.part[static_cast<size_t>(together.count++)] = {
        static_cast<uint32_t*>(p.to), reinterpret_cast<const uint32_t*>(pinned), p.bytes / 4, p.drawn};
    pinned += p.bytes;
  }
  launch_scatter(together, stream_);
}

void Staging::download_all(std::span<const Download> parts) {
  size_t total = 0;
  for (const Download& p : parts) total += p.bytes;
  if (total > half_bytes_) {
    for (const Download& p : parts) download(p.to, p.from, p.bytes);
    return;
  }
  std::byte* const pinned = take(total);
  std::byte* at = pinned;
  for (const Download& p : parts) {
    if (p.bytes > 0) check(cudaMemcpyAsync(at, p.from, p.bytes, cudaMemcpyDeviceToHost, stream_), "download");
    at += p.bytes;
  }
  check(cudaStreamSynchronize(stream_), "waiting for the GPU");
  at = pinned;
  for (const Download& p : parts) {
    if (p.bytes > 0) std::memcpy(p.to, at, p.bytes);
    at += p.bytes;
  }
}

std::function<void()> Staging::download_later(std::span<const Download> parts) {
  ScatterParts together;
  require(parts.size() <= together.part.size(), "download_later: {} parts; at most {} are supported", parts.size(),
          together.part.size());
  size_t total = 0;
  for (const Download& p : parts) total += p.bytes;
  Landing& l = landings_[next_landing_];
  next_landing_ = (next_landing_ + 1) % landings_.size();
  if (total > l.bytes) {
    cudaFreeHost(l.memory);
    l.memory = nullptr;
    l.bytes = std::bit_ceil(std::max(total, kLeastLanding));
    void* memory = nullptr;
    check(cudaMallocHost(&memory, l.bytes), "allocating pinned host memory for downloads");
    l.memory = static_cast<std::byte*>(memory);
  }
  std::byte* at = l.memory;
  for (const Download& p : parts) {
    if (p.bytes == 0) continue;
    together.part[static_cast<size_t>(together.count++)] = {reinterpret_cast<uint32_t*>(at),
                                                            static_cast<const uint32_t*>(p.from), p.bytes / 4};
    at += p.bytes;
  }
  launch_scatter(together, stream_);
  check(cudaEventRecord(l.arrived, stream_), "download");
  return [&l, wanted = std::vector(parts.begin(), parts.end())] {
    check(cudaEventSynchronize(l.arrived), "waiting for the GPU");
    const std::byte* from = l.memory;
    for (const Download& p : wanted) {
      if (p.bytes > 0) std::memcpy(p.to, from, p.bytes);
      from += p.bytes;
    }
  };
}

}  // namespace isobit::cuda
