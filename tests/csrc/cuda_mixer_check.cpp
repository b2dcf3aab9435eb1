// The CUDA mixer against its definition, tap by tap in double precision; kernels run in the emulator.
#include "../../csrc/cuda/mixer.h"

#include "cuda_check.h"

namespace {

struct Problem {
    MixerShape s;
    Values temporal_weight, temporal_bias, difference_weight, difference_bias, down_bias, h, du;

    int64_t at(int64_t clip, int64_t t, int64_t token, int64_t column) const {
        return ((clip * s.frames + t) * s.tokens + token) * s.columns() + column;
    }
};

struct Truth {
    const Problem& p;
    Values u, dh, temporal_weight, temporal_bias, temporal_down_bias, difference_weight, difference_bias,
        difference_down_bias;

    explicit Truth(const Problem& problem) : p(problem) {
        const MixerShape& s = p.s;
        const size_t width = s.width;
        u = dh = Values(p.h.size());
        temporal_weight = Values(width * 3), difference_weight = Values(width * 9);
        temporal_bias = temporal_down_bias = difference_bias = difference_down_bias = Values(width);
        for (int64_t clip = 0; clip < s.clips; ++clip) {
            for (int64_t t = 0; t < s.frames; ++t) {
                for (int64_t c = 0; c < s.width; ++c) {
                    if (s.temporal) temporal(clip, t, c);
                    if (s.difference) difference(clip, t, c);
                }
            }
        }
    }

    void temporal(int64_t clip, int64_t t, int64_t c) {
        for (int64_t token = 0; token < p.s.tokens; ++token) {
            const int64_t here = p.at(clip, t, token, c);
            u[here] += p.temporal_bias[c];
            temporal_bias[c] += p.du[here];
            for (int64_t k = 0; k < 3; ++k) {
                if (t + k - 1 < 0 || t + k - 1 >= p.s.frames) continue;
                const int64_t there = p.at(clip, t + k - 1, token, c);
                const double back = p.temporal_weight[c * 3 + k] * p.du[here];
                u[here] += p.temporal_weight[c * 3 + k] * p.h[there];
                dh[there] += back;
                temporal_weight[c * 3 + k] += p.du[here] * p.h[there];
                temporal_down_bias[c] += back;
            }
        }
    }

    void difference(int64_t clip, int64_t t, int64_t c) {
        const MixerShape& s = p.s;
        const int64_t column = s.difference_column() + c;
        for (int64_t patch = 0; patch < s.grid_height * s.grid_width; ++patch) {
            const int64_t here = p.at(clip, t, s.class_token + patch, column);
            u[here] += p.difference_bias[c];
            difference_bias[c] += p.du[here];
            for (int64_t k = 0; k < 9; ++k) {
                const int64_t y = patch / s.grid_width + k / 3 - 1, x = patch % s.grid_width + k % 3 - 1;
                if (y < 0 || y >= s.grid_height || x < 0 || x >= s.grid_width) continue;
                const int64_t token = s.class_token + y * s.grid_width + x;
                const double tap = p.difference_weight[c * 9 + k], back = tap * p.du[here];
                double change = p.down_bias[c];
                if (t > 0) {
                    change += p.h[p.at(clip, t, token, column)] - p.h[p.at(clip, t - 1, token, column)];
                    dh[p.at(clip, t, token, column)] += back;
                    dh[p.at(clip, t - 1, token, column)] -= back;
                }
                u[here] += tap * change;
                difference_weight[c * 9 + k] += p.du[here] * change;
                difference_down_bias[c] += back;
            }
        }
    }
};

// What a run has left behind, in the order of `expected`.
template <typename T>
std::vector<Values> forward_and_backward(const Problem& p, Dtype dtype, bool aligned, bool with_u, int32_t rows) {
    const MixerShape& s = p.s;
    const size_t size = p.h.size(), width = s.width;
    const DeviceBuffer<T> tw(p.temporal_weight, true), tb(p.temporal_bias, true), dw(p.difference_weight, true),
        db(p.difference_bias, true), down(p.down_bias, true), h(p.h, aligned), du(p.du, aligned), u(size, aligned),
        again(with_u ? size : 0, aligned), dh(size, aligned);
    MixerWeights weights{};
    if (s.temporal) weights.temporal_weight = tw.data(), weights.temporal_bias = tb.data();
    if (s.difference) {
        weights.difference_weight = dw.data(), weights.difference_bias = db.data(), weights.down_bias = down.data();
    }
    std::vector<Values> found;
    const auto require = [](int error) {
        if (error) fail("CUDA mixer", "returned error " + std::to_string(error));
    };
    const MixerPlan forward = mixer_plan(s, dtype, false, rows), backward = mixer_plan(s, dtype, true, rows);
    require(mixer_forward(s, dtype, forward, weights, h.data(), u.data(), nullptr));
    const DeviceBuffer<float> gtw(s.temporal ? width * 3 : 0, true), gtb(s.temporal ? width : 0, true),
        gtd(s.temporal ? width : 0, true), gdw(s.difference ? width * 9 : 0, true),
        gdb(s.difference ? width : 0, true), gdd(s.difference ? width : 0, true);
    const DeviceBuffer<float> workspace(mixer_workspace(s, backward), true);
    const MixerGradients gradients{gtw.data(), gtb.data(), gtd.data(), gdw.data(), gdb.data(), gdd.data()};
    require(mixer_backward(s, dtype, backward, weights, h.data(), du.data(), with_u ? again.data() : nullptr, dh.data(),
                           workspace.data(), gradients, nullptr));
    return {u.values(), again.values(), dh.values(), gtw.values(), gtb.values(), gtd.values(), gdw.values(), gdb.values(),
            gdd.values()};
}

template <typename T>
void check_problem(const MixerShape& s, Dtype dtype, bool aligned, int32_t rows, const std::string& name) {
    const size_t size = s.clips * s.frames * s.tokens * s.columns(), width = s.width;
    Problem p{s,
              random_values<T>(width * 3),
              random_values<T>(width),
              random_values<T>(width * 9),
              random_values<T>(width),
              random_values<T>(width),
              random_values<T>(size),
              random_values<T>(size)};
    const Truth truth(p);
    const double sums = 2e-5;  // in fp32 whatever the dtype
    const auto on = [](bool branch, const Values& values) { return branch ? values : Values(); };
    const bool with_u = size % 2 == 0 || width % 3 == 0;
    const std::vector<Expected> expected = {
        {"u", truth.u, rounding<T>},
        {"u of the backward pass", on(with_u, truth.u), rounding<T>},
        {"dh", truth.dh, rounding<T>},
        {"gradient of temporal_weight", on(s.temporal, truth.temporal_weight), sums},
        {"gradient of temporal_bias", on(s.temporal, truth.temporal_bias), sums},
        {"gradient of temporal_down_bias", on(s.temporal, truth.temporal_down_bias), sums},
        {"gradient of difference_weight", on(s.difference, truth.difference_weight), sums},
        {"gradient of difference_bias", on(s.difference, truth.difference_bias), sums},
        {"gradient of difference_down_bias", on(s.difference, truth.difference_down_bias), sums}};
    const std::string where = std::string("CUDA mixer, ") + dtype_name<T> + ", " + name;
    check_orders(where, expected, [&] { return forward_and_backward<T>(p, dtype, aligned, with_u, rows); });
}

struct Size {
    int64_t clips;
    int32_t frames, height, width, channels;
    bool aligned = true;
    int32_t rows = 0;  // of patches in a tile, at most
};

// Beyond 64 bytes of channels there are several blocks beside each other, beyond 32 columns of patches several tiles,
// and with more than 512 tiles a block has several clips.
constexpr Size sizes[] = {
    {0, 2, 2, 2, 8},   {1, 1, 1, 1, 8},         {2, 2, 1, 1, 1},  {3, 3, 5, 9, 24},   {1, 16, 2, 3, 40}, {2, 8, 7, 7, 16},
    {1, 2, 14, 14, 8}, {1, 3, 4, 6, 8, false},  {2, 2, 5, 3, 13}, {1, 2, 16, 16, 16}, {1, 2, 3, 37, 8},  {1, 3, 9, 6, 16, true, 2},
    {520, 1, 1, 2, 8}, {300, 2, 2, 1, 3, true}, {1, 4, 3, 3, 35}};

}  // namespace

