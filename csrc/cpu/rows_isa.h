// Passes over whole rows for one instruction set: the residual stream on its way into and out of the projections.
#pragma once

#include "simd.h"

namespace {

template <typename T>
void add_bias(const T* x, const float* bias, T* out, int64_t rows, int64_t columns) {
    for (int64_t n = 0; n < rows; ++n) {
        for_channels(columns, [&]<int N>(int64_t c) {
            store<N>(out + n * columns + c, load<N>(x + n * columns + c) + load<N>(bias + c));
        });
    }
}

template <typename T>
void copy_and_sum(const T* x, T* out, float* sums, int64_t rows, int64_t columns) {
    for (int64_t first = 0; first < rows; first += sum_block) {
        const int64_t end = first + sum_block < rows ? first + sum_block : rows;
        for_channels(columns, [&]<int N>(int64_t c) {
            Vec<N> sum = splat<N>(0.0f);
            for (int64_t n = first; n < end; ++n) {
                const Vec<N> value = load<N>(x + n * columns + c);
                if (out) store<N>(out + n * columns + c, value);
                sum += value;
            }
            add_to<N>(sums + c, sum);
        });
    }
}

}  // namespace
