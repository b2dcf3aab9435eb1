#include "losses.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace {

constexpr float least_length = 1e-12f;
constexpr int64_t block_rows = 64, block_columns = 128;  // of a task in the backward pass
constexpr int64_t work_per_thread = 1 << 14;             // elements that are worth another thread

const LossKernels& kernels() { return instruction_set().losses; }

int worth(int threads, int64_t elements) {
    return static_cast<int>(std::clamp<int64_t>(elements / work_per_thread, 1, std::max(threads, 1)));
}

CosineLogits logits_of(const CosineProblem& p) {
    return {p.rows, p.columns, p.dots, p.row_inverse, p.column_inverse, *p.scale};
}

// In memory of 2 * size values.
Softmax softmax_in(float* memory, int64_t size) { return {memory, memory + size}; }

void check_targets(const int64_t* targets, int64_t rows, int64_t classes) {
    for (int64_t i = 0; i < rows; ++i) {
        if (targets[i] < 0 || targets[i] >= classes) {
            throw std::invalid_argument("targets must lie in [0, " + std::to_string(classes) + "), got " +
                                        std::to_string(targets[i]));
        }
    }
}

// Labels as dense numbers, and what each row's target distribution is made of.
struct GroupedLabels {
    std::vector<int32_t> group;
    std::vector<float> log_same, log_other, same, other;

    GroupedLabels(const int64_t* labels, int64_t rows, double target_scale)
        : group(rows), log_same(rows), log_other(rows), same(rows), other(rows) {
        std::vector<int64_t> sorted(labels, labels + rows);
        std::sort(sorted.begin(), sorted.end());
        const double most = std::max(target_scale, 0.0);
        for (int64_t i = 0; i < rows; ++i) {
            const auto [begin, end] = std::equal_range(sorted.begin(), sorted.end(), labels[i]);
            const double equal = static_cast<double>(end - begin), others = static_cast<double>(rows) - equal;
            const double log_sum = most + std::log(equal * std::exp(target_scale - most) + others * std::exp(-most));
            group[i] = static_cast<int32_t>(begin - sorted.begin());
            log_same[i] = static_cast<float>(target_scale - log_sum);
            log_other[i] = static_cast<float>(-log_sum);
            same[i] = static_cast<float>(std::exp(target_scale - log_sum));
            other[i] = static_cast<float>(std::exp(-log_sum));
        }
    }
    SoftTargets targets() const {
        return {group.data(), log_same.data(), log_other.data(), same.data(), other.data()};
    }
};

// Runs slopes(block, out) on blocks of fixed size and adds their sums up in the order of the blocks.
template <typename Slopes>
void run_slopes(const CosineProblem& p, const CosineGradients& out, int threads, Slopes slopes) {
    const int64_t bands = (p.rows + block_rows - 1) / block_rows;
    const int64_t strips = (p.columns + block_columns - 1) / block_columns;
    std::vector<float> row_sums(strips * p.rows), column_sums(bands * p.columns);
    auto run = [&](int, int64_t task) {
        const int64_t band = task / strips, strip = task % strips;
        const LogitBlock block{band * block_rows, std::min((band + 1) * block_rows, p.rows), strip * block_columns,
                               std::min((strip + 1) * block_columns, p.columns)};
        slopes(block, {out.slopes, row_sums.data() + strip * p.rows, column_sums.data() + band * p.columns});
    };
    parallel(worth(threads, p.rows * p.columns), bands * strips, run);

    // The gradient of a length pulls a feature along itself; a length that was raised to the least one has none.
    const auto pull = [&](const std::vector<float>& sums, int64_t parts, int64_t size, const float* inverse,
                          float* to) {
        double all = 0;
        for (int64_t i = 0; i < size; ++i) {
            double sum = 0;
            for (int64_t part = 0; part < parts; ++part) sum += sums[part * size + i];
            const double square = static_cast<double>(inverse[i]) * inverse[i];
            to[i] = inverse[i] < 1.0f / least_length ? static_cast<float>(-*p.scale * sum * square) : 0.0f;
            all += sum;
        }
        return all;
    };
    *out.scale = static_cast<float>(pull(row_sums, strips, p.rows, p.row_inverse, out.row_pull));
    pull(column_sums, bands, p.columns, p.column_inverse, out.column_pull);
}

}  // namespace

