// The losses of m2clip.kernels._native; addresses as in module.cpp.
#include "losses_module.h"

#include "losses.h"
#include "sizes.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

void inverse_lengths(Address x, int64_t rows, int64_t size, int64_t stride, Address out, int threads) {
    require_matrix("inverse_lengths", rows, size);
    run_inverse_lengths(at<float>(x), rows, size, stride, at<float>(out), threads);
}

void cross_entropy_forward(const CosineProblem& problem, Address targets, Address loss, Address row_softmax,
                           int threads) {
    run_cross_entropy_forward(problem, at<int64_t>(targets), at<float>(loss), at<float>(row_softmax), threads);
}

void cross_entropy_backward(const CosineProblem& problem, Address targets, Address row_softmax, Address loss_gradient,
                            const CosineGradients& out, int threads) {
    run_cross_entropy_backward(problem, at<int64_t>(targets), at<float>(row_softmax), at<float>(loss_gradient), out,
                               threads);
}

// A sample is a row and a column.
void require_square(const CosineProblem& problem) {
    if (problem.rows != problem.columns) {
        throw std::invalid_argument("soft targets: " + std::to_string(problem.rows) + " rows and " +
                                    std::to_string(problem.columns) + " columns are not the same samples");
    }
}

void soft_target_forward(const CosineProblem& problem, Address labels, double target_scale, Address loss,
                         Address row_softmax, Address column_softmax, int threads) {
    require_square(problem);
    run_soft_target_forward(problem, at<int64_t>(labels), target_scale, at<float>(loss), at<float>(row_softmax),
                            at<float>(column_softmax), threads);
}

void soft_target_backward(const CosineProblem& problem, Address labels, double target_scale, Address row_softmax,
                          Address column_softmax, Address loss_gradient, const CosineGradients& out, int threads) {
    require_square(problem);
    run_soft_target_backward(problem, at<int64_t>(labels), target_scale, at<float>(row_softmax),
                             at<float>(column_softmax), at<float>(loss_gradient), out, threads);
}

double softmax_minus_target(Address logits, int64_t rows, int64_t columns, Address targets, int threads) {
    require_matrix("softmax_minus_target", rows, columns);
    return run_softmax_minus_target(at<float>(logits), rows, columns, at<int64_t>(targets), threads);
}

}  // namespace

void export_losses(py::module_& m) {
    py::class_<CosineProblem>(m, "CosineProblem")
        .def(py::init([](int64_t rows, int64_t columns, Address dots, Address row_inverse, Address column_inverse,
                         Address scale) {
            require_matrix("cosine logits", rows, columns, 0);
            return CosineProblem{rows, columns, at<float>(dots), at<float>(row_inverse), at<float>(column_inverse),
                                 at<float>(scale)};
        }));
    py::class_<CosineGradients>(m, "CosineGradients")
        .def(py::init([](Address slopes, Address row_pull, Address column_pull, Address scale) {
            return CosineGradients{at<float>(slopes), at<float>(row_pull), at<float>(column_pull), at<float>(scale)};
        }));
    const py::call_guard<py::gil_scoped_release> unlocked;
    m.def("inverse_lengths", &inverse_lengths, unlocked);
    m.def("cross_entropy_forward", &cross_entropy_forward, unlocked);
    m.def("cross_entropy_backward", &cross_entropy_backward, unlocked);
    m.def("soft_target_forward", &soft_target_forward, unlocked);
    m.def("soft_target_backward", &soft_target_backward, unlocked);
    m.def("softmax_minus_target", &softmax_minus_target, unlocked);
}
