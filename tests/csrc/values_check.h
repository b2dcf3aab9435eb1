// What the checks of all C++ kernels share: random values, and results compared with what is expected.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <string>
#include <vector>

using Values = std::vector<double>;

inline int failures = 0;
inline int comparisons = 0;

inline uint32_t bits_after(uint64_t& state) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state >> 32);
}

inline uint32_t random_bits() {
    static uint64_t state = 1;
    return bits_after(state);
}

inline float to_float(float x) { return x; }
template <typename T>
T from_float(float x);
template <>
inline float from_float<float>(float x) { return x; }

template <typename T>
constexpr const char* dtype_name = "fp32";

// Error of a result that is rounded to T, possibly twice, as a share of the largest value.
template <typename T>
constexpr double rounding = 1e-5;

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
    double tolerance;     // share of the largest value
    double rounding = 0;  // allowed on top: what roundings inside may make of an error, by the arithmetic
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
    if (!(worst <= expected.tolerance * largest + expected.rounding)) {
        fail(where, std::string(expected.name) + " is off by " + std::to_string(worst / largest));
    }
}

inline std::string bits_of(const Values& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(double)};
}
