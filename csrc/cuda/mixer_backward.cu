// The mixer's backward pass: one read of h and du, one write of dh and, where it is wanted, of u.
//
// Both convolutions are linear, so neither takes the difference of two frames before its convolution: that of frame t
// less that of frame t - 1 is the convolution of their difference. The same goes for du, and the sums over frames go by
// parts: Σ_t du_t (h_t - h_{t-1}) = Σ_t h_t (du_t - du_{t+1}), with du_0 left out on the right. Sums of weight gradients
// leave a block once, for all its clips; mixer_sums adds them up.
#include "mixer_tile.h"

namespace {

constexpr int N = backward_block.channels, strip = backward_block.strip;
constexpr int most_threads = backward_block.most_threads;

// Sums of the temporal branch, in the order of the workspace's rows.
template <int M>
struct TemporalSums {
    Floats<M> taps[3], bias, down;

    __device__ __forceinline__ TemporalSums() : bias(zeros<M>()), down(zeros<M>()) {
        for (int k = 0; k < 3; ++k) taps[k] = zeros<M>();
    }
};

// A token of the temporal branch in three frames; those outside the clip are zero.
template <int M>
struct TemporalToken {
    Floats<M> h[3], du[3];

    __device__ __forceinline__ Floats<M> u(const Floats<M> (&taps)[3], Floats<M> x) const {
        for (int k = 0; k < 3; ++k) multiply_add(x, taps[k], h[k]);
        return x;
    }
    __device__ __forceinline__ Floats<M> dh(const Floats<M> (&taps)[3]) const {
        Floats<M> x = zeros<M>();
        for (int k = 0; k < 3; ++k) multiply_add(x, taps[2 - k], du[k]);
        return x;
    }
    __device__ __forceinline__ void add_to(TemporalSums<M>& sums, const Floats<M>& dh) const {
        for (int k = 0; k < 3; ++k) multiply_add(sums.taps[k], du[1], h[k]);
        add(sums.bias, du[1]);
        add(sums.down, dh);
    }
};

// A token in shared memory, `offset` values into the frames around t.
template <int M, typename Pipe>
__device__ __forceinline__ TemporalToken<M> token_at(const Pipe& pipeline, int t, int offset) {
    TemporalToken<M> x;
    for (int k = 0; k < 3; ++k) {
        x.h[k] = load<M>(pipeline.frame(0, t + k - 1) + offset);
        x.du[k] = load<M>(pipeline.frame(1, t + k - 1) + offset);
    }
    return x;
}

// Rows of sums: M values of every thread, added over the threads that have the same channels, `groups` apart.
template <int M, int groups>
struct SumWriter {
    float* memory;
    int rows = 0;

    __device__ __forceinline__ void put(const Floats<M>& x) {
        store(memory + (rows++ * blockDim.x + threadIdx.x) * M, x);
    }

