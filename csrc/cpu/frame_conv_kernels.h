// What the convolution over frames beside an up-projection takes: each channel of a bottleneck feeds a group of columns.
#pragma once

#include <stdint.h>

// Rows of a clip: `lead` tokens without a time, then `positions` tokens in each of `frames` frames.
struct FrameConvShape {
    int64_t clips, frames, positions, lead;
    bool joint;  // whether the frames of a position follow each other; else the positions of a frame do
    int64_t channels, columns;  // of h and of the output, a multiple of it

    int64_t rows() const { return lead + frames * positions; }
    int64_t frame_stride() const { return joint ? 1 : positions; }
    int64_t row(int64_t clip, int64_t position) const {
        return clip * rows() + lead + position * (joint ? frames : 1);
    }
};

// Some positions of a clip; the first task of a clip also has its tokens without a time.
struct FrameConvTask {
    int64_t clip, first, end;
};

template <typename T>
struct FrameConv {
    FrameConvShape shape;
    const T *h, *base;
    const float *taps, *bias;  // (3, columns), (columns)
    const float* lead_bias;    // (columns), of tokens without a time
    float lead_tap;            // their factor of h
    T* out;                    // base + bias + taps * h
};

// Rows of sums, each `columns` long, in this order.
struct FrameConvSums {
    static constexpr int taps = 0;   // 3
    static constexpr int total = 3;  // of dy over tokens with a time
    static constexpr int lead = 4;   // of dy over those without
    static constexpr int rows = 5;
};

template <typename T>
struct FrameConvBackward {
    FrameConvShape shape;
    const T *h, *dy;
    const float* taps;
    float lead_tap;
    T* dh;
};

// One copy of this table exists for each instruction set.
template <typename T>
struct FrameConvKernels {
    // scratch: time_scratch(shape) floats, the task's own.
    void (*forward)(const FrameConv<T>&, const FrameConvTask&, float* scratch);
    // sums: FrameConvSums::rows * columns floats, added to.
    void (*backward)(const FrameConvBackward<T>&, const FrameConvTask&, float* scratch, float* sums);
};

inline int64_t time_scratch(const FrameConvShape& s) { return 2 * s.frames * s.columns; }
