// Passes over rows as whole operations: the residual stream, and the activation of a bottleneck.
#pragma once

#include "kernels.h"

// out = x + bias on (frames * tokens) rows, the class token's row of every frame having a bias of its own.
template <typename T>
void run_add_bias(const T* x, const float* class_bias, const float* patch_bias, T* out, int64_t frames, int64_t tokens,
                  bool class_token, int64_t columns, int threads);

// out = x unless out is null; sums of x over the class tokens (zeros without) and over all other tokens.
template <typename T>
void run_copy_and_sum(const T* x, T* out, float* class_sums, float* patch_sums, int64_t frames, int64_t tokens,
                      bool class_token, int64_t columns, int threads);

// g = act(h)
template <typename T>
void run_activation(Activation kind, const T* h, T* g, int64_t rows, int64_t columns, int threads);

// dh = dg act'(h), its column sums, and g = act(h) once more unless g is null.
template <typename T>
void run_activation_backward(Activation kind, const T* h, const T* dg, T* g, T* dh, float* sums, int64_t rows,
                             int64_t columns, int threads);