    // Rows of the workspace from `to` on; partial sums of the block's channels.
    __device__ void write(float* to, int width, int channel) const {
        __syncthreads();
        constexpr int channels = groups * M;
        for (int i = threadIdx.x; i < rows * channels; i += blockDim.x) {
            const int row = i / channels, c = i % channels;
            if (channel + c >= width) continue;
            float sum = 0.0f;
            for (int item = 0; item < static_cast<int>(blockDim.x) / groups; ++item) {
                sum += memory[(row * blockDim.x + item * groups) * M + c];
            }
            to[static_cast<int64_t>(row) * width + channel + c] = sum;
        }
    }
};

template <typename T, bool vectors>
__device__ void temporal_backward(const MixerShape& s, const MixerPlan& p, const Work<T>& work, const Weights<T>& w,
                                  const T* h, const T* du, T* u, T* dh, float* sums) {
    constexpr int M = 4, groups = tile_channels<T> / M;
    const SharedWeights<T> weights{reinterpret_cast<float*>(shared_memory())};
    const Rectangle tile = token_rectangle(s, p, work.tile);
    const int tokens = (tile.rows - 1) * tile.columns + tile.last;
    const Copier<T, vectors> copier(s, work, tile);
    Pipeline<T, vectors, 2> pipeline(s, p, work, copier, weights.end(), true);
    pipeline.source[0] = h, pipeline.source[1] = du;
    pipeline.start();
    pipeline.clear_rest(tile);
    weights.fill(s, w, work);
    const int own = threadIdx.x % groups * M, first = threadIdx.x / groups, step = blockDim.x / groups;
    const int count = s.width - work.channel - own, columns = s.columns();
    Floats<M> taps[3];
    weights.load_rows(taps, weights.temporal, own);
    const Floats<M> bias = weights.template row<M>(weights.temporal_bias, own);
    TemporalSums<M> total;
    const int from = (tile.first + first) * columns + work.column + own;
    pipeline.run([&](int t, auto) {
        int64_t at = pipeline.at + from;
        if (count <= 0) return;
        for (int i = first; i < tokens; i += step, at += step * columns) {
            const TemporalToken<M> token = token_at<M>(pipeline, t, i * tile_channels<T> + own);
            const Floats<M> gradient = token.dh(taps);
            token.add_to(total, gradient);
            write<vectors>(dh + at, gradient, count);
            if (u) write<vectors>(u + at, token.u(taps, bias), count);
        }
    });
    SumWriter<M, groups> writer{reinterpret_cast<float*>(shared_memory())};
    for (int k = 0; k < 3; ++k) writer.put(total.taps[k]);
    writer.put(total.bias);
    writer.put(total.down);
    writer.write(sums + work.partial * sum_rows * s.width, s.width, work.channel);
}

// The class tokens of a block's clips: the temporal branch's where both are summed, else zero.
template <typename T, bool vectors>
__device__ void class_tokens_backward(const MixerShape& s, const Work<T>& work, const SharedWeights<T>& weights,
                                      bool summed, const T* h, const T* du, T* u, T* dh, int frame_size,
                                      TemporalSums<N>& total) {
    constexpr int groups = tile_channels<T> / N;
    const int own = threadIdx.x % groups * N, count = s.width - work.channel - own;
    if (!s.class_token || work.tile > 0 || count <= 0) return;
    const int64_t frames = int64_t{work.clips} * s.frames;
    for (int64_t i = threadIdx.x / groups; i < frames; i += blockDim.x / groups) {
        const int64_t at = (work.first_frame + i) * frame_size + work.column + own;
        Floats<N> mixed = zeros<N>(), gradient = zeros<N>();
        if (summed) {
            TemporalToken<N> token;
            const int t = static_cast<int>(i % s.frames);
            for (int k = 0; k < 3; ++k) {
                const bool there = 0 <= t + k - 1 && t + k - 1 < s.frames;
                token.h[k] = there ? read<vectors, N>(h + at + (k - 1) * int64_t{frame_size}, count) : zeros<N>();
                token.du[k] = there ? read<vectors, N>(du + at + (k - 1) * int64_t{frame_size}, count) : zeros<N>();
            }
            Floats<N> taps[3];
            weights.load_rows(taps, weights.temporal, own);
            gradient = token.dh(taps);
            token.add_to(total, gradient);
            mixed = token.u(taps, weights.template row<N>(weights.temporal_bias, own));
        }
        write<vectors>(dh + at, gradient, count);
        if (u) write<vectors>(u + at, mixed, count);
    }
}

// What a thread keeps in shared memory, since registers are short: of each patch the bias less the convolution of h in
// the frame before; sums of du over the first and the last column of the grid; and what PatchBias says.
struct Kept {
    enum Row { left = strip, right, first_bias, no_right };
    Pack<float, N>* memory;

