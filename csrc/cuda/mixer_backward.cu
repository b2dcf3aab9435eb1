// The mixer's backward pass: one read of h and du, one write of dh and, where it is wanted, of u.
//
// Both convolutions are linear, so neither takes the difference of two frames before its convolution: that of frame t
// less that of frame t - 1 is the convolution of their difference. The same goes for du, and the sums over frames go by
// parts: Σ_t du_t (h_t - h_{t-1}) = Σ_t h_t (du_t - du_{t+1}), with du_0 left out on the right. Sums of weight gradients
// leave a block once, for all its clips; mixer_sums adds them up.
#include "mixer_tile.h"

namespace {

constexpr int N = backward_block.channels, strip = backward_block.strip, most_threads = backward_block.most_threads;

// Sums of the temporal branch, in the order of the workspace's rows.
struct TemporalSums {
    Floats<N> taps[3], bias, down;

    __device__ __forceinline__ TemporalSums() : bias(zeros<N>()), down(zeros<N>()) {
        for (int k = 0; k < 3; ++k) taps[k] = zeros<N>();
    }
};

// A token of the temporal branch in three frames, of which the outer ones count as zero outside the clip.
struct TemporalToken {
    Floats<N> h[3], du[3];

    __device__ __forceinline__ Floats<N> u(const Floats<N> (&taps)[3]) const {
        Floats<N> x = zeros<N>();
        for (int k = 0; k < 3; ++k) multiply_add(x, taps[k], h[k]);
        return x;
    }
    __device__ __forceinline__ Floats<N> dh(const Floats<N> (&taps)[3]) const {
        Floats<N> x = zeros<N>();
        for (int k = 0; k < 3; ++k) multiply_add(x, taps[2 - k], du[k]);
        return x;
    }
    __device__ __forceinline__ void add_to(TemporalSums& sums, const Floats<N>& dh) const {
        for (int k = 0; k < 3; ++k) multiply_add(sums.taps[k], du[1], h[k]);
        add(sums.bias, du[1]);
        add(sums.down, dh);
    }
};

// Where a thread finds h and du of the frames t - 1, t and t + 1.
template <typename T>
struct Around {
    const T* h[3];
    const T* du[3];
    bool there[3];

    __device__ __forceinline__ TemporalToken token(int offset) const {
        TemporalToken x;
        for (int k = 0; k < 3; ++k) {
            x.h[k] = there[k] ? load<N>(h[k] + offset) : zeros<N>();
            x.du[k] = there[k] ? load<N>(du[k] + offset) : zeros<N>();
        }
        return x;
    }
    __device__ __forceinline__ TemporalToken token_of(int count) const {
        TemporalToken x;
        for (int k = 0; k < 3; ++k) {
            x.h[k] = load_some<N>(h[k], there[k] ? count : 0);
            x.du[k] = load_some<N>(du[k], there[k] ? count : 0);
        }
        return x;
    }
};

template <typename T, typename Pipe>
__device__ __forceinline__ Around<T> around(const Pipe& pipeline, int t, int offset) {
    Around<T> x;
    for (int k = 0; k < 3; ++k) {
        x.h[k] = pipeline.frame(0, t + k - 1) + offset;
        x.du[k] = pipeline.frame(1, t + k - 1) + offset;
        x.there[k] = 0 <= t + k - 1 && t + k - 1 < pipeline.frames;
    }
    return x;
}

// One row of sums: N values of every thread, added over the threads that have the same channels.
template <int groups>
struct SumWriter {
    float* memory;
    int rows = 0;

    __device__ __forceinline__ void put(const Floats<N>& x) {
        store(memory + (rows++ * blockDim.x + threadIdx.x) * N, x);
    }

