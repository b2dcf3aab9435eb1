// Host side of the one-launch adapter: checks, tensor maps, launch.
#include "hopper_adapter.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <utility>

#include "hopper_primitives.h"  // before the kernel that is written in them

#include "hopper_kernel.h"
#include "runtime.h"

namespace {

using namespace hopper;

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// From the driver at run time: the library loads on machines without one.
cudaError_t find_encoder(EncodeTiled* encode) {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result);
#endif
    if (error != cudaSuccess) return error;
    if (result != cudaDriverEntryPointSuccess) return cudaErrorNotSupported;
    *encode = reinterpret_cast<EncodeTiled>(function);
    return cudaSuccess;
}

// What decides the contents of a tensor map: a contiguous tensor of 16-bit values and the boxes it is copied in.
struct MapKey {
    const void* data;
    int64_t rows;
    int columns, box_rows;
    CUtensorMapDataType type;

    bool operator==(const MapKey&) const = default;
};

// The tensor map of a key. PyTorch's allocator hands out the same addresses step after step, so the latest are kept.
// Returns 0, a cudaError_t or a negated CUresult.
int tensor_map(CUtensorMap* map, const MapKey& key) {
    struct Kept {
        MapKey key;
        CUtensorMap map;
    };
    static std::mutex mutex;
    static std::array<Kept, 256> kept = {};  // six for each adapter of a model, and other batch sizes
    static EncodeTiled encode = nullptr;
    const uint64_t mixed = reinterpret_cast<uintptr_t>(key.data) + key.rows * 8 + key.box_rows;
    Kept& place = kept[mixed * 0x9e3779b97f4a7c15 >> 56];
    const std::lock_guard lock(mutex);
    if (place.key == key) {
        *map = place.map;
        return cudaSuccess;
    }
    if (!encode) {
        if (const cudaError_t error = find_encoder(&encode)) return error;
    }
    const cuuint64_t sizes[] = {static_cast<cuuint64_t>(key.columns), static_cast<cuuint64_t>(key.rows)};
    const cuuint64_t strides[] = {sizes[0] * sizeof(uint16_t)};
    const cuuint32_t box[] = {kDepth, static_cast<cuuint32_t>(key.box_rows)}, steps[] = {1, 1};
    const CUresult result = encode(map, key.type, 2, const_cast<void*>(key.data), sizes, strides, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                   CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) return -static_cast<int>(result);
    place = {key, *map};
    return cudaSuccess;
}

// How many clusters of a kernel run at once on the current GPU, asked once for each.
int most_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t& config) {
    static std::mutex mutex;
    static std::map<std::pair<int, const void*>, int> known;
    int device = 0;
    if (const cudaError_t error = cudaGetDevice(&device)) return error;
    const std::lock_guard lock(mutex);
    int& found = known[{device, kernel}];
    if (found == 0) {
        if (const cudaError_t error = cudaOccupancyMaxActiveClusters(&found, kernel, &config)) return error;
    }
    *clusters = found;
    return cudaSuccess;
}

int hidden_columns(const HopperAdapterArgs& args) {
    const bool two = args.temporal_taps && args.difference_taps && !args.shared;
    return two ? 2 * args.bottleneck : args.bottleneck;
}

template <typename T, int kColumns>
int launch(const HopperAdapterArgs& args, Schedule schedule, cudaStream_t stream) {
    int refused = cudaSuccess;
    const auto map = [&](const void* data, int64_t rows, int columns, int box_rows) {
        const MapKey key = {data, rows, columns, box_rows, T::kMapType};
        CUtensorMap made;
        if (const int error = tensor_map(&made, key)) refused = error;
        return made;
    };
    const int rows = schedule.rows, width = schedule.width, columns = schedule.columns;
    constexpr int kWeightRows = kColumns / kCluster;
    const Maps maps = {map(args.x, rows, width, kTileRows),
                       map(args.h, rows, columns, kTileRows),
                       map(args.u, rows, columns, kTileRows),
                       map(args.y, rows, width, kTileRows),
                       map(args.down_weight, columns, width, kWeightRows),
                       map(args.up_weight, width, columns, kWeightRows)};
    if (refused != cudaSuccess) return refused;

    const auto kernel = adapter_kernel<T, kColumns>;
    constexpr int kBytes = Ring<kColumns>::kBytes;
    if (const int error = allow_shared_memory(reinterpret_cast<const void*>(kernel), kBytes)) return error;
    cudaLaunchAttribute attributes[2] = {};
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim.x = kCluster;
    attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
    attributes[1].id = cudaLaunchAttributeCooperative;  // all blocks at once: they wait for each other
    attributes[1].val.cooperative = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(kCluster);
    config.blockDim = dim3(kThreads);
    config.dynamicSmemBytes = kBytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 1;
    int clusters;
    if (const int error = most_clusters(&clusters, reinterpret_cast<const void*>(kernel), config)) return error;
    if (clusters == 0) return cudaErrorInvalidConfiguration;
    clusters = std::min(clusters, schedule.tiles());
    if (!schedule.complete(args.clips, clusters)) return cudaErrorInvalidValue;
    const MixParameters mix = {static_cast<const uint16_t*>(args.h), static_cast<uint16_t*>(args.u),
                               args.temporal_taps, args.temporal_bias, args.difference_taps, args.difference_bias,
                               args.difference_down_bias};
    const Parameters parameters = {schedule, mix, args.down_bias, args.class_bias, args.patch_bias,
                                   args.counters, args.counters + args.clips, args.residual};
    if (const cudaError_t error = cudaMemsetAsync(args.counters, 0, 2 * sizeof(int32_t) * args.clips, stream)) {
        return error;
    }
    config.gridDim = dim3(kCluster * clusters);
    config.numAttrs = 2;
    return cudaLaunchKernelEx(&config, kernel, maps, parameters);
}

