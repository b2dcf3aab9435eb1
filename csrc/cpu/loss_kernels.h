// What the losses need of every instruction set. Logits are never stored: the one of row i and column c is
// scale * row_inverse[i] * column_inverse[c] * dots[i, c], the inverses being one over the lengths of the features.
#pragma once

#include <stdint.h>

// All in fp32 and contiguous; (B, C) is (rows, columns).
struct CosineLogits {
    int64_t rows, columns;
    const float* dots;            // (B, C) products of the features before any scaling
    const float* row_inverse;     // (B)
    const float* column_inverse;  // (C)
    float scale;

    float factor(int64_t row) const { return scale * row_inverse[row]; }
};

// Of rows or of columns: a logit's share is exp((logit - largest) - log_sum). The sum of the two, rounded to one number,
// would be off by as much as logits are large, for a whole row alike.
struct Softmax {
    float* largest;  // logits
    float* log_sum;  // logarithms of the sums of exponentials relative to them
};

// softmax(target_scale * [same label]) has two values a row; samples of one label share their group's.
struct SoftTargets {
    const int32_t* group;   // (B), equal for equal labels
    const float* log_same;  // (B) logarithm of the target at samples of the same label
    const float* log_other;
    const float* same;  // (B) their exponentials
    const float* other;
};

// Where and by how much: dL/dlogit = weight * (softmax - target).
struct CrossEntropySlope {
    Softmax rows;
    const int64_t* targets;  // (B)
    float weight;
};

struct SoftSlope {
    Softmax rows, columns;
    SoftTargets targets;
    float weight;
};

// A rectangle of the logits.
struct LogitBlock {
    int64_t first_row, end_row, first_column, end_column;
};

// dL/d(dots), and sums of dL/dlogit * cosine, which the lengths' and the scale's gradients are made of.
struct CosineSlopes {
    float* slopes;       // (B, C)
    float* row_sums;     // (B), set to the sum over the block's columns
    float* column_sums;  // (C), set to the sum over the block's rows
};

struct LossKernels {
    float (*sum_squares)(const float* x, int64_t size);
    // Of one row, and of the columns [first, end).
    void (*row_softmax)(const CosineLogits& logits, int64_t row, const Softmax& out);
    void (*column_softmax)(const CosineLogits& logits, int64_t first, int64_t end, const Softmax& out);
    // Sum over a row of target * (log target - log softmax), for the row's softmax and the columns' softmaxes.
    float (*soft_row_loss)(const CosineLogits& logits, const SoftSlope& slope, int64_t row);
    void (*cross_entropy_slopes)(const CosineLogits& logits, const CrossEntropySlope& slope, const LogitBlock& block,
                                 const CosineSlopes& out);
    void (*soft_slopes)(const CosineLogits& logits, const SoftSlope& slope, const LogitBlock& block,
                        const CosineSlopes& out);
    // logits become softmax(logits) - [c = target]; returns log sum exp(logits) - logits[target].
    float (*softmax_minus_target)(float* logits, int64_t columns, int64_t target);
};
