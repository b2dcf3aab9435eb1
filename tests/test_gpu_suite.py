"""make gpu, as far as it goes without a GPU: the dry run, and how steps are run, ended and told."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """gpu_suite, gpu_steps and gpu_checks."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import gpu_checks
    import gpu_steps
    import gpu_suite

    return type("Tools", (), {"suite": gpu_suite, "steps": gpu_steps, "checks": gpu_checks})


def suite(*options: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "tools" / "gpu_suite.py", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_dry_run_checks_every_step(tmp_path: Path) -> None:
    done = suite("--dry", "--only", "compile", "checks", "tune", "benchmarks", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests of tests/gpu collected, 20 steps parsed" in done.stdout
    assert int(done.stdout.split(" tests of tests/gpu")[0].split()[-1]) > 200
    assert "everything that can be checked here is right" in done.stdout


def test_a_step_with_wrong_options_is_told(tools: Any, tmp_path: Path) -> None:
    script = tmp_path / "one.py"
    script.write_text("import argparse\np = argparse.ArgumentParser()\np.add_argument('--a')\np.parse_args()\n")
    broken = tmp_path / "two.py"
    broken.write_text("import no_such_module\n")
    steps = [
        tools.steps.Step("right", ("python", str(script), "--a", "1"), 1),
        tools.steps.Step("wrong", ("python", str(script), "--b", "1"), 1),
        tools.steps.Step("broken", ("python", str(broken)), 1),
    ]
    wrong = tools.checks.wrong_commands(steps, sys.executable)
    assert [line.split(":")[0] for line in wrong] == ["wrong", "broken"]
    assert "--b" in wrong[0] and "no_such_module" in wrong[1]


def test_steps_fail_and_run_out_of_time_without_stopping_the_rest(tools: Any, tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = f"import subprocess; subprocess.Popen(['sh', '-c', 'sleep 3; touch {child}']); import time; time.sleep(60)"
    steps = [
        tools.steps.Step("good", ("python", "-c", "print('fine')"), 20),
        tools.steps.Step("bad", ("python", "-c", "import sys; sys.exit('no luck')"), 20),
        tools.steps.Step("long", ("python", "-c", code), 1),
        tools.steps.Step("absent", ("no-such-program",), 20),
        tools.steps.Step("late", ("python", "-c", "1"), 0),
    ]
    stages = type("Suite", (), {"stages": lambda self, left: [steps[:2], *([step] for step in steps[2:])]})()
    args = type("Arguments", (), {"out": tmp_path / "out", "archive": tmp_path / "a" / "out.tar.gz", "only": None})
    args.out.mkdir()
    outcomes = tools.suite.run_all(stages, sys.executable, args, time.monotonic() + 60)
    assert [outcome.code for outcome in outcomes] == [0, 1, 124, 127, 124]
    assert [outcome.reason for outcome in outcomes][1] == "no luck"
    assert "OUT OF TIME" in str(outcomes[2]) and "FAILED" in str(outcomes[3])
    assert (args.out / "good.log").read_text().splitlines()[-1] == "fine"
    summary = json.loads((args.out / "summary.json").read_text())
    assert [step["name"] for step in summary["steps"]] == ["good", "bad", "long", "absent", "late"]
    with tarfile.open(args.archive) as packed:
        assert {"out/summary.json", "out/bad.log", "out/long.log"} <= set(packed.getnames())
    time.sleep(2.5)
    assert not child.exists()  # what a step has started ends with it


@pytest.mark.parametrize(
    ("only", "first", "last"),
    [
        ((), "build", "goals"),
        (("build", "compile", "checks"), "build", "synccheck"),
        (("tune", "benchmarks"), "tune_384", "goals"),
        (("mixer_speed",), "mixer_speed", "mixer_speed"),
    ],
)
def test_all_time_is_shared_out_and_no_more(only: Any, first: str, last: str, tools: Any, tmp_path: Path) -> None:
    left, names = [540.0], []
    for stage in tools.steps.Suite(tmp_path, only=only).stages(lambda: left[0]):
        names += [step.name for step in stage]
        assert all(step.limit <= left[0] for step in stage)
        left[0] -= stage[0].limit if stage else 0.0
    assert left[0] == pytest.approx(0, abs=1)
    assert (names[0], names[-1]) == (first, last)
    assert ("tests" in names, "racecheck" in names) == (not only or "checks" in only,) * 2
    assert (set(tools.steps.BENCHMARKS) <= set(names)) == (not only or "benchmarks" in only)


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    done = suite("--only", "everything", "--out", tmp_path)
    assert done.returncode == 2
    assert "everything" in done.stderr


# ---- the kernels that the suite compiles beforehand ----


def recorded(*sources: str) -> dict[str, int]:
    """By kernel, how often it is compiled for what these steps launch."""
    command = [sys.executable, ROOT / "tools" / "gpu_compile.py", "--count", *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {words[1]: int(words[0]) for words in map(str.split, done.stdout.splitlines()) if len(words) == 2}


def test_the_tests_on_a_gpu_do_not_compile_for_minutes() -> None:
    pytest.importorskip("triton")
    assert 100 < sum(recorded("tests").values()) <= 700


def test_what_is_known_is_not_recorded_again(tools: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    import gpu_compile

    first = gpu_compile.recorded(["errors"], 90)
    keys = {found.key for found in first}
    rest = {found.key for found in gpu_compile.recorded(["errors", "benchmarks"], 90, first)}
    assert len(keys) == len(first) > 10 and rest and not keys & rest
    assert f"{len(rest)} kernels recorded of errors, benchmarks" in capsys.readouterr().out


def test_the_sanitizers_see_every_triton_kernel() -> None:
    pytest.importorskip("triton")
    sources = (ROOT / "kernels" / "triton").glob("*.py")
    launched = {name for path in sources for name in re.findall(r"(\w+_kernel)\[", path.read_text())}
    assert len(launched) > 15 and launched == recorded("small").keys()


def test_the_sanitizers_see_every_launch_of_the_cuda_extension(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    import gpu_compile
    import gpu_small

    from m2clip.kernels.cuda import extension, ted

    called = mock.MagicMock()
    called.mixer_workspace.return_value = 16
    for module in (extension, ted):
        monkeypatch.setattr(module, "stream", lambda: 0)
    monkeypatch.setattr(extension, "extension", called)
    with gpu_compile.recording(90):
        for work, dtype in itertools.product(gpu_small.WORKLOADS, gpu_small.DTYPES):
            if work.op == "ted_adapter":
                list(gpu_small.results(work, "cuda", dtype))
    stub = (ROOT / "kernels" / "_cuda.pyi").read_text()
    launches = set(re.findall(r"^def (\w+)\([^)]*stream", stub, re.MULTILINE))
    assert "hopper_adapter_forward" in launches and len(launches) > 3
    assert launches <= {name for name, _, _ in called.mock_calls}


def test_kernels_are_compiled_until_the_time_is_over_and_failures_told(tools: Any) -> None:
    pytest.importorskip("triton")
    import gpu_compile

    def broken() -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""

    meant: list[int] = []
    work = [lambda: "", lambda: "k: no such type"]
    assert gpu_compile.compile_all(work, 2, 60, lambda: meant.append(1)) == (2, ["k: no such type"])
    assert meant == [1]
    done, wrong = gpu_compile.compile_all([broken], 1, 60)
    assert done == 0 and len(wrong) == 1 and wrong[0].startswith("1 not compiled")
    slow = [lambda: time.sleep(0.5) or ""] * 50
    assert gpu_compile.compile_all(slow, 2, 0.7)[0] < 10
