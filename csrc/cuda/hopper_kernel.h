// The adapter's forward pass as one kernel of persistent thread blocks, four warpgroups each: one keeps the copy engine
// busy, two multiply, one mixes. Two blocks that share tiles of weights form a cluster. docs/hopper_adapter.md explains
// it. Include hopper_primitives.h or its emulation first.
#pragma once

#include "hopper_mixer.h"
#include "hopper_schedule.h"

namespace hopper {

struct Parameters {
    Schedule schedule;
    MixParameters mix;
    const float* down_bias;  // (C), or null
    const float* class_bias;
    const float* patch_bias;
    int32_t* down_done;   // (B) tiles of h that are written
    int32_t* mixed;       // (B) mixing tasks that are done
    bool residual;
};

// Boxes of kTileRows rows and kDepth columns; of the weights, half a tile's columns and kDepth along the depth.
struct Maps {
    TensorMap x, h, u, y, down_weight, up_weight;
};

constexpr int kGroupThreads = 128;
constexpr int kThreads = 4 * kGroupThreads;
constexpr int kProductGroups = 2;
constexpr int kProductWarps = kProductGroups * kGroupThreads / 32;

// Registers of a thread. The block starts with 128 for each, all that there are.
constexpr int kCopyRegisters = 40, kProductRegisters = 176, kMixRegisters = 120;
static_assert(kCopyRegisters + kProductGroups * kProductRegisters + kMixRegisters <= 4 * 128);

// A slot of the ring in shared memory holds a stage of both operands, or two panels of a tile on their way out. All
// parts are on 1024-byte boundaries, where the swizzle's pattern starts.
template <int kColumns>
struct Ring {
    static constexpr int kRowBytes = 128;
    static constexpr int kPanelBytes = kTileRows * kRowBytes;
    static constexpr int kStageBytes = kPanelBytes + kColumns * kRowBytes;
    static constexpr int kSlots = 196 * 1024 / kStageBytes;
    static constexpr int kWeightBytes = kColumns * kRowBytes / kCluster;  // what each block of a cluster copies
    static constexpr int kPanels = kColumns / kPanel;
    static constexpr int kPart = kColumns < 256 ? kColumns : 128;  // columns of one product
    static constexpr int kSlotPanels = 2;
    static constexpr int kOutputs = (kPanels + kSlotPanels - 1) / kSlotPanels;  // slots that a tile leaves through
    static constexpr int kAlignment = 1024;
    static constexpr int kBytes = kSlots * kStageBytes + 3 * 8 * kSlots + kAlignment;
    static_assert(kColumns % kPanel == 0 && kColumns <= 256 && kStageBytes % kAlignment == 0);
    static_assert(kSlotPanels * kPanelBytes <= kStageBytes && kSlots >= 3 && kBytes <= 227 * 1024);

    // Where a role stands in the ring. Every role walks through the same slots in the same order: those of a tile's
    // depth, then those that the tile leaves through.
    struct Place {
        int slot = 0;
        uint32_t round = 0;  // parity

        __device__ __forceinline__ void advance() {
            if (++slot == kSlots) slot = 0, round ^= 1;
        }
    };

    uint32_t base;

    __device__ explicit Ring(uint32_t shared) : base((shared + kAlignment - 1) / kAlignment * kAlignment) {}
    __device__ uint32_t stage(int slot) const { return base + slot * kStageBytes; }
    __device__ uint32_t panel(int slot, int index) const { return stage(slot) + index * kPanelBytes; }
    __device__ uint32_t weights(int slot) const { return stage(slot) + kPanelBytes; }
    // The slot's contents have arrived; are used up; are a finished output.
    __device__ uint32_t full(int slot) const { return base + kSlots * kStageBytes + 8 * slot; }
    __device__ uint32_t empty(int slot) const { return full(slot) + 8 * kSlots; }
    __device__ uint32_t finished(int slot) const { return empty(slot) + 8 * kSlots; }

