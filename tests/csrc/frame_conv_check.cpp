// The convolution over frames beside an up-projection against its definition, row by row in double precision.
#include "../../csrc/cpu/frame_conv.h"

#include "check.h"

namespace {

template <typename T>
void check_shape(const FrameConvShape& s, const std::string& where) {
    const int64_t rows = s.clips * s.rows(), columns = s.columns, group = columns / s.channels;
    const size_t size = static_cast<size_t>(rows * columns), narrow = static_cast<size_t>(rows * s.channels);
    const double lead_tap = 0.375;
    const Values h = random_values<T>(narrow), base = random_values<T>(size), dy = random_values<T>(size);
    const Values taps = random_values<float>(3 * columns), bias = random_values<float>(columns);
    const Values lead_bias = random_values<float>(columns);
    Values out = base, dh(narrow), sums(FrameConvSums::rows * columns);
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t in_clip = row % s.rows() - s.lead;
        const int64_t t = s.joint ? in_clip % s.frames : in_clip / s.positions;
        for (int64_t c = 0; c < columns; ++c) {
            const int64_t at = row * columns + c, channel = c / group;
            if (in_clip < 0) {
                out[at] += lead_bias[c] + lead_tap * h[row * s.channels + channel];
                dh[row * s.channels + channel] += lead_tap * dy[at];
                sums[FrameConvSums::lead * columns + c] += dy[at];
                continue;
            }
            out[at] += bias[c];
            sums[FrameConvSums::total * columns + c] += dy[at];
            for (int64_t k = 0; k < 3; ++k) {
                if (t + k - 1 < 0 || t + k - 1 >= s.frames) continue;
                const int64_t there = (row + (k - 1) * (s.joint ? 1 : s.positions)) * s.channels + channel;
                const double tap = taps[k * columns + c];
                out[at] += tap * h[there];
                dh[there] += tap * dy[at];
                sums[(FrameConvSums::taps + k) * columns + c] += dy[at] * h[there];
            }
        }
    }

    check(where + ", forward", {{"out", out, rounding<T>}}, [&](int threads) {
        const Buffer<T> in(h), start(base), end(size);
        const Buffer<float> t(taps), b(bias), l(lead_bias);
        run_frame_conv<T>({s, in.data(), start.data(), t.data(), b.data(), l.data(), lead_tap, end.data()}, threads);
        return std::vector<Values>{end.values()};
    });
    check(where + ", backward", {{"dh", dh, rounding<T>}, {"sums", sums, 2e-5}}, [&](int threads) {
        const Buffer<T> in(h), slope(dy), end(narrow);
        const Buffer<float> t(taps), total(sums.size());
        run_frame_conv_backward<T>({s, in.data(), slope.data(), t.data(), lead_tap, end.data()}, total.data(), threads);
        return std::vector<Values>{end.values(), total.values()};
    });
}

struct Size {
    int64_t clips, frames, positions, channels, group;
};

// 16 positions are one task; no positions leave the tokens without a time alone; 35 channels are two vectors of 16 lanes
// and three single ones. Only the last is large enough for more than one thread.
constexpr Size sizes[] = {{0, 2, 3, 5, 1},  {1, 1, 1, 1, 1},  {2, 1, 4, 16, 3}, {2, 2, 3, 13, 6},
                          {2, 3, 17, 35, 1}, {1, 8, 5, 20, 2}, {3, 2, 0, 7, 3},  {2, 8, 40, 32, 6}};

}  // namespace

void check_frame_conv() {
    for (const Size& size : sizes) {
        for (const bool joint : {false, true}) {
            const FrameConvShape shape{size.clips, size.frames,   size.positions,
                                       joint,      joint,         size.channels,
                                       size.channels * size.group};
            const std::string where = std::string("frame_conv, ") + (joint ? "joint" : "per frame") +
                                      ", B=" + std::to_string(size.clips) + " T=" + std::to_string(size.frames) +
                                      " positions=" + std::to_string(size.positions) +
                                      " d=" + std::to_string(size.channels) + " D=" + std::to_string(shape.columns);
            check_shape<float>(shape, where + ", fp32");
            check_shape<bf16>(shape, where + ", bf16");
        }
    }
}
