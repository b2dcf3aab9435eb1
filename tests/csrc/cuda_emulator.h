// CUDA C++ on the CPU, for proofs: kernels of csrc/cuda/ compiled by a plain C++ compiler and run thread by thread.
//
// Every CUDA thread is a fiber of one CPU thread, and runs until it has to wait: at a barrier, a shuffle, or for
// whatever is given to wait_until. A launch can be run with its threads in different orders, and with several blocks at
// once; a result that depends on that is a race. Shared memory has the size asked for, is NaN until it is written, and
// under AddressSanitizer it is guarded at its ends. Asynchronous copies arrive when they are waited for, and no sooner.
// When every thread waits, the program says who waits for what and ends.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define CUDA_EMULATOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CUDA_EMULATOR_ASAN 1
#endif
#endif
#ifdef CUDA_EMULATOR_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

#include "cuda_emulator_types.h"

namespace cuda_emulator {

enum class Order { ascending, descending, scattered };

// How launches are run; a check sets them between launches.
inline Order order = Order::ascending;
inline int resident_blocks = 1;           // blocks that run at the same time
inline size_t shared_limit = 227 * 1024;  // bytes of shared memory a block may ask for
inline int64_t launches = 0;

constexpr unsigned warp_size = 32;
constexpr size_t stack_bytes = 128 * 1024;  // of a thread

struct Barrier {
    unsigned arrived = 0;
    uint64_t generation = 0;
};

struct Copy {
    void* to;
    const void* from;
    size_t bytes;  // read; the rest of `size` is cleared
    size_t size;
};

struct Block;

struct Thread {
    uint3 index{};
    unsigned linear = 0;
    Block* block = nullptr;
    ucontext_t context{};
    std::unique_ptr<char[]> stack;
    bool done = false;
    std::function<bool()> ready;  // empty: may run
    const char* waits_for = "";
    uint64_t lane_value = 0;                 // what a shuffle shows to other lanes
    std::vector<Copy> open_copies;           // not yet committed
    std::deque<std::vector<Copy>> pending;   // committed groups, the oldest first
    void* fake_stack = nullptr;
};

struct Warp {
    std::array<Barrier, 2> phases;  // before a shuffle's values are read, and after
};

struct Block {
    uint3 index{};
    dim3 size, grid;
    std::unique_ptr<unsigned char, void (*)(void*)> shared{nullptr, free};
    size_t shared_bytes = 0;
    std::vector<std::unique_ptr<Thread>> threads;
    std::array<Barrier, 16> barriers;
    std::vector<Warp> warps;
    unsigned running = 0;
};

inline Thread* current = nullptr;
inline ucontext_t scheduler;
inline const std::function<void()>* body = nullptr;
#ifdef CUDA_EMULATOR_ASAN
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_size = 0;
#endif

[[noreturn]] inline void stop(const std::string& what) {
    std::string where;
    if (current) {
        const uint3 b = current->block->index, t = current->index;
        const auto text = [](uint3 i) {
            return std::to_string(i.x) + "," + std::to_string(i.y) + "," + std::to_string(i.z);
        };
        where = " (block " + text(b) + ", thread " + text(t) + ")";
    }
    fprintf(stderr, "CUDA emulator: %s%s\n", what.c_str(), where.c_str());
    abort();
}

inline void to_scheduler(bool for_good) {
    Thread* self = current;
#ifdef CUDA_EMULATOR_ASAN
    __sanitizer_start_switch_fiber(for_good ? nullptr : &self->fake_stack, scheduler_stack, scheduler_stack_size);
#endif
    (void)for_good;
    swapcontext(&self->context, &scheduler);
#ifdef CUDA_EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(self->fake_stack, &scheduler_stack, &scheduler_stack_size);
#endif
}

inline void thread_main() {
#ifdef CUDA_EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_size);
#endif
    (*body)();
    current->done = true;
    to_scheduler(true);
}

inline void resume(Thread& thread) {
    current = &thread;
    thread.ready = nullptr;
#ifdef CUDA_EMULATOR_ASAN
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, thread.stack.get(), stack_bytes);
#endif
    swapcontext(&scheduler, &thread.context);
#ifdef CUDA_EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#endif
    current = nullptr;
}

