// The mixer of the TED-Adapter for one instruction set: temporal convolution, frame difference and 3x3 convolution.
//
// A task works on some grid rows of one frame. Rows of the difference go through a ring of three padded rows of fp32
// scratch, so that every value of h is read once and every tap finds its neighbours in the cache.
#pragma once

#include "simd.h"

namespace {

template <typename T>
struct Frames {
    const T* here;    // first token of this frame
    const T* before;  // of the frame before, null at the clip's start
    const T* after;   // of the frame after, null at its end
};

template <typename T>
Frames<T> frames_of(const MixerShape& s, const T* tensor, int64_t columns, const MixerTask& task) {
    const int64_t frame_size = s.tokens * columns;
    const T* here = tensor + (task.clip * s.frames + task.frame) * frame_size;
    return {here, task.frame > 0 ? here - frame_size : nullptr, task.frame + 1 < s.frames ? here + frame_size : nullptr};
}

inline int64_t patch_token(const MixerShape& s, int64_t row, int64_t column) {
    return s.class_token + row * s.grid_width + column;
}

// Three padded grid rows; row r lives in place r mod 3. The outer columns, and rows outside the grid, are zeros.
struct Ring {
    const MixerShape& shape;
    float* memory;

    Ring(const MixerShape& s, float* m) : shape(s), memory(m) {
        for (int64_t r = 0; r < 3; ++r) {
            memset(row(r), 0, sizeof(float) * scratch_stride(s));
            memset(row(r) + (s.grid_width + 1) * scratch_stride(s), 0, sizeof(float) * scratch_stride(s));
        }
    }
    float* row(int64_t r) const { return memory + (r + 3) % 3 * scratch_row(shape); }

