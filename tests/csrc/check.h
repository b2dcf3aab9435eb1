// What the checks of the CPU kernels share: buffers that end where their tensor ends, and the loop over instruction sets
// and numbers of threads.
#pragma once

#include <functional>
#include <memory>

#include "../../csrc/cpu/kernels.h"
#include "values_check.h"

inline float to_float(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <>
inline bf16 from_float<bf16>(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return {static_cast<uint16_t>(bits >> 16)};
}
template <>
inline constexpr const char* dtype_name<bf16> = "bf16";
template <>
inline constexpr double rounding<bf16> = 1.2e-2;

// Memory for exactly `size` values, which a sanitizer guards at its end. It is aligned to T and no further, and full of
// NaN until it is written.
template <typename T>
class Buffer {
public:
    explicit Buffer(size_t size) : size_(size) {
        const size_t shift = bits_after(places) % 2 * sizeof(T), bytes = size * sizeof(T) + shift;
        memory_.reset(new unsigned char[bytes]);
        memset(memory_.get(), 0xff, bytes);
        data_ = reinterpret_cast<T*>(memory_.get() + shift);
    }
    explicit Buffer(const Values& values) : Buffer(values.size()) {
        for (size_t i = 0; i < size_; ++i) data_[i] = from_float<T>(static_cast<float>(values[i]));
    }
    T* data() const { return data_; }
    Values values() const {
        Values all(size_);
        for (size_t i = 0; i < size_; ++i) all[i] = to_float(data_[i]);
        return all;
    }

private:
    static inline uint64_t places = 2;  // not random_bits(): how many buffers there are depends on the processor
    size_t size_;
    std::unique_ptr<unsigned char[]> memory_;
    T* data_;
};

// run(threads) returns one result for each that is expected. One thread is held to the expected values, on every
// instruction set that this processor has; more threads are held to the bits of one.
inline void check(const std::string& where, const std::vector<Expected>& expected,
                  const std::function<std::vector<Values>(int threads)>& run) {
    for (const char* set : {"avx512", "avx2", "portable"}) {
        if (!select_instruction_set(set)) continue;
        const std::string here = where + ", " + set;
        const std::vector<Values> one = run(1);
        for (size_t i = 0; i < expected.size(); ++i) compare(here, expected[i], one[i]);
        for (int threads : {2, 4}) {
            const std::vector<Values> many = run(threads);
            for (size_t i = 0; i < expected.size(); ++i) {
                ++comparisons;
                if (bits_of(many[i]) == bits_of(one[i])) continue;
                fail(here, std::string(expected[i].name) + " changes with " + std::to_string(threads) + " threads");
            }
        }
    }
}

void check_mixer();
void check_rows();
void check_activations();
void check_frame_conv();
void check_losses();