    // Rows of the workspace from `to` on; partial sums of the block's channels.
    __device__ void write(float* to, int width, int channel) const {
        __syncthreads();
        constexpr int channels = groups * N;
        for (int i = threadIdx.x; i < rows * channels; i += blockDim.x) {
            const int row = i / channels, c = i % channels;
            if (channel + c >= width) continue;
            float sum = 0.0f;
            for (int item = 0; item < static_cast<int>(blockDim.x) / groups; ++item) {
                sum += memory[(row * blockDim.x + item * groups) * N + c];
            }
            to[static_cast<int64_t>(row) * width + channel + c] = sum;
        }
    }
};

template <typename T, bool vectors>
__device__ void temporal_backward(const MixerShape& s, const MixerPlan& p, const Work<T>& work, const Weights<T>& w,
                                  const T* h, const T* du, T* u, T* dh, float* sums) {
    constexpr int groups = tile_channels<T> / N;
    const Rectangle tile = token_rectangle(s, p, work.tile);
    const Copier<T, vectors> copier(s, work, tile);
    Pipeline<T, vectors, 2> pipeline(s, p, work, copier, reinterpret_cast<T*>(shared_memory()));
    pipeline.source[0] = h, pipeline.source[1] = du;
    const int group = threadIdx.x % groups, channel = work.channel + group * N, first = threadIdx.x / groups;
    const int step = blockDim.x / groups, count = s.width - channel;
    Floats<N> taps[3], bias = zeros<N>();
    TemporalSums own;
    const auto prepare = [&] {
        load_taps(taps, w.temporal_weight, channel, s.width);
        bias = load_some<N>(w.temporal_bias + channel, count);
    };
    pipeline.run(true, prepare, [&](int64_t clip, int t) {
        if (count <= 0) return;
        const Around<T> frames = around<T>(pipeline, t, group * N);
        int64_t at = (clip * s.frames + t) * pipeline.frame_size + (tile.first + first) * s.columns() + work.column + group * N;
        for (int i = first; i < tile.columns; i += step, at += step * s.columns()) {
            const TemporalToken token = frames.token(i * tile_channels<T>);
            const Floats<N> gradient = token.dh(taps);
            token.add_to(own, gradient);
            write<vectors>(dh + at, gradient, count);
            if (!u) continue;
            Floats<N> mixed = token.u(taps);
            add(mixed, bias);
            write<vectors>(u + at, mixed, count);
        }
    });
    SumWriter<groups> writer{reinterpret_cast<float*>(shared_memory())};
    for (int k = 0; k < 3; ++k) writer.put(own.taps[k]);
    writer.put(own.bias);
    writer.put(own.down);
    writer.write(sums + work.partial * sum_rows * s.width, s.width, work.channel);
}

template <typename T, Path path>
__device__ void difference_backward(const MixerShape& s, const MixerPlan& p, const Work<T>& work, const Weights<T>& w,
                                    const T* h, const T* du, T* u, T* dh, float* sums) {
    using Tile = PatchTile<T, N, strip>;
    constexpr bool vectors = path != Path::any;
    const bool summed = summed_on<path>(s);
    const Tile tile(s, p, work);
    float* constants = reinterpret_cast<float*>(shared_memory());
    T* memory = reinterpret_cast<T*>(constants + 20 * tile_channels<T>);
    const Copier<T, vectors> copier(s, work, tile.copied);
    Pipeline<T, vectors, 2> pipeline(s, p, work, copier, memory);
    pipeline.source[0] = h, pipeline.source[1] = du;
    const int group = threadIdx.x % Tile::groups, channel = work.channel + group * N, columns = s.columns();
    const int count = s.width - channel;
    const float* own_constants = constants + group * N;
    const auto temporal_taps = [&](Floats<N>(&values)[3]) {
        for (int k = 0; k < 3; ++k) values[k] = load<N>(own_constants + (16 + k) * tile_channels<T>);
    };
    Floats<N> taps[9], h_last[strip], du_next[strip];  // the convolutions of the frame before and of the next one
    Floats<N> tap_sums[9], total = zeros<N>(), left = zeros<N>(), right = zeros<N>();
    TemporalSums temporal;
    for (int k = 0; k < 9; ++k) tap_sums[k] = zeros<N>();
    const auto prepare = [&] {
        tile.clear_border(memory, p.positions, 2 * stages);
        write_constants(constants, s, w, work.channel);
        load_taps(taps, w.difference_weight, channel, s.width);
    };
    pipeline.run(true, prepare, [&](int64_t clip, int t) {
        const int64_t frame = (clip * s.frames + t) * pipeline.frame_size + work.column + group * N;
        if (s.class_token && work.tile == 0 && threadIdx.x < Tile::groups && count > 0) {
            Floats<N> mixed = zeros<N>(), gradient = zeros<N>();
            if (summed) {
                Around<T> frames;
                for (int k = 0; k < 3; ++k) {
                    frames.h[k] = h + frame + (k - 1) * pipeline.frame_size;
                    frames.du[k] = du + frame + (k - 1) * pipeline.frame_size;
                    frames.there[k] = 0 <= t + k - 1 && t + k - 1 < s.frames;
                }
                const TemporalToken token = frames.token_of(count);
                Floats<N> own_taps[3];
                temporal_taps(own_taps);
                gradient = token.dh(own_taps);
                token.add_to(temporal, gradient);
                mixed = token.u(own_taps);
                add(mixed, load<N>(own_constants + 19 * tile_channels<T>));
            }
            store_some(dh + frame, gradient, count);
            if (u) store_some(u + frame, mixed, count);
        }
        if (tile.count == 0) return;
        const bool next = t + 1 < s.frames;
        const int centre = tile.window + (tile.pitch + 1) * tile_channels<T>;
        const T* here = pipeline.frame(0, t) + tile.window;
        const T* du_here = pipeline.frame(1, t) + centre;
        const T* du_after = pipeline.frame(1, t + 1) + tile.window;
        const Around<T> frames = around<T>(pipeline, t, centre);
        T* const out_dh = dh + frame + tile.token * columns;
        T* const out_u = u ? u + frame + tile.token * columns : nullptr;

        // dh_t = conv(du_t) - conv(du_{t+1}), transposed; without the first at t = 0 and the second at the clip's end.
        Floats<N> sum[strip];
#pragma unroll
        for (int j = 0; j < strip + 2; ++j) {
            if (j < strip) sum[j] = zeros<N>();
            if (next) {
#pragma unroll
                for (int r = 0; r < 3; ++r) {
                    const Floats<N> x = load<N>(du_after + (r * tile.pitch + j) * tile_channels<T>);
#pragma unroll
                    for (int k = 0; k < 3; ++k) {
                        if (0 <= j - k && j - k < strip) multiply_add(sum[j - k], taps[8 - 3 * r - k], x);
                    }
                }
            }
            if (j < 2) continue;
            const int n = j - 2;
            Floats<N> x;
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] = (t > 0 ? du_next[n][i] : 0.0f) - sum[n][i];
            du_next[n] = sum[n];
            if (n >= tile.count) continue;
            if (summed) {
                Floats<N> own_taps[3];
                temporal_taps(own_taps);
                const TemporalToken token = frames.token(n * tile_channels<T>);
                const Floats<N> own = token.dh(own_taps);
                token.add_to(temporal, own);
                add(x, own);
            }
            write<vectors>(out_dh + n * columns, x, count);
        }

        // u_t = conv(h_t) - conv(h_{t-1}), and the sums of h_t's nine neighbours times du_t - du_{t+1}.
        Floats<N> change[strip];
#pragma unroll
        for (int j = 0; j < strip + 2; ++j) {
            if (j < strip) {
                sum[j] = zeros<N>(), change[j] = zeros<N>();
                if (j < tile.count) {
                    const Floats<N> now = load<N>(du_here + j * tile_channels<T>);
                    add(total, now);
                    if (j == 0 && tile.neighbours < 4) add(left, now);
                    if (j == tile.to_edge) add(right, now);
                    const Floats<N> after = load<N>(du_after + (tile.pitch + j + 1) * tile_channels<T>);
#pragma unroll
                    for (int i = 0; i < N; ++i) change[j][i] = (t > 0 ? now[i] : 0.0f) - (next ? after[i] : 0.0f);
                }
            }
#pragma unroll
            for (int r = 0; r < 3; ++r) {
                const Floats<N> x = load<N>(here + (r * tile.pitch + j) * tile_channels<T>);
#pragma unroll
                for (int k = 0; k < 3; ++k) {
                    if (j - k < 0 || j - k >= strip) continue;
                    multiply_add(sum[j - k], taps[3 * r + k], x);
                    multiply_add(tap_sums[3 * r + k], change[j - k], x);
                }
            }
            if (j < 2) continue;
            const int n = j - 2;
            Floats<N> x = load<N>(tile.constants_of(constants, n) + group * N);
#pragma unroll
            for (int i = 0; i < N; ++i) x[i] += t > 0 ? sum[n][i] - h_last[n][i] : 0.0f;
            h_last[n] = sum[n];
            if (!out_u || n >= tile.count) continue;
            if (summed) {
                Floats<N> own_taps[3];
                temporal_taps(own_taps);
                add(x, frames.token(n * tile_channels<T>).u(own_taps));
                add(x, load<N>(own_constants + 19 * tile_channels<T>));
            }
            write<vectors>(out_u + n * columns, x, count);
        }
    });
    SumWriter<Tile::groups> writer{constants};
    float* to = sums + work.partial * sum_rows * s.width + (summed ? 0 : 5 * s.width);
    if (summed) {
        for (int k = 0; k < 3; ++k) writer.put(temporal.taps[k]);
        writer.put(temporal.bias);
        writer.put(temporal.down);
    }
    for (int k = 0; k < 9; ++k) writer.put(tap_sums[k]);
    writer.put(total);
    // The sum of du over the patches whose neighbour at an offset is inside the grid.
    for (int k = 0; k < 9; ++k) {
        const bool row = k < 3 ? tile.neighbours & 1 : k < 6 || tile.neighbours & 2;
        Floats<N> x = zeros<N>();
        for (int i = 0; i < N; ++i) {
            if (row) x[i] = total[i] - (k % 3 == 0 ? left[i] : k % 3 == 2 ? right[i] : 0.0f);
        }
        writer.put(x);
    }
    writer.write(to, s.width, work.channel);
}