template <typename T>
int launch(const HopperAdapterArgs& args, Schedule schedule, cudaStream_t stream) {
    switch (schedule.tile_columns) {
        case 256: return launch<T, 256>(args, schedule, stream);
        case 192: return launch<T, 192>(args, schedule, stream);
        default: return launch<T, 128>(args, schedule, stream);
    }
}

}  // namespace

std::string hopper_adapter_problem(const HopperAdapterArgs& args) {
    const bool temporal = args.temporal_taps != nullptr, difference = args.difference_taps != nullptr;
    if (!temporal && !difference) return "neither branch has taps";
    if (args.shared && !(temporal && difference)) return "one branch alone shares no projections";
    if (args.x == args.y) return "y is written where x is read";
    const struct {
        const char* name;
        const void* pointer;
        bool used;
    } tensors[] = {{"x", args.x, true},
                   {"y", args.y, true},
                   {"h", args.h, true},
                   {"u", args.u, true},
                   {"counters", args.counters, true},
                   {"down_weight", args.down_weight, true},
                   {"up_weight", args.up_weight, true},
                   {"down_bias", args.down_bias, args.down_bias != nullptr},
                   {"class_bias", args.class_bias, true},
                   {"patch_bias", args.patch_bias, true},
                   {"temporal_taps", args.temporal_taps, temporal},
                   {"temporal_bias", args.temporal_bias, temporal},
                   {"difference_taps", args.difference_taps, difference},
                   {"difference_bias", args.difference_bias, difference},
                   {"difference_down_bias", args.difference_down_bias, difference}};
    for (const auto& [name, pointer, used] : tensors) {
        const auto address = reinterpret_cast<uintptr_t>(pointer);
        if (used && !address) return std::string(name) + " is missing";
        if (used && address % 16) {
            return std::string(name) + " starts " + std::to_string(address % 16) + " bytes after a multiple of 16";
        }
    }
    const struct {
        const char* name;
        int64_t size;
        int64_t least, most, multiple;
    } sizes[] = {{"clips", args.clips, 0, INT32_MAX, 1},
                 {"frames", args.frames, 1, 64, 1},
                 {"grid_height", args.grid_height, 1, INT32_MAX, 1},
                 {"grid_width", args.grid_width, 1, INT32_MAX, 1},
                 {"width", args.width, 64, INT32_MAX, 64},
                 {"bottleneck", args.bottleneck, 64, INT32_MAX, 64}};
    for (const auto& [name, size, least, most, multiple] : sizes) {
        if (size >= least && size <= most && size % multiple == 0) continue;
        return std::string(name) + " = " + std::to_string(size) + " is no multiple of " + std::to_string(multiple) +
               " from " + std::to_string(least) + " to " + std::to_string(most);
    }
    return "";
}

int hopper_adapter_forward(const HopperAdapterArgs& args, void* stream) {
    if (args.clips == 0) return cudaSuccess;
    if (!hopper_adapter_problem(args).empty()) return cudaErrorInvalidValue;
    Schedule schedule = {};
    schedule.frames = args.frames;
    schedule.grid_height = args.grid_height;
    schedule.grid_width = args.grid_width;
    schedule.class_tokens = args.class_token;
    schedule.width = args.width;
    schedule.columns = hidden_columns(args);
    schedule.bottleneck = args.bottleneck;
    schedule.tile_columns = best_tile_columns(schedule.width, schedule.columns);
    if (!schedule.complete(args.clips, 1)) return cudaErrorInvalidValue;
    return args.half ? launch<Half>(args, schedule, static_cast<cudaStream_t>(stream))
                     : launch<Bf16>(args, schedule, static_cast<cudaStream_t>(stream));
}
