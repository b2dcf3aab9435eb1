// Loops over tasks on as many threads as the caller asks for.
#pragma once

#include <stdint.h>

using Body = void (*)(void* context, int thread, int64_t begin, int64_t end);

// Every thread gets one contiguous share of [0, tasks). Results must not depend on the number of threads.
void parallel_for(int threads, int64_t tasks, Body body, void* context);

template <typename F>
void parallel(int threads, int64_t tasks, F& function) {
    parallel_for(
        threads, tasks,
        [](void* context, int thread, int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) (*static_cast<F*>(context))(thread, task);
        },
        &function);
}

// Fewer threads where there is little to do: waking one costs about as much as going over this many values.
inline int threads_for(int threads, int64_t values) {
    constexpr int64_t worth_a_thread = 32768;
    const int64_t most = values / worth_a_thread + 1;
    return most < threads ? static_cast<int>(most) : threads;
}

// Threads of the OpenMP runtime that the process already runs: `library` is a loaded library that depends on it. A
// second runtime beside it would spin for the same cores. Returns whether one was found; without it, threads are
// started for every call.
bool use_openmp_of(const char* library);
