// m2clip.kernels._native: the compiled kernels for Python. Tensors come as addresses, of which the caller knows the
// shapes; sizes that no kernel can have are a ValueError.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "losses_module.h"
#include "frame_conv.h"
#include "mixer.h"
#include "parallel.h"
#include "rows.h"
#include "sizes.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;

// Calls function with a pointer type for the named dtype.
template <typename F>
void with_dtype(const std::string& dtype, F function) {
    py::gil_scoped_release release;
    if (dtype == "float32") return function(static_cast<float*>(nullptr));
    if (dtype == "bfloat16") return function(static_cast<bf16*>(nullptr));
    throw std::invalid_argument("no CPU kernel for " + dtype);
}

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

MixerShape mixer_shape(int64_t clips, int64_t frames, int64_t tokens, int64_t height, int64_t width, int64_t channels,
                       int64_t h_columns, bool class_token, bool temporal, bool difference, bool shared) {
    require("mixer", "clips", clips, 0, INT64_MAX);
    require("mixer", "frames", frames, 1);
    require("mixer", "tokens", tokens, class_token);
    require("mixer", "channels", channels, 1);
    require("mixer", "branches", temporal + difference, 1);
    require("mixer", "grid height", height, difference);
    require("mixer", "grid width", width, difference);
    if (height * width + class_token != tokens) {
        throw std::invalid_argument("mixer: a grid of " + std::to_string(height) + "x" + std::to_string(width) +
                                    (class_token ? " and a class token are" : " is") + " not " +
                                    std::to_string(tokens) + " tokens");
    }
    MixerShape shape{clips,    frames,    tokens, height,      width,    channels,
                     channels, h_columns, 0,      class_token, temporal, difference};
    if (temporal && difference && !shared) {
        shape.columns = 2 * channels;
        shape.difference_column = channels;
    }
    require("mixer", "columns of h", h_columns, shape.columns);
    return shape;
}

MixerParameters mixer_parameters(Address temporal_weight, Address temporal_bias, Address difference_weight,
                                 Address difference_bias, Address down_bias) {
    return {at<float>(temporal_weight), at<float>(temporal_bias), at<float>(difference_weight),
            at<float>(difference_bias), at<float>(down_bias)};
}

void mixer_forward(const std::string& dtype, const MixerShape& shape, const MixerParameters& parameters, Address h,
                   Address u, int threads) {
    with_dtype(dtype, [&]<typename T>(T*) { run_mixer_forward(shape, parameters, at<const T>(h), at<T>(u), threads); });
}

void mixer_backward(const std::string& dtype, const MixerShape& shape, const MixerParameters& parameters, Address h,
                    Address du, Address dh, const MixerGradients& gradients, int threads) {
    with_dtype(dtype, [&]<typename T>(T*) {
        run_mixer_backward(shape, parameters, at<const T>(h), at<const T>(du), at<T>(dh), gradients, threads);
    });
}

void require_frames(const char* operation, int64_t frames, int64_t tokens, bool class_token, int64_t columns) {
    require(operation, "frames", frames, 0, INT64_MAX);
    require(operation, "tokens", tokens, class_token);
    require(operation, "columns", columns, 1);
}

void add_bias(const std::string& dtype, Address x, Address class_bias, Address patch_bias, Address out, int64_t frames,
              int64_t tokens, bool class_token, int64_t columns, int threads) {
    require_frames("add_bias", frames, tokens, class_token, columns);
    with_dtype(dtype, [&]<typename T>(T*) {
        run_add_bias(at<const T>(x), at<float>(class_bias), at<float>(patch_bias), at<T>(out), frames, tokens,
                     class_token, columns, threads);
    });
}

void copy_and_sum(const std::string& dtype, Address x, Address out, Address class_sums, Address patch_sums,
                  int64_t frames, int64_t tokens, bool class_token, int64_t columns, int threads) {
    require_frames("copy_and_sum", frames, tokens, class_token, columns);
    with_dtype(dtype, [&]<typename T>(T*) {
        run_copy_and_sum(at<const T>(x), at<T>(out), at<float>(class_sums), at<float>(patch_sums), frames, tokens,
                         class_token, columns, threads);
    });
}

Activation activation_named(const std::string& name) {
    if (name == "gelu") return Activation::gelu;
    if (name == "quick_gelu") return Activation::quick_gelu;
    if (name == "relu") return Activation::relu;
    if (name == "none") return Activation::none;
    throw std::invalid_argument("unknown activation " + name);
}

