// Biases and the residual stream, added to a product where it lies.
#include "mixer.h"
#include "values.h"

namespace {

constexpr int threads = 256;

// A thread has N neighbouring values of a row.
template <typename T, int N>
__global__ __launch_bounds__(threads) void add_residual_kernel(T* out, const T* residual, const float* class_bias,
                                                               const float* patch_bias, const int64_t rows,
                                                               const int columns, const int tokens,
                                                               const bool class_token) {
    const int packs = columns / N;
    const int64_t step = int64_t{gridDim.x} * blockDim.x;
    for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < rows * packs; i += step) {
        const int64_t row = i / packs, at = i * N;
        const int column = static_cast<int>(i - row * packs) * N;
        const float* bias = (class_token && row % tokens == 0 ? class_bias : patch_bias) + column;
        Floats<N> x = load<N>(out + at);
#pragma unroll
        for (int n = 0; n < N; ++n) x[n] += bias[n];
        if (residual) add(x, load<N>(residual + at));
        store(out + at, x);
    }
}

template <typename T, int N>
int run(void* out, const void* residual, const float* class_bias, const float* patch_bias, int64_t rows, int32_t columns,
        int32_t tokens, bool class_token, void* stream) {
    const int64_t blocks = (rows * (columns / N) + threads - 1) / threads;
    if (blocks == 0) return cudaSuccess;
    const unsigned grid = static_cast<unsigned>(blocks < 65536 ? blocks : 65536);
    return launch(add_residual_kernel<T, N>, dim3(grid), threads, 0, stream, static_cast<T*>(out),
                  static_cast<const T*>(residual), class_bias, patch_bias, rows, columns, tokens, class_token);
}

template <typename T>
int run_dtype(void* out, const void* residual, const float* class_bias, const float* patch_bias, int64_t rows,
              int32_t columns, int32_t tokens, bool class_token, void* stream) {
    constexpr int N = 16 / sizeof(T);
    const auto addresses = reinterpret_cast<uintptr_t>(out) | reinterpret_cast<uintptr_t>(residual);
    const auto run_any = columns % N == 0 && addresses % 16 == 0 ? run<T, N> : run<T, 1>;
    return run_any(out, residual, class_bias, patch_bias, rows, columns, tokens, class_token, stream);
}

}  // namespace

int add_residual(Dtype dtype, void* out, const void* residual, const float* class_bias, const float* patch_bias,
                 int64_t rows, int32_t columns, int32_t tokens, bool class_token, void* stream) {
    const auto run = dtype == Dtype::float32   ? run_dtype<float>
                     : dtype == Dtype::float16 ? run_dtype<__half>
                                               : run_dtype<__nv_bfloat16>;
    return run(out, residual, class_bias, patch_bias, rows, columns, tokens, class_token, stream);
}
