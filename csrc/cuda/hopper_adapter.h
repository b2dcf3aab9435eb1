// The TED-Adapter's forward pass in one launch on Hopper GPUs; docs/hopper_adapter.md explains the design.
#pragma once

#include <stdint.h>

#include <string>

// Rows are the B*T*L tokens of B clips of T frames, L = class_token + grid_height * grid_width. All tensors are
// contiguous on the current device, activations and weights in one dtype and on 16-byte boundaries. C is the number of
// columns between the projections: 2R with a projection for each of two branches (the temporal one's columns first),
// else R.
struct HopperAdapterArgs {
    const void* x;                      // (B*T, L, D)
    void* y;                            // (B*T, L, D), not x
    void* h;                            // (B*T, L, C) after the down-projection: what a backward pass keeps
    void* u;                            // (B*T, L, C) scratch
    int32_t* counters;                  // (2 * B) scratch, cleared on the stream
    const void* down_weight;            // (C, D)
    const void* up_weight;              // (D, C)
    const float* down_bias;             // (C), or null; zeros in the difference branch's own columns
    const float* class_bias;            // (D) up-projection's bias in rows of class tokens
    const float* patch_bias;            // (D) and in all others
    const float* temporal_taps;         // (3, R), or null: no temporal branch
    const float* temporal_bias;         // (R)
    const float* difference_taps;       // (9, R), or null: no difference branch
    const float* difference_bias;       // (R)
    const float* difference_down_bias;  // (R) down-projection's bias, which joins after the difference of two frames
    int64_t clips;                      // B
    int32_t frames;                     // T, 1 to 64
    int32_t grid_height;
    int32_t grid_width;
    int32_t width;       // D, a multiple of 64
    int32_t bottleneck;  // R, a multiple of 64
    bool class_token;
    bool shared;    // both branches share one projection, and their results are summed
    bool residual;  // add x
    bool half;      // fp16; else bf16
};

// What is not as it has to be, in one line, or nothing.
std::string hopper_adapter_problem(const HopperAdapterArgs& args);

// Enqueues the adapter on a stream (a cudaStream_t) without waiting for it; may be captured into a CUDA graph.
// Returns 0, or a cudaError_t: cudaErrorInvalidValue (1) where sizes or pointers are not as above or rows, tiles or
// tasks cannot be counted in 31 bits, cudaErrorNoKernelImageForDevice (209) or cudaErrorInvalidDeviceFunction (98) on
// another architecture than sm_90. Where the driver refuses a tensor map, the CUresult comes back negated.
int hopper_adapter_forward(const HopperAdapterArgs& args, void* stream);
