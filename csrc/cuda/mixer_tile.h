// What the mixer's kernels share: a tile of a frame in shared memory, frame after frame.
//
// A block works on one tile of tokens, 64 bytes of channels and all frames of some clips. While it computes with frame
// t, the copies of frame t + 2 are on their way. A tile of the 3x3 convolution is a rectangle of patches with a border
// of one patch, which is zero where the grid ends; a tile of the temporal convolution alone is a row of tokens.
#pragma once

#include "mixer.h"
#include "values.h"

// What a kernel is compiled for: rows in vectors of 16 bytes, with separate or summed branches; or any rows and layout.
enum class Path { separate, summed, any };

template <Path path>
__device__ __forceinline__ bool summed_on(const MixerShape& s) {
    return path == Path::any ? s.summed() : path == Path::summed;
}

template <typename T>
struct Weights {
    const T* temporal_weight;
    const T* temporal_bias;
    const T* difference_weight;
    const T* difference_bias;
    const T* down_bias;
};

template <typename T>
Weights<T> weights_of(const MixerWeights& w) {
    const auto typed = [](const void* p) { return static_cast<const T*>(p); };
    return {typed(w.temporal_weight), typed(w.temporal_bias), typed(w.difference_weight), typed(w.difference_bias),
            typed(w.down_bias)};
}

template <typename T>
constexpr int tile_channels = tile_bytes / static_cast<int>(sizeof(T));

inline int64_t mixer_blocks(const MixerShape& s, Dtype dtype, const MixerPlan& p) {
    const int64_t channels = tile_bytes / size_of(dtype), parts = (s.width + channels - 1) / channels;
    return parts * (s.separate() ? 2 : 1) * p.tiles() * p.clip_groups;
}

// Offsets in a frame are 32 bits wide; a grid has fewer than 2^31 blocks.
inline bool launchable(const MixerShape& s, Dtype dtype, const MixerPlan& p) {
    return int64_t{s.tokens} * s.columns() <= INT32_MAX && mixer_blocks(s, dtype, p) <= INT32_MAX;
}

// Whether all rows can be moved in vectors of 16 bytes.
template <typename... Pointers>
bool aligned(const MixerShape& s, Dtype dtype, Pointers... pointers) {
    const auto fits = [](uint64_t bytes) { return bytes % 16 == 0; };
    return fits(s.width * size_of(dtype)) && (fits(reinterpret_cast<uint64_t>(pointers)) && ...);
}

// What a block works on.
template <typename T>
struct Work {
    int channel;      // the first
    int column;       // where its channels are in a row
    bool difference;  // else the temporal branch alone
    int tile;
    int64_t partial;  // number of its partial sums
    int64_t first_clip, end_clip;

    __device__ Work(const MixerShape& s, const MixerPlan& p) {
        const int own = (s.width + tile_channels<T> - 1) / tile_channels<T>, all = s.separate() ? 2 * own : own;
        const int block = static_cast<int>(blockIdx.x), rest = block / all, part = block % all;
        difference = s.difference && (!s.separate() || part >= own);
        channel = (part % own) * tile_channels<T>;
        column = channel + (difference ? s.difference_column() : 0);
        tile = rest % p.tiles();
        partial = rest;
        const int64_t group = rest / p.tiles();
        first_clip = s.clips * group / p.clip_groups;
        end_clip = s.clips * (group + 1) / p.clip_groups;
    }
};

// The part of a frame that is copied to shared memory: rows of tokens, and where the first one goes.
struct Rectangle {
    int rows, columns;
    int first;  // token
    int row_tokens;
    int place, pitch;  // positions in shared memory
};

// Copies a rectangle of a frame, each thread its share.
template <typename T, bool vectors>
struct Copier {
    int rows, columns, row, column, step_rows, step_columns;
    int place, pitch, source, row_values, token_values;
    bool used;

