// Passes over rows and activations against one line of double precision each.
#include "../../csrc/cpu/rows.h"

#include "check.h"

namespace {

template <typename T>
void check_residual(int64_t frames, int64_t tokens, bool class_token, int64_t columns) {
    const size_t size = static_cast<size_t>(frames * tokens * columns);
    const Values x = random_values<T>(size), class_bias = random_values<float>(columns);
    const Values patch_bias = random_values<float>(columns);
    Values sum = x, class_sums(columns), patch_sums(columns);
    for (size_t i = 0; i < size; ++i) {
        const int64_t column = static_cast<int64_t>(i) % columns, token = static_cast<int64_t>(i) / columns % tokens;
        const bool first = class_token && token == 0;
        sum[i] += first ? class_bias[column] : patch_bias[column];
        (first ? class_sums : patch_sums)[column] += x[i];
    }
    const std::string where = std::string(dtype_name<T>) + ", " + std::to_string(frames) + " frames of " +
                              std::to_string(tokens) + " tokens, D=" + std::to_string(columns);

    check("add_bias, " + where, {{"out", sum, rounding<T>}}, [&](int threads) {
        const Buffer<T> in(x), out(size);
        const Buffer<float> first(class_bias), rest(patch_bias);
        run_add_bias(in.data(), first.data(), rest.data(), out.data(), frames, tokens, class_token, columns, threads);
        return std::vector<Values>{out.values()};
    });
    for (const bool copied : {true, false}) {
        std::vector<Expected> expected = {{"class_sums", class_sums, 1e-5}, {"patch_sums", patch_sums, 1e-5}};
        if (copied) expected.push_back({"out", x, 0});
        check("copy_and_sum, " + where, expected, [&](int threads) {
            const Buffer<T> in(x), out(size);
            const Buffer<float> first(columns), rest(columns);
            run_copy_and_sum(in.data(), copied ? out.data() : nullptr, first.data(), rest.data(), frames, tokens,
                             class_token, columns, threads);
            return std::vector<Values>{first.values(), rest.values(), out.values()};
        });
    }
}

struct Point {
    double value, slope;
};

Point gelu(double x) {
    const double integral = erfc(-x / sqrt(2.0)) / 2, bell = exp(-x * x / 2) / sqrt(2 * M_PI);
    return {x * integral, integral + x * bell};
}
Point quick_gelu(double x) {
    const double gate = 1 / (1 + exp(-1.702 * x));
    return {x * gate, gate + 1.702 * x * gate * (1 - gate)};
}
Point relu(double x) { return x > 0 ? Point{x, 1} : Point{0, 0}; }
Point none(double x) { return {x, 1}; }

template <typename T>
void check_activation(const char* name, Activation kind, Point (*truth)(double), int64_t rows, int64_t columns) {
    const size_t size = static_cast<size_t>(rows * columns);
    const Values h = random_values<T>(size, 8), dg = random_values<T>(size);
    Values g(size), dh(size), sums(columns);
    for (size_t i = 0; i < size; ++i) {
        const Point point = truth(h[i]);
        g[i] = point.value;
        dh[i] = dg[i] * point.slope;
        sums[static_cast<int64_t>(i) % columns] += dh[i];
    }
    const std::string where = std::string(name) + ", " + dtype_name<T> + ", " + std::to_string(rows) + "x" +
                              std::to_string(columns);
    check(where + ", forward", {{"g", g, rounding<T>}}, [&](int threads) {
        const Buffer<T> in(h), out(size);
        run_activation(kind, in.data(), out.data(), rows, columns, threads);
        return std::vector<Values>{out.values()};
    });
    for (const bool with_g : {true, false}) {
        std::vector<Expected> expected = {{"dh", dh, rounding<T>}, {"sums", sums, 1e-5}};
        if (with_g) expected.push_back({"g", g, rounding<T>});
        check(where + ", backward", expected, [&](int threads) {
            const Buffer<T> in(h), slope(dg), out(size), gradient(size);
            const Buffer<float> total(columns);
            run_activation_backward(kind, in.data(), slope.data(), with_g ? out.data() : nullptr, gradient.data(),
                                    total.data(), rows, columns, threads);
            return std::vector<Values>{gradient.values(), total.values(), out.values()};
        });
    }
}

}  // namespace

void check_rows() {
    for (const int64_t columns : {1, 16, 45}) {
        for (const bool class_token : {false, true}) {
            for (const auto& [frames, tokens] : {std::pair<int64_t, int64_t>{0, 3}, {1, 1}, {3, 5}, {130, 9}}) {
                check_residual<float>(frames, tokens, class_token, columns);
                check_residual<bf16>(frames, tokens, class_token, columns);
            }
        }
    }
}

void check_activations() {
    struct {
        const char* name;
        Activation kind;
        Point (*truth)(double);
    } const kinds[] = {{"gelu", Activation::gelu, gelu},
                       {"quick_gelu", Activation::quick_gelu, quick_gelu},
                       {"relu", Activation::relu, relu},
                       {"none", Activation::none, none}};
    for (const auto& [name, kind, truth] : kinds) {
        for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{0, 7}, {1, 1}, {7, 45}, {700, 60}}) {
            check_activation<float>(name, kind, truth, rows, columns);
            check_activation<bf16>(name, kind, truth, rows, columns);
        }
    }
}
