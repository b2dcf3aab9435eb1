// The mixer of the adapter's kernel: u of h by one warpgroup, beside the matrix products. Include hopper_primitives.h
// or its emulation first.
#pragma once

#include "hopper_schedule.h"

namespace hopper {

struct MixParameters {
    const uint16_t* h;
    uint16_t* u;
    const float* temporal_taps;  // (3, R), or null
    const float* temporal_bias;
    const float* difference_taps;  // (9, R), or null
    const float* difference_bias;
    const float* down_bias;
};

constexpr int kMixWarps = 4;
constexpr int kMixThreads = 32 * kMixWarps;
static_assert(kMixChannels == 2 * 32, "a warp reads and writes a patch's channels at once, two to a thread");

__device__ __forceinline__ void add(Pair& sum, Pair a) { sum.low += a.low, sum.high += a.high; }

__device__ __forceinline__ void add_product(Pair& sum, Pair a, Pair b) {
    sum.low += a.low * b.low, sum.high += a.high * b.high;
}

// What one patch, the one above and the one below hold in this frame and the one before; zeros where there is none.
struct Column {
    uint32_t now[3], before[3], after;
};

// A thread's two channels of a mixing task's strips. A strip is walked from left to right; every column of three
// patches is read once, some columns ahead, and goes into the sums of three neighbouring outputs.
template <typename T, bool kTemporal, bool kDifference>
class Mixing {
public:
    __device__ Mixing(const Schedule& schedule, const MixParameters& p, const MixTask& task, int lane, int weight)
        : schedule_(schedule), p_(p) {
        start_ = static_cast<int64_t>(task.clip) * schedule.clip_rows() * schedule.columns + task.channel + 2 * lane;
        weight += 2 * lane;
        const int taps = schedule.bottleneck;
        if (kTemporal) {
#pragma unroll
            for (int k = 0; k < 3; ++k) temporal_[k] = load_pair(p.temporal_taps + k * taps + weight);
            temporal_bias_ = load_pair(p.temporal_bias + weight);
        }
        if (kDifference) {
#pragma unroll
            for (int k = 0; k < 9; ++k) difference_[k] = load_pair(p.difference_taps + k * taps + weight);
            difference_bias_ = load_pair(p.difference_bias + weight);
            down_bias_ = load_pair(p.down_bias + weight);
        }
    }

    __device__ __forceinline__ void strip(int index) {
        const int frame = index / schedule_.frame_strips(), y = index % schedule_.frame_strips();
        class_token_ = y == schedule_.grid_height;
        const int token = class_token_ ? 0 : schedule_.class_tokens + y * schedule_.grid_width;
        const int64_t start = start_ + (static_cast<int64_t>(frame) * schedule_.tokens + token) * schedule_.columns;
        first_frame_ = frame == 0;
        last_frame_ = frame + 1 == schedule_.frames;
        inside_[0] = y > 0;
        inside_[1] = true;
        inside_[2] = y + 1 < schedule_.grid_height;
        if (class_token_) {
            mix_class_token(start);
        } else {
            walk(start);
        }
    }

private:
    __device__ __forceinline__ void mix_class_token(int64_t position) const {
        Pair sum = {0, 0};
        if (kTemporal) add_temporal(sum, centers(position, Column()));
        store_global(p_.u + position, T::pack(sum.low, sum.high));
    }

    __device__ __forceinline__ void walk(int64_t position) const {
        constexpr int kAhead = 4;
        const int length = schedule_.grid_width, stride = schedule_.columns;
        Column next[kAhead];
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
            if (i < length) next[i] = column(position + static_cast<int64_t>(i) * stride);
        }
        Pair left = {0, 0}, here = {0, 0}, right = {0, 0};
        for (int first = 0; first < length; first += kAhead) {
#pragma unroll
            for (int i = 0; i < kAhead; ++i) {
                const int x = first + i;
                if (x >= length) break;
                const Column current = next[i];
                if (x + kAhead < length) next[i] = column(position + static_cast<int64_t>(kAhead) * stride);
                if (kTemporal) add_temporal(here, current);
                if (kDifference) {
                    convolve(current, left, here, right);
                    if (x > 0) store_global(p_.u + (position - stride), T::pack(left.low, left.high));
                    left = here, here = right;
                } else {
                    store_global(p_.u + position, T::pack(here.low, here.high));
                    here = right;
                }
                right = {0, 0};
                position += stride;
            }
        }
        if (kDifference) store_global(p_.u + (position - stride), T::pack(left.low, left.high));
    }

