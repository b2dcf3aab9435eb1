// What the CPU kernels take and what every instruction set provides. Raw pointers and sizes only: no PyTorch in here.
#pragma once

#include <stdint.h>

#include "loss_kernels.h"
#include "frame_conv_kernels.h"

struct bf16 {
    uint16_t bits;
};

// What lies between the two projections of a TED-Adapter. A row is a token, rows run over clips, frames, tokens. In a
// row the temporal branch has the columns [0, width) and the difference branch [difference_column, + width); where
// both share their projections they share their columns, and their results are summed.
struct MixerShape {
    int64_t clips, frames, tokens;  // tokens of a frame, the class token included
    int64_t grid_height, grid_width;
    int64_t width;              // R
    int64_t columns;            // of a row of u, du and dh
    int64_t h_columns;          // from a row of h to the next: more than `columns` where h holds another branch as well
    int64_t difference_column;  // R, or 0 where the branches share columns or the temporal one is off
    bool class_token, temporal, difference;

    bool summed() const { return temporal && difference && difference_column == 0; }
};

// Tap-major fp32 copies: a tap's weights of all channels are neighbours.
struct MixerWeights {
    const float* temporal_taps;    // (3, R)
    const float* temporal_bias;    // (R)
    const float* difference_taps;  // (9, R)
    const float* difference_bias;  // (R), of the convolution
    const float* down_bias;        // (R), added to the frame difference before the convolution
};

// Rows of floats that a group of tasks sums up, each `width` long, in this order.
struct MixerSums {
    static constexpr int temporal_taps = 0;  // 3
    static constexpr int temporal_bias = 3;
    static constexpr int temporal_down_bias = 4;
    static constexpr int temporal_rows = 5;  // of the temporal branch alone
    static constexpr int difference_taps = 5;   // 9
    static constexpr int difference_bias = 14;  // equal to the sum of du over all patches
    static constexpr int reach = 15;            // 9: sum of du over the patches whose neighbour at that tap exists
    static constexpr int rows = 24;
};

// One task: some grid rows, and with them some tokens, of one frame.
struct MixerTask {
    int64_t clip, frame, first_token, end_token, first_row, end_row;
};

template <typename T>
struct MixerForward {
    MixerShape shape;
    MixerWeights weights;
    const T* h;
    T* u;
};

template <typename T>
struct MixerBackward {
    MixerShape shape;
    MixerWeights weights;
    const T* h;
    const T* du;
    T* dh;
};

enum class Activation { gelu, quick_gelu, relu, none };

// One copy of this table exists for each instruction set.
template <typename T>
struct Kernels {
    // scratch: mixer_scratch(shape) floats, the task's own.
    void (*mixer_forward)(const MixerForward<T>&, const MixerTask&, float* scratch);
    // sums: MixerSums::rows * width floats, added to.
    void (*mixer_backward)(const MixerBackward<T>&, const MixerTask&, float* scratch, float* sums);
    // out[n] = x[n] + bias; the residual stream's rows before the up-projection is added to them.
    void (*add_bias)(const T* x, const float* bias, T* out, int64_t rows, int64_t columns);
    // out[n] = x[n] where out is not null; sums[c] += sum over n of x[n, c].
    void (*copy_and_sum)(const T* x, T* out, float* sums, int64_t rows, int64_t columns);
    // g = act(h)
    void (*activation_forward)(Activation kind, const T* h, T* g, int64_t count);
    // dh = dg act'(h); g = act(h) where g is not null; sums[c] += column sums of dh.
    void (*activation_backward)(Activation kind, const T* h, const T* dg, T* g, T* dh, float* sums, int64_t rows,
                                int64_t columns);
};

struct InstructionSet {
    const char* name;
    bool (*supported)();
    Kernels<float> f32;
    Kernels<bf16> b16;
    LossKernels losses;
    FrameConvKernels<float> time_f32;
    FrameConvKernels<bf16> time_b16;
};

// Floats in one padded grid row of the scratch: a column of zeros at either side, and a stride that is no power of two.
inline int64_t scratch_stride(const MixerShape& s) { return (s.width + 15) / 16 * 16 + 16; }
inline int64_t scratch_row(const MixerShape& s) { return (s.grid_width + 2) * scratch_stride(s); }
inline int64_t mixer_scratch(const MixerShape& s) { return s.difference ? 6 * scratch_row(s) : 0; }

// The instruction set in use: the best this processor has, or the one named by select_instruction_set.
const InstructionSet& instruction_set();
bool select_instruction_set(const char* name);
