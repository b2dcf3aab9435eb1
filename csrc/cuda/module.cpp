// m2clip.kernels._cuda: the CUDA kernels for Python. Tensors come as addresses on the current device. Sizes that no
// kernel can have are a ValueError, and whatever a launch returns but 0 is a RuntimeError. Types are local to the
// module: m2clip.kernels._native has some of the same names.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#ifdef M2CLIP_HOPPER
#include "hopper_adapter.h"
#endif
#include "mixer.h"
#include "runtime.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;

void* at(Address address) { return reinterpret_cast<void*>(address); }
float* floats(Address address) { return reinterpret_cast<float*>(address); }

Dtype dtype_named(const std::string& name) {
    if (name == "float32") return Dtype::float32;
    if (name == "float16") return Dtype::float16;
    if (name == "bfloat16") return Dtype::bfloat16;
    throw std::invalid_argument("no CUDA kernel for " + name);
}

void check(const char* what, int error) {
    if (error) throw std::runtime_error(std::string("CUDA: ") + what + ": " + error_text(error));
}

// A kernel divides by these, and counts with them in 32 bits.
MixerShape mixer_shape(int64_t clips, int32_t frames, int32_t tokens, int32_t height, int32_t width, int32_t channels,
                       bool class_token, bool temporal, bool difference, bool shared) {
    const auto require = [](const char* name, int64_t value, int64_t least) {
        if (value >= least) return;
        throw std::invalid_argument("mixer: " + std::string(name) + " must be at least " + std::to_string(least) +
                                    ", got " + std::to_string(value));
    };
    require("clips", clips, 0), require("frames", frames, 1), require("tokens", tokens, 1);
    require("channels", channels, 1), require("branches", temporal + difference, 1);
    require("grid height", height, difference), require("grid width", width, difference);
    if (int64_t{height} * width + class_token != tokens) {
        throw std::invalid_argument("mixer: a grid of " + std::to_string(height) + "x" + std::to_string(width) +
                                    (class_token ? " and a class token are" : " is") + " not " +
                                    std::to_string(tokens) + " tokens");
    }
    return {clips, frames, tokens, height, width, channels, class_token, temporal, difference, shared};
}

int64_t workspace(const std::string& dtype, const MixerShape& shape, int32_t rows) {
    return mixer_workspace(shape, mixer_plan(shape, dtype_named(dtype), true, rows));
}

void forward(const std::string& name, const MixerShape& shape, const MixerWeights& weights, Address h, Address u,
             int32_t rows, Address stream) {
    const Dtype dtype = dtype_named(name);
    const MixerPlan plan = mixer_plan(shape, dtype, false, rows);
    check("mixer_forward", mixer_forward(shape, dtype, plan, weights, at(h), at(u), at(stream)));
}

void backward(const std::string& name, const MixerShape& shape, const MixerWeights& weights, Address h, Address du,
              Address u, Address dh, Address memory, const MixerGradients& gradients, int32_t rows, Address stream) {
    const Dtype dtype = dtype_named(name);
    const MixerPlan plan = mixer_plan(shape, dtype, true, rows);
    check("mixer_backward", mixer_backward(shape, dtype, plan, weights, at(h), at(du), at(u), at(dh), floats(memory),
                                           gradients, at(stream)));
}

void residual(const std::string& dtype, Address out, Address added, Address class_bias, Address patch_bias,
              int64_t rows, int32_t columns, int32_t tokens, bool class_token, Address stream) {
    if (rows < 0 || columns < 1 || tokens < 1) {
        throw std::invalid_argument("add_residual: rows, columns and tokens must be positive, got " +
                                    std::to_string(rows) + ", " + std::to_string(columns) + " and " +
                                    std::to_string(tokens));
    }
    check("add_residual", add_residual(dtype_named(dtype), at(out), at(added), floats(class_bias), floats(patch_bias),
                                       rows, columns, tokens, class_token, at(stream)));
}

