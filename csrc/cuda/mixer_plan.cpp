#include "mixer.h"

#include <algorithm>

namespace {

constexpr int32_t most_columns = 32;
constexpr int64_t most_shared_bytes = 99 * 1024;  // for a block of sm_86, sm_89 and sm_120; others have more
constexpr int32_t most_partials = 512;            // of weight gradients, where the tiles of one clip are not more

int32_t divide_up(int32_t a, int32_t b) { return (a + b - 1) / b; }

constexpr MixerBlock block_of(bool backward) { return backward ? backward_block : forward_block; }

// Strips that end past a tile find zeros there, since a row has room for whole strips and a border. An odd pitch keeps
// the threads of two neighbouring rows out of each other's banks.
void place_tile(const MixerShape& s, MixerPlan& p, int32_t strip) {
    p.pitch = (divide_up(p.columns, strip) * strip + 2) | 1;
    p.positions = (p.rows + 2) * p.pitch;
    p.tiles_y = divide_up(s.grid_height, p.rows);
}

}  // namespace

MixerPlan mixer_plan(const MixerShape& s, Dtype dtype, bool backward, int32_t rows) {
    MixerPlan p{};
    const auto [most_threads, channels, strip] = block_of(backward);
    const int32_t beside = static_cast<int32_t>(tile_bytes / size_of(dtype)) / channels;
    if (s.difference) {
        p.tiles_x = divide_up(s.grid_width, most_columns);
        p.columns = divide_up(s.grid_width, p.tiles_x);
        if (p.tiles_x > 1) {  // strips end past the last tile alone
            p.columns = divide_up(p.columns, strip) * strip;
            p.tiles_x = divide_up(s.grid_width, p.columns);
        }
        const int32_t strips = divide_up(p.columns, strip), most_rows = most_threads / (beside * strips);
        const int32_t wanted = std::clamp(rows > 0 ? rows : s.grid_height, 1, std::min(s.grid_height, most_rows));
        for (int32_t tiles = divide_up(s.grid_height, wanted);; ++tiles) {
            p.rows = divide_up(s.grid_height, tiles);
            place_tile(s, p, strip);
            if (p.rows == 1 || mixer_shared_bytes(s, p, dtype, backward) <= most_shared_bytes) break;
        }
        p.threads = divide_up(p.rows * strips * beside, 32) * 32;
    } else {
        p.tiles_x = 1;
        p.tiles_y = divide_up(s.tokens, 128);
        p.positions = divide_up(s.tokens, p.tiles_y);
        p.threads = std::min(divide_up(p.positions * beside, 32) * 32, most_threads);
    }
    const int64_t groups = std::max(most_partials / p.tiles(), 1);
    p.clip_groups = static_cast<int32_t>(backward ? std::min<int64_t>(s.clips, groups) : s.clips);
    return p;
}

int64_t mixer_shared_bytes(const MixerShape& s, const MixerPlan& p, Dtype dtype, bool backward) {
    const int64_t channels = tile_bytes / size_of(dtype), frame = int64_t{p.positions} * tile_bytes;
    const int64_t weights = weight_rows * channels * 4;
    if (!backward) return stages * frame + weights;
    const int64_t kept = s.difference ? kept_bytes : 0, sums = sum_rows * backward_block.channels * p.threads * 4;
    return std::max(kept + 2 * stages * frame, sums) + weights;
}

int64_t mixer_workspace(const MixerShape& s, const MixerPlan& p) {
    return int64_t{p.clip_groups} * p.tiles() * sum_rows * s.width;
}
