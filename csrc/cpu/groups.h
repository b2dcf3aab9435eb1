// Sums over tasks in an order that does not depend on the threads: tasks fall into groups, each with sums of its own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "parallel.h"

constexpr int64_t most_groups = 64;  // more would use more memory

template <typename T>
const Kernels<T>& kernels();
template <>
inline const Kernels<float>& kernels() { return instruction_set().f32; }
template <>
inline const Kernels<bf16>& kernels() { return instruction_set().b16; }

// Memory of this thread that later calls use again: fresh pages would cost more than the work on them.
inline float* kept_memory(std::vector<float>& memory, int64_t size) {
    if (static_cast<int64_t>(memory.size()) < size) memory.resize(size);
    return memory.data();
}

// Calls function(task, sums) for every task; returns the sums of all groups, `size` floats that the calling thread's
// next sum overwrites.
template <typename F>
const float* sum_over_tasks(int threads, int64_t tasks, int64_t size, F function) {
    thread_local std::vector<float> memory;
    const int64_t groups = std::max<int64_t>(std::min(tasks, most_groups), 1);
    float* sums = kept_memory(memory, groups * size);
    auto run = [&](int, int64_t group) {
        float* own = sums + group * size;
        std::fill_n(own, size, 0.0f);
        const int64_t end = tasks * (group + 1) / groups;
        for (int64_t task = tasks * group / groups; task < end; ++task) function(task, own);
    };
    parallel(threads, groups, run);
    // In pairs, which loses fewer digits than one after the other.
    for (int64_t step = 1; step < groups; step *= 2) {
        for (int64_t group = 0; group + step < groups; group += 2 * step) {
            float *into = sums + group * size, *from = into + step * size;
            for (int64_t c = 0; c < size; ++c) into[c] += from[c];
        }
    }
    return sums;
}
