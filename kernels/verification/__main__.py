"""The process that verifies: `python -m m2clip.kernels.verification`."""

from .worker import main

main()
