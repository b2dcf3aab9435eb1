// Runs the Hopper adapter's kernel on the emulator and compares each of its stages with a plain computation in fp64.
#include <array>
#include <set>

#include "hopper_emulator.h"

#include "../../csrc/cuda/hopper_kernel.h"

namespace {

using Values = std::vector<double>;

int comparisons = 0, failures = 0;

struct Problem {
    int clips, frames, height, width_, class_tokens, width, bottleneck;
    bool temporal, difference, shared, residual, bias;
    int clusters;

    int columns() const { return temporal && difference && !shared ? 2 * bottleneck : bottleneck; }
    int tokens() const { return class_tokens + height * width_; }
    int rows() const { return clips * frames * tokens(); }
    std::string name() const {
        const auto text = [](int i) { return std::to_string(i); };
        return "B=" + text(clips) + " T=" + text(frames) + " grid=" + text(height) + "x" + text(width_) +
               (class_tokens ? " class" : "") + " D=" + text(width) + " R=" + text(bottleneck) +
               (temporal ? " TE" : "") + (difference ? " TD" : "") + (shared ? " shared" : "") +
               (residual ? "" : " no residual") + (bias ? "" : " no bias") + " clusters=" + text(clusters);
    }
};

template <typename T>
constexpr double rounding = 1.0 / 256;
template <>
constexpr double rounding<hopper::Half> = 1.0 / 2048;

template <typename T>
class Tensor {
public:
    explicit Tensor(size_t size) : bits_(size, 0xffff) {}  // NaN
    static Tensor random(size_t size, float scale) {
        Tensor tensor(size);
        for (uint16_t& bits : tensor.bits_) {
            const float value = (static_cast<float>(hopper::emulated::random_number(1 << 20)) / (1 << 19) - 1) * scale;
            bits = static_cast<uint16_t>(T::pack(value, 0));
        }
        return tensor;
    }
    double operator[](size_t i) const { return T::unpack(bits_[i]).low; }
    uint16_t* data() { return bits_.data(); }
    size_t bytes() const { return bits_.size() * sizeof(uint16_t); }
    const std::vector<uint16_t>& bits() const { return bits_; }

private:
    std::vector<uint16_t> bits_;
};

std::vector<float> random_floats(size_t size, float scale) {
    std::vector<float> values(size);
    for (float& value : values) {
        value = (static_cast<float>(hopper::emulated::random_number(1 << 20)) / (1 << 19) - 1) * scale;
    }
    return values;
}

// Half a unit in the last place, and what sums in fp32 in another order differ by.
template <typename T>
void compare(const std::string& where, const Tensor<T>& found, const Values& expected) {
    ++comparisons;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double error = fabs(found[i] - expected[i]);
        if (error <= 1.0001 * rounding<T> * fabs(expected[i]) + 2e-5) continue;
        fprintf(stderr, "WRONG: %s: element %zu is %g, not %g\n", where.c_str(), i, found[i], expected[i]);
        ++failures;
        return;
    }
}

template <typename T>
struct Run {
    const Problem& p;
    size_t rows = p.rows(), columns = p.columns(), taps = p.bottleneck;
    Tensor<T> x = Tensor<T>::random(rows * p.width, 1), down = Tensor<T>::random(columns * p.width, 0.2f),
              up = Tensor<T>::random(p.width * columns, 0.2f), h{rows * columns}, u{rows * columns}, y{rows * p.width};
    std::vector<float> down_bias = random_floats(columns, 1), class_bias = random_floats(p.width, 1),
                       patch_bias = random_floats(p.width, 1), temporal_taps = random_floats(3 * taps, 0.5f),
                       temporal_bias = random_floats(taps, 1), difference_taps = random_floats(9 * taps, 0.3f),
                       difference_bias = random_floats(taps, 1), difference_down_bias = random_floats(taps, 1);
    std::vector<int32_t> counters = std::vector<int32_t>(2 * p.clips, 0);

