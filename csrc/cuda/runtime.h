// What the extension module asks of the CUDA runtime.
#pragma once

// The runtime's words for an error of a launch; `code` < 0 is a driver's CUresult, negated.
const char* error_text(int code);

// Highest CUDA version that the installed driver can run, as 1000 * major + 10 * minor; 0 without a driver.
int driver_version();