// The calling CUDA thread pauses until condition() holds. `what` is named when it never does.
template <typename Condition>
void wait_until(Condition condition, const char* what) {
    if (condition()) return;
    current->ready = condition;
    current->waits_for = what;
    to_scheduler(false);
}

// Lets the other threads run once, as a spinning thread does.
inline void yield() {
    bool first = true;
    wait_until([first]() mutable { return !std::exchange(first, false); }, "its turn");
}

inline void arrive(Barrier& barrier, unsigned threads) {
    if (++barrier.arrived > threads) stop("more threads at a barrier than it is for");
    if (barrier.arrived == threads) {
        barrier.arrived = 0;
        ++barrier.generation;
    }
}

inline void sync(Barrier& barrier, unsigned threads, const char* what) {
    const uint64_t generation = barrier.generation;
    arrive(barrier, threads);
    wait_until([&barrier, generation] { return barrier.generation != generation; }, what);
}

inline unsigned threads_of(const Block& block) { return block.size.x * block.size.y * block.size.z; }

// bar.sync and bar.arrive: barrier `id` of the block, for so many threads.
inline void named_barrier(unsigned id, unsigned threads) { sync(current->block->barriers.at(id), threads, "a barrier"); }
inline void named_barrier_arrive(unsigned id, unsigned threads) { arrive(current->block->barriers.at(id), threads); }

inline unsigned lane() { return current->linear % warp_size; }
inline unsigned lanes_of(unsigned mask) {
    if (!(mask >> lane() & 1)) stop("a thread is not in the mask of its own shuffle");
    return static_cast<unsigned>(__builtin_popcount(mask));
}

// Every lane of the mask shows a value; look(lane) reads another's before any lane goes on.
template <typename T, typename Look>
auto exchange(unsigned mask, T value, Look look) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    Block& block = *current->block;
    const unsigned first = current->linear / warp_size * warp_size, lanes = lanes_of(mask);
    Warp& warp = block.warps[first / warp_size];
    memcpy(&current->lane_value, &value, sizeof value);
    sync(warp.phases[0], lanes, "the other lanes of a shuffle");
    const auto result = look([&](unsigned other) {
        T seen = value;
        if (first + other < block.threads.size() && mask >> other & 1) {
            memcpy(&seen, &block.threads[first + other]->lane_value, sizeof seen);
        }
        return seen;
    });
    sync(warp.phases[1], lanes, "the other lanes of a shuffle");
    return result;
}

// cp.async: `size` bytes to shared memory, of which the first `bytes` are read and the others cleared.
inline void copy_async(void* to, const void* from, size_t bytes, size_t size) {
    if (reinterpret_cast<uintptr_t>(to) % size || (bytes && reinterpret_cast<uintptr_t>(from) % size)) {
        stop("an asynchronous copy is not aligned to its size");
    }
    current->open_copies.push_back({to, from, bytes, size});
}
inline void commit_copies() { current->pending.push_back(std::exchange(current->open_copies, {})); }
inline void wait_copies(size_t groups_left) {
    for (; current->pending.size() > groups_left; current->pending.pop_front()) {
        for (const Copy& copy : current->pending.front()) {
            memcpy(copy.to, copy.from, copy.bytes);
            memset(static_cast<char*>(copy.to) + copy.bytes, 0, copy.size - copy.bytes);
        }
    }
}

inline std::vector<std::unique_ptr<char[]>> free_stacks;

inline void prepare(Thread& thread) {
    if (free_stacks.empty()) free_stacks.emplace_back(new char[stack_bytes]);
    thread.stack = std::move(free_stacks.back());
    free_stacks.pop_back();
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = stack_bytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, thread_main, 0);
}