    template <int kColumns>
    void launch() {
        using namespace hopper;
        Schedule schedule = {};
        schedule.frames = p.frames, schedule.grid_height = p.height, schedule.grid_width = p.width_;
        schedule.class_tokens = p.class_tokens, schedule.width = p.width, schedule.columns = p.columns();
        schedule.bottleneck = p.bottleneck, schedule.tile_columns = kColumns;
        if (!schedule.complete(p.clips, p.clusters)) cuda_emulator::stop("a schedule was refused");
        schedule.lag = schedule.least_lag() + static_cast<int>(emulated::random_number(3));
        const auto map = [](Tensor<T>& tensor, int64_t columns, int box_rows) {
            return TensorMap{tensor.data(), static_cast<int64_t>(tensor.bytes() / 2) / columns, columns, box_rows};
        };
        const int half = kColumns / kCluster;
        const Maps maps = {map(x, p.width, kTileRows), map(h, columns, kTileRows),  map(u, columns, kTileRows),
                           map(y, p.width, kTileRows), map(down, p.width, half), map(up, columns, half)};
        const MixParameters mix = {h.data(),
                                   u.data(),
                                   p.temporal ? temporal_taps.data() : nullptr,
                                   temporal_bias.data(),
                                   p.difference ? difference_taps.data() : nullptr,
                                   difference_bias.data(),
                                   difference_down_bias.data()};
        const Parameters parameters = {schedule,          mix,
                                       p.bias ? down_bias.data() : nullptr,
                                       class_bias.data(), patch_bias.data(),
                                       counters.data(),   counters.data() + p.clips,
                                       p.residual};
        emulated::memory.clear();
        const auto allow = [](auto* data, size_t bytes) {
            const auto* first = reinterpret_cast<const unsigned char*>(data);
            emulated::memory.push_back({first, first + bytes});
        };
        for (Tensor<T>* tensor : {&h, &u}) allow(tensor->data(), tensor->bytes());
        for (auto* values : {&down_bias, &class_bias, &patch_bias, &temporal_taps, &temporal_bias, &difference_taps,
                             &difference_bias, &difference_down_bias}) {
            allow(values->data(), values->size() * sizeof(float));
        }
        allow(counters.data(), counters.size() * sizeof(int32_t));
        const int blocks = kCluster * p.clusters;
        cuda_emulator::resident_blocks = blocks;
        emulated::prepare(blocks, kThreads);
        cuda_emulator::launch(blocks, kThreads, Ring<kColumns>::kBytes,
                              [&] {
                                  adapter_kernel<T, kColumns>(maps, parameters);
                                  emulated::leave();
                              });
        emulated::check_finished();
    }

    Values expected_h() const {
        Values sums(rows * columns);
        for (size_t r = 0; r < rows; ++r) {
            for (size_t c = 0; c < columns; ++c) {
                double sum = p.bias ? down_bias[c] : 0;
                for (int k = 0; k < p.width; ++k) sum += x[r * p.width + k] * down[c * p.width + k];
                sums[r * columns + c] = sum;
            }
        }
        return sums;
    }

    double hidden(int clip, int frame, int token, size_t column) const {
        if (frame < 0 || frame >= p.frames) return 0;
        return h[((static_cast<size_t>(clip) * p.frames + frame) * p.tokens() + token) * columns + column];
    }

    double temporal(int clip, int frame, int token, size_t c, size_t column) const {
        double sum = temporal_bias[c];
        for (int k = 0; k < 3; ++k) sum += temporal_taps[k * taps + c] * hidden(clip, frame + k - 1, token, column);
        return sum;
    }

