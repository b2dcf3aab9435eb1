"""The one-launch adapter for Hopper: its kernel on an emulated GPU, and what the compiler makes of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CXX = shutil.which(os.environ.get("CXX", "c++")) or ""
NVCC = shutil.which("nvcc")
KERNEL = "hopper_kernel.h"

# A fault in the kernel, and what the emulation has to say of it.
FAULTS = {
    "outputs handed to the copy engine without a fence": (
        KERNEL,
        "                fence_async_shared();\n",
        "",
        "an asynchronous access to unfenced shared memory",
    ),
    "slots released to this block alone": (
        KERNEL,
        "arrive_at(empty(slot), rank, warps)",
        "arrive_at(empty(slot), cluster_rank(), warps)",
        "y changes when copies run",
    ),
    "slots released before their products are through": (
        KERNEL,
        "product_wait<1>();",
        "product_wait<2>();",
        "y changes when copies run",
    ),
    "up-projections before what they need": (
        "hopper_schedule.h",
        "return (clip_rows() + kClusterRows - 2) / kClusterRows;",
        "return (clip_rows() + kClusterRows - 2) / kClusterRows - 1;",
        "a tile of y comes too early",
    ),
}


def emulate(csrc: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the check against the kernel in csrc/cuda, beside a copy of the emulator, and run it."""
    program = folder / "hopper_check"
    source = csrc.parent / "tests" / "csrc" / "hopper_check.cpp"
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    subprocess.run([CXX, *flags, str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(not CXX, reason="needs a C++ compiler")
def test_every_stage_is_right_on_an_emulated_gpu(tmp_path: Path) -> None:
    done = emulate(ROOT / "csrc", tmp_path)
    assert done.returncode == 0, done.stderr
    found = re.match(r"(\d+) comparisons, 0 wrong; (\d+) box loads, (\d+) box stores, (\d+) products", done.stdout)
    assert found is not None, done.stdout
    assert all(int(number) > 40 for number in found.groups())


@pytest.mark.skipif(not CXX, reason="needs a C++ compiler")
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_do_not_go_unnoticed(fault: str, tmp_path: Path) -> None:
    name, right, wrong, message = FAULTS[fault]
    shutil.copytree(ROOT / "csrc" / "cuda", tmp_path / "csrc" / "cuda")
    shutil.copytree(ROOT / "tests" / "csrc", tmp_path / "tests" / "csrc")
    path = tmp_path / "csrc" / "cuda" / name
    text = path.read_text()
    assert text.count(right) == 1
    path.write_text(text.replace(right, wrong))
    done = emulate(tmp_path / "csrc", tmp_path)
    assert done.returncode != 0
    assert message in done.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The machine code for sm_90a and the compiler's report."""
    if NVCC is None:
        pytest.skip("needs nvcc")
    code = tmp_path_factory.mktemp("hopper") / "hopper.cubin"
    words = [NVCC, "-std=c++20", "-O3", "-gencode=arch=compute_90a,code=sm_90a", "-Xptxas", "-v", "-cubin"]
    source = ROOT / "csrc" / "cuda" / "hopper_adapter.cu"
    done = subprocess.run([*words, "-o", str(code), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return code, done.stderr


def test_kernels_keep_within_their_registers(compiled: tuple[Path, str]) -> None:
    _, report = compiled
    assert "warning" not in report.lower()
    assert (
        re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
        == [("0", "0", "0")] * 6
    )  # two dtypes, three widths of tiles
    assert re.findall(r"Used (\d+) registers", report) == ["128"] * 6  # 512 threads share 65536


def test_machine_code_uses_what_hopper_has(compiled: tuple[Path, str]) -> None:
    disassembler = shutil.which("nvdisasm")
    if disassembler is None:
        nvidia = pytest.importorskip("triton.backends.nvidia")
        disassembler = str(Path(nvidia.__path__[0]) / "bin" / "nvdisasm")
    listing = subprocess.run([disassembler, "-c", str(compiled[0])], capture_output=True, text=True, check=True).stdout
    kernels = re.split(r"^\.text\.(\S+):$", listing, flags=re.MULTILINE)[1:]
    assert len(kernels) == 2 * 6
    for name, code in zip(kernels[::2], kernels[1::2], strict=True):
        columns = int(name.partition("ELi")[2].partition("E")[0])
        # One stage of 64 along the depth, 16 to a product; 256 columns take two products.
        assert len(re.findall(r"\bHGMMA\.64x", code)) == (8 if columns == 256 else 4)
        assert len(re.findall(r"\bUTMALDG\.2D\.MULTICAST\b", code)) == 1
        assert re.search(r"\bUTMALDG\.2D \[", code)
        assert re.search(r"\bUTMASTG\.2D\b", code)
        assert not re.search(r"\b(LDL|STL)\b", code)
        products = code[code.index("HGMMA") : code.rindex("HGMMA")]
        assert "MEMBAR" not in products
        assert "DEPBAR" not in products
