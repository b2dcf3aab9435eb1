// What the mixer's kernels share: a tile of a frame in shared memory, frame after frame.
//
// A block works on one tile of tokens, 64 bytes of channels and all frames of some clips. While it computes with frame
// t, the copies of frame t + 2 are on their way. A tile of the 3x3 convolution is a rectangle of patches with a border
// of one patch, which is zero where the grid ends; a tile of the temporal convolution alone is a row of tokens.
#pragma once

#include <type_traits>

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
    int64_t first_frame;  // of the first clip, in all
    int clips;

    __device__ Work(const MixerShape& s, const MixerPlan& p, unsigned number) {
        const int own = (s.width + tile_channels<T> - 1) / tile_channels<T>, all = s.separate() ? 2 * own : own;
        const int block = static_cast<int>(number), rest = block / all, part = block % all;
        difference = s.difference && (!s.separate() || part >= own);
        channel = (part % own) * tile_channels<T>;
        column = channel + (difference ? s.difference_column() : 0);
        tile = rest % p.tiles();
        partial = rest;
        const int64_t group = rest / p.tiles();
        const int64_t first_clip = s.clips * group / p.clip_groups;
        first_frame = first_clip * s.frames;
        clips = static_cast<int>(s.clips * (group + 1) / p.clip_groups - first_clip);
    }
};

// The part of a frame that is copied to shared memory: rows of tokens, and where the first one goes.
struct Rectangle {
    int rows, columns;
    int last;   // columns of the last row
    int first;  // token
    int row_tokens;
    int place, pitch;  // positions in shared memory
};

// Copies a rectangle of a frame: a warp takes a row, and then the next but as many as there are warps.
template <typename T, bool vectors>
struct Copier {
    static constexpr int values = vectors ? 16 / static_cast<int>(sizeof(T)) : 1, units = tile_channels<T> / values;
    int rows, columns, last, row_values, token_values, pitch;
    int column, from, to;  // of this thread in row 0

    __device__ Copier(const MixerShape& s, const Work<T>& work, const Rectangle& r)
        : columns(r.columns), last(r.last), row_values(r.row_tokens * s.columns()), token_values(s.columns()),
          pitch(r.pitch * tile_channels<T>) {
        const int lane = threadIdx.x % 32, channel = lane % units * values;
        column = lane / units;
        rows = work.channel + channel < s.width ? r.rows : 0;
        from = (r.first + column) * token_values + work.column + channel;
        to = (r.place + column) * tile_channels<T> + channel;
    }

    // copy(from, to) for every place of this thread.
    template <typename Copy>
    __device__ __forceinline__ void each(Copy copy) const {
        constexpr int at_once = 32 / units;
        for (int r = threadIdx.x / 32; r < rows; r += blockDim.x / 32) {
            const int end = r + 1 < rows ? columns : last;
            int a = from + r * row_values, b = to + r * pitch;
#pragma unroll 1
            for (int c = column; c < end; c += at_once) {
                copy(a, b);
                a += at_once * token_values, b += at_once * tile_channels<T>;
            }
        }
    }
};

// The frames of a block's clips on their way through shared memory, for one tensor or two. A frame stays there for two
// frames more. Where a kernel looks `around`, frames before a clip and after it are there too, and zero.
template <typename T, bool vectors, int tensors>
struct Pipeline {
    const Copier<T, vectors>& copier;
    const Work<T>& work;
    T* memory;
    int positions, frames;
    int frame_size;      // in global memory
    int channels;        // that exist, of the block's
    bool around;
    int64_t at;          // in global memory, where the frame is that is computed with
    const T* source[tensors];

    __device__ Pipeline(const MixerShape& s, const MixerPlan& p, const Work<T>& w, const Copier<T, vectors>& c,
                        T* m, bool a)
        : copier(c), work(w), memory(m), positions(p.positions), frames(s.frames),
          frame_size(s.tokens * s.columns()), channels(s.width - w.channel), around(a),
          at(w.first_frame * frame_size) {}

    // Frame t of a tensor in shared memory; t may be -1.
    __device__ __forceinline__ T* frame(int tensor, int t) const {
        return memory + (tensor * stages + (t + stages) % stages) * positions * tile_channels<T>;
    }

    __device__ __forceinline__ void clear(T* position) const {
        const Pack<float, 4> nothing{};
        for (int n = 0; n < tile_bytes / 16; ++n) reinterpret_cast<Pack<float, 4>*>(position)[n] = nothing;
    }

    // Clears once what is never copied but may be read: positions outside the rectangle, and channels past the width.
    __device__ void clear_rest(const Rectangle& r) const {
        const int top = r.place / r.pitch, left = r.place % r.pitch;
        for (int i = threadIdx.x; i < positions; i += blockDim.x) {
            const int y = i / r.pitch - top, x = i % r.pitch - left;
            const bool copied = 0 <= y && y < r.rows && 0 <= x && x < (y + 1 < r.rows ? r.columns : r.last);
            for (int f = 0; f < tensors * stages; ++f) {
                T* position = memory + (f * positions + i) * tile_channels<T>;
                if (!copied) {
                    clear(position);
                } else if (!vectors) {
                    for (int c = channels; c < tile_channels<T>; ++c) position[c] = from_float<T>(0.0f);
                }
            }
        }
    }

