// The convolution over frames that widens a bottleneck, for one instruction set. A task works on some positions of one
// clip; all frames of a position are spread to the full width in scratch first, where every tap finds its neighbours.
#pragma once

#include "simd.h"

namespace {

// Each channel of h once for every column that it feeds, in fp32.
template <typename T>
inline void spread(const T* h, int64_t channels, int64_t group, float* out) {
    if (group == 1) {
        for_channels(channels, [&]<int N>(int64_t c) { store<N>(out + c, load<N>(h + c)); });
        return;
    }
    for (int64_t c = 0; c < channels; ++c) {
        const float value = load<1>(h + c)[0];
        for (int64_t j = 0; j < group; ++j) out[c * group + j] = value;
    }
}

template <typename T>
inline void gather(const float* in, int64_t channels, int64_t group, T* out) {
    if (group == 1) {
        for_channels(channels, [&]<int N>(int64_t c) { store<N>(out + c, load<N>(in + c)); });
        return;
    }
    for (int64_t c = 0; c < channels; ++c) {
        float sum = 0;
        for (int64_t j = 0; j < group; ++j) sum += in[c * group + j];
        store<1>(out + c, Vec<1>{sum});
    }
}

template <typename T>
void frame_conv(const FrameConv<T>& a, const FrameConvTask& task, float* scratch) {
    const FrameConvShape& s = a.shape;
    const int64_t group = s.columns / s.channels;
    if (task.first == 0) {  // tokens without a time
        for (int64_t n = 0; n < s.lead; ++n) {
            const int64_t row = task.clip * s.rows() + n;
            spread(a.h + row * s.channels, s.channels, group, scratch);
            for_channels(s.columns, [&]<int N>(int64_t c) {
                Vec<N> branch = load<N>(a.lead_bias + c);
                if (a.lead_tap != 0.0f) branch += load<N>(scratch + c) * a.lead_tap;
                store<N>(a.out + row * s.columns + c, load<N>(a.base + row * s.columns + c) + branch);
            });
        }
    }
    for (int64_t p = task.first; p < task.end; ++p) {
        const int64_t row = s.row(task.clip, p), step = s.frame_stride();
        for (int64_t t = 0; t < s.frames; ++t) {
            spread(a.h + (row + t * step) * s.channels, s.channels, group, scratch + t * s.columns);
        }
        for_channels(s.columns, [&]<int N>(int64_t c) {
            const Vec<N> tap0 = load<N>(a.taps + c), tap1 = load<N>(a.taps + s.columns + c);
            const Vec<N> tap2 = load<N>(a.taps + 2 * s.columns + c), bias = load<N>(a.bias + c);
            Vec<N> before = splat<N>(0.0f), here = load<N>(scratch + c);
            for (int64_t t = 0; t < s.frames; ++t) {
                const Vec<N> after = t + 1 < s.frames ? load<N>(scratch + (t + 1) * s.columns + c) : splat<N>(0.0f);
                const int64_t at = (row + t * step) * s.columns + c;
                // Outside the clip there is no tap: an infinite one times zero would be no number.
                Vec<N> sum = load<N>(a.base + at) + bias + here * tap1;
                if (t > 0) sum += before * tap0;
                if (t + 1 < s.frames) sum += after * tap2;
                store<N>(a.out + at, sum);
                before = here;
                here = after;
            }
        });
    }
}

template <typename T>
void frame_conv_backward(const FrameConvBackward<T>& a, const FrameConvTask& task, float* scratch, float* sums) {
    const FrameConvShape& s = a.shape;
    const int64_t group = s.columns / s.channels;
    float* const slopes = scratch + s.frames * s.columns;
    if (task.first == 0) {
        float* const lead_sums = sums + FrameConvSums::lead * s.columns;
        for (int64_t n = 0; n < s.lead; ++n) {
            const int64_t row = task.clip * s.rows() + n;
            for_channels(s.columns, [&]<int N>(int64_t c) {
                const Vec<N> dy = load<N>(a.dy + row * s.columns + c);
                store<N>(slopes + c, a.lead_tap != 0.0f ? dy * a.lead_tap : splat<N>(0.0f));
                add_to<N>(lead_sums + c, dy);
            });
            gather(slopes, s.channels, group, a.dh + row * s.channels);
        }
    }
    for (int64_t p = task.first; p < task.end; ++p) {
        const int64_t row = s.row(task.clip, p), step = s.frame_stride();
        for (int64_t t = 0; t < s.frames; ++t) {
            spread(a.h + (row + t * step) * s.channels, s.channels, group, scratch + t * s.columns);
        }
        for_channels(s.columns, [&]<int N>(int64_t c) {
            const Vec<N> tap0 = load<N>(a.taps + c), tap1 = load<N>(a.taps + s.columns + c);
            const Vec<N> tap2 = load<N>(a.taps + 2 * s.columns + c);
            Vec<N> sum0 = splat<N>(0.0f), sum1 = sum0, sum2 = sum0, total = sum0;
            Vec<N> before = sum0, here = load<N>(a.dy + row * s.columns + c), h_before = sum0;
            Vec<N> h_here = load<N>(scratch + c);
            for (int64_t t = 0; t < s.frames; ++t) {
                const bool more = t + 1 < s.frames;
                const Vec<N> after = more ? load<N>(a.dy + (row + (t + 1) * step) * s.columns + c) : splat<N>(0.0f);
                const Vec<N> h_after = more ? load<N>(scratch + (t + 1) * s.columns + c) : splat<N>(0.0f);
                Vec<N> slope = here * tap1;
                if (t > 0) slope += before * tap2, sum0 += here * h_before;
                if (more) slope += after * tap0, sum2 += here * h_after;
                store<N>(slopes + t * s.columns + c, slope);
                sum1 += here * h_here;
                total += here;
                before = here;
                here = after;
                h_before = h_here;
                h_here = h_after;
            }
            add_to<N>(sums + FrameConvSums::taps * s.columns + c, sum0);
            add_to<N>(sums + (FrameConvSums::taps + 1) * s.columns + c, sum1);
            add_to<N>(sums + (FrameConvSums::taps + 2) * s.columns + c, sum2);
            add_to<N>(sums + FrameConvSums::total * s.columns + c, total);
        });
        for (int64_t t = 0; t < s.frames; ++t) {
            gather(slopes + t * s.columns, s.channels, group, a.dh + (row + t * step) * s.channels);
        }
    }
}

}  // namespace
