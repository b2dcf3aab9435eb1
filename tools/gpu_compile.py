"""Compile in parallel, and without launching anything, the Triton kernels that steps of gpu_suite.py launch.

    python tools/gpu_compile.py                       # for this GPU, into Triton's cache on disk
    python tools/gpu_compile.py --count tests         # how many those of tests/gpu are; needs no GPU

The steps' own calls run on tensors without values (of device "meta"), and each launch is noted with all that Triton
compiles a kernel for: types, multiples of 16, constants, warps and stages. What a step finds in the cache later it does
not compile one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.jit import JITFunction

from m2clip import kernels
from m2clip.kernels import dispatch
from m2clip.kernels.triton import device

ROOT = Path(__file__).resolve().parent.parent
META = torch.device("meta")
BACKEND = "triton"
_compile = JITFunction._do_compile
_FACTORIES = (torch.randn, torch.rand, torch.randint, torch.empty, torch.zeros, torch.ones, torch.tensor, torch.arange)
_QUESTIONS = (torch.equal, torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__float__)


class Compilation:
    """A kernel and what it is to be compiled for, as Triton puts it."""

    def __init__(self, kernel: JITFunction, arguments: tuple[Any, ...]) -> None:
        self.kernel, self.arguments = kernel, arguments

    @property
    def name(self) -> str:
        return self.kernel.__name__

    @property
    def key(self) -> tuple[str, str]:
        """By which it is told from others."""
        return self.name, str(self.arguments[0])

    def compiled(self) -> CompiledKernel:
        return _compile(self.kernel, *self.arguments)

    def __call__(self) -> str:
        """Compile it; returns what went wrong, or nothing."""
        try:
            self.compiled()
        except Exception as error:  # the step that needs it tells
            return f"{self.name}: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
        return ""


class Recorder:
    """Stands for Triton's driver and compiler while calls are recorded."""

    def __init__(self, architecture: int) -> None:
        self.target, self.found = GPUTarget("cuda", architecture, 32), dict[tuple[str, str], Compilation]()

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, index: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def note(self, kernel: JITFunction, key: Any, *arguments: Any) -> None:
        """In the place of the compilation; that there is no kernel keeps it from being launched."""
        compilation = Compilation(kernel, (key, *arguments))
        self.found.setdefault(compilation.key, compilation)


