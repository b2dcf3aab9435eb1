// Vectors of floats for one instruction set. Included only by isa.cpp, which is compiled once for each.
//
// Everything here has internal linkage and nothing of the standard library is instantiated: a function that two
// translation units shared could be linked in its AVX-512 form and then run on a processor without AVX-512.
#pragma once

#include <stdint.h>
#include <string.h>

#include "kernels.h"

namespace {

template <int N>
struct Lanes {
    typedef float f32 __attribute__((vector_size(N * 4)));
    typedef uint32_t u32 __attribute__((vector_size(N * 4)));
    typedef int32_t i32 __attribute__((vector_size(N * 4)));
    typedef uint16_t u16 __attribute__((vector_size(N * 2)));
};

template <int N>
using Vec = typename Lanes<N>::f32;

template <int N>
inline Vec<N> splat(float value) {
    return value - Vec<N>{};
}

template <int N>
inline Vec<N> load(const float* p) {
    Vec<N> v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <int N>
inline Vec<N> load(const bf16* p) {
    typename Lanes<N>::u16 raw;
    memcpy(&raw, p, sizeof raw);
    typename Lanes<N>::u32 bits = __builtin_convertvector(raw, typename Lanes<N>::u32) << 16;
    Vec<N> v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

template <int N>
inline void store(float* p, Vec<N> v) {
    memcpy(p, &v, sizeof v);
}

template <int N>
inline void store(bf16* p, Vec<N> v) {
    typename Lanes<N>::u32 bits;
    memcpy(&bits, &v, sizeof bits);
    // Round to nearest even; a NaN stays one, where the addition could carry it into infinity.
    typename Lanes<N>::u32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    typename Lanes<N>::u16 raw = __builtin_convertvector(v == v ? rounded : (bits >> 16) | 0x40, typename Lanes<N>::u16);
    memcpy(p, &raw, sizeof raw);
}

template <int N, typename T>
inline void add_to(T* p, Vec<N> v) {
    store<N>(p, load<N>(p) + v);
}

// Calls body with the widest vector for as long as it fits, then lane by lane for what is left of an odd width.
template <typename Body>
inline void for_channels(int64_t width, Body body) {
    int64_t c = 0;
    for (; c + M2CLIP_LANES <= width; c += M2CLIP_LANES) body.template operator()<M2CLIP_LANES>(c);
    for (; c < width; ++c) body.template operator()<1>(c);
}

// Terms that are summed in registers before their sum goes to memory: sums of sums lose fewer digits, and each row that
// is waiting for its next channels is still in the first cache.
constexpr int64_t sum_block = 8;

// e^x to about 1 ulp for -87.3 <= x <= 88.3; clamped outside, NaN stays NaN.
template <int N>
inline Vec<N> exponential(Vec<N> x) {
    using I = typename Lanes<N>::i32;
    const Vec<N> clamped = x < -87.3f ? splat<N>(-87.3f) : (x > 88.3f ? splat<N>(88.3f) : x);
    const Vec<N> shift = splat<N>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec<N> n = (clamped * 1.44269504f + shift) - shift;
    const Vec<N> r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
    Vec<N> p = splat<N>(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const I bits = (__builtin_convertvector(n, I) + 127) << 23;
    Vec<N> scale;
    memcpy(&scale, &bits, sizeof scale);
    const Vec<N> result = p * scale;
    return x == x ? result : x;
}

}  // namespace
