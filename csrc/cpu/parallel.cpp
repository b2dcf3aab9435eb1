#include "parallel.h"

#include <dlfcn.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
using GetInt = int (*)();

GompParallel gomp_parallel = nullptr;
GetInt get_thread_num = nullptr;
GetInt get_num_threads = nullptr;

struct Loop {
    int64_t tasks;
    Body body;
    void* context;

    void share(int thread, int threads) const {
        const int64_t begin = tasks * thread / threads, end = tasks * (thread + 1) / threads;
        if (begin < end) body(context, thread, begin, end);
    }
};

}  // namespace

void parallel_for(int threads, int64_t tasks, Body body, void* context) {
    if (tasks <= 0) return;
    const Loop loop{tasks, body, context};
    threads = static_cast<int>(std::min<int64_t>(std::max(threads, 1), tasks));
    if (threads == 1) return loop.share(0, 1);
    if (gomp_parallel) {
        // The runtime may give fewer threads than asked for, inside a parallel region for instance.
        gomp_parallel(
            [](void* data) { static_cast<const Loop*>(data)->share(get_thread_num(), get_num_threads()); },
            const_cast<Loop*>(&loop), static_cast<unsigned>(threads), 0);
        return;
    }
    std::vector<std::thread> helpers;
    for (int thread = 1; thread < threads; ++thread) helpers.emplace_back([&, thread] { loop.share(thread, threads); });
    loop.share(0, threads);
    for (std::thread& helper : helpers) helper.join();
}

bool use_openmp_of(const char* library) {
    void* handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    if (!handle) return false;
    auto parallel_symbol = reinterpret_cast<GompParallel>(dlsym(handle, "GOMP_parallel"));
    get_thread_num = reinterpret_cast<GetInt>(dlsym(handle, "omp_get_thread_num"));
    get_num_threads = reinterpret_cast<GetInt>(dlsym(handle, "omp_get_num_threads"));
    gomp_parallel = get_thread_num && get_num_threads ? parallel_symbol : nullptr;
    dlclose(handle);
    return gomp_parallel != nullptr;
}
