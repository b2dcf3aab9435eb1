// The mixer against its definition, tap by tap in double precision.
#include "../../csrc/cpu/mixer.h"

#include "check.h"

namespace {

struct Weights {
    Values temporal_weight, temporal_bias, difference_weight, difference_bias, down_bias;

    explicit Weights(size_t width)
        : temporal_weight(random_values<float>(width * 3)),
          temporal_bias(random_values<float>(width)),
          difference_weight(random_values<float>(width * 9)),
          difference_bias(random_values<float>(width)),
          down_bias(random_values<float>(width)) {}
};

struct Results {
    Values u, dh, temporal_weight, temporal_bias, temporal_down_bias, difference_weight, difference_bias,
        difference_down_bias;
};

size_t rows_of(const MixerShape& s) { return static_cast<size_t>(s.clips * s.frames * s.tokens); }

struct Restatement {
    const MixerShape& s;
    const Weights& w;
    const Values& h;
    const Values& du;
    Results r;

    Restatement(const MixerShape& shape, const Weights& weights, const Values& hidden, const Values& gradient)
        : s(shape), w(weights), h(hidden), du(gradient) {
        const size_t size = rows_of(s) * s.columns, width = s.width;
        r = {Values(size),  Values(size),      Values(width * 3), Values(width),
             Values(width), Values(width * 9), Values(width),     Values(width)};
        for (int64_t clip = 0; clip < s.clips; ++clip) {
            for (int64_t t = 0; t < s.frames; ++t) {
                for (int64_t c = 0; c < s.width; ++c) {
                    if (s.temporal) temporal(clip, t, c);
                    if (s.difference) difference(clip, t, c);
                }
            }
        }
    }

    int64_t at(int64_t clip, int64_t t, int64_t token, int64_t column) const {
        return ((clip * s.frames + t) * s.tokens + token) * s.columns + column;
    }

    void temporal(int64_t clip, int64_t t, int64_t c) {
        for (int64_t token = 0; token < s.tokens; ++token) {
            const int64_t here = at(clip, t, token, c);
            r.u[here] += w.temporal_bias[c];
            r.temporal_bias[c] += du[here];
            for (int64_t k = 0; k < 3; ++k) {
                const int64_t frame = t + k - 1;
                if (frame < 0 || frame >= s.frames) continue;
                const int64_t there = at(clip, frame, token, c);
                const double tap = w.temporal_weight[c * 3 + k];
                r.u[here] += tap * h[there];
                r.dh[there] += tap * du[here];
                r.temporal_weight[c * 3 + k] += du[here] * h[there];
                r.temporal_down_bias[c] += tap * du[here];
            }
        }
    }

