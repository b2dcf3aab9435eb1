"""adapter_config.json and adapters.safetensors alone: the same scores as the run folder, or one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import m2clip
from m2clip.checkpoints.adapters import CONFIG_FILE, WEIGHTS_FILE
from m2clip.commands.shared import models
from m2clip.data.clips import ClipSettings
from m2clip.errors import InputError
from m2clip.files.disk import DIGEST, seal
from m2clip.files.tensors import save_tensors
from m2clip.prediction.videos import predict
from m2clip.towers import weight_sources
from m2clip.train.setup import clip_settings
from tests.clips import NAMES, randomise, small_clip
from tests.data.video_files import write_video

CLIP = small_clip()
VIEWS: dict[str, Any] = {
    "sampling": "dense",
    "stride": 2,
    "clips": 2,
    "crops": 3,
    "normalize": ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
    "transform": "authors",
    "interpolation": "bilinear",
    "resize": "squash",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = m2clip.create_model("m2clip", CLIP, NAMES, 4, width=8, text_width=8)
    randomise(model)
    model.views = ClipSettings(**VIEWS).views
    return m2clip.save_adapters(model, tmp_path_factory.mktemp("saved"))


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copied"))


class Arguments:
    """Parsed arguments of which only some were given."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)


def test_views_travel_with_the_adapters(saved: Path, tmp_path: Path) -> None:
    model = m2clip.load_adapters(saved, CLIP)
    assert model.views == VIEWS
    settings = clip_settings(models.run_config(Arguments(), saved), model)  # type: ignore[arg-type]
    assert settings.views == VIEWS
    given = clip_settings(models.run_config(Arguments(clips=1, normalize="imagenet"), saved), model)  # type: ignore[arg-type]
    assert given.clips == 1 and given.normalize[0] == (0.485, 0.456, 0.406) and given.views["crops"] == 3
    video = write_video(tmp_path / "v.mp4", 12)
    assert predict(model, video) == predict(model, video, **VIEWS)
    assert predict(model, video) != predict(model, video, transform="standard")


def test_every_flipped_bit_is_noticed(copied: Path) -> None:
    """Of the header and of the numbers, and of the configuration where it says anything."""
    state = m2clip.load_adapters(copied, CLIP).trained_state_dict()
    for name, places in ((WEIGHTS_FILE, range(0, 10**9, 4001)), (CONFIG_FILE, range(0, 10**9, 97))):
        content = (copied / name).read_bytes()
        for place in places[: len(range(0, len(content), places.step))]:
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            (copied / name).write_bytes(changed)
            try:
                found = m2clip.load_adapters(copied, CLIP)
            except InputError as error:
                assert "\n" not in str(error)
            else:
                assert json.loads(changed) == json.loads(content)  # white space
                assert all(torch.equal(state[key], tensor) for key, tensor in found.trained_state_dict().items())
        (copied / name).write_bytes(content)


def resaved(folder: Path, **changed: torch.Tensor | None) -> None:
    """The weights with some tensors changed or left out, and a digest that is right."""
    from m2clip.files.tensors import load_tensors

    tensors, facts = load_tensors(folder / WEIGHTS_FILE)
    tensors |= {name: tensor for name, tensor in changed.items() if tensor is not None}
    for name in [name for name, tensor in changed.items() if tensor is None]:
        del tensors[name]
    save_tensors(tensors, folder / WEIGHTS_FILE, {"config": facts["config"]})


NAME = "vc.fc.bias"


@pytest.mark.parametrize(
    "tensor",
    [
        torch.full((5,), torch.nan),
        torch.tensor([0, 0, 0, 0, torch.inf]),
        torch.zeros(5, dtype=torch.int64),
        torch.zeros(5, dtype=torch.complex64),
        torch.zeros(6),
        torch.zeros(()),
        None,
    ],
    ids=lambda tensor: str(tensor)[:40],
)
def test_weights_that_do_not_fit_are_refused(copied: Path, tensor: torch.Tensor | None) -> None:
    resaved(copied, **{NAME: tensor})
    with pytest.raises(InputError, match=NAME) as refused:
        m2clip.load_adapters(copied, CLIP)
    assert "\n" not in str(refused.value)


def reconfigured(folder: Path, **changed: Any) -> None:
    """A configuration with a digest that is right, and weights that know of it."""
    from m2clip.files.tensors import load_tensors

    config = json.loads((folder / CONFIG_FILE).read_text()) | changed
    del config[DIGEST]
    (folder / CONFIG_FILE).write_text(json.dumps(seal(config)))
    save_tensors(load_tensors(folder / WEIGHTS_FILE)[0], folder / WEIGHTS_FILE, {"config": seal(config)[DIGEST]})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"views": {"clips": 0}}, "views: clips must be at least 1"),
        ({"views": {"normalize": [[0, 0, 0], [1, 1, 0]]}}, "views: normalize must be"),
        ({"views": {"normalize": None}}, "views: normalize must be"),
        ({"views": {"reader": "pyav"}}, "views is not what it should be"),
        ({"views": {"stride": "a"}}, "views: "),
        ({"views": 3}, "views is not what it should be"),
        ({"format": 1}, "has format 1; this version of m2clip reads format 2"),
        ({"tokenizer": {"name": "another", "sha256": "0"}}, "was trained on another tokenizer: name 'another'"),
        ({"options": {"width": 10**9}}, "does not fit its configuration"),
        ({"clip": {"name": "tiny", "pretrained": None, "address": "x"}}, "clip is not what it should be"),
    ],
)
def test_foreign_configurations_are_refused(copied: Path, changed: dict[str, Any], message: str) -> None:
    reconfigured(copied, **changed)
    with pytest.raises(InputError, match=message) as refused:
        m2clip.load_adapters(copied, CLIP)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("ViT-B-16-quickgelu", "openai", "is not on this machine"),
        ("ViT-L-14-worldwide", "metaclip2_worldwide", "tokenizer of its own"),
        ("ViT-H-14-worldwide", "metaclip2_worldwide", "tokenizer of its own"),
        ("hf-hub:someone/something", None, "of this repository on this machine"),
    ],
)
def test_foreign_folders_reach_no_network(
    copied: Path, name: str, pretrained: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def connect(*where: Any, **named: Any) -> None:
        pytest.fail(f"the network is asked: {where}")

    monkeypatch.setattr(socket, "getaddrinfo", connect)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(weight_sources, "_kept_file", lambda facts: None)
    for tokenizer in (None, "someone/tokenizer"):
        reconfigured(copied, clip={"name": name, "pretrained": pretrained, "tokenizer": tokenizer})
        with pytest.raises(InputError) as refused:
            m2clip.load_adapters(copied)
        assert message in str(refused.value) or "OpenAI's tokenizer" in str(refused.value)
