"""What tools/kernel_resources.py reads out of machine code, and that it has a row for every kernel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from m2clip.kernels.cuda import extension as cuda

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu"

# A loop that writes twice four bytes a turn, with one inside that only reads; and a shorter one that writes.
LISTING = """
		Function : one_kernel
	.headerflags	@"EF_CUDA_SM80"
        /*0000*/                   LDG.E.128.CONSTANT R4, [R2.64] ;        /* 0x00000a00ff017b82 */
                                                                           /* 0x000fe20000000800 */
        /*0010*/                   LDG.E.U16 R8, [R2.64+0x10] ;            /* 0x0000000000037919 */
        /*0020*/              @!P0 LDG.E.64 R10, [R2.64+0x20] ;            /* 0x0000000000037919 */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R3], [R4.64] ;     /* 0x0000000000037919 */
        /*0040*/               @P1 BRA 0x30 ;                              /* 0x0000000000037919 */
        /*0050*/                   STG.E [R2.64], R4 ;                     /* 0x0000000000037919 */
        /*0060*/                   NOP ;                                   /* 0x0000000000037919 */
        /*0070*/              @!P2 STG.E [R2.64+0x4], R5 ;                 /* 0x0000000000037919 */
        /*0080*/               @P3 BRA 0x10 ;                              /* 0x0000000000037919 */
        /*0090*/                   STG.E.U16 [R2.64], R4 ;                 /* 0x0000000000037919 */
        /*00a0*/                   BRA 0x90 ;                              /* 0x0000000000037919 */
        /*00b0*/                   EXIT ;                                  /* 0x0000000000037919 */
		Function : two_kernel
        /*0000*/                   EXIT ;                                  /* 0x0000000000037919 */
"""


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """kernel_resources and machine_code."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import kernel_resources
    import machine_code

    return type("Tools", (), {"resources": kernel_resources, "code": machine_code})


def test_a_listing_is_read(tools: Any) -> None:
    found = tools.code.parse(LISTING)
    assert list(found) == ["one_kernel", "two_kernel"] and len(found["two_kernel"]) == 1
    code = tools.code.Code(tools.code.Resources(32, 0, 0), found["one_kernel"])
    assert code.loads() == {16: 2, 2: 1, 8: 1}
    loop = code.frame_loop()  # from 0x10 to 0x80
    assert [one.address for one in loop] == [0x10, 0x20, 0x30, 0x40, 0x50, 0x70, 0x80]
    assert tools.code.stored(loop) == 8
    # Two tensors of bf16 values: two values of each a turn.
    assert tools.resources.looped(loop, 2) == {"instructions": 7, "values": 2, "per_value": 3.5, "single_loads": 1}


@pytest.mark.parametrize(
    ("architecture", "registers", "warps", "shared", "expected"),
    [
        (80, 32, 4, 0, 16),  # 64 warps
        (80, 128, 8, 0, 2),
        (80, 129, 8, 0, 1),  # 136 registers: 3 warps in each of four parts
        (90, 96, 4, 0, 5),
        (80, 64, 4, 80 * 1024, 2),  # 164 KB
        (90, 64, 4, 80 * 1024, 2),  # 228 KB, of which three took 243
        (90, 64, 4, 75 * 1024, 3),
        (90, 16, 1, 0, 32),
    ],
)
def test_programs_at_once(architecture, registers, warps, shared, expected, tools: Any) -> None:
    assert tools.resources.programs(architecture, registers, warps, shared) == expected


def test_every_triton_kernel_has_a_representative(tools: Any) -> None:
    sources = (ROOT / "kernels" / "triton").glob("*.py")
    launched = {name for path in sources for name in re.findall(r"(\w+_kernel)\[", path.read_text(encoding="utf-8"))}
    chosen = [(found.name, case) for case, found in tools.resources.representatives(80)]
    assert len(launched) > 15 and {name for name, _ in chosen} == launched
    assert len(chosen) == len(set(chosen))
    for path in RESULTS.glob("machine_code_triton_*.json"):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        assert {(row["kernel"], row["case"]) for row in rows} == set(chosen)


@pytest.mark.parametrize("name", ["machine_code_triton_3.8", "machine_code_cuda"])
def test_the_page_shows_what_was_found(name: str, tools: Any) -> None:
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    assert tools.resources.markdown(rows) in (ROOT / "docs" / "machine_code.md").read_text(encoding="utf-8")


@pytest.mark.skipif(cuda.extension is None, reason="no CUDA extension here")
def test_no_cuda_kernel_spills_registers(tools: Any) -> None:
    for name in cuda.extension.architectures.split():
        found = tools.code.resources(Path(cuda.extension.__file__), f"sm_{name}")
        assert found and [kernel for kernel, used in found.items() if used.stack] == []
        # Three blocks on a multiprocessor forward and two backward, with separate branches (path 0) in 16 bits.
        for kernel, most in (("mixer_forward", 80), ("mixer_backward", 128)):
            own = re.compile(rf"\d{kernel}_kernelI\w*(half|bfloat16)L4Path0E")
            usual = [used for name, used in found.items() if own.search(name)]
            assert len(usual) == 2 and all(used.registers <= most for used in usual), (name, kernel)
