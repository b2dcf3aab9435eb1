// The mixer of the TED-Adapter on NVIDIA GPUs: temporal convolution, frame difference and 3x3 convolution, forward and
// backward. Rows h, u, du and dh are the B*T*L tokens of B clips of T frames, (B*T, L, C) and contiguous; C is 2R with
// a projection for each of two branches (the temporal one's columns first), else R. docs/ted_backward.md has the maths.
#pragma once

#include <stdint.h>

enum class Dtype : int32_t { float32, float16, bfloat16 };

constexpr int64_t size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

struct MixerShape {
    int64_t clips;   // B
    int32_t frames;  // T
    int32_t tokens;  // L = class_token + grid_height * grid_width
    int32_t grid_height;
    int32_t grid_width;
    int32_t width;  // R
    bool class_token;
    bool temporal;
    bool difference;
    bool shared;  // both branches read the same R columns and their results are summed

    constexpr bool summed() const { return temporal && difference && shared; }
    constexpr bool separate() const { return temporal && difference && !shared; }
    constexpr int32_t columns() const { return separate() ? 2 * width : width; }
    constexpr int32_t difference_column() const { return separate() ? width : 0; }
};

// Weights in their parameters' layout and in the dtype of the rows; null where a branch is off.
struct MixerWeights {
    const void* temporal_weight;    // (R, 3)
    const void* temporal_bias;      // (R)
    const void* difference_weight;  // (R, 9)
    const void* difference_bias;    // (R)
    const void* down_bias;          // (R) of the down-projection, which joins after the difference of two frames
};

// fp32, in the same layout.
struct MixerGradients {
    float* temporal_weight;
    float* temporal_bias;
    float* temporal_down_bias;
    float* difference_weight;
    float* difference_bias;
    float* difference_down_bias;
};

// How the work falls into blocks. A block has a tile of a frame's tokens for 64 bytes of channels, and all frames of
// some clips.
struct MixerPlan {
    int32_t rows;         // of patches in a tile
    int32_t columns;      // of patches in a tile
    int32_t tiles_y;
    int32_t tiles_x;
    int32_t pitch;        // positions from one row of a tile to the next in shared memory
    int32_t positions;    // of one frame of a tile in shared memory
    int32_t threads;      // of a block
    int32_t clip_groups;  // blocks that share the clips

    constexpr int32_t tiles() const { return tiles_y * tiles_x; }
};

constexpr int32_t tile_bytes = 64;  // of channels
constexpr int32_t stages = 4;       // frames in shared memory: the last, this, the next, and one on its way
// Threads of a block at most, channels of a thread, and patches beside each other that it works on: as many as its
// registers hold with three blocks on a multiprocessor, backward with two (tools/kernel_resources.py --cuda shows them).
struct MixerBlock {
    int32_t most_threads, channels, strip;
};
constexpr MixerBlock forward_block{224, 2, 7};
constexpr MixerBlock backward_block{224, 2, 7};

// What a thread of the backward pass keeps in shared memory from frame to frame: so many times its channels, in fp32.
constexpr int32_t kept_rows = backward_block.strip + 4;
constexpr int32_t kept_bytes = kept_rows * backward_block.channels * backward_block.most_threads * 4;

constexpr int32_t weight_rows = 15;  // 3 + 1 weights of the temporal branch, 9 + 1 + 1 of the difference branch
constexpr int32_t sum_rows = 24;     // 3 + 1 + 1 sums of the temporal branch, 9 + 1 + 9 of the difference branch

// The static rule: a function of the shape and the dtype alone, so that results are the same bits on every GPU.
// With rows > 0 the tiles have at most so many rows of patches, which may be no more than fit into a block.
MixerPlan mixer_plan(const MixerShape& shape, Dtype dtype, bool backward, int32_t rows);

// Bytes of shared memory of a block.
int64_t mixer_shared_bytes(const MixerShape& shape, const MixerPlan& plan, Dtype dtype, bool backward);

// Floats of scratch memory that the backward pass needs.
int64_t mixer_workspace(const MixerShape& shape, const MixerPlan& plan);

// All of these enqueue on a stream (a cudaStream_t) and return without waiting: 0, or a cudaError_t.

int mixer_forward(const MixerShape& shape, Dtype dtype, const MixerPlan& plan, const MixerWeights& weights,
                  const void* h, void* u, void* stream);

// u is written once more unless it is null.
int mixer_backward(const MixerShape& shape, Dtype dtype, const MixerPlan& plan, const MixerWeights& weights,
                   const void* h, const void* du, void* u, void* dh, float* workspace, const MixerGradients& gradients,
                   void* stream);

// Adds up the partial sums that mixer_backward's blocks have left, in a fixed order.
int mixer_sums(const MixerShape& shape, Dtype dtype, int64_t partials, const MixerWeights& weights,
               const float* workspace, const MixerGradients& gradients, void* stream);

// out = out + bias + residual for contiguous (rows, columns) tensors of one dtype. Every tokens-th row takes the class
// bias where there is a class token. Biases are fp32 (columns); residual may be null.
int add_residual(Dtype dtype, void* out, const void* residual, const float* class_bias, const float* patch_bias,
                 int64_t rows, int32_t columns, int32_t tokens, bool class_token, void* stream);