    __device__ __forceinline__ Floats<N> get(int row) const { return load<N>(memory[row * most_threads].v); }
    __device__ __forceinline__ void put(int row, const Floats<N>& x) const { store(memory[row * most_threads].v, x); }
    __device__ __forceinline__ void add_to(int row, Floats<N> x, bool wanted) const {
        const Floats<N> before = get(row);
#pragma unroll
        for (int i = 0; i < N; ++i) x[i] = before[i] + (wanted ? x[i] : 0.0f);
        put(row, x);
    }
};

template <typename T, Path path>
__device__ void difference_backward(const MixerShape& s, const MixerPlan& p, const Work<T>& work, const Weights<T>& w,
                                    const T* h, const T* du, T* u, T* dh, float* sums) {
    using Tile = PatchTile<T, N, strip>;
    constexpr bool vectors = path != Path::any;
    constexpr int channels = tile_channels<T>;
    const bool summed = summed_on<path>(s);
    const SharedWeights<T> weights{reinterpret_cast<float*>(shared_memory())};
    Tile tile(s, p, work);
    if (u) tile.write_second();
    const Copier<T, vectors> copier(s, work, tile.copied);
    const Kept kept{reinterpret_cast<Pack<float, N>*>(weights.end()) + threadIdx.x};
    T* const memory = reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(weights.end()) + kept_bytes);
    Pipeline<T, vectors, 2> pipeline(s, p, work, copier, memory, true);
    pipeline.source[0] = h, pipeline.source[1] = du;
    pipeline.start();
    pipeline.clear_rest(tile.copied);
    weights.fill(s, w, work);
    TemporalSums<N> temporal;
    class_tokens_backward<T, vectors>(s, work, weights, summed, h, du, u, dh, pipeline.frame_size, temporal);
    const int own = threadIdx.x % Tile::groups * N, count = s.width - work.channel - own, columns = s.columns();
    // The convolution of du in this frame, zero in the first one: after the last frame of a clip comes one of zeros.
    Floats<N> taps[9], du_now[strip];
    Floats<N> tap_sums[9], total = zeros<N>();
    weights.load_rows(taps, weights.taps, own);
    const PatchBias<N> bias(weights, tile, taps, own);
    kept.put(Kept::left, zeros<N>());
    kept.put(Kept::right, zeros<N>());
    kept.put(Kept::first_bias, bias.first);
    kept.put(Kept::no_right, bias.no_right);
#pragma unroll
    for (int k = 0; k < 9; ++k) tap_sums[k] = zeros<N>();
#pragma unroll
    for (int n = 0; n < strip; ++n) du_now[n] = zeros<N>();
    const int64_t row_bytes = columns * sizeof(T);
    const int from = tile.token * columns + work.column + own;
    pipeline.run([&](int t, auto first_frame) {
        void *out_dh = dh + pipeline.at + from, *out_u = u + pipeline.at + from;
        if (!tile.any()) return;
        tile.renew();
        const int centre = tile.window + (tile.pitch + 1) * channels;
        const T* h_here = pipeline.frame(0, t) + tile.window;
        const T* du_here = pipeline.frame(1, t) + centre;
        const T* du_after = pipeline.frame(1, t + 1) + tile.window;
        const int end = min(tile.end(), strip - 1);  // where the strip has a patch without a neighbour to the right
        kept.add_to(Kept::left, load<N>(du_here), tile.starts_row());
        kept.add_to(Kept::right, load<N>(du_here + end * channels), tile.ends_row());

        // Column by column, du of the next frame one column ahead of h:
        // dh_t = conv(du_t) - conv(du_{t+1}), transposed; without the first at t = 0;
        // u_t = conv(h_t) - conv(h_{t-1}), and the sums of h_t's nine neighbours times du_t - du_{t+1}.
        Floats<N> back[strip], sum[strip], change[strip];
#pragma unroll
        for (int j = 0; j < strip + 3; ++j) {
            if (j < strip + 2) {
                if (j < strip) back[j] = zeros<N>();
#pragma unroll
                for (int r = 0; r < 3; ++r) {
                    const Floats<N> x = load<N>(du_after + (r * tile.pitch + j) * channels);
#pragma unroll
                    for (int k = 0; k < 3; ++k) {
                        if (0 <= j - k && j - k < strip) multiply_add(back[j - k], taps[8 - 3 * r - k], x);
                    }
                    if (r != 1 || j < 1 || j > strip) continue;
                    const Floats<N> now = load<N>(du_here + (j - 1) * channels);
                    add(total, now);
#pragma unroll
                    for (int i = 0; i < N; ++i) change[j - 1][i] = (first_frame ? 0.0f : now[i]) - x[i];
                }
            }
            if (2 <= j && j < strip + 2) {
                const int n = j - 2;
                Floats<N> x;
#pragma unroll
                for (int i = 0; i < N; ++i) x[i] = du_now[n][i] - back[n][i];
                du_now[n] = back[n];
                if (summed) {
                    Floats<N> own_taps[3];
                    weights.load_rows(own_taps, weights.temporal, own);
                    const TemporalToken<N> token = token_at<N>(pipeline, t, centre + n * channels);
                    const Floats<N> gradient = token.dh(own_taps);
                    if (tile.has(n)) token.add_to(temporal, gradient);
                    add(x, gradient);
                }
                write_next<vectors, T>(out_dh, row_bytes, x, count, tile.has(n));
            }
            if (j < 1) continue;
            const int c = j - 1;
            if (c < strip) sum[c] = zeros<N>();
#pragma unroll
            for (int r = 0; r < 3; ++r) {
                const Floats<N> x = load<N>(h_here + (r * tile.pitch + c) * channels);
#pragma unroll
                for (int k = 0; k < 3; ++k) {
                    if (c - k < 0 || c - k >= strip) continue;
                    multiply_add(sum[c - k], taps[3 * r + k], x);
                    multiply_add(tap_sums[3 * r + k], change[c - k], x);
                }
            }
            if (c < 2) continue;
            const int n = c - 2;
            const Floats<N> inner = n == 0 ? kept.get(Kept::first_bias) : bias.others;
            Floats<N> x = inner, rest;
            if (!first_frame) {
                x = kept.get(n);
                add(x, sum[n]);
            } else if (!tile.has_right(n)) {
                add(x, kept.get(Kept::no_right));
            }
#pragma unroll
            for (int i = 0; i < N; ++i) rest[i] = inner[i] - sum[n][i];
            kept.put(n, rest);
            if (summed) {
                Floats<N> own_taps[3];
                weights.load_rows(own_taps, weights.temporal, own);
                add(x, weights.template row<N>(weights.temporal_bias, own));
                x = token_at<N>(pipeline, t, centre + n * channels).u(own_taps, x);
            }
            write_next<vectors, T>(out_u, row_bytes, x, count, tile.second_has(n));
        }
        kept.add_to(end, kept.get(Kept::no_right), tile.ends_row());  // its bias in the next frame is another
    });
    const Floats<N> left = kept.get(Kept::left), right = kept.get(Kept::right);
    __syncthreads();  // the sums are written there
    SumWriter<N, Tile::groups> writer{weights.memory};
    const Work<T> same(s, p, renewed(blockIdx.x));  // for which no registers were kept
    float* to = sums + same.partial * sum_rows * s.width + (summed ? 0 : 5 * s.width);
    if (summed) {
        for (int k = 0; k < 3; ++k) writer.put(temporal.taps[k]);
        writer.put(temporal.bias);
        writer.put(temporal.down);
    }
    for (int k = 0; k < 9; ++k) writer.put(tap_sums[k]);
    writer.put(total);
    // The sum of du over the patches whose neighbour at an offset is inside the grid.
    for (int k = 0; k < 9; ++k) {
        const bool row = k < 3 ? tile.above() : k < 6 || tile.below();
        Floats<N> x = zeros<N>();
        for (int i = 0; i < N; ++i) {
            if (row) x[i] = total[i] - (k % 3 == 0 ? left[i] : k % 3 == 2 ? right[i] : 0.0f);
        }
        writer.put(x);
    }
    writer.write(to, s.width, same.channel);
}

template <typename T, Path path>
__global__ __launch_bounds__(most_threads, path == Path::separate && sizeof(T) == 2 ? 2 : 1) void mixer_backward_kernel(
    const MixerShape s, const MixerPlan p, const Weights<T> w, const T* h, const T* du, T* u, T* dh, float* sums) {
    const Work<T> work(s, p, blockIdx.x);
    if (work.difference) {
        difference_backward<T, path>(s, p, work, w, h, du, u, dh, sums);
    } else {
        temporal_backward<T, path != Path::any>(s, p, work, w, h, du, u, dh, sums);
    }
}

template <typename T>
int run(const MixerShape& s, Dtype dtype, const MixerPlan& p, const MixerWeights& weights, const void* h,
        const void* du, void* u, void* dh, float* workspace, void* stream) {
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
