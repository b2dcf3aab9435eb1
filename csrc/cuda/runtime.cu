#include "runtime.h"

#include "device.h"

const char* error_text(int code) {
    if (code < 0) return "the driver refused a tensor map";
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

int driver_version() {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}
