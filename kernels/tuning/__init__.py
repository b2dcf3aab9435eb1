"""Measuring kernels on this machine: `candidates` says what, `measure` does it, `store` keeps what was found."""
