// Sizes of an adapter's forward pass and the order of its work: plain integers, the same on the host and the device.
#pragma once

#include <stdint.h>

#include <initializer_list>

namespace hopper {

constexpr int kTileRows = 128;    // tokens of a thread block's tile of h or y: two warpgroups of 64
constexpr int kCluster = 2;       // thread blocks that share tiles of weights
constexpr int kClusterRows = kCluster * kTileRows;
constexpr int kDepth = 64;        // elements along the depth of a pipeline stage: one swizzled row of 128 bytes
constexpr int kPanel = 64;        // columns of a tile that are stored at once
constexpr int kMixChannels = 64;  // channels of a mixing task
constexpr int kMixStrips = 16;    // and its rows of the grid

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Columns of a tile: the most that waste no products on columns past the end of h or y, or else least of them.
constexpr int best_tile_columns(int width, int columns) {
    int best = 256;
    const auto padded = [&](int size) { return (ceil_div(width, size) + ceil_div(columns, size)) * size; };
    for (int size : {192, 128}) best = padded(size) < padded(best) ? size : best;
    return best;
}

// A cluster's tile of h (a down-projection) or of y (an up-projection): 256 rows, the first half of them the first
// block's, and the kernel's number of columns.
struct Tile {
    bool up;
    int row;     // first
    int column;  // first
};

// A part of u: 64 channels of some rows of patches ("strips"; a class token is a strip of its own) of one clip.
struct MixTask {
    int clip;
    int channel;
    int first_strip;
    int end_strip;
};

// Every cluster works through tiles c, c + G, c + 2G, ... of G clusters, and every block likewise through mixing tasks.
// A tile of h depends on nothing, a mixing task on the tiles of h of its clip, a tile of y on the mixing tasks of its
// clips. The order of tiles puts each tile of y behind all tiles of h that it needs, so the first unfinished tile
// always finds what it waits for finished or being mixed, and blocks that run at the same time cannot wait in a circle.
struct Schedule {
    int rows;         // B * T * L
    int tokens;       // L
    int frames;       // T
    int grid_height;
    int grid_width;
    int class_tokens;  // 0 or 1
    int width;         // D
    int columns;       // C
    int bottleneck;    // R
    int tile_columns;
    int lag;  // clusters' tiles of rows by which up-projections follow down-projections

    // Sets rows, tokens and lag. Whether rows, tiles and mixing tasks can be counted in 31 bits.
    bool complete(int64_t clip_count, int clusters) {
        const int64_t patches = static_cast<int64_t>(grid_height) * grid_width;
        const int64_t row_count = clip_count * frames * (class_tokens + patches);
        constexpr int64_t kMost = INT32_MAX - kClusterRows;
        if (patches > kMost / 64 || clip_count > kMost || row_count > kMost) return false;
        rows = static_cast<int>(row_count);
        tokens = static_cast<int>(class_tokens + patches);
        const int both = down_tiles() + up_tiles();
        lag = least_lag() + 2 * ceil_div(clusters, both);  // two rounds of tiles give the mixers time
        return static_cast<int64_t>(row_tiles()) * both <= kMost && clip_count * clip_tasks() <= kMost;
    }

    __host__ __device__ int clip_rows() const { return tokens * frames; }
    __host__ __device__ int clips() const { return rows / clip_rows(); }
    __host__ __device__ int row_tiles() const { return ceil_div(rows, kClusterRows); }
    __host__ __device__ int down_tiles() const { return ceil_div(columns, tile_columns); }
    __host__ __device__ int up_tiles() const { return ceil_div(width, tile_columns); }
    __host__ __device__ int tiles() const { return row_tiles() * (down_tiles() + up_tiles()); }

    // Down-projections of `lag` tiles of rows; then step by step the next tile of rows down and the one `lag` before it
    // up; then the last ones up.
    __host__ __device__ Tile tile(int index) const {
        const int down = down_tiles(), up = up_tiles(), total = row_tiles();
        const int lead = lag < total ? lag : total;
        if (index < lead * down) return {false, index / down * kClusterRows, index % down * tile_columns};
        index -= lead * down;
        const int step = index / (down + up), part = index % (down + up);
        if (step >= total - lead) {
            index -= (total - lead) * (down + up);
            return {true, (total - lead + index / up) * kClusterRows, index % up * tile_columns};
        }
        if (part < down) return {false, (lead + step) * kClusterRows, part * tile_columns};
        return {true, step * kClusterRows, (part - down) * tile_columns};
    }

    // Clips that a block's tile of rows touches.
    __host__ __device__ int first_clip(int row) const { return row / clip_rows(); }
    __host__ __device__ int last_clip(int row) const {
        const int last = row + kTileRows < rows ? row + kTileRows - 1 : rows - 1;
        return last / clip_rows();
    }

    // Blocks' tiles of h that touch a clip.
    __host__ __device__ int clip_tiles(int clip) const {
        const int first = clip * clip_rows() / kTileRows, last = ((clip + 1) * clip_rows() - 1) / kTileRows;
        return (last - first + 1) * down_tiles();
    }

    __host__ __device__ int frame_strips() const { return grid_height + class_tokens; }
    __host__ __device__ int mix_groups() const { return ceil_div(frames * frame_strips(), kMixStrips); }
    __host__ __device__ int clip_tasks() const { return mix_groups() * (columns / kMixChannels); }
    __host__ __device__ int mix_tasks() const { return clips() * clip_tasks(); }

    __host__ __device__ MixTask mix_task(int index) const {
        const int clip = index / clip_tasks(), part = index % clip_tasks(), blocks = columns / kMixChannels;
        const int first = part / blocks * kMixStrips, strips = frames * frame_strips();
        const int end = first + kMixStrips < strips ? first + kMixStrips : strips;
        return {clip, part % blocks * kMixChannels, first, end};
    }

    // The least lag at which every tile of y follows the tiles of h that it needs, up to the end of its last clip.
    __host__ __device__ int least_lag() const { return (clip_rows() + kClusterRows - 2) / kClusterRows; }
};

}  // namespace hopper
