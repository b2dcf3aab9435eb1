// Checks the C++ kernels without Python, so that sanitizers see nothing else; exit code 1 if one is wrong.
#include "check.h"

int main() {
    check_mixer();
    check_rows();
    check_activations();
    check_frame_conv();
    check_losses();
    printf("%d comparisons, %d wrong\n", comparisons, failures);
    return failures == 0 ? 0 : 1;
}
