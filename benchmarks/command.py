"""The command line of a benchmark of operations: its options, its cases one after another, what it writes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import measure, pictures, tables
from benchmarks.framework import EAGER, OURS, REFERENCE, Problem, Runnable, peak_of, peaks, prepare, time_pass
from benchmarks.measure import Budget, write_results
from m2clip.kernels import dispatch


def arguments(
    description: str | None, problem: type[Problem], cases: Mapping[str, Sequence[Any]], quick: Sequence[str]
) -> argparse.Namespace:
    """The options of a benchmark, with `chosen`: the cases to measure."""
    parser = measure.parser(description, "--device", "--rounds", "--threads", "--budget")
    parser.add_argument("--dtype", choices=tuple(problem.tolerance), help="of all cases (default: each its own)")
    parser.add_argument("--cases", "--shapes", nargs="+", metavar="NAME", help="default: all of the device's")
    parser.add_argument("--quick", action="store_true", help=f"3 rounds, cases {', '.join(quick)}, no max-autotune")
    parser.add_argument("--warm", action="store_true", help="leave the caches as the call before left them")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--no-memory", action="store_true", help="leave the memory measurement out")
    parser.add_argument("--memory-of", metavar="VARIANT", help="print only this variant's peak bytes as JSON")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.cases = min(args.rounds, 3), args.cases or list(quick)
    known = {case.name: case for case in cases["cpu" if args.device == "cpu" else "cuda"]}
    if unknown := [name for name in args.cases or () if name not in known]:
        parser.error(f"unknown case {unknown[0]!r}; choose from {', '.join(known)}")
    args.tiny = known.get("tiny")
    args.chosen = [known[name] for name in args.cases or known]
    if args.dtype:
        args.chosen = [replace(case, dtype=args.dtype) for case in args.chosen]
    return args


def left_out(problem: type[Problem], args: argparse.Namespace, budget: Budget, compiles: bool) -> dict[str, str]:
    """Compiled variants that are not built, and why."""
    if args.no_compile:
        return dict.fromkeys(problem.compiled, "left out by --no-compile")
    if not compiles:
        return dict.fromkeys(problem.compiled, "left out by --budget")
    if args.quick or budget.seconds is not None:
        return dict.fromkeys(problem.slow, f"left out by {'--quick' if args.quick else '--budget'}")
    return {}


def measured(
    program: str, problem: Any, args: argparse.Namespace, rounds: int, without: Mapping[str, str]
) -> tuple[dict[str, Any], list[str]]:
    """All numbers of a case, and complaints of variants that are wrong."""
    torch._dynamo.reset()  # a case compiles from scratch, whatever came before it
    ready, not_run, wrong = prepare(problem, without)
    passes = {which: time_pass(problem, ready, which, rounds, args.warm) for which in problem.passes}
    result = {**problem.describe(), "auto": of_auto(problem, ready), "passes": passes, "not_run": not_run}
    if problem.device.type in problem.memory_on and not args.no_memory:
        result |= peaks(program, problem, ready)
    tables.show(result, problem.title(result))
    return result, wrong


def of_auto(problem: Problem, ready: Mapping[str, Runnable]) -> str:
    """The variant that "auto" stands for, by what the operation chooses when it is called; empty if it is not ready."""
    chosen, choose = [REFERENCE.split()[1]], dispatch.choose

    def noted(*args: Any, **kwargs: Any) -> str:
        chosen.append(choose(*args, **kwargs))
        return chosen[-1]

    with mock.patch.object(dispatch, "choose", noted):
        problem.on("auto").forward()
    backend, _, plan = chosen[-1].partition("/")
    names = [f"{OURS} {backend} {plan}", f"{OURS} {backend}"]
    names += [OURS, EAGER] if backend == "reference" else []
    return next((name for name in names if name in ready), "")


def run(
    program: str,
    description: str | None,
    problem: type[Any],
    cases: Mapping[str, Sequence[Any]],
    quick: Sequence[str],
) -> None:
    """The command of a benchmark.

    Args:
        program: its file, after which its JSON and picture are named.
        description: for --help.
        problem: subclass of `Problem`, which is made of a case and a device.
        cases: by kind of device, "cpu" and "cuda".
        quick: cases of --quick.
    """
    args = arguments(description, problem, cases, quick)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32 in every variant, as it is in matrix products by default
    device, budget = torch.device(args.device), Budget(args.budget)
    if args.memory_of:
        (case,) = args.chosen
        tiny = problem(replace(args.tiny, dtype=case.dtype), device)
        print(json.dumps({"peak_bytes": peak_of(problem(case, device), tiny, args.memory_of)}))
        return
    results, complaints, rounds = dict[str, Any](), dict[str, list[str]](), budget.rounds(args.rounds)
    config = {"rounds": rounds, "quick": args.quick, "warm": args.warm, "compiled": not args.no_compile}
    config |= {"threads": torch.get_num_threads(), **problem.constants}

    def measure_case(case: Any, compiles: bool) -> None:
        without = left_out(problem, args, budget, compiles)
        results[case.name], complaints[case.name] = measured(program, problem(case, device), args, rounds, without)
        save()

    def save() -> Path:
        content = {"config": {**config, "left_out": budget.left_out}, "cases": list(results.values())}
        return write_results(Path(program).stem, device, content, args.out)

    # Where time is limited, everything is measured without compilers first, which take the most of it.
    for case in args.chosen:
        if budget.allows(case.name):
            measure_case(case, compiles=budget.seconds is None)
    if budget.seconds is not None and not args.no_compile and problem.compiled:
        for case in args.chosen:
            if budget.allows_compiling():
                measure_case(case, compiles=True)
    path = save()
    picture = pictures.draw_cases(json.loads(path.read_text()), path.with_suffix(".png"), problem.what, problem.title)
    print(f"{path}\n{picture}")
    if any(complaints.values()):
        sys.exit("\n".join(line for lines in complaints.values() for line in lines))
