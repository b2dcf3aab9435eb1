// Sizes that no kernel can have are a std::invalid_argument, a ValueError in Python: they come before any memory.
#pragma once

#include <stdint.h>

#include <stdexcept>
#include <string>

constexpr int64_t most_of_a_size = INT32_MAX;  // of grids, frames and widths, whose products 64 bits hold

inline void require(const char* operation, const char* name, int64_t value, int64_t least,
                    int64_t most = most_of_a_size) {
    if (value >= least && value <= most) return;
    throw std::invalid_argument(std::string(operation) + ": " + name + " must be at " +
                                (value < least ? "least " + std::to_string(least) : "most " + std::to_string(most)) +
                                ", got " + std::to_string(value));
}

// Rows and columns of a tensor.
inline void require_matrix(const char* operation, int64_t rows, int64_t columns, int64_t least_columns = 1) {
    require(operation, "rows", rows, 0, INT64_MAX);
    require(operation, "columns", columns, least_columns);
}
