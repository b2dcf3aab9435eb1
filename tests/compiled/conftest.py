"""Triton kernels compiled ahead of time, which needs no GPU: nothing to collect where Triton is not installed."""

from importlib.util import find_spec

if find_spec("triton") is None:
    collect_ignore_glob = ["*"]
