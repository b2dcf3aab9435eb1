// Values of a tensor in registers: N neighbouring ones of 16 or 32 bits as floats.
#pragma once

#include "device.h"

template <int N>
struct Floats {
    float v[N];

    __device__ __forceinline__ float& operator[](int i) { return v[i]; }
    __device__ __forceinline__ float operator[](int i) const { return v[i]; }
};

template <int N>
__device__ __forceinline__ Floats<N> zeros() {
    Floats<N> x;
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = 0.0f;
    return x;
}

// sum += a * b
template <int N>
__device__ __forceinline__ void multiply_add(Floats<N>& sum, const Floats<N>& a, const Floats<N>& b) {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += a[i] * b[i];
}

template <int N>
__device__ __forceinline__ void add(Floats<N>& sum, const Floats<N>& a) {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += a[i];
}

template <typename T>
__device__ __forceinline__ float to_float(T x);
template <>
__device__ __forceinline__ float to_float(float x) { return x; }
template <>
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <>
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float(float x) { return x; }
template <>
__device__ __forceinline__ __half from_float(float x) { return __float2half_rn(x); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }

// Values that share an address aligned to their size are moved at once.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
    T v[N];
};

template <int N, typename T>
__device__ __forceinline__ Floats<N> load(const T* address) {
    const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(address);
    Floats<N> x;
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = to_float(pack.v[i]);
    return x;
}

// A bfloat16 is the upper half of a float: pairs are taken apart without a conversion.
template <int N>
__device__ __forceinline__ Floats<N> load(const __nv_bfloat16* address) {
    Floats<N> x;
    if constexpr (N == 1) {
        x[0] = to_float(*address);
    } else {
        const Pack<unsigned, N / 2> pack = *reinterpret_cast<const Pack<unsigned, N / 2>*>(address);
#pragma unroll
        for (int i = 0; i < N; i += 2) {
            x[i] = __uint_as_float(pack.v[i / 2] << 16);
            x[i + 1] = __uint_as_float(pack.v[i / 2] & 0xffff0000u);
        }
    }
    return x;
}

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> packed(const Floats<N>& x) {
    Pack<T, N> pack;
#pragma unroll
    for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(x[i]);
    return pack;
}

template <int N, typename T>
__device__ __forceinline__ void store(T* address, const Floats<N>& x) {
    *reinterpret_cast<Pack<T, N>*>(address) = packed<T>(x);
}

// The first `count` of N values at an address that need not be aligned; zero for the others.
template <int N, typename T>
__device__ __forceinline__ Floats<N> load_some(const T* address, int count) {
    Floats<N> x;
#pragma unroll
    for (int i = 0; i < N; ++i) x[i] = i < count ? to_float(address[i]) : 0.0f;
    return x;
}

template <int N, typename T>
__device__ __forceinline__ void store_some(T* address, const Floats<N>& x, int count) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if (i < count) address[i] = from_float<T>(x[i]);
    }
}
