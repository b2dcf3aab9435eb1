"""make gpu, as far as it goes without a GPU: the dry run, and how steps are run, ended and told."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

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


def test_the_dry_run_checks_every_step(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools" / "gpu_suite.py", "--dry", "--no-build", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests of tests/gpu collected, 13 steps parsed" in done.stdout
    assert int(done.stdout.split(" tests of tests/gpu")[0].split()[-1]) > 300
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
    suite = type("Suite", (), {"stages": lambda self, left: [steps[:2], *([step] for step in steps[2:])]})()
    args = type("Arguments", (), {"out": tmp_path / "out", "archive": tmp_path / "a" / "out.tar.gz", "only": None})
    args.out.mkdir()
    outcomes = tools.suite.run_all(suite, sys.executable, args, time.monotonic() + 60)
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


def test_all_time_is_shared_out_and_no_more(tools: Any, tmp_path: Path) -> None:
    left = [540.0]
    names = []
    for stage in tools.steps.Suite(tmp_path).stages(lambda: left[0]):
        names += [step.name for step in stage]
        assert all(step.limit <= left[0] for step in stage)
        left[0] -= stage[0].limit
    assert left[0] == pytest.approx(0, abs=1)
    assert names[0] == "build" and names[-1] == "goals" and {"tests", "memcheck", *tools.steps.BENCHMARKS} <= set(names)


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "tools" / "gpu_suite.py", "--only", "everything", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "everything" in done.stderr