    // Asks for frame t, which is so many frames ahead.
    __device__ __forceinline__ void fetch(int t, int ahead) const {
        if (t < frames + around) {
            const bool there = 0 <= t && t < frames;
            const T* from[tensors];
#pragma unroll
            for (int i = 0; i < tensors; ++i) {
                from[i] = renewed(source[i] + at + (there ? ahead * int64_t{frame_size} : 0));
            }
            T* const to = frame(0, t);
            copier.each([&](int a, int b) {
#pragma unroll
                for (int i = 0; i < tensors; ++i) {
                    const T* const source_at = from[i] + a;
                    T* const place = to + i * stages * positions * tile_channels<T> + b;
                    if constexpr (vectors) {
                        copy_async(place, source_at, there);
                    } else {
                        *place = there ? *source_at : from_float<T>(0.0f);
                    }
                }
            });
        }
        commit_copies();
    }

    // Asks for the first frames of the next clip.
    __device__ __forceinline__ void start() const {
        if (around) fetch(-1, 0);
        fetch(0, 0);
        fetch(1, 1);
    }

    // Calls compute(t, std::bool_constant<t == 0>) for every frame of every clip, the first of which has been started,
    // with the frames t - 1 and t in shared memory, and t + 1 as well where the kernel looks around.
    template <typename Compute>
    __device__ __forceinline__ void run(Compute compute) {
        const auto step = [&](int t, auto first) {
            if (around) {
                wait_copies<0>();
            } else {
                wait_copies<1>();
            }
            __syncthreads();
            fetch(t + 2, 2);
            compute(t, first);
            at += frame_size;
        };
        for (int left = work.clips; left > 0; --left) {
            step(0, std::true_type());
            for (int t = 1; t < frames; ++t) step(t, std::false_type());
            __syncthreads();  // nobody computes any more with what the next clip's first frames overwrite
            if (left > 1) start();
        }
    }
};

// A tile of tokens of the temporal convolution alone.
__device__ inline Rectangle token_rectangle(const MixerShape& s, const MixerPlan& p, int tile) {
    constexpr int columns = 8;
    const int first = static_cast<int>(int64_t{s.tokens} * tile / p.tiles());
    const int tokens = static_cast<int>(int64_t{s.tokens} * (tile + 1) / p.tiles()) - first;
    const int rows = (tokens + columns - 1) / columns;
    return {rows, columns, tokens - (rows - 1) * columns, first, columns, 0, columns};
}

// A tile of patches, and the strip of it that the calling thread works on.
template <typename T, int N, int strip>
struct PatchTile {
    static constexpr int groups = tile_channels<T> / N;
    static_assert(strip <= 8);

    int pitch;
    int window;        // in shared memory: the value up and left of the first patch
    int token;         // of the first patch
    unsigned bits;     // all that is true or false of the strip, in one register; the functions below name it
    Rectangle copied;  // with the border

    __device__ PatchTile(const MixerShape& s, const MixerPlan& p, const Work<T>& work) : pitch(p.pitch) {
        const int first_y = work.tile / p.tiles_x * p.rows, first_x = work.tile % p.tiles_x * p.columns;
        const int rows = min(p.rows, s.grid_height - first_y), columns = min(p.columns, s.grid_width - first_x);
        const int group = threadIdx.x % groups, item = threadIdx.x / groups;
        const int row = item % p.rows, column = item / p.rows * strip;  // neighbouring threads in neighbouring rows
        const int y = first_y + row, x = first_x + column;
        const bool works = row < rows && work.channel + group * N < s.width;
        const int count = works ? min(max(columns - column, 0), strip) : 0;
        const int to_edge = min(max(s.grid_width - 1 - x, 0), strip);
        window = (row * pitch + column) * tile_channels<T> + group * N;
        token = s.class_token + y * s.grid_width + x;
        bits = ((1u << count) - 1) | ((1u << to_edge) - 1) << 8 | unsigned{x > 0} << 16 | unsigned{y > 0} << 17 |
               unsigned{y + 1 < s.grid_height} << 18;
        const int above = first_y > 0, left = first_x > 0;
        copied.rows = rows + above + (first_y + rows < s.grid_height);
        copied.columns = copied.last = columns + left + (first_x + columns < s.grid_width);
        copied.first = s.class_token + (first_y - above) * s.grid_width + first_x - left;
        copied.row_tokens = s.grid_width;
        copied.place = (1 - above) * pitch + 1 - left;
        copied.pitch = pitch;
    }

    // Once a frame, see renewed().
    __device__ __forceinline__ void renew() { bits = renewed(bits); }

