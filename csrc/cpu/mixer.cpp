#include "mixer.h"

#include "groups.h"

namespace {

constexpr int64_t band_rows = 8;      // grid rows in a task, at most
constexpr int64_t band_tokens = 128;  // tokens in a task of the temporal branch alone

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

int useful_threads(const MixerShape& s, int threads) {
    return threads_for(threads, s.clips * s.frames * s.tokens * s.columns);
}

float* scratch_of_thread(const MixerShape& s) {
    thread_local std::vector<float> memory;
    return kept_memory(memory, mixer_scratch(s));
}

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
                const float reach = row(MixerSums::reach + k)[c];  // 0 where the grid is too small for the tap
                if (reach != 0) down += w.difference_taps[k * s.width + c] * reach;
            }
            g.difference_bias[c] = row(MixerSums::difference_bias)[c];
            g.difference_down_bias[c] = down;
        }
    }
}

}  // namespace

template <typename T>
void run_mixer_forward(const MixerShape& shape, const MixerParameters& parameters, const T* h, T* u, int threads) {
    const TurnedWeights turned(shape, parameters);
    const MixerForward<T> args{shape, turned.weights, h, u};
    const Bands bands(shape);
    auto run = [&](int, int64_t task) { kernels<T>().mixer_forward(args, bands.task(task), scratch_of_thread(shape)); };
    parallel(useful_threads(shape, threads), bands.tasks(), run);
}

template <typename T>
void run_mixer_backward(const MixerShape& shape, const MixerParameters& parameters, const T* h, const T* du, T* dh,
                        const MixerGradients& gradients, int threads) {
    const TurnedWeights turned(shape, parameters);
    const MixerBackward<T> args{shape, turned.weights, h, du, dh};
    const Bands bands(shape);
    const int64_t size = (shape.difference ? MixerSums::rows : MixerSums::temporal_rows) * shape.width;
    const float* sums =
        sum_over_tasks(useful_threads(shape, threads), bands.tasks(), size, [&](int64_t task, float* own) {
            kernels<T>().mixer_backward(args, bands.task(task), scratch_of_thread(shape), own);
        });
    write_gradients(shape, turned.weights, sums, gradients);
}

#define M2CLIP_INSTANTIATE(T)                                                                                          \
    template void run_mixer_forward(const MixerShape&, const MixerParameters&, const T*, T*, int);                     \
    template void run_mixer_backward(const MixerShape&, const MixerParameters&, const T*, const T*, T*,                \
                                     const MixerGradients&, int);
M2CLIP_INSTANTIATE(float)
M2CLIP_INSTANTIATE(bf16)
