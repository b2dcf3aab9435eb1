// The mixer's forward pass: one read of h, one write of u.
#include "mixer_tile.h"

namespace {

constexpr int N = forward_block.channels, strip = forward_block.strip, most_threads = forward_block.most_threads;

// u of a token in three frames, of which the outer ones count as zero outside the clip.
__device__ __forceinline__ Floats<N> mix(const Floats<N> (&taps)[3], Floats<N> u, const Floats<N>& before,
                                         const Floats<N>& here, const Floats<N>& after) {
    multiply_add(u, taps[0], before);
    multiply_add(u, taps[1], here);
    multiply_add(u, taps[2], after);
    return u;
}

template <typename T>
__device__ __forceinline__ Floats<N> load_if(bool there, const T* address) {
    return there ? load<N>(address) : zeros<N>();
}

template <typename T, bool vectors>
__device__ void temporal_forward(const MixerShape& s, const MixerPlan& p, const Work<T>& work, const Weights<T>& w, const T* h, T* u) {
    constexpr int groups = tile_channels<T> / N;
    const Rectangle tile = token_rectangle(s, p, work.tile);
    const Copier<T, vectors> copier(s, work, tile);
    Pipeline<T, vectors, 1> pipeline(s, p, work, copier, reinterpret_cast<T*>(shared_memory()));
    pipeline.source[0] = h;
    const int group = threadIdx.x % groups, channel = work.channel + group * N, first = threadIdx.x / groups;
    const int step = blockDim.x / groups;
    Floats<N> taps[3], bias;
    u += tile.first * s.columns() + work.column + group * N;
    const auto prepare = [&] {
        load_taps(taps, w.temporal_weight, channel, s.width);
        bias = load_some<N>(w.temporal_bias + channel, s.width - channel);
    };
    pipeline.run(true, prepare, [&](int64_t clip, int t) {
        if (channel >= s.width) return;
        const int offset = first * tile_channels<T> + group * N, stride = step * tile_channels<T>;
        const T *before = pipeline.frame(0, t - 1) + offset, *here = pipeline.frame(0, t) + offset;
        const T* after = pipeline.frame(0, t + 1) + offset;
        T* out = u + (clip * s.frames + t) * pipeline.frame_size + first * s.columns();
        for (int i = first; i < tile.columns; i += step) {
            const Floats<N> x = 
                mix(taps, bias, load_if(t > 0, before), load<N>(here), load_if(t + 1 < s.frames, after));
            write<vectors>(out, x, s.width - channel);
            before += stride, here += stride, after += stride, out += step * s.columns();
        }
    });
}

// u of a class token: from global memory where the branches are summed, else zero.
template <typename T>
__device__ void class_token_forward(const MixerShape& s, bool summed, const float* constants, const T* h, T* u, int t,
                                    int64_t frame_size, int count) {
    if (summed) {
        const auto read = [&](bool there, const T* p) { return load_some<N>(p, there ? count : 0); };
        const Floats<N> before = read(t > 0, h - frame_size), after = read(t + 1 < s.frames, h + frame_size);
        Floats<N> taps[3];
#pragma unroll
        for (int k = 0; k < 3; ++k) taps[k] = load<N>(constants + (16 + k) * tile_channels<T>);
        const Floats<N> bias = load<N>(constants + 19 * tile_channels<T>);
        store_some<N>(u, mix(taps, bias, before, load_some<N>(h, count), after), count);
    } else {
        store_some<N>(u, zeros<N>(), count);
    }
}

template <typename T, Path path>
__device__ void difference_forward(const MixerShape& s, const MixerPlan& p, const Work<T>& work, const Weights<T>& w, const T* h, T* u) {
    using Tile = PatchTile<T, N, strip>;
    constexpr bool vectors = path != Path::any;
    const bool summed = summed_on<path>(s);
    const Tile tile(s, p, work);
    float* constants = reinterpret_cast<float*>(shared_memory());
    T* memory = reinterpret_cast<T*>(constants + 20 * tile_channels<T>);
    const Copier<T, vectors> copier(s, work, tile.copied);
    Pipeline<T, vectors, 1> pipeline(s, p, work, copier, memory);
    pipeline.source[0] = h;
    const int group = threadIdx.x % Tile::groups, channel = work.channel + group * N, columns = s.columns();
    Floats<N> taps[9], last[strip];  // the convolution of the frame before
    const auto prepare = [&] {
        tile.clear_border(memory, p.positions, stages);
        write_constants(constants, s, w, work.channel);
        load_taps(taps, w.difference_weight, channel, s.width);
    };
    pipeline.run(summed, prepare, [&](int64_t clip, int t) {
        const int64_t frame = (clip * s.frames + t) * pipeline.frame_size + work.column + group * N;
        if (s.class_token && work.tile == 0 && threadIdx.x < Tile::groups && channel < s.width) {
            class_token_forward(s, summed, constants + group * N, h + frame, u + frame, t, pipeline.frame_size, s.width - channel);
        }
        if (tile.count == 0) return;
        const T* here = pipeline.frame(0, t) + tile.window;
        T* out = u + frame + tile.token * columns;
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
            Floats<N> x = load<N>(tile.constants_of(constants, n) + group * N);
#pragma unroll
            for (int i = 0; i < N; ++i) {
                x[i] += t > 0 ? sum[n][i] - last[n][i] : 0.0f;
            }
            last[n] = sum[n];
            if (summed) {
                const int centre = tile.window + (tile.pitch + n + 1) * tile_channels<T>;
                const float* temporal = constants + 16 * tile_channels<T> + group * N;
                add(x, load<N>(temporal + 3 * tile_channels<T>));
                multiply_add(x, load<N>(temporal + tile_channels<T>), load<N>(pipeline.frame(0, t) + centre));
                if (t > 0) multiply_add(x, load<N>(temporal), load<N>(pipeline.frame(0, t - 1) + centre));
                if (t + 1 < s.frames) {
                    multiply_add(x, load<N>(temporal + 2 * tile_channels<T>), load<N>(pipeline.frame(0, t + 1) + centre));
                }
            }
            if (n < tile.count) write<vectors>(out, x, s.width - channel);
            out += columns;
        }
    });
}

template <typename T, Path path>
__global__ __launch_bounds__(most_threads, path == Path::separate ? 2 : 1) void mixer_forward_kernel(const MixerShape s, const MixerPlan p,
                                                                        const Weights<T> w, const T* h, T* u) {
    const Work<T> work(s, p);
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