    __device__ void init() const {
        for (int slot = 0; slot < kSlots; ++slot) {
            barrier_init(full(slot), 1);
            barrier_init(empty(slot), kCluster * kProductWarps);
            barrier_init(finished(slot), kProductWarps);
        }
    }

    // One thread, for so many warps: the slot may be filled again. Both blocks fill it.
    __device__ __forceinline__ void release(int slot, int warps) const {
#pragma unroll
        for (int rank = 0; rank < kCluster; ++rank) arrive_at(empty(slot), rank, warps);
    }
};

// Descriptor of a tile for the tensor cores (PTX ISA, "Matrix descriptor"). Its rows, of 64 elements along the depth,
// are swizzled over 128 bytes; groups of eight rows are 1024 bytes apart, and the offset along the leading dimension
// has no meaning in this layout. The pattern starts where bits 7 to 9 of the address are 0, so `tile` is on a 1024-byte
// boundary; 32 bytes more for each 16 elements along the depth leave it in place.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t tile) {
    constexpr uint64_t kSwizzle128 = 1, kLeading = 1, kStride = 1024 >> 4;
    return kSwizzle128 << 62 | kStride << 32 | kLeading << 16 | (tile & 0x3ffff) >> 4;
}

// This block's part of its cluster's tiles.
struct Work {
    const Schedule& schedule;
    int rank = cluster_rank();
    int index = block_index() / kCluster - grid_size() / kCluster;
    Tile tile = {};

    __device__ __forceinline__ bool next() {
        index += grid_size() / kCluster;
        if (index >= schedule.tiles()) return false;
        tile = schedule.tile(index);
        tile.row += rank * kTileRows;
        return true;
    }
    __device__ int steps() const { return (tile.up ? schedule.columns : schedule.width) / kDepth; }
    __device__ int columns() const { return tile.up ? schedule.width : schedule.columns; }
    // The last cluster's second block may have nothing below it but keeps its partner company.
    __device__ bool any_rows() const { return tile.row < schedule.rows; }
};

// One thread: asks for all that the products read, and for x where it is added to an output.
template <int kColumns>
__device__ __forceinline__ void copy_in(const Maps& maps, const Parameters& p, const Ring<kColumns>& ring) {
    using R = Ring<kColumns>;
    typename R::Place place;
    for (Work work{p.schedule}; work.next();) {
        const Tile& tile = work.tile;
        if (tile.up && work.any_rows()) {
            const int last = p.schedule.last_clip(tile.row);
            for (int clip = p.schedule.first_clip(tile.row); clip <= last; ++clip) {
                wait_for(p.mixed + clip, p.schedule.clip_tasks());
            }
            fence_async_global();  // u was written by ordinary stores
        }
        const TensorMap& rows = tile.up ? maps.u : maps.x;
        const TensorMap& weights = tile.up ? maps.up_weight : maps.down_weight;
        const int steps = work.steps();
        for (int step = 0; step < steps; ++step, place.advance()) {
            wait(ring.empty(place.slot), place.round ^ 1);
            const uint32_t full = ring.full(place.slot);
            arrive_and_expect(full, R::kStageBytes);
            load_box(rows, ring.stage(place.slot), full, step * kDepth, tile.row);
            load_box_to_both(weights, ring.weights(place.slot) + work.rank * R::kWeightBytes, full, step * kDepth,
                             tile.column + work.rank * (kColumns / kCluster));
        }
        for (int output = 0; output < R::kOutputs; ++output, place.advance()) {
            wait(ring.empty(place.slot), place.round ^ 1);
            const uint32_t full = ring.full(place.slot);
            const int first = tile.column + output * R::kSlotPanels * kPanel;
            const int left = (work.columns() - first) / kPanel;
            const int panels = left < R::kSlotPanels ? left : R::kSlotPanels;
            if (!tile.up || !p.residual || panels <= 0) {
                arrive(full);
                continue;
            }
            arrive_and_expect(full, panels * R::kPanelBytes);
            for (int i = 0; i < panels; ++i) {
                load_box(maps.x, ring.panel(place.slot, i), full, first + i * kPanel, tile.row);
            }
        }
    }
}

