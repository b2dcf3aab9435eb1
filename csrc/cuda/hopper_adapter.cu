// Host side of the one-launch adapter: checks, tensor maps, launch.
#include "hopper_adapter.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <initializer_list>

#include "hopper_primitives.h"  // before the kernel that is written in them

#include "hopper_kernel.h"

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

bool valid(const HopperAdapterArgs& args) {
    const auto aligned = [](std::initializer_list<const void*> pointers) {
        return std::all_of(pointers.begin(), pointers.end(), [](const void* pointer) {
            return pointer != nullptr && reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
        });
    };
    const bool temporal = args.temporal_taps != nullptr, difference = args.difference_taps != nullptr;
    return aligned({args.x, args.y, args.h, args.u, args.counters, args.down_weight, args.up_weight, args.class_bias,
                    args.patch_bias}) &&
           args.x != args.y && (temporal || difference) && (!args.shared || (temporal && difference)) &&
           (!args.down_bias || aligned({args.down_bias})) &&
           (!temporal || aligned({args.temporal_taps, args.temporal_bias})) &&
           (!difference || aligned({args.difference_taps, args.difference_bias, args.difference_down_bias})) &&
           args.clips > 0 && args.frames >= 1 && args.frames <= 64 && args.grid_height >= 1 && args.grid_width >= 1 &&
           args.width >= 64 && args.width % 64 == 0 && args.bottleneck >= 64 && args.bottleneck % 64 == 0;
}

int hidden_columns(const HopperAdapterArgs& args) {
    const bool two = args.temporal_taps && args.difference_taps && !args.shared;
    return two ? 2 * args.bottleneck : args.bottleneck;
}

template <typename T, int kColumns>
int launch(const HopperAdapterArgs& args, Schedule schedule, cudaStream_t stream) {
    EncodeTiled encode;
    if (const cudaError_t error = find_encoder(&encode)) return error;
    int refused = CUDA_SUCCESS;
    const auto map = [&](const void* data, int64_t rows, int columns, int box_rows) {
        const cuuint64_t sizes[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
        const cuuint64_t strides[] = {static_cast<cuuint64_t>(columns) * sizeof(uint16_t)};
        const cuuint32_t box[] = {kDepth, static_cast<cuuint32_t>(box_rows)}, steps[] = {1, 1};
        CUtensorMap made;
        const CUresult result = encode(&made, T::kMapType, 2, const_cast<void*>(data), sizes, strides, box, steps,
                                       CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
        if (result != CUDA_SUCCESS) refused = -static_cast<int>(result);
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
    if (refused != CUDA_SUCCESS) return refused;

    const auto kernel = adapter_kernel<T, kColumns>;
    constexpr int kBytes = Ring<kColumns>::kBytes;
    if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes)) {
        return error;
    }
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
    if (const cudaError_t error = cudaOccupancyMaxActiveClusters(&clusters, kernel, &config)) return error;
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

int hopper_adapter_forward(const HopperAdapterArgs& args, void* stream) {
    if (args.clips == 0) return cudaSuccess;
    if (!valid(args)) return cudaErrorInvalidValue;
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
