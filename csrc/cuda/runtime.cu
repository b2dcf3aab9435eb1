#include "runtime.h"

#include <map>
#include <mutex>
#include <utility>

#include "device.h"

const char* error_text(int code) {
    if (code < 0) return "the driver refused a tensor map";
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

int driver_version() {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

int allow_shared_memory(const void* kernel, size_t bytes) {
    constexpr size_t always = 48 * 1024;
    if (bytes <= always) return cudaSuccess;
    static std::mutex mutex;
    static std::map<std::pair<int, const void*>, size_t> allowed;
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device)) return error;
    const std::lock_guard lock(mutex);
    size_t& most = allowed[{device, kernel}];
    if (bytes <= most) return cudaSuccess;
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
    if (error == cudaSuccess) most = bytes;
    return error;
}