    void difference(int64_t clip, int64_t t, int64_t c) {
        const int64_t column = s.difference_column + c;
        for (int64_t patch = 0; patch < s.grid_height * s.grid_width; ++patch) {
            const int64_t here = at(clip, t, s.class_token + patch, column);
            r.u[here] += w.difference_bias[c];
            r.difference_bias[c] += du[here];
            for (int64_t k = 0; k < 9; ++k) {
                const int64_t y = patch / s.grid_width + k / 3 - 1, x = patch % s.grid_width + k % 3 - 1;
                if (y < 0 || y >= s.grid_height || x < 0 || x >= s.grid_width) continue;
                const int64_t token = s.class_token + y * s.grid_width + x, now = at(clip, t, token, column);
                const double tap = w.difference_weight[c * 9 + k], back = tap * du[here];
                double change = w.down_bias[c];
                if (t > 0) {
                    const int64_t before = at(clip, t - 1, token, column);
                    change += h[now] - h[before];
                    r.dh[now] += back;
                    r.dh[before] -= back;
                }
                r.u[here] += tap * change;
                r.difference_weight[c * 9 + k] += du[here] * change;
                r.difference_down_bias[c] += back;
            }
        }
    }
};

// h with other columns, not to be read, between its rows.
Values widened(const MixerShape& s, const Values& h) {
    const int64_t rows = rows_of(s);
    Values wide(rows ? (rows - 1) * s.h_columns + s.columns : 0, std::nan(""));
    for (int64_t n = 0; n < rows; ++n) std::copy_n(&h[n * s.columns], s.columns, &wide[n * s.h_columns]);
    return wide;
}

template <typename T>
void check_shape(const MixerShape& s, const std::string& where) {
    const size_t size = rows_of(s) * s.columns, width = s.width;
    const Weights weights(width);
    const Values h = random_values<T>(size), du = random_values<T>(size);
    const Results truth = Restatement(s, weights, h, du).r;

    const auto with_parameters = [&](auto function) {
        const Buffer<float> tw(weights.temporal_weight), tb(weights.temporal_bias), dw(weights.difference_weight),
            db(weights.difference_bias), down(weights.down_bias);
        MixerParameters p{};
        if (s.temporal) {
            p.temporal_weight = tw.data();
            p.temporal_bias = tb.data();
        }
        if (s.difference) {
            p.difference_weight = dw.data();
            p.difference_bias = db.data();
            p.down_bias = down.data();
        }
        function(p);
    };

    check(where + ", forward", {{"u", truth.u, rounding<T>}}, [&](int threads) {
        const Buffer<T> in(widened(s, h)), out(size);
        with_parameters([&](const MixerParameters& p) { run_mixer_forward(s, p, in.data(), out.data(), threads); });
        return std::vector<Values>{out.values()};
    });

    // Sums are in fp32 whatever the dtype.
    const double sums = 2e-5;
    std::vector<Expected> expected = {{"dh", truth.dh, rounding<T>}};
    if (s.temporal) {
        expected.push_back({"gradient of temporal_weight", truth.temporal_weight, sums});
        expected.push_back({"gradient of temporal_bias", truth.temporal_bias, sums});
        expected.push_back({"gradient of temporal_down_bias", truth.temporal_down_bias, sums});
    }
    if (s.difference) {
        expected.push_back({"gradient of difference_weight", truth.difference_weight, sums});
        expected.push_back({"gradient of difference_bias", truth.difference_bias, sums});
        expected.push_back({"gradient of difference_down_bias", truth.difference_down_bias, sums});
    }
    check(where + ", backward", expected, [&](int threads) {
        const Buffer<T> in(widened(s, h)), slope(du), dh(size);
        const Buffer<float> tw(width * 3), tb(width), td(width), dw(width * 9), db(width), dd(width);
        MixerGradients g{};
        if (s.temporal) {
            g.temporal_weight = tw.data();
            g.temporal_bias = tb.data();
            g.temporal_down_bias = td.data();
        }
        if (s.difference) {
            g.difference_weight = dw.data();
            g.difference_bias = db.data();
            g.difference_down_bias = dd.data();
        }
        with_parameters([&](const MixerParameters& p) {
            run_mixer_backward(s, p, in.data(), slope.data(), dh.data(), g, threads);
        });
        std::vector<Values> found = {dh.values()};
        if (s.temporal) found.insert(found.end(), {tw.values(), tb.values(), td.values()});
        if (s.difference) found.insert(found.end(), {dw.values(), db.values(), dd.values()});
        return found;
    });
}

struct Size {
    int64_t clips, frames, height, width, channels;
};

// 17 rows are three bands of a frame, 160 tokens two bands of the temporal branch alone; 35 channels are two vectors of
// 16 lanes and three single ones. Only the last is large enough for more than one thread.
constexpr Size sizes[] = {{0, 2, 2, 2, 5},  {1, 1, 1, 1, 1},  {2, 1, 3, 2, 16}, {1, 2, 1, 1, 13},
                          {2, 3, 3, 5, 35}, {1, 2, 17, 2, 9}, {1, 8, 5, 3, 20}, {1, 2, 16, 10, 4},
                          {2, 3, 7, 9, 96}};

}  // namespace

void check_mixer() {
    struct {
        const char* name;
        bool temporal, difference, separate;
    } const layouts[] = {{"separate", true, true, true},
                         {"shared", true, true, false},
                         {"temporal", true, false, false},
                         {"difference", false, true, false}};
    for (const Size& size : sizes) {
        for (const auto& layout : layouts) {
            for (const bool class_token : {false, true}) {
                MixerShape shape{};
                shape.clips = size.clips;
                shape.frames = size.frames;
                shape.tokens = size.height * size.width + class_token;
                shape.grid_height = size.height;
                shape.grid_width = size.width;
                shape.width = size.channels;
                shape.columns = layout.separate ? 2 * size.channels : size.channels;
                shape.h_columns = shape.columns + (class_token ? 3 : 0);
                shape.difference_column = layout.separate ? size.channels : 0;
                shape.class_token = class_token;
                shape.temporal = layout.temporal;
                shape.difference = layout.difference;
                const std::string where = std::string("mixer, ") + layout.name + ", B=" + std::to_string(size.clips) +
                                          " T=" + std::to_string(size.frames) + " grid " + std::to_string(size.height) +
                                          "x" + std::to_string(size.width) + " R=" + std::to_string(size.channels) +
                                          (class_token ? ", class token" : "");
                check_shape<float>(shape, where + ", fp32");
                check_shape<bf16>(shape, where + ", bf16");
            }
        }
    }
}
