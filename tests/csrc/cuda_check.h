// What the checks of the CUDA kernels share: buffers that end where their tensor ends, and the loop over the emulator's
// orders.
#pragma once

#include "cuda_emulator.h"
#include "values_check.h"

template <>
inline constexpr const char* dtype_name<__half> = "fp16";
template <>
inline constexpr const char* dtype_name<__nv_bfloat16> = "bf16";
template <>
inline constexpr double rounding<__half> = 1.5e-3;
template <>
inline constexpr double rounding<__nv_bfloat16> = 1.2e-2;

inline float to_float(__half x) { return __half2float(x); }
inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
template <>
inline __half from_float<__half>(float x) { return __float2half_rn(x); }
template <>
inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }

// Memory for exactly `size` values, NaN until it is written: aligned as a GPU's allocator does it, or to T and no further.
// Without values there is no memory at all.
template <typename T>
class DeviceBuffer {
public:
    DeviceBuffer(size_t size, bool aligned) : size_(size) {
        if (size == 0) return;
        void* memory = nullptr;
        const size_t shift = aligned ? 0 : sizeof(T), bytes = size * sizeof(T) + shift;
        if (posix_memalign(&memory, 256, bytes)) abort();
        memset(memory, 0xff, bytes);
        memory_.reset(static_cast<char*>(memory));
        data_ = reinterpret_cast<T*>(memory_.get() + shift);
    }
    DeviceBuffer(const Values& values, bool aligned) : DeviceBuffer(values.size(), aligned) {
        for (size_t i = 0; i < size_; ++i) data_[i] = from_float<T>(static_cast<float>(values[i]));
    }
    T* data() const { return data_; }
    Values values() const {
        Values all(size_);
        for (size_t i = 0; i < size_; ++i) all[i] = to_float(data_[i]);
        return all;
    }

private:
    size_t size_;
    std::unique_ptr<char, void (*)(void*)> memory_{nullptr, free};
    T* data_ = nullptr;
};

// run() returns one result for each that is expected. One order of the emulator's threads is held to the expected values,
// the others, some of them with several blocks at once, to its bits.
inline void check_orders(const std::string& where, const std::vector<Expected>& expected,
                         const std::function<std::vector<Values>()>& run) {
    using cuda_emulator::Order;
    cuda_emulator::order = Order::ascending;
    cuda_emulator::resident_blocks = 1;
    const std::vector<Values> first = run();
    for (size_t i = 0; i < expected.size(); ++i) compare(where, expected[i], first[i]);
    for (const Order order : {Order::descending, Order::scattered}) {
        cuda_emulator::order = order;
        cuda_emulator::resident_blocks = 3;
        const std::vector<Values> other = run();
        for (size_t i = 0; i < expected.size(); ++i) {
            ++comparisons;
            if (bits_of(other[i]) != bits_of(first[i])) fail(where, std::string(expected[i].name) + " depends on the order");
        }
    }
}

void check_cuda_mixer();
void check_cuda_residual();
