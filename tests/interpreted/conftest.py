"""Triton kernels on the CPU, by Triton's interpreter: collected only where TRITON_INTERPRET=1 is set (`make test`)."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]
