#include "frame_conv.h"

#include "groups.h"

namespace {

constexpr int64_t task_positions = 16;

struct Tasks {
    const FrameConvShape& shape;
    int64_t of_clip;

    explicit Tasks(const FrameConvShape& s)
        : shape(s), of_clip(std::max<int64_t>((s.positions + task_positions - 1) / task_positions, 1)) {}
    int64_t count() const { return shape.clips * of_clip; }
    FrameConvTask task(int64_t index) const {
        const int64_t first = index % of_clip * task_positions;
        return {index / of_clip, first, std::min(first + task_positions, shape.positions)};
    }
};

template <typename T>
const FrameConvKernels<T>& frame_conv_kernels();
template <>
const FrameConvKernels<float>& frame_conv_kernels() { return instruction_set().time_f32; }
template <>
const FrameConvKernels<bf16>& frame_conv_kernels() { return instruction_set().time_b16; }

float* scratch_of_thread(const FrameConvShape& s) {
    thread_local std::vector<float> memory;
    return kept_memory(memory, time_scratch(s));
}

int useful_threads(const FrameConvShape& s, int threads) {
    return threads_for(threads, s.clips * s.rows() * s.columns);
}

}  // namespace

template <typename T>
void run_frame_conv(const FrameConv<T>& args, int threads) {
    const Tasks tasks(args.shape);
    auto run = [&](int, int64_t task) {
        frame_conv_kernels<T>().forward(args, tasks.task(task), scratch_of_thread(args.shape));
    };
    parallel(useful_threads(args.shape, threads), tasks.count(), run);
}

template <typename T>
void run_frame_conv_backward(const FrameConvBackward<T>& args, float* sums, int threads) {
    const Tasks tasks(args.shape);
    const int64_t size = FrameConvSums::rows * args.shape.columns;
    const float* total =
        sum_over_tasks(useful_threads(args.shape, threads), tasks.count(), size, [&](int64_t task, float* own) {
            frame_conv_kernels<T>().backward(args, tasks.task(task), scratch_of_thread(args.shape), own);
        });
    std::copy_n(total, size, sums);
}

#define M2CLIP_INSTANTIATE(T)                                     \
    template void run_frame_conv(const FrameConv<T>&, int);             \
    template void run_frame_conv_backward(const FrameConvBackward<T>&, float*, int);
M2CLIP_INSTANTIATE(float)
M2CLIP_INSTANTIATE(bf16)
