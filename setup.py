"""Package layout and the compiled extensions.

The folder kernels/ is installed as m2clip.kernels, never as a top-level package; csrc/ is compiled into m2clip._native,
and csrc/cuda/ into m2clip._cuda where there is an nvcc.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# Build back ends do not put the project's folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parent / "csrc"))
import cuda_build  # noqa: E402
import native_build  # noqa: E402

code = find_packages(include=["m2clip", "m2clip.*"])
# setuptools takes every folder it installs for a package, those of data as well.
data = ["m2clip.assets", "m2clip.configs", "m2clip.data.labels"]
kernels = ["m2clip.kernels", *(f"m2clip.kernels.{name}" for name in find_packages("kernels"))]


class NinjaBuild(build_ext):
    """Leaves compiling to ninja, and where that cannot be done a note in an extension's place."""

    def run(self) -> None:
        for name, place in (("NATIVE", native_build.place), ("CUDA", cuda_build.place)):
            module = Path(self.get_ext_fullpath(f"m2clip._{name.lower()}"))
            try:
                place(module, os.environ.get(f"M2CLIP_{name}", ""))
            except native_build.CannotBuild as problem:
                kernels = native_build.KERNELS[name]
                sys.exit(f"{problem.output}m2clip: cannot build the compiled {kernels} kernels: {problem}")


setup(
    packages=[*code, *data, *kernels],
    package_dir={"m2clip.kernels": "kernels"},
    ext_modules=[Extension(f"m2clip._{name}", sources=[]) for name in ("native", "cuda")],
    cmdclass={"build_ext": NinjaBuild},
)