#ifdef M2CLIP_HOPPER
void export_hopper(py::module_& m) {
    py::class_<HopperAdapterArgs> args(m, "HopperAdapterArgs", py::module_local());
    args.def(py::init<>());
    const auto pointer = [&](const char* name, auto member) {
        args.def_property(
            name, [member](const HopperAdapterArgs& a) { return reinterpret_cast<Address>(a.*member); },
            [member](HopperAdapterArgs& a, Address address) {
                a.*member = reinterpret_cast<std::remove_reference_t<decltype(a.*member)>>(address);
            });
    };
    pointer("x", &HopperAdapterArgs::x);
    pointer("y", &HopperAdapterArgs::y);
    pointer("h", &HopperAdapterArgs::h);
    pointer("u", &HopperAdapterArgs::u);
    pointer("counters", &HopperAdapterArgs::counters);
    pointer("down_weight", &HopperAdapterArgs::down_weight);
    pointer("up_weight", &HopperAdapterArgs::up_weight);
    pointer("down_bias", &HopperAdapterArgs::down_bias);
    pointer("class_bias", &HopperAdapterArgs::class_bias);
    pointer("patch_bias", &HopperAdapterArgs::patch_bias);
    pointer("temporal_taps", &HopperAdapterArgs::temporal_taps);
    pointer("temporal_bias", &HopperAdapterArgs::temporal_bias);
    pointer("difference_taps", &HopperAdapterArgs::difference_taps);
    pointer("difference_bias", &HopperAdapterArgs::difference_bias);
    pointer("difference_down_bias", &HopperAdapterArgs::difference_down_bias);
    args.def_readwrite("clips", &HopperAdapterArgs::clips);
    args.def_readwrite("frames", &HopperAdapterArgs::frames);
    args.def_readwrite("grid_height", &HopperAdapterArgs::grid_height);
    args.def_readwrite("grid_width", &HopperAdapterArgs::grid_width);
    args.def_readwrite("width", &HopperAdapterArgs::width);
    args.def_readwrite("bottleneck", &HopperAdapterArgs::bottleneck);
    args.def_readwrite("class_token", &HopperAdapterArgs::class_token);
    args.def_readwrite("shared", &HopperAdapterArgs::shared);
    args.def_readwrite("residual", &HopperAdapterArgs::residual);
    args.def_readwrite("half", &HopperAdapterArgs::half);
    m.def("hopper_adapter_forward", [](const HopperAdapterArgs& a, Address stream) {
        if (const std::string problem = hopper_adapter_problem(a); !problem.empty()) {
            throw std::invalid_argument("hopper_adapter_forward: " + problem);
        }
        check("hopper_adapter_forward", hopper_adapter_forward(a, at(stream)));
    });
}
#endif

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    py::class_<MixerShape>(m, "MixerShape", py::module_local()).def(py::init(&mixer_shape));
    py::class_<MixerWeights>(m, "MixerWeights", py::module_local())
        .def(py::init([](Address temporal_weight, Address temporal_bias, Address difference_weight,
                         Address difference_bias, Address down_bias) {
            return MixerWeights{at(temporal_weight), at(temporal_bias), at(difference_weight), at(difference_bias),
                                at(down_bias)};
        }));
    py::class_<MixerGradients>(m, "MixerGradients", py::module_local())
        .def(py::init([](Address temporal_weight, Address temporal_bias, Address temporal_down_bias,
                         Address difference_weight, Address difference_bias, Address difference_down_bias) {
            return MixerGradients{floats(temporal_weight),    floats(temporal_bias),   floats(temporal_down_bias),
                                  floats(difference_weight), floats(difference_bias), floats(difference_down_bias)};
        }));
    m.def("mixer_workspace", &workspace);
    m.def("mixer_forward", &forward);
    m.def("mixer_backward", &backward);
    m.def("add_residual", &residual);
    m.def("driver_version", &driver_version);
#ifdef M2CLIP_HOPPER
    export_hopper(m);
#endif
    m.attr("compiler") = M2CLIP_COMPILER;
    m.attr("flags") = M2CLIP_FLAGS;
    m.attr("architectures") = M2CLIP_ARCHITECTURES;
}