// One thread: writes finished outputs, and tells the mixers of tiles of h that are in memory.
template <int kColumns>
__device__ __forceinline__ void copy_out(const Maps& maps, const Parameters& p, const Ring<kColumns>& ring) {
    using R = Ring<kColumns>;
    typename R::Place place;
    uint32_t finished = 0;  // parity of each slot's barrier
    for (Work work{p.schedule}; work.next();) {
        const Tile& tile = work.tile;
        for (int step = work.steps(); step > 0; --step) place.advance();
        for (int panel = 0; panel < R::kPanels; place.advance()) {
            wait(ring.finished(place.slot), finished >> place.slot & 1);
            finished ^= 1u << place.slot;
            for (int i = 0; i < R::kSlotPanels && panel < R::kPanels; ++i, ++panel) {
                const int column = tile.column + panel * kPanel;
                if (column >= work.columns() || !work.any_rows()) continue;
                store_box(tile.up ? maps.y : maps.h, ring.panel(place.slot, i), column, tile.row);
            }
            commit_stores();
            wait_stores_read();
            ring.release(place.slot, kProductWarps);
        }
        wait_stores();
        if (tile.up || !work.any_rows()) continue;
        fence_async_global();  // h is read by ordinary loads
        const int last = p.schedule.last_clip(tile.row);
        for (int clip = p.schedule.first_clip(tile.row); clip <= last; ++clip) signal(p.down_done + clip);
    }
}

// Rounds a thread's part of a panel to the output's type, with biases and residual, in place of the residual. In a
// panel, columns 8 g to 8 g + 7 of a row are in the 16 bytes numbered g, exclusive or, the row modulo 8.
template <typename T, int kSums>
__device__ __forceinline__ void finish_panel(const float (&sums)[kSums], int first_sum, uint32_t address,
                                             const float* const (&bias)[2], int column, int lane, bool add) {
#pragma unroll
    for (int g = 0; g < kPanel / 8; ++g) {
        Pair offset = {0, 0};
#pragma unroll
        for (int half = 0; half < 2; ++half) {  // rows eight apart
            const uint32_t place = address + half * 8 * kDepth * 2 + ((g ^ (lane / 4)) << 4);
            if (bias[0] && (half == 0 || bias[1] != bias[0])) offset = load_pair(bias[half] + column + g * 8);
            Pair value = {sums[first_sum + 4 * g + 2 * half], sums[first_sum + 4 * g + 2 * half + 1]};
            value.low += offset.low, value.high += offset.high;
            if (add) {
                const Pair residual = T::unpack(load_shared(place));
                value.low += residual.low, value.high += residual.high;
            }
            store_shared(place, T::pack(value.low, value.high));
        }
    }
}