inline std::unique_ptr<Block> new_block(uint64_t number, dim3 grid, dim3 size, size_t shared_bytes) {
    auto block = std::make_unique<Block>();
    block->index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                    static_cast<unsigned>(number / grid.x / grid.y)};
    block->size = size;
    block->grid = grid;
    block->shared_bytes = shared_bytes;
    void* memory = nullptr;
    if (posix_memalign(&memory, 1024, shared_bytes ? shared_bytes : 1)) stop("out of memory");
    memset(memory, 0xff, shared_bytes);
    block->shared.reset(static_cast<unsigned char*>(memory));
    block->running = threads_of(*block);
    block->warps.resize((block->running + warp_size - 1) / warp_size);
    for (unsigned i = 0; i < block->running; ++i) {
        auto thread = std::make_unique<Thread>();
        thread->index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        thread->linear = i;
        thread->block = block.get();
        prepare(*thread);
        block->threads.push_back(std::move(thread));
    }
    return block;
}

inline size_t in_order(size_t i, size_t count) {
    if (order == Order::descending) return count - 1 - i;
    if (order == Order::scattered) {
        for (const size_t step : {37, 41, 43}) {  // one of them has no factor in common with most counts
            if (count % step) return (i * step + count / 2) % count;
        }
    }
    return i;
}

// One turn for every thread of the resident blocks that can run; whether any could.
inline bool run_all_once(std::vector<std::unique_ptr<Block>>& blocks) {
    bool moved = false;
    for (size_t b = 0; b < blocks.size(); ++b) {
        Block& block = *blocks[in_order(b, blocks.size())];
        for (size_t i = 0; i < block.threads.size(); ++i) {
            Thread& thread = *block.threads[in_order(i, block.threads.size())];
            if (thread.done) continue;
            const bool turn = thread.ready && !strcmp(thread.waits_for, "its turn");
            if (thread.ready && !thread.ready()) {
                moved |= turn;  // it will run next time
                continue;
            }
            resume(thread);
            moved = true;
            if (thread.done && --block.running == 0) break;
        }
    }
    return moved;
}

inline void finish(const Block& block) {
    for (const auto& thread : block.threads) {
        free_stacks.push_back(std::move(thread->stack));
        for (const auto& group : thread->pending) {
            if (group.empty()) continue;
            current = thread.get();
            stop("a thread has ended before its asynchronous copies");
        }
    }
}

// Runs function() as every thread of every block.
inline void launch(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& function) {
    ++launches;
    if (shared_bytes > shared_limit) stop("too much shared memory: " + std::to_string(shared_bytes) + " bytes");
    if (size.x * size.y * size.z > 1024 || size.x * size.y * size.z == 0) stop("an impossible block size");
    const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
    if (count == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) stop("an impossible grid");
    body = &function;
    std::vector<std::unique_ptr<Block>> blocks;
    for (uint64_t next = 0; next < count || !blocks.empty();) {
        while (next < count && blocks.size() < static_cast<size_t>(resident_blocks)) {
            blocks.push_back(new_block(next++, grid, size, shared_bytes));
        }
        if (!run_all_once(blocks)) {
            for (const auto& block : blocks) {
                for (const auto& thread : block->threads) {
                    if (thread->done) continue;
                    current = thread.get();
                    stop(std::string("every thread waits, this one for ") + thread->waits_for);
                }
            }
        }
        std::erase_if(blocks, [](const std::unique_ptr<Block>& block) {
            if (block->running == 0) finish(*block);
            return block->running == 0;
        });
    }
    body = nullptr;
}

}  // namespace cuda_emulator

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define threadIdx (cuda_emulator::current->index)
#define blockIdx (cuda_emulator::current->block->index)
#define blockDim (cuda_emulator::current->block->size)
#define gridDim (cuda_emulator::current->block->grid)

inline void __syncthreads() {
    cuda_emulator::named_barrier(0, cuda_emulator::threads_of(*cuda_emulator::current->block));
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    cuda_emulator::exchange(mask, 0, [](auto) { return 0; });
}
inline void __threadfence() {}
using std::max;
using std::min;

template <typename T>
T __shfl_sync(unsigned mask, T value, int source) {
    return cuda_emulator::exchange(mask, value, [&](auto of) { return of(static_cast<unsigned>(source) % 32); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
    const unsigned other = cuda_emulator::lane() ^ static_cast<unsigned>(bits);
    return cuda_emulator::exchange(mask, value, [&](auto of) { return of(other); });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance) {
    const unsigned other = cuda_emulator::lane() + distance;
    return cuda_emulator::exchange(mask, value, [&](auto of) { return other < 32 ? of(other) : value; });
}
