"""Two processes with half a batch each against one with the whole batch."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor

import m2clip
from m2clip import distributed
from m2clip.errors import InputError
from m2clip.train.setup import LossModule
from tests.train.training_run import CLASS_NAMES, SIZE, build_clip

BATCH, PROCESSES = 8, 2


def build_model() -> Any:
    torch.manual_seed(1)
    model = m2clip.create_model("m2clip", build_clip(), CLASS_NAMES, 2, width=8, text_width=8, vc_dropout=0.0)
    with torch.no_grad():  # away from the zero initialisation, where many gradients are zero
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.train()


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(BATCH, 2, 3, SIZE, SIZE, generator=generator), torch.arange(BATCH) * 2 % 3


def loss_and_gradients(module: Any, model: Any, video: Tensor, labels: Tensor) -> dict[str, Tensor]:
    total, parts = module(video, labels, *model.draw(labels, torch.Generator().manual_seed(3)))
    total.backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.requires_grad}
    return {"total": total.detach(), **parts, **gradients}


def start(rank: int, port: int) -> None:
    import os

    torch.set_num_threads(1)
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in values.items()}, MASTER_PORT=str(port))
    distributed.init(60, "cpu")


def half_batch(rank: int, port: int, folder: str, recomputed: int) -> None:
    start(rank, port)
    model = build_model()
    model.recompute(recomputed)
    video, labels = batch()
    own = slice(rank * BATCH // PROCESSES, (rank + 1) * BATCH // PROCESSES)
    module = torch.nn.parallel.DistributedDataParallel(LossModule(model))
    torch.save(loss_and_gradients(module, model, video[own], labels[own]), Path(folder) / f"{rank}.pt")

    x = torch.full((2, 3), float(rank + 1), requires_grad=True)
    gathered = distributed.all_gather_with_grad(x)
    (gathered * torch.arange(12.0).reshape(4, 3) * (rank + 1)).sum().backward()
    assert gathered[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    expected = torch.arange(12.0).reshape(4, 3)[2 * rank : 2 * rank + 2] * 3
    assert torch.equal(x.grad, expected)
    cubes = distributed.all_gather_with_grad(x).pow(3).sum() * (rank + 1)
    (slope,) = torch.autograd.grad(cubes, x, create_graph=True)
    assert torch.equal(slope, 9 * x.square())
    assert torch.equal(torch.autograd.grad(slope.sum(), x)[0], 18 * x)
    assert distributed.all_gather(torch.tensor([rank])).tolist() == [0, 1]
    values = torch.tensor([0.5, 1.0 + rank], dtype=torch.float64)
    distributed.sum_in_place(values)
    assert values.tolist() == [1.0, 3.0]
    assert distributed.gather_objects(f"r{rank}") == ["r0", "r1"]
    distributed.barrier()
    distributed.shutdown()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("recomputed", [0, 2])
def test_two_processes_equal_one_on_all_heads(tmp_path: Path, recomputed: int) -> None:
    mp.spawn(half_batch, (free_port(), str(tmp_path), recomputed), nprocs=PROCESSES)
    model = build_model()
    whole = loss_and_gradients(LossModule(model), model, *batch())
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES)]
    for name in ("total", "contrastive", "cmc", "cmlm", "vc"):
        mean = torch.stack([half[name] for half in halves]).mean(0)
        assert abs(mean - whole[name]) <= 2e-6 * abs(whole[name]), name
    scale = max(float(whole[name].abs().max()) for name in model.trained_state_dict())
    for name in model.trained_state_dict():
        assert torch.equal(halves[0][name], halves[1][name]), name
        assert torch.allclose(halves[0][name], whole[name], rtol=1e-4, atol=1e-6 * scale), name


def test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert distributed.all_gather_with_grad(x) is x
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.gather_objects(3) == [3]
    values = torch.tensor([2.0])
    distributed.sum_in_place(values)
    assert values.tolist() == [2.0]
    distributed.barrier()
    with pytest.raises(InputError, match="cuda:99"):
        distributed.init(1, "cuda:99")
    with pytest.raises(InputError, match="gpu"):
        distributed.init(1, "gpu")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="RANK"):
        distributed.init(1, "cpu")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(InputError, match="WORLD_SIZE"):
        distributed.init(1, "cpu")