    double difference(int clip, int frame, int patch, size_t c, size_t column) const {
        double sum = difference_bias[c];
        for (int k = 0; k < 9; ++k) {
            const int y = patch / p.width_ + k / 3 - 1, x = patch % p.width_ + k % 3 - 1;
            if (y < 0 || y >= p.height || x < 0 || x >= p.width_) continue;
            const int token = p.class_tokens + y * p.width_ + x;
            double change = difference_down_bias[c];
            if (frame > 0) change += hidden(clip, frame, token, column) - hidden(clip, frame - 1, token, column);
            sum += difference_taps[k * taps + c] * change;
        }
        return sum;
    }

    // Of the kernel's h.
    Values expected_u() const {
        Values values(rows * columns, 0);
        for (size_t i = 0; i < values.size(); ++i) {
            const size_t column = i % columns, c = column % taps, row = i / columns;
            const int token = static_cast<int>(row % p.tokens()), frame = static_cast<int>(row / p.tokens() % p.frames);
            const int clip = static_cast<int>(row / p.tokens() / p.frames);
            const bool first = column < taps;
            if (p.temporal && first) values[i] += temporal(clip, frame, token, c, column);
            if (p.difference && token >= p.class_tokens && (!first || p.shared || !p.temporal)) {
                values[i] += difference(clip, frame, token - p.class_tokens, c, column);
            }
        }
        return values;
    }

    // Of the kernel's u.
    Values expected_y() const {
        Values sums(rows * p.width);
        for (size_t r = 0; r < rows; ++r) {
            const bool class_row = p.class_tokens && r % p.tokens() == 0;
            for (int d = 0; d < p.width; ++d) {
                double sum = class_row ? class_bias[d] : patch_bias[d];
                if (p.residual) sum += x[r * p.width + d];
                for (size_t k = 0; k < columns; ++k) sum += u[r * columns + k] * up[d * columns + k];
                sums[r * p.width + d] = sum;
            }
        }
        return sums;
    }
};

template <typename T, int kColumns>
void check(const Problem& problem, const char* element) {
    const std::string where = problem.name() + " " + element + " tiles of " + std::to_string(kColumns);
    Run<T> run{problem};
    std::vector<uint16_t> first;
    using hopper::Engine;
    const std::pair<Engine, const char*> engines[] = {
        {Engine::at_once, "at once"}, {Engine::in_between, "in between"}, {Engine::late, "late"}};
    for (const auto& [engine, name] : engines) {
        hopper::emulated::engine = engine;
        const int slow = static_cast<int>(hopper::emulated::random_number(2));
        hopper::emulated::slow_block = engine == Engine::late ? -1 : slow;
        cuda_emulator::order = static_cast<cuda_emulator::Order>(hopper::emulated::random_number(3));
        run.h = Tensor<T>(run.h.bits().size());
        run.u = Tensor<T>(run.u.bits().size());
        run.y = Tensor<T>(run.y.bits().size());
        run.counters.assign(run.counters.size(), 0);
        run.template launch<kColumns>();
        ++comparisons;
        if (first.empty()) {
            first = run.y.bits();
            compare(where + ": h", run.h, run.expected_h());
            compare(where + ": u", run.u, run.expected_u());
            compare(where + ": y", run.y, run.expected_y());
        } else if (first != run.y.bits()) {
            fprintf(stderr, "WRONG: %s: y changes when copies run %s\n", where.c_str(), name);
            ++failures;
        }
    }
}

void expect(bool holds, const char* what, const hopper::Schedule& s) {
    if (holds) return;
    fprintf(stderr, "WRONG: schedule of %d rows, %d a clip, tiles of %d: %s\n", s.rows, s.clip_rows(), s.tile_columns,
            what);
    ++failures;
}