// A warpgroup: 64 rows of every tile.
template <typename T, int kColumns>
__device__ __forceinline__ void multiply(const Parameters& p, const Ring<kColumns>& ring, int group, int thread) {
    using R = Ring<kColumns>;
    constexpr int kGroupRows = kTileRows / kProductGroups, kParts = kColumns / R::kPart;
    const int lane = thread % 32, own_row = group * kGroupRows + thread / 32 * 16 + lane / 4;
    typename R::Place place;
    float sums[kParts][R::kPart / 2];
    for (Work work{p.schedule}; work.next();) {
        const Tile& tile = work.tile;
        const int steps = work.steps();
        int last = 0;
        for (int step = 0; step < steps; ++step, place.advance()) {
            wait(ring.full(place.slot), place.round);
            const uint64_t a = matrix_descriptor(ring.stage(place.slot) + group * kGroupRows * R::kRowBytes);
            const uint64_t b = matrix_descriptor(ring.weights(place.slot));
            product_fence();
#pragma unroll
            for (int k = 0; k < kDepth / 16; ++k) {  // steps of 32 bytes, and descriptors count in 16
#pragma unroll
                for (int part = 0; part < kParts; ++part) {
                    const int columns = part * R::kPart * R::kRowBytes / 16;
                    product(T(), sums[part], a + 2 * k, b + 2 * k + columns, step > 0 || k > 0);
                }
            }
            product_commit();
            product_wait<1>();
            if (step > 0 && lane == 0) ring.release(last, 1);  // the products before these have read their slot
            last = place.slot;
        }
        product_wait<0>();
#pragma unroll
        for (int part = 0; part < kParts; ++part) product_results(sums[part]);
        if (lane == 0) ring.release(last, 1);

        const float* bias[2];
        for (int half = 0; half < 2; ++half) {
            const bool class_row =
                p.schedule.class_tokens && (tile.row + own_row + 8 * half) % p.schedule.tokens == 0;
            bias[half] = tile.up ? (class_row ? p.class_bias : p.patch_bias) : p.down_bias;
            if (bias[half]) bias[half] += tile.column + lane % 4 * 2;
        }
#pragma unroll
        for (int panel = 0; panel < R::kPanels; ++panel) {
            const int part = panel * kPanel / R::kPart, first_sum = panel * kPanel % R::kPart / 2;
            const int slot_panel = panel % R::kSlotPanels;
            if (slot_panel == 0) wait(ring.full(place.slot), place.round);
            if (tile.column + panel * kPanel < work.columns()) {
                const uint32_t address = ring.panel(place.slot, slot_panel) + own_row * R::kRowBytes + lane % 4 * 4;
                finish_panel<T>(sums[part], first_sum, address, bias, panel * kPanel, lane, tile.up && p.residual);
            }
            if (slot_panel + 1 == R::kSlotPanels || panel + 1 == R::kPanels) {
                fence_async_shared();
                sync_warp();
                if (lane == 0) arrive(ring.finished(place.slot));
                place.advance();
            }
        }
    }
}

// A warpgroup: u of h, a mixing task at a time.
template <typename T>
__device__ __forceinline__ void mix_all(const Parameters& p, int thread) {
    constexpr int kBarrier = 1;
    const Schedule& schedule = p.schedule;
    for (int index = block_index(); index < schedule.mix_tasks(); index += grid_size()) {
        const MixTask task = schedule.mix_task(index);
        if (thread == 0) wait_for(p.down_done + task.clip, schedule.clip_tiles(task.clip));
        sync_threads(kBarrier, kMixThreads);
        mix<T>(schedule, p.mix, task, thread);
        fence_async_global();  // u is read by the copy engine
        sync_threads(kBarrier, kMixThreads);
        if (thread == 0) signal(p.mixed + task.clip);
    }
}

template <typename T, int kColumns>
__global__ void __launch_bounds__(kThreads, 1)
    adapter_kernel(const __grid_constant__ Maps maps, const __grid_constant__ Parameters p) {
    const Ring<kColumns> ring(shared_base());
    if (thread_index() == 0) {
        ring.init();
        fence_barrier_init();
    }
    sync_cluster();
    const int group = thread_index() / kGroupThreads, thread = thread_index() % kGroupThreads;
    if (group == 0) {
        lower_registers<kCopyRegisters>();
        if (thread == 0) copy_in(maps, p, ring);
        if (thread == 32) copy_out(maps, p, ring);
    } else if (group <= kProductGroups) {
        raise_registers<kProductRegisters>();
        multiply<T>(p, ring, group - 1, thread);
    } else {
        lower_registers<kMixRegisters>();
        mix_all<T>(p, thread);
    }
    sync_warp();     // the copying threads come last
    sync_cluster();  // the partner arrives at this block's barriers until it is done
}

}  // namespace hopper
