#pragma once

#include <pybind11/pybind11.h>

void export_losses(pybind11::module_& m);
