"""What `m2clip.predict` takes and gives."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import m2clip
from m2clip.errors import InputError
from tests.data.video_files import write_video
from tests.fake_model import random_tiny_clip

NAMES = ["juggling", "riding a horse", "cooking"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [
        write_video(folder / f"{length}.mp4", length, size=size) for length, size in ((20, (96, 64)), (9, (64, 80)))
    ]


@pytest.fixture(scope="module")
def model() -> m2clip.methods.VideoModel:
    torch.manual_seed(0)
    model = m2clip.create_model("m2clip", random_tiny_clip(), class_names=NAMES, num_frames=4, width=8).eval()
    for parameter in model.parameters():  # whose heads begin at zero and would give all classes one score
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_every_form_of_a_video_gives_the_same(model, videos: list[Path]) -> None:
    path = videos[0]
    expected = m2clip.predict(model, path)
    loaded = m2clip.load_video(path)
    sources = [
        str(path),
        path.read_bytes(),
        io.BytesIO(path.read_bytes()),
        loaded,
        loaded.frames,
        loaded.frames.numpy(),
    ]
    for source in [*sources, loaded.frames.float() / 255]:
        found = m2clip.predict(model, source)
        assert found.ranked == expected.ranked
        assert torch.equal(found.frames, expected.frames)


def test_a_list_is_predicted_together(model, videos: list[Path]) -> None:
    alone = [m2clip.predict(model, one) for one in videos]
    passes: list[int] = []
    handle = model.visual.register_forward_hook(lambda *_: passes.append(1))
    try:
        together = m2clip.predict(model, [videos[0], videos[1].read_bytes()])
    finally:
        handle.remove()
    assert len(passes) == 1
    assert [one.path for one in together] == [str(videos[0]), "bytes"]
    for one, other in zip(together, alone, strict=True):
        assert dict(one.ranked) == pytest.approx(dict(other.ranked), abs=1e-6)


def test_the_transform_makes_what_the_model_takes(model, videos: list[Path]) -> None:
    clips = model.transform(m2clip.load_video(videos[0]).frames)
    assert clips.shape == (1, 4, 3, 48, 48)
    with torch.no_grad():
        expected = model(clips).logits.softmax(-1)[0]
    ranked = dict(m2clip.predict(model, videos[0]).ranked)
    assert [ranked[name] for name in NAMES] == pytest.approx(expected.tolist(), abs=1e-6)


def test_threads_have_labels_of_their_own(model, videos: list[Path]) -> None:
    requests = [
        ([f"class {number} {place}" for place in range(3 + number % 3)], videos[number % 2]) for number in range(12)
    ]
    expected = [m2clip.predict(model, video, labels) for labels, video in requests]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda request: m2clip.predict(model, request[1], request[0]), requests))
    assert found == expected
    assert [sorted(name for name, _ in one.ranked) for one in found] == [sorted(labels) for labels, _ in requests]
    assert model.class_names == NAMES


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({"video": []}, "the list of videos is empty"),
        ({"video": None}, "not NoneType"),
        ({"video": torch.zeros(2, 8, 8, 3, dtype=torch.int64)}, "not int64"),
        ({"top": 0}, "top must be at least 1"),
        ({"labels": []}, "class name"),
        ({"clips": 0}, "clips must be at least 1"),
        ({"labls": ["a"]}, "'labls' says nothing about views"),
    ],
)
def test_bad_requests_are_one_line(model, videos: list[Path], named: dict, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        m2clip.predict(model, **{"video": videos[0], **named})
    assert "\n" not in str(caught.value)


def test_a_result_tells_its_best_classes(model, videos: list[Path]) -> None:
    found = m2clip.predict(model, videos[0], top=2)
    (name, score), (second, _) = found.ranked[:2]
    assert (found.label, found.score) == (name, score)
    lines = repr(found).splitlines()
    assert lines[0] == f"Prediction of {videos[0]} (supervised)"
    assert [line.split("  ")[1].strip() for line in lines[1:]] == [name, second]
    assert lines[1].endswith(f"{100 * score:.2f} %")
    assert len(found.to_dict()["predictions"]) == 2


class Tags(HTMLParser):
    """Checks that tags are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_notebook_shows_frames_and_bars(model, videos: list[Path]) -> None:
    labels = ["<script>alert(1)</script>", "a & b"]
    text = m2clip.predict(model, videos[0], labels)._repr_html_()
    Tags(text)
    assert "&lt;script&gt;" in text and "<script" not in text and "a &amp; b" in text
    sources = re.findall(r'(?:src|href)="(.{0,30})', text)
    assert len(sources) == 1 and sources[0].startswith("data:image/png;base64,")


def test_trainable_parameters_are_counted(model, capsys: pytest.CaptureFixture[str]) -> None:
    model.print_trainable_parameters()
    trained = sum(tensor.numel() for tensor in model.trained_state_dict().values())
    total = sum(parameter.numel() for parameter in model.parameters())
    share = 100 * trained / total
    assert capsys.readouterr().out == f"{trained:,} of {total:,} parameters are trained ({share:.2f} %)\n"
