// What hopper_emulator.h is made of: barriers with phases and bytes, bulk copies with the 128-byte swizzle, products of
// tiles found through their descriptors, clusters of two blocks.
//
// What runs asynchronously on a GPU runs here at once, as late as possible or in between, as the check chooses. The
// program ends where a wait can never end, a barrier is a phase ahead of a thread that waits for it, memory changes
// hands between ordinary accesses and the copy engine or the tensor cores without a fence, or an access leaves its
// tensor.
#pragma once

#include <list>
#include <map>
#include <set>
#include <unordered_map>

#include "cuda_emulator.h"

namespace hopper {

enum class Engine { at_once, in_between, late };

struct TensorMap {
    uint16_t* data = nullptr;
    int64_t rows = 0, columns = 0;
    int box_rows = 0;
};

struct Pair {
    float low, high;
};

namespace emulated {

using cuda_emulator::current;
using cuda_emulator::stop;

constexpr uint32_t kSharedBase = 0x430;  // on no boundary of the swizzle
constexpr int kBoxColumns = 64, kRowBytes = 128;

struct PhaseBarrier {
    int count = 0, pending = 0;
    int64_t bytes = 0, phase = 0;
};

struct Product {
    float* d;
    int columns;
    uint64_t a, b;
    bool accumulate;
    float (*decode)(uint16_t);
};

struct Store {
    const TensorMap* map;
    uint32_t from;
    int column, row;
    std::vector<uint16_t> values;
};

struct ThreadState {
    std::vector<Product> open_products;
    std::deque<std::vector<Product>> products;
    bool product_fence = false;
    uint64_t product_log = 0;
    std::list<Store> stores;
    bool stores_committed = true, stores_unfenced = false, acquired_unfenced = false;
    std::vector<uint32_t> shared_writes;   // not yet fenced
    std::vector<const void*> global_writes;
    std::map<uint32_t, std::pair<int64_t, int64_t>> waits;  // of each barrier: how many, and its first phase
    int registers = 128;
};

struct BlockState {
    unsigned char* memory = nullptr;
    size_t bytes = 0;
    std::unordered_map<uint32_t, PhaseBarrier> barriers;
    std::vector<uint16_t> unfenced;  // thread + 1 of each word's last ordinary write
    std::vector<ThreadState> threads;
    size_t ended = 0;  // threads
};

struct Load {
    const TensorMap* map;
    std::vector<int> blocks;
    uint32_t to, barrier;
    int column, row;
};

struct Range {
    const unsigned char* first;
    const unsigned char* last;
};

inline Engine engine = Engine::at_once;
inline int slow_block = -1;  // its threads go on later than they could
inline std::vector<BlockState> blocks;
inline std::vector<Range> memory;  // that kernels may touch
inline std::deque<Load> loads;
inline std::set<const void*> unfenced_global;
inline cuda_emulator::Barrier cluster_barriers[64];
inline uint64_t random_state = 1, idle_polls = 0;
inline int64_t box_loads = 0, box_stores = 0, products = 0, waits = 0;

inline uint32_t random_number(uint32_t below) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(random_state >> 33) % below;
}

inline int block_number() { return static_cast<int>(current->block->index.x); }
inline BlockState& own_block() { return blocks[block_number()]; }
inline ThreadState& own() { return own_block().threads[current->linear]; }

// Before a launch.
inline void prepare(int block_count, int threads) {
    blocks.assign(block_count, {});
    for (BlockState& block : blocks) block.threads.resize(threads);
    for (auto& barrier : cluster_barriers) barrier = {};
    loads.clear();
    unfenced_global.clear();
    idle_polls = 0;
}

// After it: nothing may be left under way.
inline void check_finished() {
    if (!loads.empty()) stop("copies are under way after the kernel");
    if (!unfenced_global.empty()) stop("global writes were never fenced");
    for (const BlockState& block : blocks) {
        for (const auto& [address, barrier] : block.barriers) {
            if (barrier.bytes != 0) stop("a barrier still expects bytes");
        }
        for (size_t i = 0; i < block.threads.size(); ++i) {
            const ThreadState& thread = block.threads[i];
            if (!thread.stores.empty()) stop("a thread has ended before its stores");
            if (!thread.open_products.empty() || !thread.products.empty()) stop("products were never waited for");
            if (thread.product_log != block.threads[i / 128 * 128].product_log) stop("a warpgroup's products differ");
        }
        int registers = 0;
        for (const ThreadState& thread : block.threads) registers += thread.registers;
        if (registers > 65536) stop("more registers than there are");
    }
}

// At the end of every thread.
inline void leave() { ++own_block().ended; }

inline void check_global(const void* address, size_t size) {
    const auto* byte = static_cast<const unsigned char*>(address);
    for (const Range& range : memory) {
        if (byte >= range.first && byte + size <= range.last) {
            if (reinterpret_cast<uintptr_t>(address) % size) stop("a global access is not aligned");
            return;
        }
    }
    stop("an access outside all tensors");
}

inline unsigned char* shared_at(BlockState& block, uint32_t address, uint32_t size) {
    if (address < kSharedBase || address + size > kSharedBase + block.bytes) stop("an access outside shared memory");
    if (address % size) stop("an access to shared memory is not aligned");
    return block.memory + (address - kSharedBase);
}

inline uint32_t swizzled(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// An access by the copy engine or the tensor cores.
inline uint16_t& async_element(BlockState& block, uint32_t address) {
    if (block.unfenced[(address - kSharedBase) / 4]) stop("an asynchronous access to unfenced shared memory");
    return *reinterpret_cast<uint16_t*>(shared_at(block, address, 2));
}

inline void end_phase(PhaseBarrier& barrier) {
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    barrier.pending = barrier.count;
    ++barrier.phase;
}

inline PhaseBarrier& barrier_at(BlockState& block, uint32_t address) {
    if (block.ended == block.threads.size()) stop("the shared memory of a block that has ended");
    const auto found = block.barriers.find(address);
    if (found == block.barriers.end()) stop("no barrier at this address");
    return found->second;
}

inline void arrive_in(BlockState& block, uint32_t address, int count) {
    PhaseBarrier& barrier = barrier_at(block, address);
    if (barrier.pending < count) stop("more arrivals at a barrier than it is for");
    barrier.pending -= count;
    idle_polls = 0;
    end_phase(barrier);
}

inline void run_load() {
    const size_t chosen = random_number(static_cast<uint32_t>(loads.size()));
    const Load load = loads[chosen];
    loads.erase(loads.begin() + static_cast<std::ptrdiff_t>(chosen));
    const TensorMap& map = *load.map;
    for (int number : load.blocks) {
        BlockState& block = blocks[number];
        for (int r = 0; r < map.box_rows; ++r) {
            for (int c = 0; c < kBoxColumns; ++c) {
                const int64_t row = load.row + r, column = load.column + c;
                const bool inside = row >= 0 && row < map.rows && column >= 0 && column < map.columns;
                const uint16_t* from = map.data + row * map.columns + column;
                if (inside && c % 2 == 0 && !unfenced_global.empty() && unfenced_global.count(from)) {
                    stop("a copy of unfenced global memory");
                }
                async_element(block, swizzled(load.to + r * kRowBytes + c * 2)) = inside ? *from : 0;
            }
        }
        PhaseBarrier& barrier = barrier_at(block, load.barrier);
        barrier.bytes -= map.box_rows * kRowBytes;
        end_phase(barrier);
    }
    idle_polls = 0;
}

// A wait that lets asynchronous work go on meanwhile.
template <typename Condition>
void wait_for_condition(Condition condition, const std::string& what) {
    ++waits;
    const bool slow = block_number() == slow_block;
    cuda_emulator::wait_until(
        [condition, what, slow] {
            if (slow && random_number(40) != 0) return false;
            if (condition()) {
                idle_polls = 0;
                return true;
            }
            ++idle_polls;
            const uint64_t patience = 4 * blocks.size() * blocks[0].threads.size();
            const bool now = idle_polls > patience || (engine == Engine::in_between && random_number(200) == 0);
            if (now && !loads.empty()) run_load();
            if (idle_polls > 400 * patience) stop("nothing goes on; a thread waits for " + what);
            return false;
        },
        "its turn");
}

inline void queue_load(Load load) {
    if (own().acquired_unfenced) stop("a copy after an acquired counter without a fence");
    if (load.to % 1024) stop("a box is not where the swizzle's pattern starts");
    ++box_loads;
    loads.push_back(std::move(load));
    if (engine == Engine::at_once) run_load();
}

inline void read_store(Store& store) {
    if (!store.values.empty()) return;
    BlockState& block = own_block();
    for (int r = 0; r < store.map->box_rows; ++r) {
        for (int c = 0; c < kBoxColumns; ++c) {
            store.values.push_back(async_element(block, swizzled(store.from + r * kRowBytes + c * 2)));
        }
    }
}

inline void write_store(const Store& store) {
    for (int r = 0; r < store.map->box_rows; ++r) {
        for (int c = 0; c < kBoxColumns; ++c) {
            const int64_t row = store.row + r, column = store.column + c;
            if (row >= store.map->rows || column >= store.map->columns) continue;
            store.map->data[row * store.map->columns + column] = store.values[r * kBoxColumns + c];
        }
    }
}

// Element (row, k) of the tile that a descriptor names; only the layout that the kernels use.
inline uint16_t tile_element(BlockState& block, uint64_t descriptor, int row, int k) {
    const uint32_t start = (descriptor & 0x3fff) << 4, stride = (descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1) stop("a tile is not swizzled over 128 bytes");
    if (descriptor >> 49 & 7) stop("a tile's base offset is not 0");
    const uint32_t linear = start + row / 8 * stride + row % 8 * kRowBytes + k * 2;
    return async_element(block, swizzled(linear));
}

inline void run_product(const Product& product) {
    BlockState& block = own_block();
    const int thread = static_cast<int>(current->linear) % 128, lane = thread % 32;
    float a[2][16], b[16];
    for (int half = 0; half < 2; ++half) {
        for (int k = 0; k < 16; ++k) {
            a[half][k] = product.decode(tile_element(block, product.a, thread / 32 * 16 + lane / 4 + 8 * half, k));
        }
    }
    for (int column = 0; column < product.columns; ++column) {
        if (column % 8 / 2 != lane % 4) continue;
        for (int k = 0; k < 16; ++k) b[k] = product.decode(tile_element(block, product.b, column, k));
        for (int half = 0; half < 2; ++half) {
            float& d = product.d[column / 8 * 4 + half * 2 + column % 2];
            float sum = product.accumulate ? d : 0;
            for (int k = 0; k < 16; ++k) sum += a[half][k] * b[k];
            d = sum;
        }
    }
}

inline void add_product(float (*decode)(uint16_t), float* d, int columns, uint64_t a, uint64_t b, bool accumulate) {
    ThreadState& thread = own();
    if (!thread.product_fence) stop("a product without wgmma.fence");
    thread.product_log = (thread.product_log * 31 + a) * 31 + b + accumulate;
    ++emulated::products;
    thread.open_products.push_back({d, columns, a, b, accumulate, decode});
    if (engine == Engine::at_once) {
        run_product(thread.open_products.back());
        thread.open_products.back().d = nullptr;
    }
}

inline void wait_products(size_t pending) {
    ThreadState& thread = own();
    if (!thread.open_products.empty()) stop("a wait for products that were not committed");
    for (; thread.products.size() > pending; thread.products.pop_front()) {
        for (const Product& product : thread.products.front()) {
            if (product.d) run_product(product);
        }
    }
    __syncwarp();  // the instruction is executed by the warp as a whole
}

inline void wait_phase(uint32_t address, uint32_t parity) {
    BlockState& block = own_block();
    PhaseBarrier& barrier = barrier_at(block, address);
    wait_for_condition([&barrier, parity] { return (barrier.phase & 1) != parity; },
                       "phase " + std::to_string(barrier.phase) + " of the barrier at " + std::to_string(address));
    const auto [entry, first] = own().waits.try_emplace(address, 0, barrier.phase);
    auto& [count, phase] = entry->second;
    if (barrier.phase != phase + count) stop("a barrier has gone on a phase while a thread waited for it");
    ++count;
}

inline float decode_bf16(uint16_t bits) { return __bfloat162float({bits}); }
inline float decode_half(uint16_t bits) { return __half2float({bits}); }

}  // namespace emulated

}  // namespace hopper
