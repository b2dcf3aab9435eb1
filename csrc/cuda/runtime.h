// What the kernels' hosts and the extension module ask of the CUDA runtime.
#pragma once

#include <stddef.h>

// The runtime's words for an error of a launch; `code` < 0 is a driver's CUresult, negated.
const char* error_text(int code);

// Highest CUDA version that the installed driver can run, as 1000 * major + 10 * minor; 0 without a driver.
int driver_version();

// Lets a kernel have so many bytes of shared memory on the current GPU; returns a cudaError_t. The runtime is asked
// once for each GPU and kernel, and again only where more is needed.
int allow_shared_memory(const void* kernel, size_t bytes);