    // fill(patch, out) writes one patch's channels; a row outside the grid becomes zeros.
    template <typename Fill>
    void write(int64_t r, Fill fill) const {
        float* out = row(r);
        if (r < 0 || r >= shape.grid_height) {
            memset(out, 0, sizeof(float) * scratch_row(shape));
            return;
        }
        for (int64_t j = 0; j < shape.grid_width; ++j) fill(patch_token(shape, r, j), out + (j + 1) * scratch_stride(shape));
    }
};

// d_t = h_t - h_{t-1} + b, or b for the first frame.
template <typename T>
void difference_patch(const MixerShape& s, const Frames<T>& h, const float* bias, int64_t token, float* out) {
    const int64_t at = token * s.h_columns + s.difference_column;
    for_channels(s.width, [&]<int N>(int64_t c) {
        Vec<N> d = load<N>(bias + c);
        if (h.before) d += load<N>(h.here + at + c) - load<N>(h.before + at + c);
        store<N>(out + c, d);
    });
}

// The gradient's difference e_t = [t > 0] du_t - [t + 1 < T] du_{t+1}: dh_t is its transposed convolution.
template <typename T>
void gradient_patch(const MixerShape& s, const Frames<T>& du, int64_t token, float* out) {
    const int64_t at = token * s.columns + s.difference_column;
    for_channels(s.width, [&]<int N>(int64_t c) {
        Vec<N> e = splat<N>(0.0f);
        if (du.before) e += load<N>(du.here + at + c);
        if (du.after) e -= load<N>(du.after + at + c);
        store<N>(out + c, e);
    });
}

// One row of the 3x3 convolution for N channels: a window of nine vectors slides along the row. Taps that would meet the
// zeros around the grid are zeros there, so that an infinite one reaches no further than it should.
template <int N, bool Transposed, typename Out>
inline void convolve_row(const MixerShape& s, const Ring& ring, int64_t r, const float* taps, Vec<N> bias, int64_t c, Out out) {
    const int64_t stride = scratch_stride(s);
    const float* source[3] = {ring.row(r - 1) + c, ring.row(r) + c, ring.row(r + 1) + c};
    const Vec<N> zero = splat<N>(0.0f);
    Vec<N> w[9], left[3], middle[3], right[3];
    for (int k = 0; k < 9; ++k) {
        const int64_t from = r + k / 3 - 1;
        w[k] = from < 0 || from >= s.grid_height ? zero : load<N>(taps + (Transposed ? 8 - k : k) * s.width + c);
    }
    for (int i = 0; i < 3; ++i) left[i] = load<N>(source[i]), middle[i] = load<N>(source[i] + stride);
    const auto step = [&](int64_t j, bool has_left, bool has_right) {
        Vec<N> sum = bias;
        for (int i = 0; i < 3; ++i) {
            right[i] = load<N>(source[i] + (j + 2) * stride);
            const Vec<N> before = has_left ? w[3 * i] : zero, after = has_right ? w[3 * i + 2] : zero;
            sum += left[i] * before + middle[i] * w[3 * i + 1] + right[i] * after;
        }
        out(j, sum);
        for (int i = 0; i < 3; ++i) left[i] = middle[i], middle[i] = right[i];
    };
    const int64_t last = s.grid_width - 1;
    step(0, false, last > 0);
    for (int64_t j = 1; j < last; ++j) step(j, true, true);
    if (last > 0) step(last, true, false);
}

template <typename T>
void temporal_forward(const MixerShape& s, const MixerWeights& w, const Frames<T>& h, const MixerTask& task, T* u) {
    for (int64_t token = task.first_token; token < task.end_token; ++token) {
        const int64_t at = token * s.h_columns;
        for_channels(s.width, [&]<int N>(int64_t c) {
            Vec<N> sum = load<N>(w.temporal_bias + c) + load<N>(w.temporal_taps + s.width + c) * load<N>(h.here + at + c);
            if (h.before) sum += load<N>(w.temporal_taps + c) * load<N>(h.before + at + c);
            if (h.after) sum += load<N>(w.temporal_taps + 2 * s.width + c) * load<N>(h.after + at + c);
            store<N>(u + token * s.columns + c, sum);
        });
    }
}

template <typename T>
void clear_class_token(const MixerShape& s, const MixerTask& task, T* frame) {
    if (s.class_token && task.first_token == 0) memset(frame + s.difference_column, 0, sizeof(T) * s.width);
}

// u of the grid row r from the differences in the ring.
template <typename T>
void difference_forward_row(const MixerShape& s, const MixerWeights& w, const Ring& ring, int64_t r, T* u) {
    T* out = u + patch_token(s, r, 0) * s.columns + s.difference_column;
    const bool summed = s.summed();
    for_channels(s.width, [&]<int N>(int64_t c) {
        convolve_row<N, false>(s, ring, r, w.difference_taps, load<N>(w.difference_bias + c), c, [&](int64_t j, Vec<N> sum) {
            T* place = out + j * s.columns + c;
            store<N>(place, summed ? sum + load<N>(place) : sum);
        });
    });
}

template <typename T>
void mixer_forward(const MixerForward<T>& args, const MixerTask& task, float* scratch) {
    const MixerShape& s = args.shape;
    const MixerWeights& w = args.weights;
    const Frames<T> h = frames_of(s, args.h, s.h_columns, task);
    T* u = args.u + (task.clip * s.frames + task.frame) * s.tokens * s.columns;
    if (s.temporal) temporal_forward(s, w, h, task, u);
    if (!s.difference) return;
    if (!s.summed()) clear_class_token(s, task, u);
    const Ring ring(s, scratch);
    const auto fill = [&](int64_t token, float* out) { difference_patch(s, h, w.down_bias, token, out); };
    for (int64_t r = task.first_row - 1; r < task.end_row + 1; ++r) {
        ring.write(r, fill);
        if (r > task.first_row) difference_forward_row(s, w, ring, r - 1, u);
    }
}

template <typename T>
void temporal_backward(const MixerBackward<T>& args, const Frames<T>& h, const Frames<T>& du, int64_t first,
                       int64_t end, T* dh, float* sums) {
    const MixerShape& s = args.shape;
    const float* taps = args.weights.temporal_taps;
    float* tap_sums = sums + MixerSums::temporal_taps * s.width;
    float* bias_sums = sums + MixerSums::temporal_bias * s.width;
    float* down_sums = sums + MixerSums::temporal_down_bias * s.width;
    for_channels(s.width, [&]<int N>(int64_t c) {
        const Vec<N> zero = splat<N>(0.0f);
        const Vec<N> w0 = load<N>(taps + c), w1 = load<N>(taps + s.width + c), w2 = load<N>(taps + 2 * s.width + c);
        Vec<N> sum0 = zero, sum1 = zero, sum2 = zero, bias = zero, down = zero;
        for (int64_t token = first; token < end; ++token) {
            const int64_t at = token * s.columns + c, h_at = token * s.h_columns + c;
            const Vec<N> g = load<N>(du.here + at);
            Vec<N> gradient = w1 * g;
            sum1 += g * load<N>(h.here + h_at);
            if (h.before) {
                sum0 += g * load<N>(h.before + h_at);
                gradient += w2 * load<N>(du.before + at);
            }
            if (h.after) {
                sum2 += g * load<N>(h.after + h_at);
                gradient += w0 * load<N>(du.after + at);
            }
            bias += g;
            down += gradient;
            store<N>(dh + at, gradient);
        }
        add_to<N>(tap_sums + c, sum0);
        add_to<N>(tap_sums + s.width + c, sum1);
        add_to<N>(tap_sums + 2 * s.width + c, sum2);
        add_to<N>(bias_sums + c, bias);
        add_to<N>(down_sums + c, down);
    });
}

// Sums over the patches q of row r: du(q) d(q + k) for every tap k, and du(q) alone where q + k is inside the grid.
template <typename T>
void difference_weight_sums(const MixerShape& s, const Ring& ring, const T* du, int64_t r, float* sums) {
    const int64_t stride = scratch_stride(s), last = s.grid_width - 1;
    const T* gradient = du + patch_token(s, r, 0) * s.columns + s.difference_column;
    for_channels(s.width, [&]<int N>(int64_t c) {
        const Vec<N> zero = splat<N>(0.0f);
        Vec<N> tap[9], total = zero, left[3], middle[3];
        const float* source[3] = {ring.row(r - 1) + c, ring.row(r) + c, ring.row(r + 1) + c};
        for (int k = 0; k < 9; ++k) tap[k] = zero;
        for (int i = 0; i < 3; ++i) left[i] = load<N>(source[i]), middle[i] = load<N>(source[i] + stride);
        for (int64_t j = 0; j <= last; ++j) {
            const Vec<N> g = load<N>(gradient + j * s.columns + c);
            total += g;
            for (int i = 0; i < 3; ++i) {
                const Vec<N> right = load<N>(source[i] + (j + 2) * stride);
                tap[3 * i] += g * left[i];
                tap[3 * i + 1] += g * middle[i];
                tap[3 * i + 2] += g * right;
                left[i] = middle[i];
                middle[i] = right;
            }
        }
        for (int k = 0; k < 9; ++k) add_to<N>(sums + (MixerSums::difference_taps + k) * s.width + c, tap[k]);
        add_to<N>(sums + MixerSums::difference_bias * s.width + c, total);
        const Vec<N> without_first = total - load<N>(gradient + c);
        const Vec<N> without_last = total - load<N>(gradient + last * s.columns + c);
        for (int i = 0; i < 3; ++i) {
            if (r + i - 1 < 0 || r + i - 1 >= s.grid_height) continue;
            float* reach = sums + (MixerSums::reach + 3 * i) * s.width + c;
            add_to<N>(reach, without_first);
            add_to<N>(reach + s.width, total);
            add_to<N>(reach + 2 * s.width, without_last);
        }
    });
}

template <typename T>
void difference_backward(const MixerBackward<T>& args, const Frames<T>& h, const Frames<T>& du, const MixerTask& task,
                         T* dh, float* scratch, float* sums) {
    const MixerShape& s = args.shape;
    const MixerWeights& w = args.weights;
    const Ring differences(s, scratch), gradients(s, scratch + 3 * scratch_row(s));
    const auto fill = [&](int64_t token, float* out) { difference_patch(s, h, w.down_bias, token, out); };
    const auto fill_gradient = [&](int64_t token, float* out) { gradient_patch(s, du, token, out); };
    const bool summed = s.summed();
    for (int64_t r = task.first_row - 1; r < task.end_row + 1; ++r) {
        differences.write(r, fill);
        gradients.write(r, fill_gradient);
        if (r <= task.first_row) continue;
        difference_weight_sums(s, differences, du.here, r - 1, sums);
        T* out = dh + patch_token(s, r - 1, 0) * s.columns + s.difference_column;
        for_channels(s.width, [&]<int N>(int64_t c) {
            convolve_row<N, true>(s, gradients, r - 1, w.difference_taps, splat<N>(0.0f), c, [&](int64_t j, Vec<N> sum) {
                T* place = out + j * s.columns + c;
                store<N>(place, summed ? sum + load<N>(place) : sum);
            });
        });
    }
}

template <typename T>
void mixer_backward(const MixerBackward<T>& args, const MixerTask& task, float* scratch, float* sums) {
    const MixerShape& s = args.shape;
    const Frames<T> h = frames_of(s, args.h, s.h_columns, task), du = frames_of(s, args.du, s.columns, task);
    T* dh = args.dh + (du.here - args.du);
    if (s.temporal) {
        for (int64_t first = task.first_token; first < task.end_token; first += sum_block) {
            const int64_t end = first + sum_block < task.end_token ? first + sum_block : task.end_token;
            temporal_backward(args, h, du, first, end, dh, sums);
        }
    }
    if (!s.difference) return;
    if (!s.summed()) clear_class_token(s, task, dh);
    difference_backward(args, h, du, task, dh, scratch, sums);
}

}  // namespace