void check_cuda_mixer() {
    struct {
        const char* name;
        bool temporal, difference, shared;
    } const layouts[] = {{"separate", true, true, false},
                         {"shared", true, true, true},
                         {"temporal", true, false, false},
                         {"difference", false, true, false}};
    for (const Size& size : sizes) {
        for (const auto& layout : layouts) {
            const bool class_token = (size.height + size.width + size.frames + layout.shared) % 2 == 0;
            const MixerShape s{size.clips,    size.frames, size.height * size.width + class_token,
                               size.height,   size.width,  size.channels,
                               class_token,   layout.temporal, layout.difference,
                               layout.shared};
            const std::string name = std::string(layout.name) + ", B=" + std::to_string(size.clips) +
                                     " T=" + std::to_string(size.frames) + " grid " + std::to_string(size.height) + "x" +
                                     std::to_string(size.width) + " R=" + std::to_string(size.channels) +
                                     (class_token ? ", class token" : "") + (size.aligned ? "" : ", odd addresses");
            check_problem<float>(s, Dtype::float32, size.aligned, size.rows, name);
            check_problem<__half>(s, Dtype::float16, size.aligned, size.rows, name);
            check_problem<__nv_bfloat16>(s, Dtype::bfloat16, size.aligned, size.rows, name);
        }
    }
}

namespace {

template <typename T>
void check_residual_of(Dtype dtype, int64_t frames, int32_t tokens, int32_t columns, bool class_token, bool residual) {
    const size_t size = frames * tokens * columns;
    const Values product = random_values<T>(size), x = random_values<T>(size), first = random_values<float>(columns),
                 rest = random_values<float>(columns);
    Values sum = product;
    for (size_t i = 0; i < size; ++i) {
        const size_t row = i / columns, column = i % columns;
        sum[i] += (class_token && row % tokens == 0 ? first : rest)[column] + (residual ? x[i] : 0);
    }
    check_orders(std::string("add_residual, ") + dtype_name<T> + ", D=" + std::to_string(columns),
                 {{"out", sum, rounding<T>}}, [&] {
                     const DeviceBuffer<T> out(product, true), in(x, columns % 3 > 0);
                     const DeviceBuffer<float> a(first, true), b(rest, true);
                     const int error = add_residual(dtype, out.data(), residual ? in.data() : nullptr, a.data(), b.data(),
                                                    frames * tokens, columns, tokens, class_token, nullptr);
                     if (error) fail("add_residual", "returned error " + std::to_string(error));
                     return std::vector<Values>{out.values()};
                 });
}

}  // namespace

void check_cuda_residual() {
    for (const int32_t columns : {1, 16, 24, 37}) {
        for (const bool class_token : {false, true}) {
            for (const int64_t frames : {0, 1, 13}) {
                check_residual_of<float>(Dtype::float32, frames, 5, columns, class_token, true);
                check_residual_of<__half>(Dtype::float16, frames, 5, columns, class_token, false);
                check_residual_of<__nv_bfloat16>(Dtype::bfloat16, frames, 5, columns, class_token, true);
            }
        }
    }
}
