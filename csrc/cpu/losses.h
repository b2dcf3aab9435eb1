// The losses as whole operations on the CPU; see mixer.h for what holds of threads and sums.
#pragma once

#include <stdint.h>

// One over the length of each row, the length being at least 1e-12 as in torch.nn.functional.normalize.
// Rows are `stride` floats apart.
void run_inverse_lengths(const float* x, int64_t rows, int64_t size, int64_t stride, float* out, int threads);

struct CosineProblem {
    int64_t rows, columns;        // B, C
    const float* dots;            // (B, C)
    const float* row_inverse;     // (B) inverse lengths
    const float* column_inverse;  // (C)
    const float* scale;           // 0-d
};

// With a_i = row_pull[i]: dL/dv = slopes w + a v, and dL/dw = slopesᵀ v + b w likewise.
struct CosineGradients {
    float* slopes;       // (B, C)
    float* row_pull;     // (B)
    float* column_pull;  // (C)
    float* scale;        // 0-d
};

// A softmax is 2 * size values: the largest logits of rows or of columns, then the logarithms of the sums of exponentials
// relative to them.

// Mean cross-entropy. Throws std::invalid_argument where a target is no class.
void run_cross_entropy_forward(const CosineProblem& problem, const int64_t* targets, float* loss, float* row_softmax,
                               int threads);
void run_cross_entropy_backward(const CosineProblem& problem, const int64_t* targets, float* row_softmax,
                                const float* loss_gradient, const CosineGradients& out, int threads);

// Mean of both directions' KL divergences to softmax(target_scale * [same label]); C = B.
void run_soft_target_forward(const CosineProblem& problem, const int64_t* labels, double target_scale, float* loss,
                             float* row_softmax, float* column_softmax, int threads);
void run_soft_target_backward(const CosineProblem& problem, const int64_t* labels, double target_scale,
                              float* row_softmax, float* column_softmax, const float* loss_gradient,
                              const CosineGradients& out, int threads);

// logits (N, C) become softmax - [c = target]; returns the summed cross-entropy. Throws std::invalid_argument where a
// target is no class.
double run_softmax_minus_target(float* logits, int64_t rows, int64_t columns, const int64_t* targets, int threads);
