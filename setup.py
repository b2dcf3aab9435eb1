"""Package layout: the folder kernels/ is installed as m2clip.kernels, never as a top-level package."""

from setuptools import find_packages, setup

code = find_packages(include=["m2clip", "m2clip.*"])
# setuptools takes every folder it installs for a package, those of data as well.
data = ["m2clip.assets", "m2clip.configs", "m2clip.data.labels"]
kernels = ["m2clip.kernels", *(f"m2clip.kernels.{name}" for name in find_packages("kernels"))]

setup(packages=[*code, *data, *kernels], package_dir={"m2clip.kernels": "kernels"})