    __device__ Copier(const MixerShape& s, const Work<T>& work, const Rectangle& r) {
        constexpr int values = 16 / static_cast<int>(sizeof(T));
        const int units = vectors ? tile_channels<T> / values : tile_channels<T>;
        const int unit = threadIdx.x % units, first = threadIdx.x / units, step = blockDim.x / units;
        const int channel = vectors ? unit * values : unit;
        rows = r.rows, columns = r.columns, pitch = r.pitch;
        row = first / columns, column = first % columns;
        step_rows = step / columns, step_columns = step % columns;
        token_values = s.columns();
        row_values = r.row_tokens * token_values;
        source = r.first * token_values + work.column + channel;
        place = r.place * tile_channels<T> + channel;
        used = work.channel + channel < s.width;
    }

    __device__ __forceinline__ void copy(const T* frame, T* shared) const {
        if (!used) return;
        for (int r = row, c = column; r < rows;) {
            const T* from = frame + source + r * row_values + c * token_values;
            T* to = shared + place + (r * pitch + c) * tile_channels<T>;
            if (vectors) {
                copy_async(to, from);
            } else {
                *to = *from;
            }
            r += step_rows, c += step_columns;
            if (c >= columns) c -= columns, ++r;
        }
    }
};

// The frames of a block's clips on their way through shared memory, for one tensor or two.
template <typename T, bool vectors, int tensors>
struct Pipeline {
    const Copier<T, vectors>& copier;
    const Work<T>& work;
    T* memory;
    int frame_values;  // in shared memory
    int frames;
    int64_t frame_size;  // in global memory
    const T* source[tensors];

    __device__ Pipeline(const MixerShape& s, const MixerPlan& p, const Work<T>& w, const Copier<T, vectors>& c,
                        T* m)
        : copier(c), work(w), memory(m), frame_values(p.positions * tile_channels<T>), frames(s.frames),
          frame_size(int64_t{s.tokens} * s.columns()) {}

    // Frame t of a tensor in shared memory; t may be -1.
    __device__ __forceinline__ T* frame(int tensor, int t) const {
        return memory + (tensor * stages + (t + stages) % stages) * frame_values;
    }

    __device__ __forceinline__ void fetch(int64_t clip, int t) const {
        if (t < frames) {
            const int64_t at = (clip * frames + t) * frame_size;
#pragma unroll
            for (int i = 0; i < tensors; ++i) copier.copy(source[i] + at, frame(i, t));
        }
        commit_copies();
    }

    // Calls prepare() once, while the first frames are on their way, and compute(clip, t) for every frame, with the
    // frames t - 1 and t in shared memory, and with `next` t + 1 as well.
    template <typename Prepare, typename Compute>
    __device__ __forceinline__ void run(bool next, Prepare prepare, Compute compute) const {
        for (int64_t clip = work.first_clip; clip < work.end_clip; ++clip) {
            fetch(clip, 0);
            fetch(clip, 1);
            if (clip == work.first_clip) prepare();
            for (int t = 0; t < frames; ++t) {
                if (next) {
                    wait_copies<0>();
                } else {
                    wait_copies<1>();
                }
                __syncthreads();
                fetch(clip, t + 2);
                compute(clip, t);
            }
            __syncthreads();  // nobody computes any more with what the next clip's first frames overwrite
        }
    }
};

// A tile of tokens of the temporal convolution alone.
__device__ inline Rectangle token_rectangle(const MixerShape& s, const MixerPlan& p, int tile) {
    const int first = static_cast<int>(int64_t{s.tokens} * tile / p.tiles());
    const int tokens = static_cast<int>(int64_t{s.tokens} * (tile + 1) / p.tiles()) - first;
    return {1, tokens, first, 0, 0, tokens};
}

// A tile of patches, and the strip of it that the calling thread works on.
template <typename T, int N, int strip>
struct PatchTile {
    static constexpr int groups = tile_channels<T> / N;

    int first_y, first_x;  // of the tile in the grid
    int rows, columns;     // patches in it, at most as planned
    int pitch;
    int y, x;           // in the grid, of the strip's first patch
    int count;          // patches of the strip, none where this thread has no work
    int window;         // in shared memory: the value up and left of the first patch
    int token;          // of the first patch
    int neighbours;     // of the first patch, but the one to the right: above 1, below 2, left 4
    int to_edge;        // patches from the first one to the last of the grid's row
    Rectangle copied;   // with the border

