"""Verify the kernels of a small M2-CLIP on this GPU as its first pass would, and let it run with them.

Exit code 1 if an operation is left to the reference.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import m2clip
from m2clip import kernels


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    model = m2clip.create_model("m2clip", m2clip.load_clip("tiny"), ["a", "b", "c"], 4).to("cuda")
    model.set_precision("bf16")
    found = kernels.prepare(model, dtype=torch.bfloat16)
    video = torch.randn(2, 4, 3, *model.image_size, device="cuda")
    total = model.loss(video, torch.arange(2, device="cuda")).total
    total.backward()
    for call, backend in found.items():
        print(f"{call}: {backend}")
    print(f"loss {total.item():.3f}")
    off = [call for call, backend in found.items() if backend == "reference"]
    sys.exit(f"not verified: {', '.join(off) or 'nothing was asked'}" if off or not found else 0)


if __name__ == "__main__":
    main()