    __device__ __forceinline__ Column column(int64_t position) const {
        Column values = {};
        if (kDifference && !first_frame_) {
            const int64_t row = static_cast<int64_t>(schedule_.grid_width) * schedule_.columns;
#pragma unroll
            for (int y = 0; y < 3; ++y) {
                if (!inside_[y]) continue;
                values.now[y] = load_global(p_.h + (position + (y - 1) * row));
                values.before[y] = load_global(p_.h + (position + (y - 1) * row - frame_stride()));
            }
        }
        return kTemporal ? centers(position, values) : values;
    }

    // Adds what the temporal branch takes of a token, where it is not there yet.
    __device__ __forceinline__ Column centers(int64_t position, Column values) const {
        const bool there = kDifference && !first_frame_ && !class_token_;
        if (!there) values.now[1] = load_global(p_.h + position);
        if (!there && !first_frame_) values.before[1] = load_global(p_.h + (position - frame_stride()));
        if (!last_frame_) values.after = load_global(p_.h + (position + frame_stride()));
        return values;
    }

    __device__ __forceinline__ void add_temporal(Pair& sum, const Column& column) const {
        add_product(sum, T::unpack(column.before[1]), temporal_[0]);
        add_product(sum, T::unpack(column.now[1]), temporal_[1]);
        add_product(sum, T::unpack(column.after), temporal_[2]);
        add(sum, temporal_bias_);
    }

    __device__ __forceinline__ void convolve(const Column& column, Pair& left, Pair& here, Pair& right) const {
#pragma unroll
        for (int y = 0; y < 3; ++y) {
            if (!inside_[y]) continue;
            Pair change = down_bias_;
            if (!first_frame_) {
                const Pair now = T::unpack(column.now[y]), before = T::unpack(column.before[y]);
                add(change, {now.low - before.low, now.high - before.high});
            }
            add_product(left, change, difference_[3 * y + 2]);
            add_product(here, change, difference_[3 * y + 1]);
            add_product(right, change, difference_[3 * y]);
        }
        add(here, difference_bias_);
    }

    __device__ __forceinline__ int64_t frame_stride() const {
        return static_cast<int64_t>(schedule_.tokens) * schedule_.columns;
    }

    const Schedule& schedule_;
    const MixParameters& p_;
    int64_t start_;
    bool class_token_, first_frame_, last_frame_, inside_[3];
    Pair temporal_[3], temporal_bias_, difference_[9], difference_bias_, down_bias_;
};

template <typename T, bool kTemporal, bool kDifference>
__device__ __forceinline__ void mix(const Schedule& schedule, const MixParameters& p, const MixTask& task, int thread,
                                    int weight) {
    Mixing<T, kTemporal, kDifference> mixing(schedule, p, task, thread % 32, weight);
    for (int strip = task.first_strip + thread / 32; strip < task.end_strip; strip += kMixWarps) mixing.strip(strip);
}

// The branches that own the task's channels; with shared projections (C = R) both.
template <typename T>
__device__ __forceinline__ void mix(const Schedule& schedule, const MixParameters& p, const MixTask& task, int thread) {
    const bool both = p.temporal_taps && p.difference_taps;
    if (both && schedule.columns == schedule.bottleneck) {
        mix<T, true, true>(schedule, p, task, thread, task.channel);
    } else if (p.temporal_taps && task.channel < schedule.bottleneck) {
        mix<T, true, false>(schedule, p, task, thread, task.channel);
    } else {
        mix<T, false, true>(schedule, p, task, thread, task.channel - (both ? schedule.bottleneck : 0));
    }
}

}  // namespace hopper
