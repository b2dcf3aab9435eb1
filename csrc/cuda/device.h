// CUDA C++ by nvcc, or by a plain C++ compiler with an emulator, tests/csrc/cuda_emulator.h, on its include path.
#pragma once

#include <stdint.h>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_emulator.h"
#endif

// The dynamic shared memory of a block, aligned to 16 bytes: a kernel's only shared memory.
__device__ __forceinline__ unsigned char* shared_memory() {
#ifdef __CUDACC__
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
#else
    return cuda_emulator::current->block->shared.get();
#endif
}

// 16 bytes from global to shared memory, past the registers and the first-level cache; both addresses are so aligned.
__device__ __forceinline__ void copy_async(void* shared, const void* global) {
#ifdef __CUDACC__
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
#else
    cuda_emulator::copy_async(shared, global, 16, 16);
#endif
}

// Ends a group of copies, possibly an empty one.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    cuda_emulator::commit_copies();
#endif
}

// Waits for this thread's groups of copies but the latest `left`.
template <int left>
__device__ __forceinline__ void wait_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
#else
    cuda_emulator::wait_copies(left);
#endif
}

// Enqueues kernel(args...) on a stream; returns a cudaError_t.
template <typename... Parameters, typename... Args>
int launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_bytes, void* stream,
           Args... args) {
    if (shared_bytes > 48 * 1024) {
        const int limit = static_cast<int>(shared_bytes);
        const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit);
        if (error != cudaSuccess) return error;
    }
#ifdef __CUDACC__
    kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
#else
    cuda_emulator::launch(grid, dim3(threads), shared_bytes, [=] { kernel(args...); });
    (void)stream;
#endif
    return cudaGetLastError();
}