template <typename T, Path path>
__global__ __launch_bounds__(most_threads, path == Path::separate && sizeof(T) == 2 ? 2 : 1) void mixer_backward_kernel(
    const MixerShape s, const MixerPlan p, const Weights<T> w, const T* h, const T* du, T* u, T* dh, float* sums) {
    const Work<T> work(s, p);
    if (work.difference) {
        difference_backward<T, path>(s, p, work, w, h, du, u, dh, sums);
    } else {
        temporal_backward<T, path != Path::any>(s, p, work, w, h, du, u, dh, sums);
    }
}

template <typename T>
int run(const MixerShape& s, Dtype dtype, const MixerPlan& p, const MixerWeights& weights, const void* h, const void* du,
        void* u, void* dh, float* workspace, void* stream) {
    if (!launchable(s, dtype, p)) return cudaErrorInvalidValue;
    const int64_t blocks = mixer_blocks(s, dtype, p);
    if (blocks == 0) return cudaSuccess;
    auto kernel = mixer_backward_kernel<T, Path::any>;
    if (aligned(s, dtype, h, du, u, dh)) {
        kernel = s.summed() ? mixer_backward_kernel<T, Path::summed> : mixer_backward_kernel<T, Path::separate>;
    }
    return launch(kernel, dim3(blocks), p.threads, mixer_shared_bytes(s, p, dtype, true), stream, s, p,
                  weights_of<T>(weights), static_cast<const T*>(h), static_cast<const T*>(du), static_cast<T*>(u),
                  static_cast<T*>(dh), workspace);
}

}  // namespace

int mixer_backward(const MixerShape& s, Dtype dtype, const MixerPlan& p, const MixerWeights& weights, const void* h,
                   const void* du, void* u, void* dh, float* workspace, const MixerGradients& gradients, void* stream) {
    int error = cudaSuccess;
    if (dtype == Dtype::float32) {
        error = run<float>(s, dtype, p, weights, h, du, u, dh, workspace, stream);
    } else if (dtype == Dtype::float16) {
        error = run<__half>(s, dtype, p, weights, h, du, u, dh, workspace, stream);
    } else {
        error = run<__nv_bfloat16>(s, dtype, p, weights, h, du, u, dh, workspace, stream);
    }
    if (error != cudaSuccess) return error;
    return mixer_sums(s, dtype, int64_t{p.clip_groups} * p.tiles(), weights, workspace, gradients, stream);
}
