"""The steps of gpu_suite.py: what each runs, for how long, and which may run at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST_TESTS = ("test_ted.py", "test_bottleneck.py", "test_losses.py", "test_every_op.py")  # if time runs out
CHECKS = 0.5  # share of the time that is left after the build
# Benchmarks and their shares of the time after that.
BENCHMARKS = {
    "adapter_speed": 0.38,
    "mixer_speed": 0.10,
    "bottleneck_speed": 0.12,
    "msta_speed": 0.12,
    "loss_speed": 0.12,
    "train_speed": 0.20,
    "inference_speed": 0.08,
}
GOALS_SECONDS, START_SECONDS = 15.0, 12.0  # a benchmark's own budget starts when PyTorch is loaded


@dataclass(frozen=True)
class Step:
    """One command; the word "python" stands for the Python that the suite has found.

    limit: seconds after which it is ended. modules: what it imports that a machine with PyTorch may lack. tool: a
    program that it needs.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    tool: str = ""

    @property
    def script(self) -> str | None:
        """The Python file that it runs, where that is one of this checkout."""
        return next((word for word in self.command if word.endswith(".py")), None)


@dataclass(frozen=True)
class Suite:
    """All steps, with their results in a folder; the CUDA kernels are built for these architectures, or for all."""

    out: Path
    build: bool = True
    architectures: tuple[str, ...] = ()

    def build_step(self) -> Step:
        environment = {}
        if shutil.which("nvcc"):
            environment["M2CLIP_CUDA"] = "1"  # that the CUDA kernels are left out is a failure then
        if self.architectures and "M2CLIP_CUDA_ARCHS" not in os.environ:
            environment["M2CLIP_CUDA_ARCHS"] = ";".join(self.architectures)
        modules = ("setuptools", "pybind11", "ninja")
        command = ("python", "setup.py", "--quiet", "build_ext", "--inplace")
        return Step("build", command, 150, environment=environment, modules=modules, tool="nvcc")

    def check_steps(self, seconds: float) -> list[Step]:
        """What does not measure time, to run at once; seconds: after which each is ended."""
        workers = str(max(1, min(8, (os.cpu_count() or 1) - 4)))
        rest = sorted(path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py") if path.name not in FIRST_TESTS)
        files = [f"tests/gpu/{name}" for name in (*FIRST_TESTS, *rest)]
        pytest = ("python", "-m", "pytest", *files, "-v", "-rfE", "--no-header", "--tb=short", "-p", "no:cacheprovider")
        # Every tensor has an allocation of its own, so that a read past its end is seen.
        alone = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

        def sanitizer(tool: str) -> Step:
            command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "python", "tools/gpu_small.py")
            return Step(tool, command, seconds, environment=alone, tool="compute-sanitizer")

        return [
            Step("tests", (*pytest, "-n", workers), seconds, modules=("pytest", "pytest_timeout", "xdist")),
            Step("errors", ("python", "benchmarks/errors.py", *self._results(seconds)), seconds, modules=("rich",)),
            Step("selfcheck", ("python", "-m", "m2clip.cli", "selfcheck"), seconds, modules=("rich",)),
            sanitizer("memcheck"),
            sanitizer("racecheck"),
        ]

    def benchmark_step(self, name: str, seconds: float) -> Step:
        """One benchmark, alone on the machine; seconds: after which it is ended."""
        modules: tuple[str, ...] = ("rich", "matplotlib")
        if name in ("train_speed", "inference_speed"):
            modules = (*modules, "open_clip", "ftfy")
        command = ("python", f"benchmarks/{name}.py", "--device", "cuda", *self._results(seconds))
        return Step(name, command, seconds, modules=modules)

    def _results(self, seconds: float) -> tuple[str, ...]:
        return "--out", str(self.out / "results"), "--budget", f"{max(seconds - START_SECONDS, 5):.0f}"

    def goals_step(self) -> Step:
        command = ("python", "benchmarks/goals.py", str(self.out / "results"))
        return Step("goals", command, GOALS_SECONDS, modules=("rich",))

    def stages(self, left: Callable[[], float]) -> Iterator[list[Step]]:
        """Steps in their order; those of one stage run at once.

        Args:
            left: seconds that are left for all that follows, asked before each stage.
        """
        if self.build:
            yield [self.build_step()]
        yield self.check_steps(CHECKS * left())
        shares = dict(BENCHMARKS)
        for name, share in BENCHMARKS.items():
            yield [self.benchmark_step(name, (left() - GOALS_SECONDS) * share / sum(shares.values()))]
            del shares[name]
        yield [self.goals_step()]
