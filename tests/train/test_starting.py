"""Runs that start from another run's adapters: same classes, other classes, and models that do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import m2clip
from m2clip.config import RunConfig, load_config
from m2clip.errors import InputError
from m2clip.train import trainer as train
from m2clip.train.averaging import WeightAverage
from m2clip.train.starting import check_method, fields_to_agree, start_from
from m2clip.train.state import Progress, collect_tensors, save_checkpoint
from tests.clips import NAMES, randomise, small_clip
from tests.train.test_resume import Killed, kill_after
from tests.train.training_run import CLASS_NAMES, build_clip, build_config, write_videos

CLIP = small_clip()
OTHER = ["walking a dog", "riding a horse"]
SMALL: dict[str, dict[str, Any]] = {
    "m2clip": {"width": 8, "text_width": 8},
    "msta": {"width": 8, "alpha": 0.0},
    "st_adapter": {"width": 8},
    "aim": {"width": 8},
    "ma_fsar": {"tpcm_heads": 2},
}


def build(method: str, names: list[str], frames: int = 4, clip: Any = CLIP, **options: Any) -> Any:
    return m2clip.create_model(method, clip, names, frames, **{**SMALL[method], **options})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    found = {}
    for method in SMALL:
        model = build(method, NAMES)
        randomise(model)
        found[method] = m2clip.save_adapters(model, tmp_path_factory.mktemp(method)), model.trained_state_dict()
    return found


@pytest.mark.parametrize("method", SMALL)
@pytest.mark.parametrize("names", [NAMES, OTHER, NAMES[::-1]], ids=["same", "other", "another order"])
def test_adapters_are_taken_and_what_belongs_to_classes_only_with_them(
    saved: dict[str, Any], method: str, names: list[str]
) -> None:
    folder, before = saved[method]
    model = build(method, names)
    fresh = {name: tensor.clone() for name, tensor in model.trained_state_dict().items()}
    line = start_from(model, folder)
    assert "\n" not in line and model.started_from
    own = {name for name in fresh if name.startswith("vc.") and names != NAMES}
    own |= {name for name in fresh if name in ("cmlm.words.decoder", "cmlm.words.bias") and names == OTHER}
    for name, tensor in model.trained_state_dict().items():
        assert torch.equal(tensor, fresh[name] if name in own else before[name]), name
    assert ("none is new" in line) == (not own)
    assert ("(vc)" in line) == any(name.startswith("vc.") for name in own)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("st_adapter", {}, "is a run of m2clip, not of st_adapter"),
        ("m2clip", {"width": 16}, "another model .model.options.: width 8 .given: 16."),
        ("m2clip", {"layers": "2-3"}, "layers 'all' .given: '2-3'."),
        ("m2clip", {"preset": "paper"}, "placement 'pre_mlp' .given: 'pre_attn'."),
        ("m2clip", {"clip": small_clip(joint=24), "heads": ("vc",)}, "another CLIP: joint_width 32 .given: 24."),
    ],
)
def test_what_does_not_fit_is_told(saved: dict[str, Any], method: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        start_from(build(method, OTHER, **changes), saved["m2clip"][0])
    assert "\n" not in str(refused.value)


def test_another_number_of_frames_is_told_where_it_matters(saved: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="trained on 4 frames per clip, this model takes 8"):
        start_from(build("aim", OTHER, frames=8), saved["aim"][0])
    start_from(build("st_adapter", OTHER, frames=8), saved["st_adapter"][0])


def test_heads_may_be_others(saved: dict[str, Any]) -> None:
    """A run without a head starts from one that has it, and the other way round."""
    folder, before = saved["m2clip"]
    model = build("m2clip", NAMES, heads=("contrastive",), mask_rate=0.3)
    assert "none is new" in start_from(model, folder)
    few = m2clip.save_adapters(model, folder / "few")
    model = build("m2clip", NAMES)
    assert "(vc)" in start_from(model, few) and "(cmlm)" in start_from(model, few)
    name = next(name for name in before if name.startswith("visual."))
    assert torch.equal(model.trained_state_dict()[name], before[name])


def test_a_checkpoint_and_files_are_taken_as_well(saved: dict[str, Any], tmp_path: Path) -> None:
    folder, before = saved["st_adapter"]
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    model = build("st_adapter", NAMES)
    for source in (run / "adapters.safetensors", run / "adapter_config.json"):
        start_from(model, source)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.trained_state_dict().items())
    later = build("st_adapter", NAMES)
    randomise(later)
    optimiser = torch.optim.AdamW(later.parameters())
    tensors = collect_tensors(later, optimiser)
    plain = save_checkpoint(run / "checkpoints", tensors, Progress(step=3), {}, keep=2)
    for source in (plain, plain / "tensors.safetensors"):
        line = start_from(model, source)
        assert line.startswith(f"started from {plain}, st_adapter of 4 frames: ") and "none is new" in line
        assert all(torch.equal(tensor, tensors[f"model.{n}"]) for n, tensor in model.trained_state_dict().items())
    # A run that averages its weights offers the average.
    average = WeightAverage(later, 0.5)
    randomise(later)
    tensors = collect_tensors(later, optimiser) | average.tensors()
    start_from(model, save_checkpoint(run / "checkpoints", tensors, Progress(step=4), {}, keep=2))
    assert all(torch.equal(tensor, tensors[f"average.{n}"]) for n, tensor in model.trained_state_dict().items())
    (plain / "tensors.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(InputError, match="checkpoint is damaged .tensors.safetensors is not what was written."):
        start_from(model, plain)
    (tmp_path / "m2clip.pth").touch()
    with pytest.raises(InputError, match="m2clip convert makes these of an authors' checkpoint"):
        start_from(model, tmp_path / "m2clip.pth")


def test_what_has_to_agree_is_taken_over(tmp_path: Path) -> None:
    from m2clip.towers.loading import load_clip

    model = m2clip.create_model("msta", load_clip("tiny"), NAMES, 4, width=16, scale=0.25, alpha=0.5, prompt="see {}")
    model.views = {**model.views, "sampling": "dense", "stride": 3}
    folder = m2clip.save_adapters(model, tmp_path / "run")
    config = load_config(None, ["model.method=msta", *fields_to_agree(folder, (), whole=False)])
    assert (config.model.clip, config.model.pretrained, config.data.num_frames) == ("tiny", None, 4)
    options = config.model.options
    assert (options["width"], options["scale"], options["layers"]) == (16, 0.25, "all")
    assert config.data.sampling == RunConfig().data.sampling and not {"prompt", "alpha"} & options.keys()
    config = load_config(None, fields_to_agree(folder, {"data.num_frames", "model.options.scale"}, whole=True))
    assert (config.model.method, config.data.sampling, config.data.stride) == ("msta", "dense", 3)
    assert config.data.num_frames == RunConfig().data.num_frames and config.model.options["prompt"] == "see {}"
    assert not {"scale", "alpha", "descriptions"} & config.model.options.keys()
    with pytest.raises(InputError, match="run is a run of msta, and --method says aim, which has other adapters"):
        check_method(folder, "aim", "--method")
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert saved["clip"]["name"] == "tiny"
    model.clip_source = {**saved["clip"], "name": "ViT-B-32", "pretrained": "laion400m_e31"}
    with pytest.raises(InputError, match=r"is built on the CLIP ViT-B-32: .*; --clip has it downloaded"):
        fields_to_agree(m2clip.save_adapters(model, tmp_path / "b32"), (), whole=True)
    assert not any("clip=" in field for field in fields_to_agree(tmp_path / "b32", {"model.clip"}, whole=True))
    model.clip_source = None
    with pytest.raises(InputError, match="does not name its CLIP: give --clip"):
        fields_to_agree(m2clip.save_adapters(model, tmp_path / "unnamed"), (), whole=True)


def test_a_run_starts_from_another_and_goes_on_without_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    listed = write_videos(tmp_path / "videos")
    first = build_config(listed, tmp_path / "first", "optim.epochs=1")
    base = train.run(first, clip=build_clip())

    def config(output: str, init: Path = base) -> Any:
        return build_config(listed, tmp_path / output, "optim.epochs=1", "checkpoint_every=1", f"model.init={init}")

    whole = m2clip.load_adapters(train.run(config("whole"), clip=build_clip()), build_clip()).trained_state_dict()
    assert f"started from {base}" in capfd.readouterr().out
    with pytest.raises(Killed):
        train.run(config("killed"), clip=build_clip(), on_step=kill_after(2))
    another = Path(shutil.copytree(base, tmp_path / "another"))
    model = m2clip.load_adapters(another, build_clip())
    randomise(model)
    m2clip.save_adapters(model, another)
    with pytest.raises(InputError, match=r"model\.init"):
        train.run(config("killed", another), clip=build_clip())
    base.rename(tmp_path / "moved")
    again = m2clip.load_adapters(train.run(config("killed"), clip=build_clip()), build_clip()).trained_state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    assert json.loads((tmp_path / "killed" / "adapter_config.json").read_text())["class_names"] == CLASS_NAMES
    with pytest.raises(InputError, match="no such run, checkpoint or saved adapters to start from"):
        train.run(config("fresh"), clip=build_clip())
    with pytest.raises(InputError, match="nothing is written over it"):
        train.run(config("moved", tmp_path / "moved"), clip=build_clip())