// Every tile and every strip comes once, every tile of y after all tiles of h that its clips' mixing waits for, and
// counters reach their targets.
void check_schedule() {
    using namespace hopper;
    Schedule s = {};
    const auto random = [](int most) { return 1 + static_cast<int>(emulated::random_number(most)); };
    s.frames = random(8), s.grid_height = random(9), s.grid_width = random(9);
    s.class_tokens = random(2) - 1, s.width = 64 * random(12), s.bottleneck = 64 * random(6);
    s.columns = s.bottleneck * random(2), s.tile_columns = best_tile_columns(s.width, s.columns);
    if (!s.complete(random(40), random(70))) cuda_emulator::stop("a schedule was refused");
    if (random(2) == 1) s.lag = s.least_lag();
    std::set<std::array<int, 3>> seen;
    std::vector<int> projected(s.clips()), mixed(s.clips());
    for (int i = 0; i < s.tiles(); ++i) {
        const Tile tile = s.tile(i);
        seen.insert({tile.up, tile.row, tile.column});
        expect(tile.row < s.rows && tile.column < (tile.up ? s.width : s.columns), "a tile lies outside", s);
        for (int row = tile.row; row < tile.row + kClusterRows && row < s.rows; row += kTileRows) {
            for (int clip = s.first_clip(row); clip <= s.last_clip(row); ++clip) {
                if (!tile.up) ++projected[clip];
                if (tile.up) expect(projected[clip] == s.clip_tiles(clip), "a tile of y comes too early", s);
            }
        }
    }
    expect(static_cast<int>(seen.size()) == s.tiles(), "a tile comes twice", s);
    seen.clear();
    for (int i = 0; i < s.mix_tasks(); ++i) {
        const MixTask task = s.mix_task(i);
        ++mixed[task.clip];
        expect(task.channel + kMixChannels <= s.columns, "a task has channels outside", s);
        for (int strip = task.first_strip; strip < task.end_strip; ++strip) {
            seen.insert({task.clip, task.channel, strip});
        }
    }
    const int strips = s.clips() * s.frames * s.frame_strips() * (s.columns / kMixChannels);
    expect(static_cast<int>(seen.size()) == strips, "strips are missing", s);
    for (int clip = 0; clip < s.clips(); ++clip) {
        expect(projected[clip] == s.clip_tiles(clip), "a clip's tiles are miscounted", s);
        expect(mixed[clip] == s.clip_tasks(), "a clip's tasks are miscounted", s);
    }
    ++comparisons;
}

}  // namespace

int main() {
    using hopper::Bf16;
    using hopper::Half;
    for (int i = 0; i < 200; ++i) check_schedule();
    //                  B  T  H  W  c  D    R   TE    TD     shared residual bias clusters
    check<Bf16, 128>({2, 3, 3, 3, 1, 128, 64, true, true, false, true, true, 1}, "bf16");
    check<Bf16, 128>({2, 8, 5, 9, 1, 128, 64, true, true, false, true, true, 2}, "bf16");
    check<Bf16, 256>({1, 3, 7, 7, 1, 320, 64, true, true, false, true, true, 2}, "bf16");
    check<Bf16, 192>({3, 2, 5, 9, 0, 256, 128, true, true, true, true, true, 2}, "bf16");
    check<Half, 256>({5, 2, 1, 1, 1, 128, 64, true, true, true, false, true, 1}, "fp16");
    check<Half, 128>({70, 1, 1, 1, 1, 64, 64, true, true, false, true, true, 2}, "fp16");
    check<Bf16, 192>({2, 2, 3, 3, 1, 64, 64, true, false, false, true, false, 1}, "bf16");
    check<Bf16, 128>({2, 3, 3, 3, 1, 64, 64, false, true, false, true, false, 1}, "bf16");
    check<Bf16, 128>({1, 8, 7, 7, 0, 64, 64, false, true, false, false, true, 3}, "bf16");
    using namespace hopper::emulated;
    printf("%d comparisons, %d wrong; %lld box loads, %lld box stores, %lld products\n", comparisons, failures,
           static_cast<long long>(box_loads), static_cast<long long>(box_stores), static_cast<long long>(products));
    return failures == 0 ? 0 : 1;
}