void run_inverse_lengths(const float* x, int64_t rows, int64_t size, int64_t stride, float* out, int threads) {
    auto run = [&](int, int64_t row) {
        out[row] = 1.0f / std::max(std::sqrt(kernels().sum_squares(x + row * stride, size)), least_length);
    };
    parallel(worth(threads, rows * size), rows, run);
}

void run_cross_entropy_forward(const CosineProblem& p, const int64_t* targets, float* loss, float* row_softmax,
                               int threads) {
    check_targets(targets, p.rows, p.columns);
    const CosineLogits logits = logits_of(p);
    const Softmax rows = softmax_in(row_softmax, p.rows);
    auto run = [&](int, int64_t row) { kernels().row_softmax(logits, row, rows); };
    parallel(worth(threads, p.rows * p.columns), p.rows, run);
    double sum = 0;
    for (int64_t i = 0; i < p.rows; ++i) {
        const float dot = p.dots[i * p.columns + targets[i]];
        const float logit = dot * (logits.factor(i) * p.column_inverse[targets[i]]);
        sum += (static_cast<double>(rows.largest[i]) - logit) + rows.log_sum[i];
    }
    *loss = static_cast<float>(p.rows ? sum / static_cast<double>(p.rows) : 0.0);
}

void run_cross_entropy_backward(const CosineProblem& p, const int64_t* targets, float* row_softmax,
                                const float* loss_gradient, const CosineGradients& out, int threads) {
    const CosineLogits logits = logits_of(p);
    const CrossEntropySlope slope{softmax_in(row_softmax, p.rows), targets,
                                  *loss_gradient / static_cast<float>(p.rows)};
    run_slopes(p, out, threads, [&](const LogitBlock& block, const CosineSlopes& to) {
        kernels().cross_entropy_slopes(logits, slope, block, to);
    });
}

void run_soft_target_forward(const CosineProblem& p, const int64_t* labels, double target_scale, float* loss,
                             float* row_softmax, float* column_softmax, int threads) {
    const CosineLogits logits = logits_of(p);
    const GroupedLabels grouped(labels, p.rows, target_scale);
    const Softmax rows = softmax_in(row_softmax, p.rows), columns = softmax_in(column_softmax, p.columns);
    const SoftSlope slope{rows, columns, grouped.targets(), 0};
    const int64_t strips = (p.columns + block_columns - 1) / block_columns;
    std::vector<float> row_loss(p.rows);
    auto sums = [&](int, int64_t task) {
        if (task < p.rows) {
            kernels().row_softmax(logits, task, rows);
            return;
        }
        const int64_t first = (task - p.rows) * block_columns;
        kernels().column_softmax(logits, first, std::min(first + block_columns, p.columns), columns);
    };
    auto losses = [&](int, int64_t row) { row_loss[row] = kernels().soft_row_loss(logits, slope, row); };
    parallel(worth(threads, p.rows * p.columns), p.rows + strips, sums);
    parallel(worth(threads, p.rows * p.columns), p.rows, losses);
    double sum = 0;
    for (float value : row_loss) sum += value;
    *loss = static_cast<float>(p.rows ? sum / (2.0 * static_cast<double>(p.rows)) : 0.0);
}

void run_soft_target_backward(const CosineProblem& p, const int64_t* labels, double target_scale,
                              float* row_softmax, float* column_softmax, const float* loss_gradient,
                              const CosineGradients& out, int threads) {
    const CosineLogits logits = logits_of(p);
    const GroupedLabels grouped(labels, p.rows, target_scale);
    const float weight = *loss_gradient / (2.0f * static_cast<float>(p.rows));
    const SoftSlope slope{softmax_in(row_softmax, p.rows), softmax_in(column_softmax, p.columns), grouped.targets(),
                          weight};
    run_slopes(p, out, threads, [&](const LogitBlock& block, const CosineSlopes& to) {
        kernels().soft_slopes(logits, slope, block, to);
    });
}

double run_softmax_minus_target(float* logits, int64_t rows, int64_t columns, const int64_t* targets, int threads) {
    check_targets(targets, rows, columns);
    std::vector<float> losses(rows);
    auto run = [&](int, int64_t row) {
        losses[row] = kernels().softmax_minus_target(logits + row * columns, columns, targets[row]);
    };
    parallel(worth(threads, rows * columns), rows, run);
    double sum = 0;
    for (float value : losses) sum += value;
    return sum;
}