    // Whether there is a patch n, 0 if not; and the same of what goes into a second tensor, if that is written.
    __device__ __forceinline__ unsigned has(int n) const { return bits & 1u << n; }
    __device__ __forceinline__ unsigned second_has(int n) const { return bits & 1u << (19 + n); }
    __device__ __forceinline__ void write_second() { bits |= (bits & 0xff) << 19; }
    __device__ __forceinline__ bool any() const { return bits & 0xff; }

    // Whether patch n has a neighbour to the right, and all of them one above and below.
    __device__ __forceinline__ bool has_right(int n) const { return bits & 256u << n; }
    __device__ __forceinline__ bool above() const { return bits >> 17 & 1; }
    __device__ __forceinline__ bool below() const { return bits >> 18 & 1; }

    // Whether the strip has the first patch of the grid's row, and whether the last one, which is then patch end().
    __device__ __forceinline__ bool starts_row() const { return !(bits >> 16 & 1); }
    __device__ __forceinline__ bool ends_row() const { return bits & 0xff & ~(bits >> 8); }
    __device__ __forceinline__ int end() const { return __popc(bits & 0xff00); }
};

// The weights of a block's channels in fp32 in shared memory, (weight_rows, channels), tap by tap: those of the
// temporal branch, its bias, those of the convolution, its bias and that of the down-projection. Channels past the width
// and what the block has no use for are zero.
template <typename T>
struct SharedWeights {
    static constexpr int channels = tile_channels<T>;
    enum Row { temporal, temporal_bias = 3, taps, bias = 13, down_bias };
    float* memory;

    __device__ T* end() const { return reinterpret_cast<T*>(memory + weight_rows * channels); }

    // Ends with a barrier.
    __device__ void fill(const MixerShape& s, const Weights<T>& w, const Work<T>& work) const {
        const bool has_temporal = s.temporal && (!work.difference || s.summed());
        for (int i = threadIdx.x; i < weight_rows * channels; i += blockDim.x) {
            const int row = i / channels, c = work.channel + i % channels;
            const T* from = nullptr;
            if (row < taps) {
                if (has_temporal) from = row < temporal_bias ? w.temporal_weight + c * 3 + row : w.temporal_bias + c;
            } else if (work.difference) {
                from = row < bias ? w.difference_weight + c * 9 + row - taps
                                  : (row == bias ? w.difference_bias : w.down_bias) + c;
            }
            memory[i] = from && c < s.width ? to_float(*from) : 0.0f;
        }
        __syncthreads();
    }

    // N channels from `channel` of the block's on.
    template <int N>
    __device__ __forceinline__ Floats<N> row(int row, int channel) const {
        const float* from = memory + row * channels + channel;
        constexpr int part = N < 4 ? N : 4;
        Floats<N> x;
#pragma unroll
        for (int i = 0; i < N; i += part) {
            const Floats<part> some = load<part>(from + i);
#pragma unroll
            for (int n = 0; n < part; ++n) x[i + n] = some[n];
        }
        return x;
    }

    template <int N, int count>
    __device__ __forceinline__ void load_rows(Floats<N> (&values)[count], int first, int channel) const {
#pragma unroll
        for (int k = 0; k < count; ++k) values[k] = row<N>(first + k, channel);
    }
};

// What the bias of the convolution, and that of the down-projection by way of its taps, add to a strip's patches.
template <int N>
struct PatchBias {
    Floats<N> first, others, no_right;  // to the first patch, to the others; to one without a neighbour to the right

    template <typename T, typename Tile>
    __device__ PatchBias(const SharedWeights<T>& weights, const Tile& tile, const Floats<N> (&taps)[9], int channel) {
        const Floats<N> bias = weights.template row<N>(weights.bias, channel);
        const Floats<N> down = weights.template row<N>(weights.down_bias, channel);
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const auto column = [&](int k) {
                return (tile.above() ? taps[k][i] : 0.0f) + taps[3 + k][i] + (tile.below() ? taps[6 + k][i] : 0.0f);
            };
            others[i] = bias[i] + down[i] * (column(0) + column(1) + column(2));
            first[i] = others[i] - (tile.starts_row() ? down[i] * column(0) : 0.0f);
            no_right[i] = -down[i] * column(2);
        }
    }
};

// N channels of a row, of which the first `count` exist.
template <bool vectors, int N, typename T>
__device__ __forceinline__ void write(T* address, const Floats<N>& x, int count) {
    if constexpr (vectors) {
        store(address, x);
    } else {
        store_some(address, x, count);
    }
}

// The same unless `wanted` is 0, and on to the next row.
template <bool vectors, typename T, int N>
__device__ __forceinline__ void write_next(void*& at, int64_t row_bytes, const Floats<N>& x, int count,
                                           unsigned wanted) {
    if constexpr (vectors) {
        store_next(wanted, at, row_bytes, packed<T>(x));
    } else {
        if (wanted) store_some(static_cast<T*>(at), x, count);
        at = static_cast<unsigned char*>(at) + row_bytes;
    }
}

template <bool vectors, int N, typename T>
__device__ __forceinline__ Floats<N> read(const T* address, int count) {
    if constexpr (vectors) {
        return load<N>(address);
    } else {
        return load_some<N>(address, count);
    }
}
