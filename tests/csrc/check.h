// What the checks of the C++ kernels share: buffers that end where their tensor ends, random values, and the loop over
// instruction sets and numbers of threads.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/kernels.h"

using Values = std::vector<double>;

inline int failures = 0;
inline int comparisons = 0;

inline uint32_t random_bits() {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 32);
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) { return x; }
template <>
inline bf16 from_float<bf16>(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return {static_cast<uint16_t>(bits >> 16)};
}

template <typename T>
constexpr const char* dtype_name = "fp32";
template <>
inline constexpr const char* dtype_name<bf16> = "bf16";

// Error of a result that is rounded to T, possibly twice, as a share of the largest value.
template <typename T>
constexpr double rounding = 1e-5;
template <>
inline constexpr double rounding<bf16> = 1.2e-2;

// Memory for exactly `size` values, which a sanitizer guards at its end. It is aligned to T and no further, and full of
// NaN until it is written.
template <typename T>
class Buffer {
public:
    explicit Buffer(size_t size) : size_(size) {
        const size_t shift = random_bits() % 2 * sizeof(T), bytes = size * sizeof(T) + shift;
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
    size_t size_;
    std::unique_ptr<unsigned char[]> memory_;
    T* data_;
};

// Uniform in [-scale, scale), and exact in T.
template <typename T>
Values random_values(size_t size, float scale = 1) {
    Values all(size);
    for (double& value : all) {
        const float uniform = static_cast<float>(static_cast<int32_t>(random_bits())) / 2147483648.0f;
        value = to_float(from_float<T>(uniform * scale));
    }
    return all;
}

struct Expected {
    const char* name;
    Values values;
    double tolerance;  // share of the largest value
};

inline void fail(const std::string& where, const std::string& what) {
    fprintf(stderr, "WRONG: %s: %s\n", where.c_str(), what.c_str());
    ++failures;
}

inline void compare(const std::string& where, const Expected& expected, const Values& found) {
    double largest = 0.05, worst = 0;  // results that should be 0 come of terms about as large as this
    for (double value : expected.values) largest = fmax(largest, fabs(value));
    for (size_t i = 0; i < found.size(); ++i) {
        const double error = fabs(found[i] - expected.values[i]);
        if (!(error <= worst)) worst = error;  // a NaN stays
    }
    ++comparisons;
    if (found.size() != expected.values.size()) fail(where, std::string(expected.name) + " has another size");
    if (!(worst <= expected.tolerance * largest)) {
        fail(where, std::string(expected.name) + " is off by " + std::to_string(worst / largest));
    }
}

inline std::string bits_of(const Values& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double)};
}

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
void check_losses();
