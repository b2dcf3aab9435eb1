"""What gpu_suite.py can tell about a machine without running a kernel."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_steps import Step

ROOT = Path(__file__).resolve().parent.parent

_FILE = "import m2clip.kernels as kernels; print(kernels.__file__)"
_GPU = "import torch; print(int(torch.cuda.is_available()))"
_CAPABILITIES = """
import torch
for i in range(torch.cuda.device_count()):
    print("%d%d" % torch.cuda.get_device_capability(i))
"""
_MACHINE = """
import json, platform, torch
found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
try:
    import triton
    found["triton"] = triton.__version__
except ImportError:
    found["triton"] = None
if torch.cuda.is_available():
    found["gpu"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["capability"] = list(torch.cuda.get_device_capability())
print(json.dumps(found))
"""
_MODULES = """
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))
"""
# Runs scripts until their arguments are parsed: that they import, and take the options they will get.
_PARSE = """
import argparse, json, runpy, sys, traceback

class Parsed(Exception):
    pass

parse = argparse.ArgumentParser.parse_args

def parse_and_stop(self, *args, **kwargs):
    parse(self, *args, **kwargs)
    raise Parsed

argparse.ArgumentParser.parse_args = parse_and_stop
wrong = {}
for name, script, options in json.loads(sys.argv[1]):
    sys.argv = [script, *options]
    try:
        runpy.run_path(script, run_name="__main__")
        wrong[name] = "it parses no arguments"
    except Parsed:
        pass
    except SystemExit as stopped:
        wrong[name] = f"it does not take {options} (exit code {stopped.code})"
    except Exception:
        wrong[name] = traceback.format_exc().strip().splitlines()[-1]
print(json.dumps(wrong))
"""


def _ask(python: str, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code with an empty folder as the working directory, so that only what is installed is imported."""
    with tempfile.TemporaryDirectory() as empty:
        return subprocess.run(
            [python, "-c", code, *arguments],
            cwd=empty,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
        )


def import_problem(python: str) -> str:
    """Why a Python does not import m2clip from this checkout; empty where it does."""
    done = _ask(python, _FILE)
    found = done.stdout.strip()
    if done.returncode or not found:
        return f"m2clip does not import: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
    return "" if Path(found).resolve() == ROOT / "kernels" / "__init__.py" else f"m2clip is imported from {found}"


def has_gpu(python: str) -> bool:
    return _ask(python, _GPU).stdout.strip() == "1"


def architectures(python: str) -> tuple[str, ...]:
    """What nvcc calls the GPUs of this machine, "90a" for those of compute capability 9.0."""
    found = _ask(python, _CAPABILITIES).stdout.split()
    return tuple(f"{name}a" if name == "90" else name for name in sorted(set(found)))


def machine(python: str) -> dict[str, Any]:
    """Versions and GPUs."""
    done = _ask(python, _MACHINE)
    return json.loads(done.stdout) if done.returncode == 0 else {"error": done.stderr.strip().splitlines()[-1]}


def missing(steps: Sequence[Step], python: str) -> list[str]:
    """Modules and programs that steps need and this machine lacks, a line each."""
    wanted = sorted({module for step in steps for module in step.modules})
    absent = set(json.loads(_ask(python, _MODULES, *wanted).stdout or "[]"))
    lines = []
    for what in sorted(absent):
        needed = ", ".join(step.name for step in steps if what in step.modules)
        lines.append(f"Python module {what}, for {needed}")
    for tool in sorted({step.tool for step in steps if step.tool}):
        if shutil.which(tool) is None:
            lines.append(f"program {tool}, for {', '.join(step.name for step in steps if step.tool == tool)}")
    if not has_gpu(python):
        lines.append("a GPU that PyTorch sees")
    return lines


def wrong_commands(steps: Sequence[Step], python: str) -> list[str]:
    """Steps whose script does not import, or does not take its options."""
    scripts = []
    for step in steps:
        if step.script and step.script != "setup.py":
            options = step.command[step.command.index(step.script) + 1 :]
            if "pytest" not in step.command:
                scripts.append((step.name, str(ROOT / step.script), options))
    done = _ask(python, _PARSE, json.dumps(scripts))
    if done.returncode:
        return [f"commands: {done.stderr.strip().splitlines()[-1]}"]
    return [f"{name}: {reason}" for name, reason in json.loads(done.stdout.strip().splitlines()[-1]).items()]


def collected(python: str) -> tuple[int, str]:
    """How many tests tests/gpu holds, and what keeps them from being collected."""
    done = subprocess.run(
        [python, "-m", "pytest", "tests/gpu", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "M2CLIP_COLLECT_GPU": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"(\d+) tests? collected", done.stdout)
    if done.returncode or not found:
        lines = (done.stdout + done.stderr).strip().splitlines()
        return 0, f"tests/gpu cannot be collected: {lines[-1] if lines else 'no output'}"
    return int(found[1]), ""
