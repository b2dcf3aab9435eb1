"""Lists, label sets, configurations, descriptions and episodes are read rightly or refused in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from m2clip.config import RunConfig, load_config, validate
from m2clip.data.episodes import EpisodeShape, draw_episodes, load_episodes
from m2clip.data.lists.annotations import FORMATS, Annotations, VideoItem, load_annotations
from m2clip.data.lists.label_sets import load_class_names
from m2clip.data.lists.splits import write_list
from m2clip.methods.descriptions import load_descriptions
from tests.fuzz.mutations import TOKENS, attempt, cases, mutated, mutated_json

CLASSES = b'id,name\n0,jump\n1,run\n2,"walk, slowly"\n'
LISTS = {
    "list.txt": b"a/0.mp4 0\na/1.mp4 1\nsome dir/2.mp4, 2\n",
    "frames.txt": b"a/0 10 0\na/1,20,1\n",
    "kinetics.csv": b'label,youtube_id,time_start,time_end,split\njump,abc,0,10,train\n"run",d-e,5,15,val\n',
    "ssv2.json": b'[{"id": "1", "template": "jump [something]"}, {"id": "2", "template": "run"}]',
    "trainlist01.txt": b"jump/v_1.avi 1\nrun/v_2.avi 2\n",
    "testlist01.txt": b"jump/v_1.avi\nrun/v_2.avi\n",
    "jump_test_split1.txt": b"a.avi 1\nb(1).avi 2\nc!.avi 0\n",
    "episodes.txt": b"train0//videos/jump/1.avi\ntrain1//videos/run/2.avi\ntrain1/run/3\n",
}
BESIDE = {"classInd.txt": b"1 jump\n2 run\n", "labels.json": b'{"jump [something]": "0", "run": "1"}'}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("fuzz")
    yield made
    # What a document of TOKENS would make if it were executed.
    assert not list(made.rglob("pwned"))
    assert not Path("pwned").exists()


def written(folder: Path, name: str, data: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    return path


@st.composite
def lists(draw: st.DrawFn) -> tuple[str, bytes, bytes, str]:
    name = draw(st.sampled_from(sorted(LISTS)))
    beside = tuple(BESIDE.values())
    formats = ("auto", "auto", "auto", *(name for name in FORMATS if name != "shards"))
    other = draw(mutated(beside)) if not draw(st.integers(0, 3)) else b""
    return name, draw(mutated((LISTS[name],))), other, draw(st.sampled_from(formats))


@cases(0.22)
@given(lists(), st.sampled_from([None, None, "train", "test", "train1"]), st.booleans())
@example(("list.txt", b"a.mp4 " + b"9" * 5000, b"", "auto"), None, False)
@example(("list.txt", b"a.mp4 " + b"9" * 30, b"", "auto"), None, False)
@example(("ssv2.json", b"[" * 100_000, b"", "auto"), None, False)
@example(("ssv2.json", b'[{"id": "a\\ud800", "template": "jump"}]', b"", "auto"), None, True)
@example(("list.txt", b"a\0b.mp4 0", b"", "auto"), None, False)
@example(("list.txt", b"a" * 300 + b".mp4 0", b"", "auto"), None, False)
@example(("list.txt", b"a/" * 3000 + b".mp4 0", b"", "auto"), None, False)
@example(("episodes.txt", b"train0//", b"", "auto"), None, False)
@example(("episodes.txt", b"train0/" + b"a" * 300, b"", "auto"), None, False)
@example(("episodes.txt", b"train0/..", b"", "auto"), None, False)
@example(
    ("kinetics.csv", b'label,youtube_id,time_start,time_end,split\njump,abc,inf,nan,"train\n', b"", "auto"), None, True
)
@example(("frames.txt", b"a 999999999999999999999999 0", b"", "frames"), None, False)
def test_lists(folder: Path, drawn: tuple[str, bytes, bytes, str], split: str | None, named: bool) -> None:
    name, data, other, kind = drawn
    path = written(folder / "lists", name, data)
    for beside, content in BESIDE.items():
        written(folder / "lists", beside, other or content)
    classes = written(folder / "lists", "classes.csv", CLASSES) if named else None
    found = attempt("lists", lambda: load_annotations(path, format=kind, split=split, class_names=classes))
    if found is None:
        return
    assert len(found) > 0
    assert len({item.path for item in found.items}) == len(found)
    most = len(found.class_names) if found.class_names is not None else 2**31
    assert all(0 <= item.label < most for item in found.items)
    assert all(item.num_frames is None or 0 < item.num_frames < 2**31 for item in found.items)
    for item in found.items:
        # A name that the system can look up, whether there is such a file or not.
        assert item.path.exists() in (True, False)
    if found.class_names is not None and len(found.class_names) > 1:
        again = attempt("lists written again", lambda: write_list(found, folder / "again.txt"))
        if again is not None:
            same = load_annotations(again.path, format=again.format, class_names=again.classes)
            assert [item.label for item in same.items] == [item.label for item in found.items]
            assert same.class_names == found.class_names


@cases(0.08)
@given(
    st.sampled_from(["classes.csv", "classes.txt", "classInd.txt", "labels.json"]),
    mutated((CLASSES, b"jump\nrun\nwalk\n", b"1 jump\n2 run\n", BESIDE["labels.json"])),
)
@example("classes.csv", "²,jump\n".encode())
@example("classes.csv", b"9" * 5000 + b",jump\n")
@example("labels.json", '{"jump": "²"}'.encode())
@example("labels.json", b"[" * 100_000)
@example("classes.csv", b'0,"jump\n')
@example("classes.csv", b"0,a\r1,b\n")
def test_label_sets(folder: Path, name: str, data: bytes) -> None:
    path = written(folder / "labels", name, data)
    names = attempt("label sets", lambda: load_class_names(path))
    if names is not None:
        assert names and all(isinstance(one, str) and one.strip() for one in names)
        assert len(set(names)) == len(names)


CONFIG = b"""model:
  method: m2clip
  clip: tiny
  pretrained: null
  options: {width: 32, placement: both}