void activation_forward(const std::string& dtype, const std::string& name, Address h, Address g, int64_t rows,
                        int64_t columns, int threads) {
    const Activation kind = activation_named(name);
    require_matrix("activation", rows, columns);
    with_dtype(dtype, [&]<typename T>(T*) { run_activation(kind, at<const T>(h), at<T>(g), rows, columns, threads); });
}

void activation_backward(const std::string& dtype, const std::string& name, Address h, Address dg, Address g,
                         Address dh, Address sums, int64_t rows, int64_t columns, int threads) {
    const Activation kind = activation_named(name);
    require_matrix("activation", rows, columns);
    with_dtype(dtype, [&]<typename T>(T*) {
        run_activation_backward(kind, at<const T>(h), at<const T>(dg), at<T>(g), at<T>(dh), at<float>(sums), rows,
                                columns, threads);
    });
}

FrameConvShape frame_conv_shape(int64_t clips, int64_t frames, int64_t positions, int64_t lead, bool joint,
                                int64_t channels, int64_t columns) {
    require("frame_conv", "clips", clips, 0, INT64_MAX);
    require("frame_conv", "frames", frames, 1);
    require("frame_conv", "positions", positions, 0);
    require("frame_conv", "tokens without a time", lead, 0);
    require("frame_conv", "channels", channels, 1);
    require("frame_conv", "columns", columns, channels);
    if (columns % channels) {
        throw std::invalid_argument("frame_conv: " + std::to_string(columns) + " columns are no multiple of " +
                                    std::to_string(channels) + " channels");
    }
    return {clips, frames, positions, lead, joint, channels, columns};
}

void frame_conv(const std::string& dtype, const FrameConvShape& shape, Address h, Address base, Address taps,
                Address bias, Address lead_bias, float lead_tap, Address out, int threads) {
    with_dtype(dtype, [&]<typename T>(T*) {
        run_frame_conv(FrameConv<T>{shape, at<const T>(h), at<const T>(base), at<float>(taps), at<float>(bias),
                                    at<float>(lead_bias), lead_tap, at<T>(out)},
                    threads);
    });
}

void frame_conv_backward(const std::string& dtype, const FrameConvShape& shape, Address h, Address dy, Address taps,
                         float lead_tap, Address dh, Address sums, int threads) {
    with_dtype(dtype, [&]<typename T>(T*) {
        run_frame_conv_backward(
            FrameConvBackward<T>{shape, at<const T>(h), at<const T>(dy), at<float>(taps), lead_tap, at<T>(dh)},
            at<float>(sums), threads);
    });
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    py::class_<MixerShape>(m, "MixerShape").def(py::init(&mixer_shape));
    py::class_<MixerParameters>(m, "MixerParameters").def(py::init(&mixer_parameters));
    py::class_<MixerGradients>(m, "MixerGradients")
        .def(py::init([](Address temporal_weight, Address temporal_bias, Address temporal_down_bias,
                         Address difference_weight, Address difference_bias, Address difference_down_bias) {
            return MixerGradients{at<float>(temporal_weight),   at<float>(temporal_bias),
                                  at<float>(temporal_down_bias), at<float>(difference_weight),
                                  at<float>(difference_bias),    at<float>(difference_down_bias)};
        }));
    m.def("mixer_forward", &mixer_forward);
    m.def("mixer_backward", &mixer_backward);
    m.def("add_bias", &add_bias);
    m.def("copy_and_sum", &copy_and_sum);
    m.def("activation_forward", &activation_forward);
    m.def("activation_backward", &activation_backward);
    py::class_<FrameConvShape>(m, "FrameConvShape").def(py::init(&frame_conv_shape));
    m.def("frame_conv", &frame_conv);
    m.def("frame_conv_backward", &frame_conv_backward);
    export_losses(m);
    m.def("use_openmp_of", [](const std::string& library) { return use_openmp_of(library.c_str()); });
    m.def("instruction_set", [] { return std::string(instruction_set().name); });
    m.def("select_instruction_set", [](const std::string& name) { return select_instruction_set(name.c_str()); });
    m.attr("compiler") = M2CLIP_COMPILER;
    m.attr("flags") = M2CLIP_FLAGS;
}
