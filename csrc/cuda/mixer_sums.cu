// The mixer's gradients of weights, from the partial sums of all blocks.
#include "mixer_tile.h"

namespace {

constexpr int channels = 8;  // of a block: 32 bytes of every row of sums
constexpr int parts = 32;    // threads that share the partial sums of a channel

template <typename T>
__global__ __launch_bounds__(channels * parts) void mixer_sums_kernel(const MixerShape s, const int64_t partials,
                                                                      const Weights<T> w, const float* sums,
                                                                      const MixerGradients gradients) {
    float* memory = reinterpret_cast<float*>(shared_memory());  // (parts, sum_rows, channels)
    const int own = threadIdx.x % channels, part = threadIdx.x / channels;
    const int channel = blockIdx.x * channels + own;
    const int first = s.temporal ? 0 : 5, end = s.difference ? sum_rows : 5;
    float total[sum_rows];
#pragma unroll
    for (int row = 0; row < sum_rows; ++row) total[row] = 0.0f;
    if (channel < s.width) {
        for (int64_t i = part; i < partials; i += parts) {
            const float* from = sums + i * sum_rows * s.width + channel;
#pragma unroll
            for (int row = 0; row < sum_rows; ++row) {
                if (first <= row && row < end) total[row] += from[row * s.width];
            }
        }
    }
#pragma unroll
    for (int row = 0; row < sum_rows; ++row) memory[(part * sum_rows + row) * channels + own] = total[row];
    __syncthreads();
    for (int i = threadIdx.x; i < sum_rows * channels; i += blockDim.x) {
        float sum = 0.0f;
        for (int other = 0; other < parts; ++other) sum += memory[other * sum_rows * channels + i];
        memory[i] = sum;  // nobody else reads or writes this place: i is of part 0
    }
    __syncthreads();
    if (part > 0 || channel >= s.width) return;
    const auto row = [&](int index) { return memory[index * channels + own]; };
    if (s.temporal) {
        for (int k = 0; k < 3; ++k) gradients.temporal_weight[channel * 3 + k] = row(k);
        gradients.temporal_bias[channel] = row(3);
        gradients.temporal_down_bias[channel] = row(4);
    }
    if (s.difference) {
        const float bias = to_float(w.down_bias[channel]);
        float down = 0.0f;
        for (int k = 0; k < 9; ++k) {
            gradients.difference_weight[channel * 9 + k] = row(5 + k) + bias * row(15 + k);
            down += to_float(w.difference_weight[channel * 9 + k]) * row(15 + k);
        }
        gradients.difference_bias[channel] = row(14);
        gradients.difference_down_bias[channel] = down;
    }
}

template <typename T>
int run(const MixerShape& s, int64_t partials, const MixerWeights& weights, const float* workspace,
        const MixerGradients& gradients, void* stream) {
    if (s.width == 0) return cudaSuccess;
    return launch(mixer_sums_kernel<T>, dim3((s.width + channels - 1) / channels), channels * parts,
                  sum_rows * channels * parts * sizeof(float), stream, s, partials, weights_of<T>(weights), workspace,
                  gradients);
}

}  // namespace

int mixer_sums(const MixerShape& s, Dtype dtype, int64_t partials, const MixerWeights& weights, const float* workspace,
               const MixerGradients& gradients, void* stream) {
    if (dtype == Dtype::float32) return run<float>(s, partials, weights, workspace, gradients, stream);
    if (dtype == Dtype::float16) return run<__half>(s, partials, weights, workspace, gradients, stream);
    return run<__nv_bfloat16>(s, partials, weights, workspace, gradients, stream);
}