data:
  train: train.txt
  num_frames: 8
optim:
  lr: 1.0e-3
  epochs: 2
seed: 3
"""


@cases(0.14)
@given(
    mutated((CONFIG,)),
    st.lists(
        st.tuples(
            st.sampled_from(
                ["optim.lr", "data.num_frames", "model.options.width", "model", "seed", "eval.crops", "x", ""]
            ),
            st.sampled_from([token.decode("utf-8", "replace") for token in TOKENS if len(token) < 99]),
        ),
        max_size=2,
    ),
)
@example(b"!!python/object/apply:os.system ['touch pwned']", [])
@example(b"model: !!python/object/apply:os.system ['touch pwned']", [])
@example(b"model: {class_path: subprocess.Popen, init_args: {args: [touch, pwned]}}", [])
@example(b"output: &a [*a]", [])
@example(b"a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", [])
@example(b"seed: " + b"[" * 5000, [])
@example(b"seed: 2020-01-01", [])
@example(b"seed: " + b"9" * 5000, [])
@example(b"model: {options: {[a]: 1}}", [])
@example(b"model: {options: {1: 1}}", [])
@example(b"model: {options: }", [])
@example(b"data: {num_frames: }", [])
@example(b"data: ", [])
@example(b"config: other.yaml", [])
@example(b"", [("config", "/dev/null")])
@example(b"", [("help", "")])
@example(b"", [("print_config", "")])
def test_configurations(folder: Path, data: bytes, overrides: list[tuple[str, str]]) -> None:
    path = written(folder / "config", "config.yaml", data)
    config = attempt("configurations", lambda: load_config(path, [f"{name}={value}" for name, value in overrides]))
    if config is not None:
        assert isinstance(config, RunConfig)
        validate(config)
        assert type(config.seed) is int and type(config.data.num_frames) is int


@pytest.mark.parametrize("key", [b"class_path", b'"class\\x5fpath"'])
@pytest.mark.parametrize("place", ["model", "model.options", "data", "model.options.width", "optim.lr"])
def test_a_configuration_imports_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch, key: bytes, place: str) -> None:
    modules = folder / "modules"
    written(modules, "harmful_module.py", b"open(__file__ + '.pwned', 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(str(modules))
    value = b"{" + key + b": harmful_module.Thing, init_args: {}}"
    *outer, last = place.encode().split(b".")
    text = b"".join(b"  " * depth + name + b":\n" for depth, name in enumerate(outer))
    path = written(folder / "config", "class.yaml", text + b"  " * len(outer) + last + b": " + value + b"\n")
    assert attempt("configurations", lambda: load_config(path)) is None
    assert attempt("configurations", lambda: load_config(None, [f"{place}={value.decode()}"])) is None
    assert not list(modules.glob("*.pwned"))
    assert "harmful_module" not in sys.modules


SENTENCES = {"jump": ["a person jumps", "off the ground"], "run": ["a person runs"], "walk": "slow"}


@cases(0.08)
@given(mutated_json((SENTENCES, {"0": ["a"], "1": ["b"], "2": ["c"]})) | mutated((json.dumps(SENTENCES).encode(),)))
@example(b"[" * 100_000)
@example(b'{"0": ["a"], "1": ["b"], "3": ["c"]}')
@example('{"٠": ["a"], "1": ["b"], "2": ["c"]}'.encode())
def test_descriptions(folder: Path, data: bytes) -> None:
    path = written(folder / "descriptions", "d.json", data)
    found = attempt("descriptions", lambda: load_descriptions(path, ["jump", "run", "walk"]))
    if found is not None:
        assert len(found) == 3
        assert all(sentences and all(isinstance(one, str) and one for one in sentences) for sentences in found)


VIDEOS = Annotations(
    tuple(VideoItem(Path("/v") / f"{number}.mp4", number % 3) for number in range(12)), None, "list", Path("list.txt")
)


@pytest.fixture(scope="module")
def episodes(folder: Path) -> bytes:
    return draw_episodes(VIDEOS, EpisodeShape(2, 1, 2), count=3, seed=1).save(folder / "episodes.txt").read_bytes()


@cases(0.12)
@given(st.data())
def test_episodes(folder: Path, episodes: bytes, data: st.DataObject) -> None:
    lines = episodes.splitlines()
    if data.draw(st.booleans()):
        content = data.draw(mutated((episodes,)))
    else:
        place = data.draw(st.integers(0, len(lines) - 1))
        content = b"\n".join(
            data.draw(mutated_json((json.loads(line),))) if number == place else line
            for number, line in enumerate(lines)
        )
    path = written(folder / "episodes", "e.txt", content)
    found = attempt("episodes", lambda: load_episodes(path, VIDEOS))
    if found is not None:
        assert len(found) == 3
        assert int(found.support.max()) < 12
