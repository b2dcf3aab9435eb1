#include "mixer.h"

#include <algorithm>
#include <vector>

#include "parallel.h"

namespace {

constexpr int64_t band_rows = 8;      // grid rows in a task, at most
constexpr int64_t band_tokens = 128;  // tokens in a task of the temporal branch alone
constexpr int64_t sum_groups = 64;    // groups of tasks with sums of their own; more use more memory

template <typename T>
const Kernels<T>& kernels();
template <>
const Kernels<float>& kernels() { return instruction_set().f32; }
template <>
const Kernels<bf16>& kernels() { return instruction_set().b16; }

// How the frames of a shape fall into tasks; a function of the shape alone.
struct Bands {
    const MixerShape& shape;
    int64_t bands;

    explicit Bands(const MixerShape& s) : shape(s) {
        const int64_t size = s.difference ? s.grid_height : s.tokens, most = s.difference ? band_rows : band_tokens;
        bands = std::max<int64_t>((size + most - 1) / most, 1);
    }
    int64_t tasks() const { return shape.clips * shape.frames * bands; }

    MixerTask task(int64_t index) const {
        const int64_t band = index % bands, frame = index / bands;
        MixerTask task{frame / shape.frames, frame % shape.frames, 0, 0, 0, 0};
        if (!shape.difference) {
            task.first_token = shape.tokens * band / bands;
            task.end_token = shape.tokens * (band + 1) / bands;
            return task;
        }
        task.first_row = shape.grid_height * band / bands;
        task.end_row = shape.grid_height * (band + 1) / bands;
        task.first_token = band == 0 ? 0 : shape.class_token + task.first_row * shape.grid_width;
        task.end_token = shape.class_token + task.end_row * shape.grid_width;
        return task;
    }
};

std::vector<float> tap_major(const float* weight, int64_t width, int64_t taps) {
    if (!weight) return {};
    std::vector<float> turned(width * taps);
    for (int64_t c = 0; c < width; ++c) {
        for (int64_t k = 0; k < taps; ++k) turned[k * width + c] = weight[c * taps + k];
    }
    return turned;
}

struct TurnedWeights {
    std::vector<float> temporal, difference;
    MixerWeights weights;

    TurnedWeights(const MixerShape& s, const MixerParameters& p)
        : temporal(tap_major(p.temporal_weight, s.width, 3)),
          difference(tap_major(p.difference_weight, s.width, 9)),
          weights{temporal.data(), p.temporal_bias, difference.data(), p.difference_bias, p.down_bias} {}
};

void write_gradients(const MixerShape& s, const MixerWeights& w, const float* sums, const MixerGradients& g) {
    const auto row = [&](int index) { return sums + index * s.width; };
    for (int64_t c = 0; c < s.width; ++c) {
        if (s.temporal) {
            for (int k = 0; k < 3; ++k) g.temporal_weight[c * 3 + k] = row(MixerSums::temporal_taps + k)[c];
            g.temporal_bias[c] = row(MixerSums::temporal_bias)[c];
            g.temporal_down_bias[c] = row(MixerSums::temporal_down_bias)[c];
        }
        if (s.difference) {
            float down = 0;
            for (int k = 0; k < 9; ++k) {
                g.difference_weight[c * 9 + k] = row(MixerSums::difference_taps + k)[c];
                down += w.difference_taps[k * s.width + c] * row(MixerSums::reach + k)[c];
            }
            g.difference_bias[c] = row(MixerSums::difference_bias)[c];
            g.difference_down_bias[c] = down;
        }
    }
}

// Sums of `groups` buffers into the first, always in the same order.
void reduce(float* sums, int64_t groups, int64_t size) {
    for (int64_t group = 1; group < groups; ++group) {
        for (int64_t c = 0; c < size; ++c) sums[c] += sums[group * size + c];
    }
}

}  // namespace

