"""The steps of gpu_suite.py: what each runs, for how long, and which may run at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST_TESTS = ("test_ted.py", "test_bottleneck.py", "test_losses.py", "test_every_op.py")  # if time runs out
ALONE = "test_size.py"  # takes most of a GPU's memory, so one process runs it
SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
TUNED = (384, 64)  # bottleneck widths that are tuned for
BUILD_SECONDS, GOALS_SECONDS, START_SECONDS = 150.0, 15.0, 12.0  # a benchmark's own budget starts with PyTorch loaded
CHECKS, TUNING = 0.5, 0.3  # shares of the time that is left when they begin
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
MODEL_MODULES = ("torchvision", "open_clip", "ftfy", "wcwidth", "regex", "tqdm", "yaml", "safetensors")
TEST_MODULES = ("pytest", "pytest_timeout", "xdist")
# What gpu_compile.py compiles beforehand, in this order, and whose it is; the rest is compiled where it is needed. The
# tests come last because eight processes run them, where each other step compiles alone. Of 1,233 kernels 391 are the
# tests' own; a kernel takes 1.8 seconds of a core (Triton 3.6, a sample of 90), so that twelve cores compile the others
# in 127 seconds.
COMPILED = {
    "small": "checks",
    "tune": "tune",
    "benchmarks": "benchmarks",
    "errors": "checks",
    "selfcheck": "checks",
    "tests": "checks",
}
GROUPS = ("checks", "tune", "benchmarks")  # words of --only that stand for several steps


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
    """All steps, with their results in a folder; the CUDA kernels are built for these architectures, or for all.

    only: names of steps and of `GROUPS`; empty for all.
    """

    out: Path
    architectures: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    def first_steps(self) -> list[Step]:
        """What the others find ready: the extensions, and the Triton kernels in the cache."""
        cores = os.cpu_count() or 1
        options = ("--workers", str(max(1, cores - 4)), "--budget", f"{BUILD_SECONDS - 10:.0f}")
        sources = (source for source, group in COMPILED.items() if self._wants(source, group))
        command = ("python", "tools/gpu_compile.py", *sources, *options)
        steps = [self.build_step(), Step("compile", command, BUILD_SECONDS, modules=("triton", "pytest"))]
        return [step for step in steps if self._wants(step.name)]

    def build_step(self) -> Step:
        environment = {}
        if shutil.which("nvcc"):
            environment["M2CLIP_CUDA"] = "1"  # that the CUDA kernels are left out is a failure then
        if self.architectures and "M2CLIP_CUDA_ARCHS" not in os.environ:
            environment["M2CLIP_CUDA_ARCHS"] = ";".join(self.architectures)
        modules = ("setuptools", "pybind11", "ninja")
        command = ("python", "setup.py", "--quiet", "build_ext", "--inplace")
        return Step("build", command, BUILD_SECONDS, environment=environment, modules=modules, tool="nvcc")

    def check_steps(self, seconds: float) -> list[Step]:
        """What does not measure time, to run at once; seconds: after which each is ended."""
        workers = str(max(1, min(8, (os.cpu_count() or 1) - 6)))
        rest = sorted(path.name for path in (ROOT / "tests" / "gpu").glob("test_*.py"))
        files = [name for name in (*FIRST_TESTS, *rest) if name != ALONE]
        options = ("-v", "-rfE", "--no-header", "--tb=short", "-p", "no:cacheprovider")
        # Every tensor has an allocation of its own, so that a read past its end is seen.
        apart = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

        def tests(name: str, *arguments: str) -> Step:
            return Step(name, ("python", "-m", "pytest", *arguments, *options), seconds, modules=TEST_MODULES)

        def sanitizer(tool: str) -> Step:
            command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "python", "tools/gpu_small.py")
            return Step(tool, command, seconds, environment=apart, tool="compute-sanitizer")

        steps = [
            tests("tests", *dict.fromkeys(f"tests/gpu/{name}" for name in files), "-n", workers),
            tests("memory", f"tests/gpu/{ALONE}"),
            Step("errors", ("python", "benchmarks/errors.py", *self._results(seconds)), seconds, modules=("rich",)),
            Step("selfcheck", ("python", "-m", "m2clip.cli", "selfcheck"), seconds, modules=("rich",)),
            Step("verify", ("python", "tools/gpu_verify.py"), seconds, self._kept(), MODEL_MODULES),
            *(sanitizer(tool) for tool in SANITIZERS),
        ]
        return [step for step in steps if self._wants(step.name, "checks")]

    def tune_steps(self, seconds: float) -> list[Step]:
        """Measure which kernels and tiles are fastest, for the benchmarks; seconds: for all of them."""
        steps = []
        for width in TUNED:
            command = ("python", "-m", "m2clip.cli", "tune", "--width", str(width))
            steps.append(Step(f"tune_{width}", command, seconds / len(TUNED), self._kept(), ("rich",)))
        return [step for step in steps if self._wants(step.name, "tune")]

    def benchmark_step(self, name: str, seconds: float) -> Step:
        """One benchmark, alone on the machine; seconds: after which it is ended."""
        modules: tuple[str, ...] = ("rich", "matplotlib")
        if name in ("train_speed", "inference_speed"):
            modules = (*modules, *MODEL_MODULES)
        command = ("python", f"benchmarks/{name}.py", "--device", "cuda", *self._results(seconds))
        return Step(name, command, seconds, self._kept(), modules)

    def _kept(self) -> dict[str, str]:
        """What is measured and verified stays with the results, and what was before does not count."""
        return {"M2CLIP_TUNED": str(self.out / "tuned"), "M2CLIP_VERIFIED": str(self.out / "verified")}

    def _results(self, seconds: float) -> tuple[str, ...]:
        return "--out", str(self.out / "results"), "--budget", f"{max(seconds - START_SECONDS, 5):.0f}"

    def goals_step(self) -> Step:
        command = ("python", "benchmarks/goals.py", str(self.out / "results"))
        return Step("goals", command, GOALS_SECONDS, modules=("rich",))

    def _wants(self, name: str, group: str = "") -> bool:
        return not self.only or name in self.only or group in self.only

    def stages(self, left: Callable[[], float]) -> Iterator[list[Step]]:
        """Steps in their order; those of one stage run at once.

        Args:
            left: seconds that are left for all that follows, asked before each stage.
        """
        shares = {name: share for name, share in BENCHMARKS.items() if self._wants(name, "benchmarks")}
        goals = [step for step in [self.goals_step()] if self._wants(step.name, "benchmarks")]
        reserved = GOALS_SECONDS if goals else 0.0
        yield self.first_steps()
        yield self.check_steps(left() * (CHECKS if shares or self.tune_steps(0) else 1.0))
        for step in self.tune_steps((left() - reserved) * (TUNING if shares else 1.0)):
            yield [step]
        for name, share in list(shares.items()):
            yield [self.benchmark_step(name, (left() - reserved) * share / sum(shares.values()))]
            del shares[name]
        yield goals
