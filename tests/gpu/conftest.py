"""Kernels on a GPU: collected only where PyTorch sees one.

M2CLIP_COLLECT_GPU=1 collects them anywhere, which shows that they import; they run on a GPU only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("M2CLIP_COLLECT_GPU") != "1":
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """fp32 is fp32 in the eager reference too, whose convolutions would use tf32 by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
