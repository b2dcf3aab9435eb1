// The losses against softmax and logarithm written out in double precision.
#include "../../csrc/cpu/losses.h"

#include <algorithm>
#include <stdexcept>

#include "check.h"

namespace {

struct Problem {
    int64_t rows, columns;
    double scale, gradient;
    Values dots, row_inverse, column_inverse;

    Problem(int64_t b, int64_t c)
        : rows(b),
          columns(c),
          scale(14.25),
          gradient(0.75),
          dots(random_values<float>(b * c, 4)),
          row_inverse(random_values<float>(b)),
          column_inverse(random_values<float>(c)) {
        for (double& value : row_inverse) value = static_cast<float>(fabs(value) + 0.1);
        for (double& value : column_inverse) value = static_cast<float>(fabs(value) + 0.1);
    }
    double cosine(int64_t i, int64_t c) const { return dots[i * columns + c] * row_inverse[i] * column_inverse[c]; }
    double logit(int64_t i, int64_t c) const { return scale * cosine(i, c); }
};

struct LogSum {
    double most, rest;

    explicit LogSum(const Values& logits) : most(-INFINITY), rest(0) {
        for (double logit : logits) most = std::max(most, logit);
        for (double logit : logits) rest += exp(logit - most);
        rest = log(rest);
    }
    double total() const { return most + rest; }
};

// Of each row or column, as the kernels keep it.
struct Softmaxes {
    Values memory;

    template <typename Logit>
    Softmaxes(int64_t size, int64_t others, Logit logit) : memory(2 * size) {
        for (int64_t i = 0; i < size; ++i) {
            Values logits(others);
            for (int64_t j = 0; j < others; ++j) logits[j] = logit(i, j);
            const LogSum sum(logits);
            memory[i] = sum.most;
            memory[size + i] = sum.rest;
        }
    }
    double log_sum(int64_t i) const { return memory[i] + memory[memory.size() / 2 + i]; }
};

Softmaxes row_softmax(const Problem& p) {
    return {p.rows, p.columns, [&](int64_t i, int64_t c) { return p.logit(i, c); }};
}

Softmaxes column_softmax(const Problem& p) {
    return {p.columns, p.rows, [&](int64_t c, int64_t i) { return p.logit(i, c); }};
}

// How far rounding to fp32 may move exp(logit - log_sum). A logit is a product of four numbers, rounded three times; its
// log-sum comes in two rounded parts from elsewhere, and so is the difference.
double wobble(double logit, double log_sum) {
    const double unit = 1.0 / (1 << 24), difference = logit - log_sum;
    return exp(difference) * unit * (3 * fabs(logit) + fabs(log_sum) + fabs(difference));
}

// What the loss's gradient of every logit makes of dots, lengths and scale, and its wobble of the roundings there.
std::vector<Expected> slopes(const Problem& p, const Values& per_logit, const Values& wobbles) {
    std::vector<Expected> all = {{"slopes", Values(p.rows * p.columns), 2e-5},
                                 {"row_pull", Values(p.rows), 2e-5},
                                 {"column_pull", Values(p.columns), 2e-5},
                                 {"scale", Values(1), 1e-4}};
    std::vector<Values> rounding;
    for (const Expected& one : all) rounding.emplace_back(one.values.size());
    for (int64_t i = 0; i < p.rows; ++i) {
        for (int64_t c = 0; c < p.columns; ++c) {
            const int64_t at = i * p.columns + c;
            const double row = p.row_inverse[i], column = p.column_inverse[c], cosine = p.cosine(i, c);
            const double factors[] = {p.scale * row * column, -p.scale * cosine * row * row,
                                      -p.scale * cosine * column * column, cosine};
            const int64_t places[] = {at, i, c, 0};
            for (size_t k = 0; k < all.size(); ++k) {
                all[k].values[places[k]] += per_logit[at] * factors[k];
                rounding[k][places[k]] += wobbles[at] * fabs(factors[k]);
            }
        }
    }
    for (size_t k = 0; k < all.size(); ++k) {
        all[k].rounding = *std::max_element(rounding[k].begin(), rounding[k].end());
    }
    return all;
}

// The problem and room for its gradients, in memory of their own.
struct Memory {
    const Problem& p;
    Buffer<float> dots, row_inverse, column_inverse, scale, gradient, slopes, row_pull, column_pull, scale_gradient;

