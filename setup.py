"""Package layout: the folder kernels/ is installed as m2clip.kernels, never as a top-level package."""

from setuptools import find_packages, setup

kernels = ["m2clip.kernels", *(f"m2clip.kernels.{name}" for name in find_packages("kernels"))]

setup(packages=[*find_packages(include=["m2clip", "m2clip.*"]), *kernels], package_dir={"m2clip.kernels": "kernels"})
