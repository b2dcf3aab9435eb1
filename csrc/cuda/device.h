// CUDA C++ by nvcc, or by a plain C++ compiler with an emulator, tests/csrc/cuda_emulator.h, on its include path.
#pragma once

#include <stdint.h>
#include <string.h>

#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_emulator.h"
#endif

#include "runtime.h"

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
// Zeros, and nothing is read, unless `there`.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool there) {
    const unsigned bytes = there ? 16 : 0;
#ifdef __CUDACC__
    const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
#else
    cuda_emulator::copy_async(shared, global, bytes, 16);
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

// A value that the compiler takes for a new one: what follows from it is computed where it is needed, and not once for
// all frames into registers of its own.
template <typename Value>
__device__ __forceinline__ Value renewed(Value value) {
#ifdef __CUDACC__
    if constexpr (sizeof(Value) == 8) {
        asm volatile("" : "+l"(value));
    } else if constexpr (std::is_same_v<Value, float>) {
        asm volatile("" : "+f"(value));
    } else {
        asm volatile("" : "+r"(value));
    }
#endif
    return value;
}

// Stores 4 or 8 bytes unless `wanted` is 0, and moves on by `stride` bytes. Never a branch, which would keep what
// follows from being scheduled with what comes before, and no address before it is needed: registers are short.
template <typename Value>
__device__ __forceinline__ void store_next(unsigned wanted, void*& at, int64_t stride, const Value& value) {
    static_assert(sizeof(Value) == 4 || sizeof(Value) == 8);
#ifdef __CUDACC__
    std::conditional_t<sizeof(Value) == 4, uint32_t, uint64_t> bits;
    memcpy(&bits, &value, sizeof(bits));
    if constexpr (sizeof(Value) == 4) {
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; @p st.global.b32 [%0], %2; add.s64 %0, %0, %3; }"
                     : "+l"(at) : "r"(wanted), "r"(bits), "l"(stride) : "memory");
    } else {
        asm volatile("{ .reg .pred p; setp.ne.u32 p, %1, 0; @p st.global.b64 [%0], %2; add.s64 %0, %0, %3; }"
                     : "+l"(at) : "r"(wanted), "l"(bits), "l"(stride) : "memory");
    }
#else
    if (wanted) memcpy(at, &value, sizeof(Value));
    at = static_cast<unsigned char*>(at) + stride;
#endif
}

// Enqueues kernel(args...) on a stream; returns a cudaError_t.
template <typename... Parameters, typename... Args>
int launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, size_t shared_bytes, void* stream,
           Args... args) {
    const int error = allow_shared_memory(reinterpret_cast<const void*>(kernel), shared_bytes);
    if (error != cudaSuccess) return error;
#ifdef __CUDACC__
    kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(args...);
#else
    cuda_emulator::launch(grid, dim3(threads), shared_bytes, [=] { kernel(args...); });
    (void)stream;
#endif
    return cudaGetLastError();
}
