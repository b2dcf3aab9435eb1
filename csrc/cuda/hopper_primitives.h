// Thin wrappers around the instructions of Hopper GPUs (sm_90a) that the adapter's kernel is written in: barriers in
// shared memory, bulk tensor copies, warpgroup matrix products, fences and counters. A kernel that uses nothing else
// also runs against another header with the same functions (tests/csrc/hopper_emulator.h). Shared memory is addressed
// by 32-bit addresses of the shared window. Source: PTX ISA, sections named at the functions.
#pragma once

#include <cuda.h>
#include <stdint.h>

namespace hopper {

using TensorMap = CUtensorMap;

struct Pair {
    float low, high;
};

__device__ __forceinline__ int thread_index() { return threadIdx.x; }
__device__ __forceinline__ int block_index() { return blockIdx.x; }
__device__ __forceinline__ int grid_size() { return gridDim.x; }
__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }

// Clusters of two thread blocks, of numbers 2c and 2c + 1, that reach each other's shared memory.
__device__ __forceinline__ int cluster_rank() {
    int rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void sync_cluster() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Barrier of the first `threads` threads, a multiple of 32, to come to it; number 0 is sync_block's.
__device__ __forceinline__ void sync_threads(int number, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

__device__ __forceinline__ uint32_t shared_base() {
    extern __shared__ unsigned char dynamic_shared[];
    return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared));
}

__device__ __forceinline__ uint32_t load_shared(uint32_t address) {
    uint32_t value;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
    return value;
}

__device__ __forceinline__ void store_shared(uint32_t address, uint32_t value) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

// Not through the read-only path: other multiprocessors write this memory while the kernel runs.
__device__ __forceinline__ uint32_t load_global(const void* address) {
    uint32_t value;
    asm volatile("ld.global.b32 %0, [%1];" : "=r"(value) : "l"(address) : "memory");
    return value;
}

__device__ __forceinline__ void store_global(void* address, uint32_t value) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(address), "r"(value) : "memory");
}

// Two values that nothing writes while the kernel runs, from an 8-byte boundary.
__device__ __forceinline__ Pair load_pair(const float* address) {
    Pair pair;
    asm("ld.global.nc.v2.f32 {%0, %1}, [%2];" : "=f"(pair.low), "=f"(pair.high) : "l"(address));
    return pair;
}

// Elements. pack rounds to nearest even, and its first argument has the lower address.

struct Bf16 {
    static constexpr CUtensorMapDataType kMapType = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    __device__ static __forceinline__ uint32_t pack(float low, float high) {
        uint32_t value;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(value) : "f"(high), "f"(low));
        return value;
    }
    __device__ static __forceinline__ Pair unpack(uint32_t value) {
        return {__uint_as_float(value << 16), __uint_as_float(value & 0xffff0000u)};
    }
};

struct Half {
    static constexpr CUtensorMapDataType kMapType = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    __device__ static __forceinline__ uint32_t pack(float low, float high) {
        uint32_t value;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(value) : "f"(high), "f"(low));
        return value;
    }
    __device__ static __forceinline__ Pair unpack(uint32_t value) {
        Pair pair;
        asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
            : "=f"(pair.low), "=f"(pair.high)
            : "r"(value));
        return pair;
    }
};

// Counters in global memory. What a thread wrote, or saw through a barrier, before signal(), a thread sees after its
// wait_for() has read the sum ("Memory consistency model": release and acquire patterns).

__device__ __forceinline__ void signal(int32_t* counter) {
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
}

__device__ __forceinline__ void wait_for(const int32_t* counter, int32_t target) {
    int32_t value;
    while (true) {  // an acquiring load empties the first-level cache, so only the last one is
        asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
        if (value >= target) break;
        __nanosleep(64);
    }
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
}

// "fence.proxy": ordinary accesses and those of the copy engine and the tensor cores take different paths to memory.

__device__ __forceinline__ void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
__device__ __forceinline__ void fence_async_global() { asm volatile("fence.proxy.async.global;" ::: "memory"); }

// "mbarrier": a phase is over after `count` arrivals and all bytes that they announced; the first phase has parity 0.

__device__ __forceinline__ void barrier_init(uint32_t barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

__device__ __forceinline__ void fence_barrier_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    fence_async_shared();
}

__device__ __forceinline__ void arrive(uint32_t barrier, int count = 1) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

// At the barrier with this address in a block of the cluster. Without the .release.cluster that memory handed over by
// ordinary stores would need: it costs a fence over the whole GPU, and only the copy engine and the tensor cores use
// what changes hands here.
__device__ __forceinline__ void arrive_at(uint32_t barrier, int rank, int count) {
    asm volatile(
        "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote], %2;\n}" ::"r"(barrier),
        "r"(rank), "r"(count)
        : "memory");
}

