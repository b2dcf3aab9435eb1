"""Prediction on generated videos, against the model called by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import m2clip
from m2clip.data.clips import load_views
from m2clip.errors import InputError
from m2clip.methods.views import default_settings
from m2clip.prediction.videos import predict, predict_video
from tests.data.video_files import write_video
from tests.fake_model import PixelModel, random_tiny_clip

NAMES = ["juggling", "riding a horse", "cooking"]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, num_frames=20, size=(96, 64))
    return path


@pytest.fixture(scope="module")
def model() -> m2clip.methods.VideoModel:
    torch.manual_seed(0)
    return m2clip.create_model("m2clip", random_tiny_clip(), class_names=NAMES, num_frames=4, width=8)


def test_supervised_scores_are_the_models(model, video: Path) -> None:
    ranked = predict(model.eval(), video, clips=2, crops=3).ranked
    views = load_views(video, default_settings(model, clips=2, crops=3))
    with torch.no_grad():
        expected = model(views).logits.softmax(dim=-1).mean(dim=0)
    assert len(views) == 6
    assert dict(ranked) == pytest.approx(dict(zip(NAMES, expected.tolist(), strict=True)), abs=1e-6)
    assert [name for name, _ in ranked] == [NAMES[number] for number in expected.argsort(descending=True)]
    assert sum(score for _, score in ranked) == pytest.approx(1, abs=1e-9)


def test_other_class_names_fall_back_to_similarity(model, video: Path) -> None:
    assert predict_video(model, video).head == "supervised"
    model.set_class_names(["a", "b"])
    try:
        prediction = predict_video(model, video)
    finally:
        model.set_class_names(NAMES)
    assert prediction.head == "zero-shot"
    assert {name for name, _ in prediction.ranked} == {"a", "b"}
    best = prediction.to_dict(top=1)["predictions"]
    assert best == [{"name": prediction.ranked[0][0], "score": prediction.ranked[0][1]}]


def test_frames_are_those_the_model_saw(model, video: Path) -> None:
    from m2clip.data.video.readers import open_video

    settings = default_settings(model)
    frames = predict_video(model, video, settings=settings).frames
    assert frames.shape == (4, 3, 48, 48) and frames.dtype == torch.uint8
    with open_video(video) as opened:
        seen = opened.read(settings.indices(opened.num_frames))
    from torchvision.transforms.v2 import functional as F

    expected = F.center_crop(F.resize(seen, [48, 72], antialias=True), [48, 48])
    assert int((frames.int() - expected.int()).abs().max()) <= 1


def test_prediction_leaves_the_mode_alone(model, video: Path) -> None:
    for training in (True, False):
        model.train(training)
        predict(model, video)
        assert model.training is training


def test_unreadable_video_is_one_line(model, tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    page = tmp_path / "page.mp4"
    page.write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    for path in (empty, page, tmp_path / "absent.mp4"):
        with pytest.raises(InputError) as caught:
            predict(model, path)
        assert path.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_scores_that_are_not_finite_are_an_error(video: Path) -> None:
    model = PixelModel(NAMES)
    model.weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        predict(model, video)


@pytest.mark.parametrize("transform", ["standard", "authors"])
def test_a_forward_pass_on_a_cpu_takes_few_views(video: Path, transform: str) -> None:
    model, seen = PixelModel(NAMES), []
    settings = default_settings(model, clips=21, transform=transform)
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    predict_video(model, video, settings=settings)
    assert [len(batch) for batch in seen] == [2] * 8 + [3, 2]
    assert torch.equal(torch.cat(seen), load_views(video, settings))