    explicit Memory(const Problem& problem)
        : p(problem),
          dots(p.dots),
          row_inverse(p.row_inverse),
          column_inverse(p.column_inverse),
          scale(Values{p.scale}),
          gradient(Values{p.gradient}),
          slopes(p.dots.size()),
          row_pull(p.rows),
          column_pull(p.columns),
          scale_gradient(1) {}
    CosineProblem problem() const {
        return {p.rows, p.columns, dots.data(), row_inverse.data(), column_inverse.data(), scale.data()};
    }
    CosineGradients gradients() const {
        return {slopes.data(), row_pull.data(), column_pull.data(), scale_gradient.data()};
    }
    std::vector<Values> found() const {
        return {slopes.values(), row_pull.values(), column_pull.values(), scale_gradient.values()};
    }
};

std::unique_ptr<int64_t[]> copy_of(const std::vector<int64_t>& values) {
    std::unique_ptr<int64_t[]> copy(new int64_t[values.size()]);
    std::copy(values.begin(), values.end(), copy.get());
    return copy;
}

void check_cross_entropy(int64_t rows, int64_t columns) {
    const Problem p(rows, columns);
    std::vector<int64_t> targets(rows);
    for (int64_t& target : targets) target = random_bits() % columns;
    const Softmaxes softmax = row_softmax(p);
    Values loss(1), per_logit(rows * columns), wobbles(rows * columns);
    for (int64_t i = 0; i < rows; ++i) {
        loss[0] += (softmax.log_sum(i) - p.logit(i, targets[i])) / static_cast<double>(rows);
        for (int64_t c = 0; c < columns; ++c) {
            const double share = exp(p.logit(i, c) - softmax.log_sum(i)) - (c == targets[i]);
            per_logit[i * columns + c] = p.gradient / static_cast<double>(rows) * share;
            wobbles[i * columns + c] =
                p.gradient / static_cast<double>(rows) * wobble(p.logit(i, c), softmax.log_sum(i));
        }
    }
    const std::string where = "cross-entropy " + std::to_string(rows) + "x" + std::to_string(columns);
    check(where, {{"loss", loss, 1e-5}, {"row_softmax", softmax.memory, 1e-5}}, [&](int threads) {
        const Memory memory(p);
        const Buffer<float> to(1), sums(2 * rows);
        run_cross_entropy_forward(memory.problem(), copy_of(targets).get(), to.data(), sums.data(), threads);
        return std::vector<Values>{to.values(), sums.values()};
    });
    check(where + ", backward", slopes(p, per_logit, wobbles), [&](int threads) {
        const Memory memory(p);
        const Buffer<float> sums(softmax.memory);
        run_cross_entropy_backward(memory.problem(), copy_of(targets).get(), sums.data(), memory.gradient.data(),
                                   memory.gradients(), threads);
        return memory.found();
    });
}

void check_soft_target(int64_t rows, uint32_t classes) {
    const Problem p(rows, rows);
    const double target_scale = 10;
    std::vector<int64_t> labels(rows);
    for (int64_t& label : labels) label = static_cast<int64_t>(random_bits() % classes) * 1000 - 7;
    const Softmaxes of_row = row_softmax(p), of_column = column_softmax(p);
    Values target_log_sums(rows), loss(1), per_logit(rows * rows), wobbles(rows * rows);
    const auto same = [&](int64_t i, int64_t j) { return labels[i] == labels[j] ? target_scale : 0.0; };
    for (int64_t i = 0; i < rows; ++i) {
        Values row(rows);
        for (int64_t j = 0; j < rows; ++j) row[j] = same(i, j);
        target_log_sums[i] = LogSum(row).total();
    }
    const double share = 1 / (2.0 * static_cast<double>(rows));
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < rows; ++j) {
            const double row_target = same(i, j) - target_log_sums[i], column_target = same(i, j) - target_log_sums[j];
            const double row = p.logit(i, j) - of_row.log_sum(i), column = p.logit(i, j) - of_column.log_sum(j);
            loss[0] += share * (exp(row_target) * (row_target - row) + exp(column_target) * (column_target - column));
            per_logit[i * rows + j] =
                p.gradient * share * (exp(row) - exp(row_target) + exp(column) - exp(column_target));
            wobbles[i * rows + j] = p.gradient * share * (wobble(p.logit(i, j), of_row.log_sum(i)) +
                                                          wobble(p.logit(i, j), of_column.log_sum(j)));
        }
    }
    const std::string where = "soft targets " + std::to_string(rows);
    const std::vector<Expected> expected = {
        {"loss", loss, 1e-5}, {"row_softmax", of_row.memory, 1e-5}, {"column_softmax", of_column.memory, 1e-5}};
    check(where, expected, [&](int threads) {
        const Memory memory(p);
        const Buffer<float> to(1), of_rows(2 * rows), of_columns(2 * rows);
        run_soft_target_forward(memory.problem(), copy_of(labels).get(), target_scale, to.data(), of_rows.data(),
                                of_columns.data(), threads);
        return std::vector<Values>{to.values(), of_rows.values(), of_columns.values()};
    });
    check(where + ", backward", slopes(p, per_logit, wobbles), [&](int threads) {
        const Memory memory(p);
        const Buffer<float> of_rows(of_row.memory), of_columns(of_column.memory);
        run_soft_target_backward(memory.problem(), copy_of(labels).get(), target_scale, of_rows.data(),
                                 of_columns.data(), memory.gradient.data(), memory.gradients(), threads);
        return memory.found();
    });
}

