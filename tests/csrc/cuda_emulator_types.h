// CUDA's types for the emulator: 16-bit floating point by its bits, vectors, and the part of the runtime that launches.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x = 1, y = 1, z = 1;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct __half {
    uint16_t bits;
};
struct __nv_bfloat16 {
    uint16_t bits;
};
struct alignas(4) __half2 {
    __half x, y;
};
struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;
};

namespace cuda_emulator {

inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Drops the lowest bits of a significand, to the nearest, ties to even.
inline uint32_t rounded(uint32_t bits, unsigned dropped) {
    const uint32_t half = uint32_t{1} << (dropped - 1), odd = bits >> dropped & 1;
    return (bits + half - 1 + odd) >> dropped;
}

}  // namespace cuda_emulator

inline float __uint_as_float(unsigned x) { return cuda_emulator::float_of(x); }
inline float __bfloat162float(__nv_bfloat16 x) { return cuda_emulator::float_of(uint32_t{x.bits} << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
    const uint32_t bits = cuda_emulator::bits_of(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
    return {static_cast<uint16_t>(cuda_emulator::rounded(bits, 16))};
}

inline float __half2float(__half x) {
    const uint32_t sign = uint32_t{x.bits} >> 15 << 31, exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
    if (exponent == 31) return cuda_emulator::float_of(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) {  // fraction * 2^-24
        const float value = static_cast<float>(fraction) * cuda_emulator::float_of((127 - 24) << 23);
        return sign ? -value : value;
    }
    return cuda_emulator::float_of(sign | (exponent + 112) << 23 | fraction << 13);
}
inline __half __float2half_rn(float x) {
    const uint32_t bits = cuda_emulator::bits_of(x), sign = bits >> 31 << 15, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return {0x7fff};
    if (magnitude >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // rounds to 65536 or more
    const uint32_t exponent = magnitude >> 23;
    if (exponent >= 113) return {static_cast<uint16_t>(sign | (cuda_emulator::rounded(magnitude, 13) - (112 << 10)))};
    if (exponent < 102) return {static_cast<uint16_t>(sign)};
    const uint32_t significand = (magnitude & 0x7fffff) | 0x800000;
    return {static_cast<uint16_t>(sign | cuda_emulator::rounded(significand, 126 - exponent))};
}

inline float2 __half22float2(__half2 x) { return {__half2float(x.x), __half2float(x.y)}; }
inline float2 __bfloat1622float2(__nv_bfloat162 x) { return {__bfloat162float(x.x), __bfloat162float(x.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
    return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

// The runtime. Streams do nothing: a launch has ended when it returns.
using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;

inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaDriverGetVersion(int* version) {
    *version = 0;
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaFuncSetAttribute(const void*, int, int) { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
    memset(memory, value, bytes);
    return cudaSuccess;
}
