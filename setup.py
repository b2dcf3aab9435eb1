"""Package layout and the compiled extensions.

Links put the packages where Python, type checkers and setuptools look for them: m2clip/kernels is the folder kernels/,
and src/ holds m2clip alone, so that an editable installation puts no other folder of the checkout on the path.
csrc/cpu/ is compiled into m2clip.kernels._native, and csrc/cuda/ into m2clip.kernels._cuda where there is an nvcc.
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

# setuptools takes every folder it installs for a package, those of data as well.
data = ["m2clip.assets", "m2clip.configs", "m2clip.data.labels"]


class NinjaBuild(build_ext):
    """Leaves compiling to ninja, and where that cannot be done a note in an extension's place."""

    def run(self) -> None:
        for name, place in (("NATIVE", native_build.place), ("CUDA", cuda_build.place)):
            module = Path(self.get_ext_fullpath(f"m2clip.kernels._{name.lower()}"))
            try:
                place(module, os.environ.get(f"M2CLIP_{name}", ""))
            except native_build.CannotBuild as problem:
                kernels = native_build.KERNELS[name]
                sys.exit(f"{problem.output}m2clip: cannot build the compiled {kernels} kernels: {problem}")


setup(
    packages=[*find_packages("src"), *data],
    package_dir={"": "src"},
    ext_modules=[Extension(f"m2clip.kernels._{name}", sources=[]) for name in ("native", "cuda")],
    cmdclass={"build_ext": NinjaBuild},
)
