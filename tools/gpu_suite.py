"""Everything that needs a GPU: build, tests, sanitizers, tuning, benchmarks, and the table of goals.

    make gpu OUT=folder                 # with .venv if it exists, else with python3; ends after nine minutes
    make gpu DRY=1                      # without a GPU: build, collect, parse every command, tell what is missing

Where a command may run for ten minutes, two calls have time for twice as much; the second one finds built what the
first one has built, and where the machine is another one by then, it builds again:

    make gpu OUT=build/gpu ONLY="build compile checks" ARCHIVE=results/checks.tar.gz
    make gpu OUT=build/gpu ONLY="build compile tune benchmarks" ARCHIVE=results/speed.tar.gz

Steps go on after a failure; each has a log in the folder, and summary.json and the last lines tell which failed. The
exit code is 1 if one did. Where a step is out of time it is ended and counts as failed; a benchmark is told how long it
may take, leaves the rest of its shapes out, and writes its results after each of them. --archive packs the whole folder
into one file again after each stage, so that it is complete however the run ends.

A machine without network and git: nothing is fetched. m2clip runs from this checkout; where the Python at hand does not
have it installed, an environment is made in build/gpu-env that sees all packages of that Python and m2clip beside them.
What that Python lacks (`make gpu DRY=1` tells) can be brought as wheels in a folder (--wheels, by default .whl), which
are installed there without their dependencies, and the commit of the results in a file COMMIT. Where there are but
PyTorch, torchvision, Triton and pytest, these are all that is needed; on a machine that is connected:

    python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \\
        pytest-timeout pytest-xdist execnet pybind11 ninja rich markdown-it-py mdurl pygments \\
        open_clip_torch ftfy wcwidth regex tqdm pyyaml safetensors \\
        matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six pillow
    git rev-parse --short HEAD > COMMIT
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_checks
from gpu_steps import GROUPS, Step, Suite

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / "build" / "gpu-env"
OUT_OF_TIME = 124


@dataclass
class Outcome:
    """How a step ended."""

    name: str
    code: int
    seconds: float
    reason: str = ""

    def __str__(self) -> str:
        told = "ok" if self.code == 0 else ("OUT OF TIME" if self.code == OUT_OF_TIME else f"FAILED ({self.code})")
        return f"{self.name:18}{told:14}{self.seconds:6.0f} s  {self.reason}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu", help="folder of logs and results")
    parser.add_argument("--archive", type=Path, metavar="FILE", help=".tar.gz that always holds the folder")
    parser.add_argument("--seconds", type=float, default=540, help="for everything")
    parser.add_argument("--only", nargs="+", metavar="STEP", help=f"steps that --dry lists, {', '.join(GROUPS)}")
    parser.add_argument("--wheels", type=Path, default=ROOT / ".whl", help="folder of wheels to install")
    parser.add_argument("--dry", action="store_true", help="check everything that can be checked without a GPU")
    args = parser.parse_args()
    names = [step.name for stage in Suite(args.out).stages(lambda: args.seconds) for step in stage]
    unknown = sorted(set(args.only or ()) - {*names, *GROUPS})
    if unknown:
        parser.error(f"unknown step {unknown[0]!r}; choose from {', '.join((*GROUPS, *names))}")
    return args


def run(step: Step, python: str, out: Path, limit: float) -> Outcome:
    """Run a step with its output in its log; every process of it ends with it."""
    if limit <= 0:
        return Outcome(step.name, OUT_OF_TIME, 0.0, "nothing of --seconds was left")
    start = time.monotonic()
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **step.environment}
    with open(out / f"{step.name}.log", "w") as log:
        command = [python if word == "python" else word for word in step.command]
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        try:
            child = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            return Outcome(step.name, 127, 0.0, str(error))
        try:
            code = child.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = OUT_OF_TIME
        finally:
            end_session(child)
    return Outcome(step.name, code, time.monotonic() - start, "" if code == 0 else last_line(out / f"{step.name}.log"))


def end_session(child: subprocess.Popen[bytes]) -> None:
    """End a step's process and all that it has started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    child.wait()


def last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:150] if lines else "no output"


def environment_python(out: Path, wheels: Path, build: bool) -> tuple[str, str]:
    """A Python that imports m2clip from this checkout, and why there is none (then the first is empty).

    build: whether a step follows that compiles the extensions, which then need not be compiled here.
    """
    if not gpu_checks.import_problem(sys.executable):
        return sys.executable, ""
    with open(out / "environment.log", "w") as log:

        def call(*command: str | Path) -> bool:
            log.write(f"$ {' '.join(map(str, command))}\n")
            log.flush()
            settings = {**os.environ, **({"M2CLIP_NATIVE": "0", "M2CLIP_CUDA": "0"} if build else {})}
            done = subprocess.run(command, cwd=ROOT, env=settings, stdout=log, stderr=subprocess.STDOUT, check=False)
            return done.returncode == 0

        python = ENVIRONMENT / "bin" / "python"
        if not call(sys.executable, "-m", "venv", "--without-pip", ENVIRONMENT):
            return "", "python3 -m venv fails"
        # After the environment's own packages come those of the Python that it was made with.
        homes = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
        found = subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
        )
        lines = [f"import site; site.addsitedir({home!r})\n" for home in homes]
        Path(found.stdout.strip(), "beside.pth").write_text("".join(lines))
        install = (python, "-m", "pip", "install", "--no-index", "--no-deps", "--disable-pip-version-check")
        brought = sorted(wheels.glob("*.whl"))
        if brought and not call(*install, *brought):
            return "", "the wheels cannot be installed"
        if not call(*install, "--no-build-isolation", "--editable", ROOT):
            return "", "m2clip cannot be installed"
    problem = gpu_checks.import_problem(str(python))
    return ("", problem) if problem else (str(python), "")


