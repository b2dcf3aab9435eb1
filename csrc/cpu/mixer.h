// The mixer as a whole operation: tasks on threads, scratch memory, and sums in an order of their own, so that
// results are the same bits for any number of threads.
#pragma once

#include "kernels.h"

// fp32, in the layout of the parameters: (R, taps). A null pointer marks what a switched-off branch lacks.
struct MixerParameters {
    const float* temporal_weight;
    const float* temporal_bias;
    const float* difference_weight;
    const float* difference_bias;
    const float* down_bias;
};

struct MixerGradients {
    float* temporal_weight;
    float* temporal_bias;
    float* temporal_down_bias;
    float* difference_weight;
    float* difference_bias;
    float* difference_down_bias;
};

template <typename T>
void run_mixer_forward(const MixerShape& shape, const MixerParameters& parameters, const T* h, T* u, int threads);

template <typename T>
void run_mixer_backward(const MixerShape& shape, const MixerParameters& parameters, const T* h, const T* du, T* dh,
                        const MixerGradients& gradients, int threads);
