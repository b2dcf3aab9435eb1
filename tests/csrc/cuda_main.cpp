// Checks the CUDA kernels without a GPU; exit code 1 if one is wrong.
#include "cuda_check.h"

int main() {
    check_cuda_mixer();
    check_cuda_residual();
    printf("%d comparisons, %d wrong, %lld launches\n", comparisons, failures,
           static_cast<long long>(cuda_emulator::launches));
    return failures == 0 ? 0 : 1;
}
