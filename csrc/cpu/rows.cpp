#include "rows.h"

#include "groups.h"

namespace {

constexpr int64_t row_block = 64;  // rows in a task

}  // namespace

template <typename T>
void run_add_bias(const T* x, const float* class_bias, const float* patch_bias, T* out, int64_t frames, int64_t tokens,
                  bool class_token, int64_t columns, int threads) {
    auto run = [&](int, int64_t frame) {
        const int64_t at = frame * tokens * columns, first = class_token * columns;
        if (class_token) kernels<T>().add_bias(x + at, class_bias, out + at, 1, columns);
        kernels<T>().add_bias(x + at + first, patch_bias, out + at + first, tokens - class_token, columns);
    };
    parallel(threads_for(threads, frames * tokens * columns), frames, run);
}

template <typename T>
void run_copy_and_sum(const T* x, T* out, float* class_sums, float* patch_sums, int64_t frames, int64_t tokens,
                      bool class_token, int64_t columns, int threads) {
    const int useful = threads_for(threads, frames * tokens * columns);
    const float* sums = sum_over_tasks(useful, frames, 2 * columns, [&](int64_t frame, float* own) {
        const int64_t at = frame * tokens * columns, rest = at + class_token * columns;
        if (class_token) kernels<T>().copy_and_sum(x + at, out ? out + at : nullptr, own, 1, columns);
        kernels<T>().copy_and_sum(x + rest, out ? out + rest : nullptr, own + columns, tokens - class_token, columns);
    });
    std::copy_n(sums, columns, class_sums);
    std::copy_n(sums + columns, columns, patch_sums);
}

template <typename T>
void run_activation(Activation kind, const T* h, T* g, int64_t rows, int64_t columns, int threads) {
    auto run = [&](int, int64_t block) {
        const int64_t first = block * row_block, count = std::min(row_block, rows - first);
        kernels<T>().activation_forward(kind, h + first * columns, g + first * columns, count * columns);
    };
    parallel(threads_for(threads, rows * columns), (rows + row_block - 1) / row_block, run);
}

template <typename T>
void run_activation_backward(Activation kind, const T* h, const T* dg, T* g, T* dh, float* sums, int64_t rows,
                             int64_t columns, int threads) {
    const int64_t blocks = (rows + row_block - 1) / row_block;
    const int useful = threads_for(threads, rows * columns);
    const float* total = sum_over_tasks(useful, blocks, columns, [&](int64_t block, float* own) {
        const int64_t first = block * row_block, count = std::min(row_block, rows - first), at = first * columns;
        kernels<T>().activation_backward(kind, h + at, dg + at, g ? g + at : nullptr, dh + at, own, count, columns);
    });
    std::copy_n(total, columns, sums);
}

#define M2CLIP_INSTANTIATE(T)                                                                                          \
    template void run_add_bias(const T*, const float*, const float*, T*, int64_t, int64_t, bool, int64_t, int);        \
    template void run_copy_and_sum(const T*, T*, float*, float*, int64_t, int64_t, bool, int64_t, int);                \
    template void run_activation(Activation, const T*, T*, int64_t, int64_t, int);                                     \
    template void run_activation_backward(Activation, const T*, const T*, T*, T*, float*, int64_t, int64_t, int);
M2CLIP_INSTANTIATE(float)
M2CLIP_INSTANTIATE(bf16)
