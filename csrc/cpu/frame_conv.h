// The convolution over frames beside an up-projection, as whole operations.
#pragma once

#include "kernels.h"

template <typename T>
void run_frame_conv(const FrameConv<T>& args, int threads);

// sums: FrameConvSums::rows * columns floats.
template <typename T>
void run_frame_conv_backward(const FrameConvBackward<T>& args, float* sums, int threads);
