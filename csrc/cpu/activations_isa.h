// Activations of a bottleneck and their gradients for one instruction set.
#pragma once

#include "simd.h"

namespace {

// Phi(x), the normal distribution's integral, to about 1 ulp, and e^(-x^2/2), which its derivative needs as well.
// For z = |x|: Phi(-z) = e^(-z^2/2) R(z); R(z) (1 + z/4) is a polynomial of degree 9 in t = 1 / (1 + z/4), interpolated
// at Chebyshev's points of 0 <= t <= 1 in 60 digits, relative error 3e-8.
template <int N>
inline Vec<N> normal_integral(Vec<N> x, Vec<N>* bell) {
    const Vec<N> z = x < 0.0f ? -x : x;
    const Vec<N> t = 1.0f / (1.0f + 0.25f * z);
    Vec<N> p = splat<N>(0.0208148884f);
    p = p * t - 0.08538922994f;
    p = p * t + 0.1037988575f;
    p = p * t - 0.03974686337f;
    p = p * t + 0.06827399574f;
    p = p * t + 0.05744625824f;
    p = p * t + 0.08188963177f;
    p = p * t + 0.09343951471f;
    p = p * t + 0.09973739677f;
    p = p * t + 0.09973556104f;
    *bell = exponential<N>(-0.5f * x * x);
    const Vec<N> tail = *bell * p * t;
    return x < 0.0f ? tail : 1.0f - tail;
}

template <int N>
inline Vec<N> sigmoid(Vec<N> x) {
    return 1.0f / (1.0f + exponential<N>(-x));
}

struct Gelu {
    static constexpr bool closes = false;
    template <int N>
    static Vec<N> value(Vec<N> x, Vec<N>* slope) {
        Vec<N> bell;
        const Vec<N> integral = normal_integral<N>(x, &bell);
        *slope = integral + x * bell * 0.3989422804f;  // 1 / sqrt(2 pi)
        return x * integral;
    }
};

struct QuickGelu {
    static constexpr bool closes = false;
    template <int N>
    static Vec<N> value(Vec<N> x, Vec<N>* slope) {
        const Vec<N> gate = sigmoid<N>(1.702f * x);
        *slope = gate + 1.702f * x * gate * (1.0f - gate);
        return x * gate;
    }
};

struct Relu {
    static constexpr bool closes = true;
    template <int N>
    static Vec<N> value(Vec<N> x, Vec<N>* slope) {
        *slope = x > 0.0f ? splat<N>(1.0f) : splat<N>(0.0f);
        return x < 0.0f ? splat<N>(0.0f) : x;  // NaN stays NaN
    }
};

struct Identity {
    static constexpr bool closes = false;
    template <int N>
    static Vec<N> value(Vec<N> x, Vec<N>* slope) {
        *slope = splat<N>(1.0f);
        return x;
    }
};

template <typename T, typename F>
void activate(const T* h, T* g, int64_t count) {
    for_channels(count, [&]<int N>(int64_t i) {
        Vec<N> slope;
        store<N>(g + i, F::template value<N>(load<N>(h + i), &slope));
    });
}

template <typename T, typename F>
void activate_backward(const T* h, const T* dg, T* g, T* dh, float* sums, int64_t rows, int64_t columns) {
    for (int64_t first = 0; first < rows; first += sum_block) {
        const int64_t end = first + sum_block < rows ? first + sum_block : rows;
        for_channels(columns, [&]<int N>(int64_t c) {
            Vec<N> sum = splat<N>(0.0f);
            for (int64_t n = first; n < end; ++n) {
                const int64_t at = n * columns + c;
                Vec<N> slope;
                const Vec<N> value = F::template value<N>(load<N>(h + at), &slope);
                Vec<N> gradient = load<N>(dg + at) * slope;
                // What is closed stays closed to an infinite gradient too.
                if constexpr (F::closes) gradient = slope == 0.0f ? slope : gradient;
                if (g) store<N>(g + at, value);
                store<N>(dh + at, gradient);
                sum += gradient;
            }
            add_to<N>(sums + c, sum);
        });
    }
}

template <typename T>
void activation_forward(Activation kind, const T* h, T* g, int64_t count) {
    switch (kind) {
        case Activation::gelu: return activate<T, Gelu>(h, g, count);
        case Activation::quick_gelu: return activate<T, QuickGelu>(h, g, count);
        case Activation::relu: return activate<T, Relu>(h, g, count);
        case Activation::none: return activate<T, Identity>(h, g, count);
    }
}

template <typename T>
void activation_backward(Activation kind, const T* h, const T* dg, T* g, T* dh, float* sums, int64_t rows, int64_t columns) {
    switch (kind) {
        case Activation::gelu: return activate_backward<T, Gelu>(h, dg, g, dh, sums, rows, columns);
        case Activation::quick_gelu: return activate_backward<T, QuickGelu>(h, dg, g, dh, sums, rows, columns);
        case Activation::relu: return activate_backward<T, Relu>(h, dg, g, dh, sums, rows, columns);
        case Activation::none: return activate_backward<T, Identity>(h, dg, g, dh, sums, rows, columns);
    }
}

}  // namespace