template <typename T>
void run_mixer_forward(const MixerShape& shape, const MixerParameters& parameters, const T* h, T* u, int threads) {
    const TurnedWeights turned(shape, parameters);
    const MixerForward<T> args{shape, turned.weights, h, u};
    const Bands bands(shape);
    std::vector<float> scratch(mixer_scratch(shape) * threads);
    auto run = [&](int thread, int64_t task) {
        kernels<T>().mixer_forward(args, bands.task(task), scratch.data() + thread * mixer_scratch(shape));
    };
    parallel(threads, bands.tasks(), run);
}

template <typename T>
void run_mixer_backward(const MixerShape& shape, const MixerParameters& parameters, const T* h, const T* du, T* u, T* dh,
                        const MixerGradients& gradients, int threads) {
    const TurnedWeights turned(shape, parameters);
    const MixerBackward<T> args{shape, turned.weights, h, du, u, dh};
    const Bands bands(shape);
    const int64_t groups = std::max<int64_t>(std::min(bands.tasks(), sum_groups), 1), size = MixerSums::rows * shape.width;
    std::vector<float> scratch(mixer_scratch(shape) * threads), sums(groups * size);
    auto run = [&](int thread, int64_t group) {
        float* own = scratch.data() + thread * mixer_scratch(shape);
        const int64_t end = bands.tasks() * (group + 1) / groups;
        for (int64_t task = bands.tasks() * group / groups; task < end; ++task) {
            kernels<T>().mixer_backward(args, bands.task(task), own, sums.data() + group * size);
        }
    };
    parallel(threads, groups, run);
    reduce(sums.data(), groups, size);
    write_gradients(shape, turned.weights, sums.data(), gradients);
}

template <typename T>
void run_add_bias(const T* x, const float* class_bias, const float* patch_bias, T* out, int64_t frames, int64_t tokens,
                  bool class_token, int64_t columns, int threads) {
    auto run = [&](int, int64_t frame) {
        const int64_t at = frame * tokens * columns, first = class_token * columns;
        if (class_token) kernels<T>().add_bias(x + at, class_bias, out + at, 1, columns);
        kernels<T>().add_bias(x + at + first, patch_bias, out + at + first, tokens - class_token, columns);
    };
    parallel(threads, frames, run);
}

template <typename T>
void run_copy_and_sum(const T* x, T* out, float* class_sums, float* patch_sums, int64_t frames, int64_t tokens,
                      bool class_token, int64_t columns, int threads) {
    const int64_t groups = std::max<int64_t>(std::min(frames, sum_groups), 1);
    std::vector<float> sums(groups * 2 * columns);
    auto run = [&](int, int64_t group) {
        float* own = sums.data() + group * 2 * columns;
        for (int64_t frame = frames * group / groups; frame < frames * (group + 1) / groups; ++frame) {
            const int64_t at = frame * tokens * columns, rest = at + class_token * columns;
            if (class_token) kernels<T>().copy_and_sum(x + at, out ? out + at : nullptr, own, 1, columns);
            kernels<T>().copy_and_sum(x + rest, out ? out + rest : nullptr, own + columns, tokens - class_token, columns);
        }
    };
    parallel(threads, groups, run);
    reduce(sums.data(), groups, 2 * columns);
    std::copy_n(sums.data(), columns, class_sums);
    std::copy_n(sums.data() + columns, columns, patch_sums);
}

#define M2CLIP_INSTANTIATE(T)                                                                                          \
    template void run_mixer_forward(const MixerShape&, const MixerParameters&, const T*, T*, int);                     \
    template void run_mixer_backward(const MixerShape&, const MixerParameters&, const T*, const T*, T*, T*,            \
                                     const MixerGradients&, int);                                                      \
    template void run_add_bias(const T*, const float*, const float*, T*, int64_t, int64_t, bool, int64_t, int);        \
    template void run_copy_and_sum(const T*, T*, float*, float*, int64_t, int64_t, bool, int64_t, int);
M2CLIP_INSTANTIATE(float)
M2CLIP_INSTANTIATE(bf16)
