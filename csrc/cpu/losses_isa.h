// The losses for one instruction set: softmax over rows and columns of logits, and slopes of the losses.
#pragma once

#include "simd.h"

namespace {

template <int N>
inline Vec<N> maximum(Vec<N> a, Vec<N> b) {
    return a > b ? a : b;
}

// Natural logarithm through the C library, once a row.
inline float logarithm(float x) { return __builtin_logf(x); }

// A sum over for_channels: one partial sum a lane and one for what is left of an odd width.
struct LaneSum {
    Vec<M2CLIP_LANES> wide = splat<M2CLIP_LANES>(0.0f);
    float narrow = 0;

    template <int N>
    void add(Vec<N> v) {
        if constexpr (N == M2CLIP_LANES) {
            wide += v;
        } else {
            narrow += v[0];
        }
    }
    float total() const {
        float sum = narrow;
        for (int lane = 0; lane < M2CLIP_LANES; ++lane) sum += wide[lane];
        return sum;
    }
};

struct LaneMaximum {
    Vec<M2CLIP_LANES> wide = splat<M2CLIP_LANES>(-__FLT_MAX__);
    float narrow = -__FLT_MAX__;

    template <int N>
    void add(Vec<N> v) {
        if constexpr (N == M2CLIP_LANES) {
            wide = maximum<N>(v, wide);
        } else {
            narrow = v[0] > narrow ? v[0] : narrow;
        }
    }
    float total() const {
        float most = narrow;
        for (int lane = 0; lane < M2CLIP_LANES; ++lane) most = wide[lane] > most ? wide[lane] : most;
        return most;
    }
};

float sum_squares(const float* x, int64_t size) {
    constexpr int N = M2CLIP_LANES, chains = 4;  // four additions in flight
    Vec<N> sums[chains] = {};
    int64_t c = 0;
    for (; c + chains * N <= size; c += chains * N) {
        for (int k = 0; k < chains; ++k) {
            const Vec<N> value = load<N>(x + c + k * N);
            sums[k] += value * value;
        }
    }
    LaneSum rest;
    rest.wide = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for_channels(size - c, [&]<int M>(int64_t d) {
        const Vec<M> value = load<M>(x + c + d);
        rest.add<M>(value * value);
    });
    return rest.total();
}

// A product as it is stored, never as part of a fused multiply-add: a logit is then the same number wherever it is
// computed, and the softmax of a row that one class has to itself is exactly 1. (Clang fuses across no function.)
template <int N>
inline Vec<N> product(Vec<N> a, Vec<N> b) {
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
    return __builtin_assoc_barrier(a * b);
#else
    return a * b;
#endif
}

template <int N>
inline Vec<N> logit_at(const CosineLogits& l, const float* dots, float factor, int64_t c) {
    return product<N>(load<N>(dots + c), factor * load<N>(l.column_inverse + c));
}

void row_softmax(const CosineLogits& l, int64_t row, const Softmax& out) {
    const float* dots = l.dots + row * l.columns;
    const float factor = l.factor(row);
    LaneMaximum most;
    for_channels(l.columns, [&]<int N>(int64_t c) { most.add<N>(logit_at<N>(l, dots, factor, c)); });
    const float shift = most.total();
    LaneSum sum;
    for_channels(l.columns, [&]<int N>(int64_t c) {
        sum.add<N>(exponential<N>(logit_at<N>(l, dots, factor, c) - shift));
    });
    out.largest[row] = shift;
    out.log_sum[row] = logarithm(sum.total());
}

void column_softmax(const CosineLogits& l, int64_t first, int64_t end, const Softmax& out) {
    for_channels(end - first, [&]<int N>(int64_t offset) {
        const int64_t c = first + offset;
        const auto logit = [&](int64_t i) { return logit_at<N>(l, l.dots + i * l.columns, l.factor(i), c); };
        Vec<N> most = splat<N>(-__FLT_MAX__), sum = splat<N>(0.0f);
        for (int64_t i = 0; i < l.rows; ++i) most = maximum<N>(logit(i), most);
        for (int64_t i = 0; i < l.rows; ++i) sum += exponential<N>(logit(i) - most);
        for (int lane = 0; lane < N; ++lane) sum[lane] = logarithm(sum[lane]);
        store<N>(out.largest + c, most);
        store<N>(out.log_sum + c, sum);
    });
}

template <int N>
inline typename Lanes<N>::i32 same_group(const SoftTargets& t, int64_t row, int64_t c) {
    typename Lanes<N>::i32 groups;
    memcpy(&groups, t.group + c, sizeof groups);
    return groups == t.group[row];
}

// Logarithms of the shares of logits in the softmax of their row, and in those of their columns.
template <int N>
inline Vec<N> row_log_share(const Softmax& rows, int64_t row, Vec<N> logit) {
    return (logit - rows.largest[row]) - rows.log_sum[row];
}

template <int N>
inline Vec<N> column_log_share(const Softmax& columns, int64_t c, Vec<N> logit) {
    return (logit - load<N>(columns.largest + c)) - load<N>(columns.log_sum + c);
}

float soft_row_loss(const CosineLogits& l, const SoftSlope& slope, int64_t row) {
    const SoftTargets& t = slope.targets;
    const float* dots = l.dots + row * l.columns;
    const float factor = l.factor(row);
    LaneSum sum;
    for_channels(l.columns, [&]<int N>(int64_t c) {
        const auto same = same_group<N>(t, row, c);
        const Vec<N> logit = logit_at<N>(l, dots, factor, c);
        const Vec<N> row_target = same ? splat<N>(t.same[row]) : splat<N>(t.other[row]);
        const Vec<N> row_log = same ? splat<N>(t.log_same[row]) : splat<N>(t.log_other[row]);
        const Vec<N> column_target = same ? load<N>(t.same + c) : load<N>(t.other + c);
        const Vec<N> column_log = same ? load<N>(t.log_same + c) : load<N>(t.log_other + c);
        sum.add<N>(row_target * (row_log - row_log_share<N>(slope.rows, row, logit)) +
                   column_target * (column_log - column_log_share<N>(slope.columns, c, logit)));
    });
    return sum.total();
}

// gradient.operator()<N>(row, c, logit) is dL/dlogit; correct(row, ...) may change single values afterwards.
template <typename Gradient>
void cosine_slopes(const CosineLogits& l, const LogitBlock& block, const CosineSlopes& out, Gradient gradient) {
    const int64_t first = block.first_column, columns = block.end_column - first;
    for_channels(columns, [&]<int N>(int64_t c) { store<N>(out.column_sums + first + c, splat<N>(0.0f)); });
    for (int64_t i = block.first_row; i < block.end_row; ++i) {
        const float* dots = l.dots + i * l.columns;
        float* slopes = out.slopes + i * l.columns;
        LaneSum sum;
        for_channels(columns, [&]<int N>(int64_t offset) {
            const int64_t c = first + offset;
            const Vec<N> inverse = l.row_inverse[i] * load<N>(l.column_inverse + c);
            const Vec<N> cosine = load<N>(dots + c) * inverse;
            const Vec<N> slope = gradient.template operator()<N>(i, c, logit_at<N>(l, dots, l.factor(i), c));
            const Vec<N> share = product<N>(slope, cosine);
            store<N>(slopes + c, slope * (l.scale * inverse));
            sum.add<N>(share);
            add_to<N>(out.column_sums + c, share);
        });
        out.row_sums[i] = sum.total();
    }
}

void cross_entropy_slopes(const CosineLogits& l, const CrossEntropySlope& slope, const LogitBlock& block,
                          const CosineSlopes& out) {
    cosine_slopes(l, block, out, [&]<int N>(int64_t i, int64_t, Vec<N> logit) {
        return slope.weight * exponential<N>(row_log_share<N>(slope.rows, i, logit));
    });
    for (int64_t i = block.first_row; i < block.end_row; ++i) {
        const int64_t c = slope.targets[i];
        if (c < block.first_column || c >= block.end_column) continue;
        const float inverse = l.row_inverse[i] * l.column_inverse[c];
        const float share = product<1>(splat<1>(slope.weight), splat<1>(l.dots[i * l.columns + c] * inverse))[0];
        out.slopes[i * l.columns + c] -= product<1>(splat<1>(slope.weight), splat<1>(l.scale * inverse))[0];
        out.row_sums[i] -= share;
        out.column_sums[c] -= share;
    }
}

void soft_slopes(const CosineLogits& l, const SoftSlope& slope, const LogitBlock& block, const CosineSlopes& out) {
    const SoftTargets& t = slope.targets;
    cosine_slopes(l, block, out, [&]<int N>(int64_t i, int64_t c, Vec<N> logit) {
        const auto same = same_group<N>(t, i, c);
        const Vec<N> target = same ? t.same[i] + load<N>(t.same + c) : t.other[i] + load<N>(t.other + c);
        const Vec<N> row = exponential<N>(row_log_share<N>(slope.rows, i, logit));
        const Vec<N> column = exponential<N>(column_log_share<N>(slope.columns, c, logit));
        return slope.weight * ((row + column) - target);
    });
}

float softmax_minus_target(float* logits, int64_t columns, int64_t target) {
    LaneMaximum most;
    for_channels(columns, [&]<int N>(int64_t c) { most.add<N>(load<N>(logits + c)); });
    const float shift = most.total(), chosen = logits[target];
    LaneSum sum;
    for_channels(columns, [&]<int N>(int64_t c) {
        const Vec<N> value = exponential<N>(load<N>(logits + c) - shift);
        store<N>(logits + c, value);
        sum.add<N>(value);
    });
    const float total = sum.total();
    const float share = 1.0f / total;
    for_channels(columns, [&]<int N>(int64_t c) { store<N>(logits + c, load<N>(logits + c) * share); });
    logits[target] -= 1.0f;
    return logarithm(total) + (shift - chosen);
}

}  // namespace
