#pragma once
// Shared-memory barriers that count arrivals and bytes (PTX ISA, "mbarrier"). A barrier's phase ends when the expected
// arrivals and bytes are in; waiting for parity p returns once a phase of parity p has ended, so a fresh barrier passes
// a wait for parity 1.
#include <cstdint>

namespace isobit::hopper {

__device__ inline uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

// The same, kept in a register: the compiler would otherwise work the address out anew (with reads of special
// registers) at each use in a loop. Barriers and tiles are named by such addresses in inner loops.
__device__ inline uint32_t kept_shared_address(const void* p) {
  uint32_t r;
  asm volatile("mov.u32 %0, %1;" : "=r"(r) : "r"(shared_address(p)));
  return r;
}

__device__ inline void store_shared_16(uint32_t to, const uint32_t (&v)[4]) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v[0]), "r"(v[1]), "r"(v[2]), "r"(v[3])
               : "memory");
}

__device__ inline void store_shared_f2(uint32_t to, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(x), "f"(y) : "memory");
}
__device__ inline float2 load_shared_f2(uint32_t from) {
  float2 v;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(from) : "memory");
  return v;
}

__device__ inline void mbarrier_init(uint64_t* bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(bar)), "r"(arrivals) : "memory");
}

// After the inits, before the barriers are used by the copy engine or other CTAs of the cluster.
__device__ inline void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive(uint32_t bar) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
__device__ inline void mbarrier_arrive(uint64_t* bar) { mbarrier_arrive(shared_address(bar)); }
// `count` arrivals at once.
__device__ inline void mbarrier_arrive_count(uint64_t* bar, uint32_t count) {
  asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(bar)), "r"(count)
               : "memory");
}

// On the barrier at the same place in CTA `rank` of the cluster. Relaxed: for what the tensor cores have read (their
// wait has returned) or the copy engine will write. A release at cluster scope would cost a fence of the whole GPU.
__device__ inline void mbarrier_arrive_remote(uint32_t bar, uint32_t rank) {
  asm volatile(
      "{ .reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [remote]; }" ::"r"(bar),
      "r"(rank)
      : "memory");
}
// The same by an address in the cluster's window (map_shared).
__device__ inline void mbarrier_arrive_mapped(uint32_t mapped) {
  asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(mapped) : "memory");
}
// The same after ordinary writes that the other CTA is to see.
__device__ inline void mbarrier_arrive_remote_release(uint32_t bar, uint32_t rank) {
  asm volatile(
      "{ .reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote]; }" ::"r"(bar),
      "r"(rank)
      : "memory");
}
__device__ inline void mbarrier_arrive_remote(uint64_t* bar, uint32_t rank) {
  mbarrier_arrive_remote_release(shared_address(bar), rank);
}

__device__ inline void mbarrier_arrive_expect(uint32_t bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ inline void mbarrier_arrive_expect(uint64_t* bar, uint32_t bytes) {
  mbarrier_arrive_expect(shared_address(bar), bytes);
}

__device__ inline bool mbarrier_try_wait(uint32_t bar, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p;\n"
      "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0;
}
__device__ inline bool mbarrier_try_wait(uint64_t* bar, uint32_t parity) {
  return mbarrier_try_wait(shared_address(bar), parity);
}

// Without waiting at all.
__device__ inline bool mbarrier_test(uint32_t bar, uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p;\n"
      "mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 p, [%1], %2;\n"
      "selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(bar), "r"(parity)
      : "memory");
  return done != 0;
}

__device__ inline void mbarrier_wait(uint32_t bar, uint32_t parity) {
  while (!mbarrier_try_wait(bar, parity)) {
  }
}
__device__ inline void mbarrier_wait(uint64_t* bar, uint32_t parity) { mbarrier_wait(shared_address(bar), parity); }

// The same where other CTAs of the cluster arrived with a release.
__device__ inline void mbarrier_wait_cluster(uint64_t* bar, uint32_t parity) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{ .reg .pred p;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(shared_address(bar)), "r"(parity)
        : "memory");
  }
}

// A named barrier of `threads` threads (a multiple of 32); id 1 to 15, 0 is __syncthreads'.
__device__ inline void named_barrier_sync(uint32_t id, uint32_t threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void named_barrier_arrive(uint32_t id, uint32_t threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace isobit::hopper
