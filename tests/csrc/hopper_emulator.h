// The functions of csrc/cuda/hopper_primitives.h on the CPU, for kernels that use nothing else of a GPU.
#pragma once

#include "hopper_machine.h"

namespace hopper {

inline int thread_index() { return static_cast<int>(emulated::current->linear); }
inline int block_index() { return emulated::block_number(); }
inline int grid_size() { return static_cast<int>(emulated::blocks.size()); }
inline int cluster_rank() { return block_index() % 2; }
inline void sync_warp() { __syncwarp(); }
inline void sync_threads(int number, int threads) {
    emulated::idle_polls = 0;
    cuda_emulator::named_barrier(number, threads);
}
inline void sync_cluster() {
    auto& barrier = emulated::cluster_barriers[block_index() / 2];
    const uint64_t generation = barrier.generation;
    cuda_emulator::arrive(barrier, 2 * cuda_emulator::threads_of(*emulated::current->block));
    emulated::idle_polls = 0;
    emulated::wait_for_condition([&barrier, generation] { return barrier.generation != generation; }, "its cluster");
}

inline uint32_t shared_base() {
    emulated::BlockState& block = emulated::own_block();
    block.memory = emulated::current->block->shared.get();
    block.bytes = emulated::current->block->shared_bytes;
    block.unfenced.resize((block.bytes + 3) / 4);
    return emulated::kSharedBase;
}

inline uint32_t load_shared(uint32_t address) {
    uint32_t value;
    memcpy(&value, emulated::shared_at(emulated::own_block(), address, 4), sizeof value);
    return value;
}

inline void store_shared(uint32_t address, uint32_t value) {
    emulated::BlockState& block = emulated::own_block();
    memcpy(emulated::shared_at(block, address, 4), &value, sizeof value);
    block.unfenced[(address - emulated::kSharedBase) / 4] = static_cast<uint16_t>(emulated::current->linear + 1);
    emulated::own().shared_writes.push_back(address);
}

inline uint32_t load_global(const void* address) {
    emulated::check_global(address, 4);
    uint32_t value;
    memcpy(&value, address, sizeof value);
    return value;
}

inline Pair load_pair(const float* address) {
    emulated::check_global(address, 8);
    return {address[0], address[1]};
}

inline void store_global(void* address, uint32_t value) {
    emulated::check_global(address, 4);
    memcpy(address, &value, sizeof value);
    emulated::unfenced_global.insert(address);
    emulated::own().global_writes.push_back(address);
}

struct Bf16 {
    static uint32_t pack(float low, float high) {
        return uint32_t{__float2bfloat16_rn(high).bits} << 16 | __float2bfloat16_rn(low).bits;
    }
    static Pair unpack(uint32_t value) {
        return {emulated::decode_bf16(value & 0xffff), emulated::decode_bf16(value >> 16)};
    }
};

struct Half {
    static uint32_t pack(float low, float high) {
        return uint32_t{__float2half_rn(high).bits} << 16 | __float2half_rn(low).bits;
    }
    static Pair unpack(uint32_t value) {
        return {emulated::decode_half(value & 0xffff), emulated::decode_half(value >> 16)};
    }
};

inline void signal(int32_t* counter) {
    emulated::check_global(counter, 4);
    const emulated::ThreadState& thread = emulated::own();
    if (!thread.stores.empty()) emulated::stop("a signal before the stores are in memory");
    if (thread.stores_unfenced || !thread.global_writes.empty()) emulated::stop("a signal before its fence");
    emulated::idle_polls = 0;
    ++*counter;
}

inline void wait_for(const int32_t* counter, int32_t target) {
    emulated::check_global(counter, 4);
    emulated::wait_for_condition([counter, target] { return *counter >= target; },
                                 "a counter at " + std::to_string(*counter) + " to be " + std::to_string(target));
    if (*counter > target) emulated::stop("a counter has passed its target");
    emulated::own().acquired_unfenced = true;
}

inline void fence_async_shared() {
    emulated::BlockState& block = emulated::own_block();
    for (uint32_t address : emulated::own().shared_writes) {
        block.unfenced[(address - emulated::kSharedBase) / 4] = 0;
    }
    emulated::own().shared_writes.clear();
}

inline void fence_async_global() {
    emulated::ThreadState& thread = emulated::own();
    for (const void* address : thread.global_writes) emulated::unfenced_global.erase(address);
    thread.global_writes.clear();
    thread.acquired_unfenced = thread.stores_unfenced = false;
}

inline void barrier_init(uint32_t barrier, int count) {
    emulated::shared_at(emulated::own_block(), barrier, 8);
    emulated::own_block().barriers[barrier] = {count, count, 0, 0};
}
inline void fence_barrier_init() {}
inline void arrive(uint32_t barrier, int count = 1) { emulated::arrive_in(emulated::own_block(), barrier, count); }
inline void arrive_at(uint32_t barrier, int rank, int count) {
    emulated::arrive_in(emulated::blocks[block_index() / 2 * 2 + rank], barrier, count);
}
inline void arrive_and_expect(uint32_t barrier, int bytes) {
    emulated::barrier_at(emulated::own_block(), barrier).bytes += bytes;
    arrive(barrier);
}
inline void wait(uint32_t barrier, uint32_t parity) { emulated::wait_phase(barrier, parity); }

inline void load_box(const TensorMap& map, uint32_t to, uint32_t barrier, int column, int row) {
    emulated::queue_load({&map, {block_index()}, to, barrier, column, row});
}
inline void load_box_to_both(const TensorMap& map, uint32_t to, uint32_t barrier, int column, int row) {
    const int first = block_index() / 2 * 2;
    emulated::queue_load({&map, {first, first + 1}, to, barrier, column, row});
}

inline void store_box(const TensorMap& map, uint32_t from, int column, int row) {
    if (from % 1024) emulated::stop("a box is not where the swizzle's pattern starts");
    ++emulated::box_stores;
    emulated::ThreadState& thread = emulated::own();
    thread.stores.push_back({&map, from, column, row, {}});
    thread.stores_committed = false;
    if (emulated::engine == Engine::at_once) emulated::read_store(thread.stores.back());
}
inline void commit_stores() { emulated::own().stores_committed = true; }
inline void wait_stores_read() {
    if (!emulated::own().stores_committed) emulated::stop("a wait for stores that were not committed");
    for (int i = 0; i < 5; ++i) cuda_emulator::yield();
    for (emulated::Store& store : emulated::own().stores) emulated::read_store(store);
    emulated::idle_polls = 0;
}
inline void wait_stores() {
    wait_stores_read();
    for (const emulated::Store& store : emulated::own().stores) emulated::write_store(store);
    emulated::own().stores_unfenced = !emulated::own().stores.empty();
    emulated::own().stores.clear();
}

template <int kRegisters>
void lower_registers() {
    emulated::own().registers = kRegisters;
}
template <int kRegisters>
void raise_registers() {
    emulated::own().registers = kRegisters;
}

inline void product_fence() { emulated::own().product_fence = true; }
inline void product_commit() {
    emulated::ThreadState& thread = emulated::own();
    thread.products.push_back(std::exchange(thread.open_products, {}));
    thread.product_fence = false;
}
template <int kPending>
void product_wait() {
    emulated::wait_products(kPending);
}
template <int kSums>
void product_results(float (&)[kSums]) {}
template <int kSums>
void product(Bf16, float (&d)[kSums], uint64_t a, uint64_t b, int accumulate) {
    emulated::add_product(emulated::decode_bf16, d, 2 * kSums, a, b, accumulate);
}
template <int kSums>
void product(Half, float (&d)[kSums], uint64_t a, uint64_t b, int accumulate) {
    emulated::add_product(emulated::decode_half, d, 2 * kSums, a, b, accumulate);
}

}  // namespace hopper
