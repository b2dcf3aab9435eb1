// The convolution over frames beside an up-projection, as whole operations.
#pragma once

#include "kernels.h"

template <typename T>
void run_time_up(const TimeUp<T>& args, int threads);

// sums: TimeSums::rows * columns floats.
template <typename T>
void run_time_up_backward(const TimeUpBackward<T>& args, float* sums, int threads);
