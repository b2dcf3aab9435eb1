"""Triton kernels for NVIDIA GPUs, one file a family; imported where they are used."""