// With what the forward pass keeps, not numbers rounded elsewhere, what is alone has a softmax of exactly 1.
void check_alone() {
    const Problem p(1, 1);
    const int64_t label = 0;
    const std::vector<Expected> nothing = {
        {"slopes", {0}, 0}, {"row_pull", {0}, 0}, {"column_pull", {0}, 0}, {"scale", {0}, 0}};
    check("cross-entropy of one class", nothing, [&](int threads) {
        const Memory memory(p);
        const Buffer<float> loss(1), sum(2);
        run_cross_entropy_forward(memory.problem(), &label, loss.data(), sum.data(), threads);
        run_cross_entropy_backward(memory.problem(), &label, sum.data(), memory.gradient.data(), memory.gradients(),
                                   threads);
        return memory.found();
    });
    check("soft targets of one sample", nothing, [&](int threads) {
        const Memory memory(p);
        const Buffer<float> loss(1), row(2), column(2);
        run_soft_target_forward(memory.problem(), &label, 10, loss.data(), row.data(), column.data(), threads);
        run_soft_target_backward(memory.problem(), &label, 10, row.data(), column.data(), memory.gradient.data(),
                                 memory.gradients(), threads);
        return memory.found();
    });
}

void check_softmax_minus_target(int64_t rows, int64_t columns) {
    const Values logits = random_values<float>(rows * columns, 20);
    std::vector<int64_t> targets(rows);
    Values result(rows * columns), loss(1);
    for (int64_t i = 0; i < rows; ++i) {
        targets[i] = random_bits() % columns;
        const Values row(logits.begin() + i * columns, logits.begin() + (i + 1) * columns);
        const double log_sum = LogSum(row).total();
        loss[0] += log_sum - row[targets[i]];
        for (int64_t c = 0; c < columns; ++c) result[i * columns + c] = exp(row[c] - log_sum) - (c == targets[i]);
    }
    const std::string where = "softmax minus target " + std::to_string(rows) + "x" + std::to_string(columns);
    check(where, {{"result", result, 1e-5}, {"loss", loss, 1e-5}}, [&](int threads) {
        const Buffer<float> data(logits);
        const double sum = run_softmax_minus_target(data.data(), rows, columns, copy_of(targets).get(), threads);
        return std::vector<Values>{data.values(), {sum}};
    });
}

// Rows of `size` values, `gap` unused ones between them; the last row has none behind it.
void check_inverse_lengths(int64_t rows, int64_t size, int64_t gap) {
    const int64_t stride = size + gap;
    Values x = random_values<float>(rows * stride - gap), inverse(rows);
    for (int64_t c = 0; c < size; ++c) x[c] = 0;  // a row without length
    for (int64_t i = 0; i < rows; ++i) {
        double sum = 0;
        for (int64_t c = 0; c < size; ++c) sum += x[i * stride + c] * x[i * stride + c];
        inverse[i] = 1 / std::max(sqrt(sum), 1e-12);
    }
    // In logarithms, as the first is 10^12 and the others are near 1.
    const auto logarithms = [](Values values) {
        for (double& value : values) value = log(value);
        return values;
    };
    const std::string where = "inverse lengths " + std::to_string(rows) + "x" + std::to_string(size);
    check(where, {{"out", logarithms(inverse), 1e-6}}, [&](int threads) {
        const Buffer<float> in(x), out(rows);
        run_inverse_lengths(in.data(), rows, size, stride, out.data(), threads);
        return std::vector<Values>{logarithms(out.values())};
    });
}

void check_refused_targets() {
    for (const int64_t target : {-1, 3}) {
        const Buffer<float> logits(Values(6, 0.5));
        const std::vector<int64_t> targets = {0, target};
        ++comparisons;
        try {
            run_softmax_minus_target(logits.data(), 2, 3, copy_of(targets).get(), 1);
            fail("softmax minus target", "a target that is no class is not refused");
        } catch (const std::invalid_argument&) {
        }
    }
}

}  // namespace

void check_losses() {
    // Large ones are shared among threads, and are several blocks wide and high.
    check_cross_entropy(1, 1);
    check_cross_entropy(5, 37);
    check_cross_entropy(70, 300);
    check_cross_entropy(260, 257);
    check_soft_target(1, 1);
    check_alone();
    check_soft_target(13, 4);
    check_soft_target(260, 9);
    check_softmax_minus_target(1, 1);
    check_softmax_minus_target(7, 45);
    check_softmax_minus_target(50, 1500);
    check_inverse_lengths(3, 5, 0);
    check_inverse_lengths(4, 90, 3);
    check_inverse_lengths(300, 250, 1);
    check_refused_targets();
}