def pack(out: Path, archive: Path | None) -> None:
    """Write the folder into the archive, whole or not at all."""
    if archive is None:
        return
    archive.parent.mkdir(parents=True, exist_ok=True)
    fresh = archive.with_name(f"{archive.name}.new")
    with tarfile.open(fresh, "w:gz") as file:
        file.add(out, arcname=out.name)
    fresh.replace(archive)


def run_all(suite: Suite, python: str, args: argparse.Namespace, deadline: float) -> list[Outcome]:
    """All steps: those of a stage at once where they may be."""
    outcomes: list[Outcome] = []
    for steps in suite.stages(lambda: max(deadline - time.monotonic(), 0.0)):

        def one(step: Step) -> Outcome:
            outcome = run(step, python, args.out, min(step.limit, deadline - time.monotonic()))
            print(outcome, flush=True)
            return outcome

        with ThreadPoolExecutor(max(len(steps), 1)) as pool:
            outcomes += pool.map(one, steps)
        write_summary(args.out, outcomes, python)
        pack(args.out, args.archive)
    return outcomes


def write_summary(out: Path, outcomes: Sequence[Outcome], python: str) -> None:
    content: dict[str, Any] = {
        "machine": gpu_checks.machine(python),
        "steps": [vars(outcome) for outcome in outcomes],
    }
    (out / "summary.json").write_text(json.dumps(content, indent=1) + "\n")


def show(lines: Iterable[str]) -> None:
    print("\n".join(lines), flush=True)


def main() -> None:
    args = arguments()
    deadline = time.monotonic() + args.seconds
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    # Programs that came with Python's packages, such as ninja, are there.
    programs = (str(Path(sys.executable).parent), str(ENVIRONMENT / "bin"))
    os.environ["PATH"] = os.pathsep.join((os.environ["PATH"], *programs))
    os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "gpu-triton"))  # for the next call, too
    builds = not args.only or "build" in args.only
    python, reason = environment_python(args.out, args.wheels, builds)
    if not python:
        pack(args.out, args.archive)
        sys.exit(f"no environment: {reason} (see {args.out / 'environment.log'})")
    has_gpu = gpu_checks.has_gpu(python)
    suite = Suite(args.out, gpu_checks.architectures(python), tuple(args.only or ()))
    if args.dry or not has_gpu:
        show([] if args.dry else ["PyTorch sees no GPU here: a dry run"])
        sys.exit(dry(suite, python, args, deadline))
    show([f"{key}: {value}" for key, value in gpu_checks.machine(python).items()])
    outcomes = run_all(suite, python, args, deadline)
    failed = [outcome.name for outcome in outcomes if outcome.code]
    goals = args.out / "goals.log"
    show(["", *(goals.read_text().splitlines()[1:] if goals.exists() else []), "", *map(str, outcomes)])
    pack(args.out, args.archive)
    sys.exit(f"{len(failed)} of {len(outcomes)} steps failed: {', '.join(failed)}" if failed else 0)


def dry(suite: Suite, python: str, args: argparse.Namespace, deadline: float) -> int:
    """Check all that can be checked without a GPU and print the plan; 1 if something is wrong."""
    wrong: list[str] = []
    for step in suite.first_steps():
        if step.name == "build":
            outcome = run(step, python, args.out, deadline - time.monotonic())
            show([str(outcome)])
            wrong += [f"build: {outcome.reason}"] if outcome.code else []
    show(["", f"plan, {args.seconds:.0f} s, if all of a step's time is used; steps of a line at once:"])
    steps: list[Step] = []
    left = [args.seconds]
    for stage in suite.stages(lambda: left[-1]):
        if stage:
            show([f"  {' + '.join(step.name for step in stage)}: {stage[0].limit:.0f} s"])
            left.append(max(left[-1] - stage[0].limit, 0.0))
            steps += stage
    wrong += gpu_checks.wrong_commands(steps, python)
    number, complaint = gpu_checks.collected(python)
    wrong += [complaint] if complaint else []
    missing = gpu_checks.missing(steps, python)
    show(["", f"{number} tests of tests/gpu collected, {len(steps)} steps parsed"])
    show(f"missing here: {line}" for line in missing)
    show(f"WRONG: {line}" for line in wrong)
    show(["everything that can be checked here is right" if not wrong else f"{len(wrong)} wrong"])
    return 1 if wrong else 0


if __name__ == "__main__":
    main()