    __device__ PatchTile(const MixerShape& s, const MixerPlan& p, const Work<T>& work) : pitch(p.pitch) {
        first_y = work.tile / p.tiles_x * p.rows, first_x = work.tile % p.tiles_x * p.columns;
        rows = min(p.rows, s.grid_height - first_y), columns = min(p.columns, s.grid_width - first_x);
        const int group = threadIdx.x % groups, item = threadIdx.x / groups;
        const int row = item % p.rows, column = item / p.rows * strip;  // neighbouring threads in neighbouring rows
        y = first_y + row, x = first_x + column;
        count = row < rows && work.channel + group * N < s.width ? min(max(columns - column, 0), strip) : 0;
        window = (row * pitch + column) * tile_channels<T> + group * N;
        token = s.class_token + y * s.grid_width + x;
        neighbours = (y > 0) | (y + 1 < s.grid_height) << 1 | (x > 0) << 2;
        to_edge = s.grid_width - 1 - x;
        const int above = first_y > 0, left = first_x > 0;
        copied.rows = rows + above + (first_y + rows < s.grid_height);
        copied.columns = columns + left + (first_x + columns < s.grid_width);
        copied.first = s.class_token + (first_y - above) * s.grid_width + first_x - left;
        copied.row_tokens = s.grid_width;
        copied.place = (1 - above) * pitch + 1 - left;
        copied.pitch = pitch;
    }

    // Clears what is never copied, in `frames` frames of shared memory.
    __device__ void clear_border(T* memory, int positions, int frames) const {
        const int top = copied.place / pitch, left = copied.place % pitch;
        for (int i = threadIdx.x; i < positions; i += blockDim.x) {
            const int r = i / pitch - top, c = i % pitch - left;
            if (0 <= r && r < copied.rows && 0 <= c && c < copied.columns) continue;
            for (int f = 0; f < frames; ++f) {
                T* to = memory + (f * positions + i) * tile_channels<T>;
                const Pack<float, 4> nothing{};
                for (int n = 0; n < tile_bytes / 16; ++n) reinterpret_cast<Pack<float, 4>*>(to)[n] = nothing;
            }
        }
    }

    // The constants of the strip's patch n, by which of the neighbours above, below, left and right it has.
    __device__ __forceinline__ const float* constants_of(const float* constants, int n) const {
        const int has = neighbours | (n > 0 ? 4 : 0) | (n < to_edge ? 8 : 0);
        return constants + has * tile_channels<T>;
    }
};

// What the bias of the convolution, and that of the down-projection by way of its taps, add to a patch with these
// neighbours: (16, channels). Where the branches are summed the temporal taps and bias follow: (4, channels).
template <typename T>
__device__ void write_constants(float* constants, const MixerShape& s, const Weights<T>& w, int first_channel) {
    for (int i = threadIdx.x; i < 20 * tile_channels<T>; i += blockDim.x) {
        const int has = i / tile_channels<T>, c = first_channel + i % tile_channels<T>;
        if (c >= s.width) continue;
        if (has >= 16) {
            if (s.temporal) constants[i] = to_float(has < 19 ? w.temporal_weight[c * 3 + has - 16] : w.temporal_bias[c]);
            continue;
        }
        float taps = 0.0f;
        for (int k = 0; k < 9; ++k) {
            const bool inside = (k >= 3 || has & 1) && (k < 6 || has & 2) && (k % 3 > 0 || has & 4) && (k % 3 < 2 || has & 8);
            if (inside) taps += to_float(w.difference_weight[c * 9 + k]);
        }
        constants[i] = to_float(w.difference_bias[c]) + taps * to_float(w.down_bias[c]);
    }
}

// The taps of N channels, taps[k] being those of place k.
template <int N, int taps, typename T>
__device__ __forceinline__ void load_taps(Floats<N> (&values)[taps], const T* weight, int channel, int width) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
#pragma unroll
        for (int k = 0; k < taps; ++k) {
            values[k][i] = channel + i < width ? to_float(weight[(channel + i) * taps + k]) : 0.0f;
        }
    }
}

// N channels of a row, of which the first `count` exist.
template <bool vectors, int N, typename T>
__device__ __forceinline__ void write(T* address, const Floats<N>& x, int count) {
    if constexpr (vectors) {
        store(address, x);
    } else {
        store_some(address, x, count);
    }
}