__device__ __forceinline__ void arrive_and_expect(uint32_t barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void wait(uint32_t barrier, uint32_t parity) {
    uint32_t done;
    do {
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!done);
}

// "cp.async.bulk.tensor": a box of a two-dimensional tensor. Loads read zeros outside the tensor, and the whole box
// counts for the barrier; stores write nothing outside.

__device__ __forceinline__ void load_box(const TensorMap& map, uint32_t to, uint32_t barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];"
        ::"r"(to), "l"(&map), "r"(barrier), "r"(column), "r"(row)
        : "memory");
}

// To the same address in both blocks of the cluster; the bytes count for the barrier at that address in each.
__device__ __forceinline__ void load_box_to_both(const TensorMap& map, uint32_t to, uint32_t barrier, int column,
                                                 int row) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
        " [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
        "l"(&map), "r"(barrier), "r"(column), "r"(row), "h"(static_cast<uint16_t>(3))
        : "memory");
}

__device__ __forceinline__ void store_box(const TensorMap& map, uint32_t from, int column, int row) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map), "r"(from),
                 "r"(column), "r"(row)
                 : "memory");
}

__device__ __forceinline__ void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Until this thread's stores have read their sources.
__device__ __forceinline__ void wait_stores_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Until what they wrote is visible to this thread.
__device__ __forceinline__ void wait_stores() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// "setmaxnreg", by all warps of a warpgroup.

template <int kRegisters>
__device__ __forceinline__ void lower_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void raise_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// "wgmma": products of tiles in shared memory, which matrix descriptors name.

__device__ __forceinline__ void product_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void product_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most kPending groups are under way.
template <int kPending>
__device__ __forceinline__ void product_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving work on the sums above the wait that precedes this.
template <int kSums>
__device__ __forceinline__ void product_results(float (&d)[kSums]) {
#pragma unroll
    for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

#define HOPPER_SUMS_8(i)                                                                                        \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
        "+f"(d[i + 7])
#define HOPPER_SUMS_32(i) HOPPER_SUMS_8(i), HOPPER_SUMS_8(i + 8), HOPPER_SUMS_8(i + 16), HOPPER_SUMS_8(i + 24)
#define HOPPER_SUMS_64 HOPPER_SUMS_32(0), HOPPER_SUMS_32(32)
#define HOPPER_SUMS_96 HOPPER_SUMS_64, HOPPER_SUMS_32(64)
#define HOPPER_NAMES_64 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, " \
    "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, " \
    "%62, %63"
#define HOPPER_NAMES_96 HOPPER_NAMES_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
    "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"

// d (64 x N) = a (64 x 16) b (N x 16)^T + accumulate * d by the four warps of a warpgroup, in fp32. Thread t holds the
// elements d[4 g + e] of row 16 (t / 32) + t % 32 / 4 + 8 (e / 2) and column 8 g + 2 (t % 4) + e % 2 ("Register
// fragments"). N is twice the number of d's elements; N = 256 would need more registers than a thread of 512 starts
// with.
#define HOPPER_PRODUCT(SUMS, COLUMNS, ELEMENT, TYPE, A, B, P)                                                          \
    __device__ __forceinline__ void product(ELEMENT, float (&d)[SUMS], uint64_t a, uint64_t b, int accumulate) {       \
        asm volatile(                                                                                                  \
            "{\n.reg .pred p;\nsetp.ne.b32 p, " P ", 0;\n"                                                             \
            "wgmma.mma_async.sync.aligned.m64n" COLUMNS "k16.f32." TYPE "." TYPE                                       \
            " {" HOPPER_NAMES_##SUMS "}, " A ", " B ", p, 1, 1, 0, 0;\n}"                                              \
            : HOPPER_SUMS_##SUMS                                                                                       \
            : "l"(a), "l"(b), "r"(accumulate));                                                                        \
    }

HOPPER_PRODUCT(64, "128", Bf16, "bf16", "%64", "%65", "%66")
HOPPER_PRODUCT(64, "128", Half, "f16", "%64", "%65", "%66")
HOPPER_PRODUCT(96, "192", Bf16, "bf16", "%96", "%97", "%98")
HOPPER_PRODUCT(96, "192", Half, "f16", "%96", "%97", "%98")

#undef HOPPER_PRODUCT
#undef HOPPER_NAMES_64
#undef HOPPER_NAMES_96
#undef HOPPER_SUMS_8
#undef HOPPER_SUMS_32
#undef HOPPER_SUMS_64
#undef HOPPER_SUMS_96

}  // namespace hopper
