// The mixer's forward pass: one read of h, one write of u.
#include "mixer_tile.h"

namespace {

constexpr int N = forward_block.channels, strip = forward_block.strip;
constexpr int most_threads = forward_block.most_threads;

// u of a token in three frames; those outside the clip are zero.
template <int M>
__device__ __forceinline__ Floats<M> mix(const Floats<M> (&taps)[3], Floats<M> u, const Floats<M>& before,
                                         const Floats<M>& here, const Floats<M>& after) {
    multiply_add(u, taps[0], before);
    multiply_add(u, taps[1], here);
    multiply_add(u, taps[2], after);
    return u;
}

template <typename T, bool vectors>
__device__ void temporal_forward(const MixerShape& s, const MixerPlan& p, const Work<T>& work, const Weights<T>& w,
                                 const T* h, T* u) {
    constexpr int M = 16 / static_cast<int>(sizeof(T)), groups = tile_channels<T> / M;
    const SharedWeights<T> weights{reinterpret_cast<float*>(shared_memory())};
    const Rectangle tile = token_rectangle(s, p, work.tile);
    const int tokens = (tile.rows - 1) * tile.columns + tile.last;
    const Copier<T, vectors> copier(s, work, tile);
    Pipeline<T, vectors, 1> pipeline(s, p, work, copier, weights.end(), true);
    pipeline.source[0] = h;
    pipeline.start();
    pipeline.clear_rest(tile);
    weights.fill(s, w, work);
    const int own = threadIdx.x % groups * M, first = threadIdx.x / groups, step = blockDim.x / groups;
    const int count = s.width - work.channel - own, columns = s.columns();
    Floats<M> taps[3];
    weights.load_rows(taps, weights.temporal, own);
    const Floats<M> bias = weights.template row<M>(weights.temporal_bias, own);
    const int from = (tile.first + first) * columns + work.column + own;
    pipeline.run([&](int t, auto) {
        T* out = u + pipeline.at + from;
        if (count <= 0) return;
        const int offset = first * tile_channels<T> + own, stride = step * tile_channels<T>;
        const T *before = pipeline.frame(0, t - 1) + offset, *here = pipeline.frame(0, t) + offset;
        const T* after = pipeline.frame(0, t + 1) + offset;
        for (int i = first; i < tokens; i += step) {
            write<vectors>(out, mix(taps, bias, load<M>(before), load<M>(here), load<M>(after)), count);
            before += stride, here += stride, after += stride, out += step * columns;
        }
    });
}

// u of the class tokens of a block's clips: the temporal branch's where both are summed, else zero.
template <typename T, bool vectors>
__device__ void class_tokens_forward(const MixerShape& s, const Work<T>& work, const SharedWeights<T>& weights,
                                     bool summed, const T* h, T* u, int frame_size) {
    constexpr int groups = tile_channels<T> / N;
    const int own = threadIdx.x % groups * N, count = s.width - work.channel - own;
    if (!s.class_token || work.tile > 0 || count <= 0) return;
    const int64_t frames = int64_t{work.clips} * s.frames;
    for (int64_t i = threadIdx.x / groups; i < frames; i += blockDim.x / groups) {
        const int64_t at = (work.first_frame + i) * frame_size + work.column + own;
        Floats<N> x = zeros<N>();
        if (summed) {
            const int t = static_cast<int>(i % s.frames);
            const auto frame = [&](int k) {
                const bool there = 0 <= t + k && t + k < s.frames;
                return there ? read<vectors, N>(h + at + k * int64_t{frame_size}, count) : zeros<N>();
            };
            Floats<N> taps[3];
            weights.load_rows(taps, weights.temporal, own);
            x = mix(taps, weights.template row<N>(weights.temporal_bias, own), frame(-1), frame(0), frame(1));
        }
        write<vectors>(u + at, x, count);
    }
}

template <typename T, Path path>
__device__ void difference_forward(const MixerShape& s, const MixerPlan& p, const Work<T>& work, const Weights<T>& w,
                                   const T* h, T* u) {
    using Tile = PatchTile<T, N, strip>;
    constexpr bool vectors = path != Path::any;
    const bool summed = summed_on<path>(s);
    const SharedWeights<T> weights{reinterpret_cast<float*>(shared_memory())};
    Tile tile(s, p, work);
    const Copier<T, vectors> copier(s, work, tile.copied);
    Pipeline<T, vectors, 1> pipeline(s, p, work, copier, weights.end(), summed);
    pipeline.source[0] = h;
    pipeline.start();
    pipeline.clear_rest(tile.copied);
    weights.fill(s, w, work);
    class_tokens_forward<T, vectors>(s, work, weights, summed, h, u, pipeline.frame_size);
    const int own = threadIdx.x % Tile::groups * N, count = s.width - work.channel - own, columns = s.columns();
    Floats<N> taps[9], rest[strip];  // the bias less the convolution of the frame before
    weights.load_rows(taps, weights.taps, own);
    const PatchBias<N> bias(weights, tile, taps, own);
    const int64_t row_bytes = columns * sizeof(T);
    const int from = tile.token * columns + work.column + own;
    pipeline.run([&](int t, auto first_frame) {
        void* out = u + pipeline.at + from;
        if (!tile.any()) return;
        tile.renew();
        const T* here = pipeline.frame(0, t) + tile.window;
        Floats<N> sum[strip];
#pragma unroll
        for (int j = 0; j < strip + 2; ++j) {
            if (j < strip) sum[j] = zeros<N>();
#pragma unroll
            for (int r = 0; r < 3; ++r) {
                const Floats<N> x = load<N>(here + (r * tile.pitch + j) * tile_channels<T>);
#pragma unroll
                for (int k = 0; k < 3; ++k) {
                    if (0 <= j - k && j - k < strip) multiply_add(sum[j - k], taps[3 * r + k], x);
                }
            }
            if (j < 2) continue;
            const int n = j - 2;
            const Floats<N>& inner = n == 0 ? bias.first : bias.others;
            Floats<N> x;
#pragma unroll
            for (int i = 0; i < N; ++i) {
                x[i] = first_frame ? renewed(inner[i]) : sum[n][i] + rest[n][i];
                rest[n][i] = inner[i] - sum[n][i];
            }
            if (!tile.has_right(n)) add(x, bias.no_right);
            if (summed) {
                const int centre = tile.window + (tile.pitch + n + 1) * tile_channels<T>;
                Floats<N> own_taps[3];
                weights.load_rows(own_taps, weights.temporal, own);
                const auto frame = [&](int k) { return load<N>(pipeline.frame(0, t + k) + centre); };
                add(x, weights.template row<N>(weights.temporal_bias, own));
                x = mix(own_taps, x, frame(-1), frame(0), frame(1));
            }
            write_next<vectors, T>(out, row_bytes, x, count, tile.has(n));
        }
    });
}

template <typename T, Path path>
constexpr int blocks_at_once = path != Path::separate ? 1 : sizeof(T) == 2 ? 3 : 2;

template <typename T, Path path>
__global__ __launch_bounds__(most_threads, blocks_at_once<T, path>) void mixer_forward_kernel(
    const MixerShape s, const MixerPlan p, const Weights<T> w, const T* h, T* u) {
    const Work<T> work(s, p, blockIdx.x);
    if (work.difference) {
        difference_forward<T, path>(s, p, work, w, h, u);
    } else {
        temporal_forward<T, path != Path::any>(s, p, work, w, h, u);
    }
}

template <typename T>
int run(const MixerShape& s, Dtype dtype, const MixerPlan& p, const MixerWeights& weights, const void* h, void* u,
        void* stream) {
    if (!launchable(s, dtype, p)) return cudaErrorInvalidValue;
    const int64_t blocks = mixer_blocks(s, dtype, p);
    if (blocks == 0) return cudaSuccess;
    auto kernel = mixer_forward_kernel<T, Path::any>;
    if (aligned(s, dtype, h, u)) {
        kernel = s.summed() ? mixer_forward_kernel<T, Path::summed> : mixer_forward_kernel<T, Path::separate>;
    }
    return launch(kernel, dim3(blocks), p.threads, mixer_shared_bytes(s, p, dtype, false), stream, s, p,
                  weights_of<T>(weights), static_cast<const T*>(h), static_cast<T*>(u));
}

}  // namespace

int mixer_forward(const MixerShape& s, Dtype dtype, const MixerPlan& p, const MixerWeights& weights, const void* h,
                  void* u, void* stream) {
    if (dtype == Dtype::float32) return run<float>(s, dtype, p, weights, h, u, stream);
    if (dtype == Dtype::float16) return run<__half>(s, dtype, p, weights, h, u, stream);
    return run<__nv_bfloat16>(s, dtype, p, weights, h, u, stream);
}
