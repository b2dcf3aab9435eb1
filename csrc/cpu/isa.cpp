// Compiled once for each instruction set, with M2CLIP_ISA as its name and the compiler flags that allow it.
#if defined(__AVX512F__)
#define M2CLIP_LANES 16
#elif defined(__AVX2__)
#define M2CLIP_LANES 8
#else
#define M2CLIP_LANES 4
#endif

#include "activations_isa.h"
#include "losses_isa.h"
#include "mixer_isa.h"
#include "rows_isa.h"
#include "frame_conv_isa.h"

namespace {

bool supported() {
#if defined(__AVX512F__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

template <typename T>
constexpr Kernels<T> table() {
    return {mixer_forward<T>,    mixer_backward<T>,     add_bias<T>,
            copy_and_sum<T>, activation_forward<T>, activation_backward<T>};
}

constexpr LossKernels losses = {sum_squares,   row_softmax,          column_softmax,
                                soft_row_loss, cross_entropy_slopes, soft_slopes, softmax_minus_target};

}  // namespace

#define M2CLIP_JOIN(prefix, name) prefix##name
#define M2CLIP_VARIABLE(name) M2CLIP_JOIN(instruction_set_, name)
#define M2CLIP_QUOTE(name) #name
#define M2CLIP_STRING(name) M2CLIP_QUOTE(name)

extern const InstructionSet M2CLIP_VARIABLE(M2CLIP_ISA);
const InstructionSet M2CLIP_VARIABLE(M2CLIP_ISA) = {M2CLIP_STRING(M2CLIP_ISA), supported, table<float>(), table<bf16>(),
                                                       losses,
                                                       {frame_conv<float>, frame_conv_backward<float>},
                                                       {frame_conv<bf16>, frame_conv_backward<bf16>}};