class WithoutValues(TorchFunctionMode):
    """Tensors are made without values; whoever asks about a value hears yes, or one."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in _FACTORIES:
            kwargs.pop("generator", None)
            kwargs["device"] = META
        if function is torch.Tensor.to:
            args = tuple(META if isinstance(argument, torch.device) else argument for argument in args)
        return True if function in _QUESTIONS else function(*args, **kwargs)


@contextlib.contextmanager
def recording(architecture: int) -> Iterator[Recorder]:
    """Let everything that is called on the Triton backend be recorded."""
    recorder = Recorder(architecture)
    states = {name: dispatch.BackendState(name, name == BACKEND, "recorded") for name in kernels.BACKENDS}
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(JITFunction, "_do_compile", lambda *args: recorder.note(*args)))
        enter(mock.patch.object(triton.runtime.driver, "_active", recorder))
        enter(mock.patch.object(device, "_LEAST", architecture))
        enter(mock.patch.object(dispatch, "choose", lambda op, x, backend, *_, **__: backend))
        enter(mock.patch.object(kernels, "backend_states", lambda: states))
        enter(mock.patch.object(torch, "is_autocast_enabled", lambda *_: False))
        enter(WithoutValues())
        yield recorder


# ---- what the steps call ----


def of_tests() -> None:
    """tests/gpu, in which nothing is compared and no model is trained."""
    import pytest

    import tests.gpu.workloads
    import tests.kernels.proof
    from benchmarks.workloads import Workload

    results = Workload.results

    def ours(work: Workload, leaves: Any, backend: str, slope: Any = None) -> Any:
        return results(work, leaves, backend, slope) if backend == BACKEND else list(leaves.values())

    def run(work: Workload, backend: str, dtype: torch.dtype) -> None:
        tests.gpu.workloads.require(backend)
        work.results(work.placed(dtype), backend)

    files = sorted(str(path) for path in (ROOT / "tests" / "gpu").glob("test_*.py") if path.stem != "test_training")
    options = ("--rootdir", str(ROOT), "-q", "--tb=no", "-p", "no:cacheprovider", "-k", "not compiled_without")
    with (
        mock.patch.dict(os.environ, M2CLIP_COLLECT_GPU="1"),
        mock.patch.object(Workload, "results", ours),
        mock.patch.object(tests.gpu.workloads, "assert_proven", run),
        mock.patch.object(tests.kernels.proof, "assert_operator_is_sound", lambda *_: None),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        if pytest.main([*files, *options]) not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            raise RuntimeError("tests/gpu cannot be collected")


def of_small() -> None:
    """tools/gpu_small.py, which the sanitizers run."""
    import gpu_small

    for work in gpu_small.WORKLOADS:
        for dtype in gpu_small.DTYPES:
            list(gpu_small.results(work, BACKEND, dtype))


def of_selfcheck() -> None:
    """m2clip selfcheck."""
    from m2clip.kernels.selfcheck import DTYPES
    from m2clip.kernels.selfcheck_cases import all_cases

    for case, dtype in itertools.product(all_cases(), DTYPES.values()):
        if case.op in dispatch.IMPLEMENTATIONS and case.reference is None:
            inputs = {name: tensor.to(dtype).requires_grad_() for name, tensor in case.inputs().items()}
            output = case.run(inputs, BACKEND)
            torch.autograd.grad(output, list(inputs.values()), case.output_gradient(output))


def of_errors() -> None:
    """benchmarks/errors.py."""
    from benchmarks import errors

    for work, dtype in itertools.product(errors.clip_workloads(), errors.DTYPES):
        work.results(work.placed(getattr(torch, dtype)), BACKEND)


def of_tune() -> None:
    """m2clip tune: every configuration, then the operations."""
    from gpu_steps import TUNED

    from m2clip.kernels.triton.candidates import kernel_candidates
    from m2clip.kernels.tuning.candidates import Shape, operations

    for width in TUNED:
        shape = Shape(768, width, 8, (14, 14), 32, torch.bfloat16)
        for kernel in kernel_candidates(shape, META):
            for config in (kernel.rule, *kernel.others):
                kernel.run(config)
        for run, inputs, _ in operations(shape, META).values():
            leaves = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in inputs]
            output = run(*leaves, backend=BACKEND)
            torch.autograd.grad(output, leaves, torch.ones_like(output))


def of_benchmarks() -> None:
    """The benchmarks of operations; those of whole models compile what they need, which their first step counts."""
    from benchmarks import adapter_speed, bottleneck_speed, loss_speed, msta_speed

    for module in (adapter_speed, bottleneck_speed, msta_speed, loss_speed):
        for case in module.CASES if module is loss_speed else module.GPU_CASES:
            problem = module.Problem(case, META)
            if problem.work.op in dispatch.IMPLEMENTATIONS:
                for build in problem.on_backend(BACKEND).values():
                    for run in build().runs().values():
                        run()


SOURCES: dict[str, Callable[[], None]] = {
    "small": of_small,
    "selfcheck": of_selfcheck,
    "tests": of_tests,
    "errors": of_errors,
    "tune": of_tune,
    "benchmarks": of_benchmarks,
}


LATE = ("tests",)  # recorded while the others are compiled: it takes longer than all of them


# ---- compiling ----


def recorded(sources: Sequence[str], architecture: int, known: Sequence[Compilation] = ()) -> list[Compilation]:
    """What the sources launch, each once, without what is known."""
    with recording(architecture) as recorder:
        for source in sources:
            SOURCES[source]()
    found = recorder.found
    for compilation in known:
        found.pop(compilation.key, None)
    for name, number in Counter(compilation.name for compilation in found.values()).most_common():
        print(f"{number:5} {name}")
    print(f"{len(found)} kernels recorded of {', '.join(sources)}", flush=True)
    return list(found.values())


_work: list[Callable[[], str]] = []  # forked workers have it without its being sent


def _compile_one(index: int) -> str:
    return _work[index]()


def compile_all(
    work: Sequence[Callable[[], str]], workers: int, seconds: float, meanwhile: Callable[[], None] = lambda: None
) -> tuple[int, list[str]]:
    """Compile in forked processes until the time is over: how many were, and what went wrong.

    meanwhile: what this process does while they compile.
    """
    _work[:], deadline = work, time.monotonic() + seconds
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        begun = [pool.submit(_compile_one, index) for index in range(len(work))]
        meanwhile()
        done, rest = wait(begun, max(deadline - time.monotonic(), 0))
        for future in rest:
            future.cancel()
    ended = [future for future in done if future.exception()]
    wrong = [f"{len(ended)} not compiled: {ended[0].exception()}"] if ended else []
    return len(done) - len(ended), wrong + [line for future in done - set(ended) if (line := future.result())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", metavar="STEP", help=f"default: all of {', '.join(SOURCES)}")
    parser.add_argument("--count", action="store_true", help="only tell how many kernels there are")
    parser.add_argument("--architecture", type=int, help="as 90 (default: this GPU's, or 90 where there is none)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    parser.add_argument("--budget", type=float, default=3600.0, metavar="SECONDS", help="compile no longer")
    args = parser.parse_args()
    if unknown := [source for source in args.sources if source not in SOURCES]:
        parser.error(f"unknown step {unknown[0]!r}; choose from {', '.join(SOURCES)}")
    if args.architecture is None:
        capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (9, 0)
        args.architecture = 10 * capability[0] + capability[1]
    start = time.monotonic()
    sources = args.sources or list(SOURCES)
    if args.count:
        recorded(sources, args.architecture)
        return

    def left() -> float:
        return args.budget - (time.monotonic() - start)

    early = [source for source in sources if source not in LATE] or sources
    late = [source for source in sources if source not in early]
    work, more = recorded(early, args.architecture), list[Compilation]()

    def record_late() -> None:
        more.extend(recorded(late, args.architecture, work) if late else ())

    done, wrong = compile_all(work, args.workers, left(), record_late)
    also, wrong_too = compile_all(more, args.workers, left())
    print(*wrong, *wrong_too, f"{done + also} of {len(work) + len(more)} compiled", sep="\n")
    print(f"{time.monotonic() - start:.0f} s")
    sys.exit(1 if wrong or wrong_too else 0)


if __name__ == "__main__":
    main()
