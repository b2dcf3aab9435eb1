"""Weights of others: read as they are, for the architecture they belong to, or refused in one line."""

from __future__ import annotations

import gc
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

import m2clip
from m2clip.checkpoints.convert import authors_options, authors_state, convert_from_authors
from m2clip.errors import InputError, Notice
from m2clip.methods.views import default_settings
from m2clip.towers import weight_sources
from m2clip.towers.prompts import load_words
from m2clip.towers.viclip import load_viclip
from m2clip.towers.weight_files import is_scripted, read_weights
from tests.towers.small_architectures import SMALL, add_architectures


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("weights")
    add_architectures(made)
    return made


@pytest.fixture(scope="module")
def clip() -> Any:
    torch.manual_seed(0)
    return open_clip.CLIP(**{**json.loads(json.dumps(SMALL)), "quick_gelu": True}).eval()


@pytest.fixture(scope="module")
def archive(folder: Path, clip: Any) -> Path:
    """A TorchScript archive of half-precision weights and three numbers, as OpenAI's."""
    copied = open_clip.CLIP(**{**json.loads(json.dumps(SMALL)), "quick_gelu": True})
    copied.load_state_dict(clip.state_dict())
    for name, number in (("input_resolution", 16), ("context_length", 16), ("vocab_size", 49408)):
        if hasattr(copied, name):
            delattr(copied, name)
        copied.register_buffer(name, torch.tensor(number))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        called = {"encode_image": torch.zeros(1, 3, 16, 16).half()}
        torch.jit.trace_module(copied.half().eval(), called, check_trace=False).save(folder / "ViT.pt")
    return folder / "ViT.pt"


def test_torchscript_archives_are_read_without_their_code(archive: Path, clip: Any, tmp_path: Path) -> None:
    assert is_scripted(archive)
    state, expected = read_weights(archive), clip.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor.half()) for name, tensor in expected.items())
    loaded = m2clip.load_clip("small-ViT-quickgelu", archive).state_dict()
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in expected.items())
    # Code that is damaged is code that is not looked at.
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(tmp_path / "codeless.pt", "w") as made:
        for name in whole.namelist():
            made.writestr(name, b"(" if "/code/" in name else whole.read(name))
    assert read_weights(tmp_path / "codeless.pt").keys() == expected.keys()


class Harmful:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def circle() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["again"] = found
    return found


@pytest.mark.parametrize("content", ["harmful", "circle", "no pickle", "cut off"])
def test_damaged_and_harmful_archives_are_refused(archive: Path, tmp_path: Path, content: str) -> None:
    marker = tmp_path / "ran"
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(tmp_path / "made.pt", "w") as made:
        for name in whole.namelist():
            data = whole.read(name)
            if name.endswith("/data.pkl"):
                replacements = {"harmful": pickle.dumps(Harmful(marker)), "circle": pickle.dumps(circle())}
                data = replacements.get(content, data if content == "cut off" else b"no pickle")
            made.writestr(name, data[:10] if content == "cut off" and "/data/" in name else data)
    with pytest.raises(InputError) as refused:
        read_weights(tmp_path / "made.pt")
    assert "\n" not in str(refused.value) and "weights_only" not in str(refused.value)
    assert not marker.exists()


FOREIGN: dict[str, Callable[[], tuple[Any, Any]]] = {
    "a number as name": lambda: (7, torch.zeros(2)),
    "a tuple as name": lambda: (("a", "b"), torch.zeros(2)),
    "an endless layer number": lambda: (f"visual.transformer.resblocks.{'9' * 5000}.ln_1.weight", torch.zeros(2)),
    "no tensor": lambda: ("positional_embedding", [1.0, 2.0]),
    "a number": lambda: ("positional_embedding", torch.tensor(1.0)),
    "one number for many": lambda: ("positional_embedding", torch.zeros(1).expand(10**6, 10**6)),
    "no numbers for many": lambda: ("positional_embedding", torch.zeros(10**9, 0)),
    "sparse": lambda: ("positional_embedding", torch.eye(3).to_sparse()),
    "sparse rows": lambda: ("positional_embedding", torch.eye(3).to_sparse_csr()),
    "quantised": lambda: ("positional_embedding", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)),
    "meta": lambda: ("positional_embedding", torch.empty(16, 16, device="meta")),
    "complex": lambda: ("positional_embedding", torch.zeros(16, 16, dtype=torch.complex64)),
    "eight bits": lambda: ("positional_embedding", torch.zeros(16, 16).to(torch.float8_e5m2)),
    "integers": lambda: ("positional_embedding", torch.zeros(16, 16, dtype=torch.int64)),
    "NaN": lambda: ("positional_embedding", torch.full((16, 16), torch.nan)),
    "infinite": lambda: ("positional_embedding", torch.full((16, 16), torch.inf)),
    "infinite in fp32": lambda: ("positional_embedding", torch.full((16, 16), -1e300, dtype=torch.float64)),
    "another width": lambda: ("positional_embedding", torch.zeros(16, 8)),
    "three dimensions": lambda: ("visual.positional_embedding", torch.zeros(1, 5, 16)),
    "unknown": lambda: ("classifier.weight", torch.zeros(2)),
}
if hasattr(torch, "nested"):
    FOREIGN["nested"] = lambda: ("positional_embedding", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_tensors_are_refused(clip: Any, tmp_path: Path, kind: str) -> None:
    """By load_clip, ViCLIP and convert, each in one line that names the file or the checkpoint."""
    name, tensor = FOREIGN[kind]()
    path = tmp_path / "made.pt"
    for state, read in (
        ({**clip.state_dict(), name: tensor}, lambda: m2clip.load_clip("small-ViT-quickgelu", path)),
        ({f"text_encoder.{name}" if isinstance(name, str) else name: tensor}, lambda: load_viclip("tiny", path)),
        (
            aim_state() | {AIM_WIDTH if isinstance(name, str) and len(name) < 99 else name: tensor},
            lambda: convert(path),
        ),
    ):
        torch.save({"model": state}, path)
        with pytest.raises(InputError) as refused:
            read()
        assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


AIM_WIDTH = "backbone.transformer.resblocks.0.S_Adapter.D_fc1.weight"


def aim_state() -> dict[Any, Any]:
    return {
        AIM_WIDTH: torch.zeros(4, 16),
        "backbone.temporal_embedding": torch.zeros(1, 4, 16),
        "cls_head.fc_cls.weight": torch.zeros(2, 16),
    }


def convert(path: Path) -> None:
    convert_from_authors(path, path.with_name("out"), "small-ViT", class_names=["a", "b"], pretrained=None)


@pytest.fixture(autouse=True)
def small_viclip(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ViCLIP by the name "tiny" in place of those of real size."""
    from m2clip.towers import viclip

    monkeypatch.setattr(viclip, "ARCHITECTURES", {"tiny": "small-ViT"})


def test_what_a_checkpoint_tells_of_a_model_costs_no_memory(tmp_path: Path) -> None:
    state = aim_state() | {AIM_WIDTH: torch.zeros(10**6, 1)}
    assert authors_options(authors_state(state))["width"] == 10**6
    torch.save(state, tmp_path / "wide.pt")
    with pytest.raises(InputError, match="lacks"):
        convert(tmp_path / "wide.pt")


# ---- activations and pictures ----


def saved(clip: Any, folder: Path, config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(clip.state_dict(), folder / "weights.safetensors")
    if config is not None:
        (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder / "weights.safetensors"


def test_another_activation_is_noticed(archive: Path, clip: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trained with QuickGELU, and small-ViT has GELU: use small-ViT-quickgelu"):
        m2clip.load_clip("small-ViT", archive)
    path = saved(clip, tmp_path / "told", {"model_cfg": {**SMALL, "quick_gelu": True}})
    with pytest.raises(InputError, match="use small-ViT-quickgelu"):
        m2clip.load_clip("small-ViT", path)
    m2clip.load_clip("small-ViT-quickgelu", path)
    path = saved(clip, tmp_path / "gelu", {"model_cfg": {"embed_dim": 16}})
    with pytest.raises(InputError, match="trained with GELU, and small-ViT-quickgelu has QuickGELU: use small-ViT"):
        m2clip.load_clip("small-ViT-quickgelu", path)
    path = saved(clip, tmp_path / "damaged", {"model_cfg": 3})
    with pytest.raises(InputError, match=r"open_clip_config\.json cannot be read"):
        m2clip.load_clip("small-ViT", path)


@pytest.mark.parametrize("name", ["ViT-B-16", "ViT-B-32", "ViT-L-14", "ViT-H-14-378", "ViT-bigG-14"])
def test_tags_of_another_activation_are_refused_before_a_download(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_sources, "reachable", lambda address: pytest.fail("the network is asked"))
    wrong = [
        tag
        for tag in open_clip.list_pretrained_tags_by_model(name)
        if open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False)
    ]
    assert wrong
    for tag in wrong:
        with pytest.raises(InputError, match=f"use {name}-quickgelu$"):
            m2clip.load_clip(name, tag)


def test_weights_of_unknown_origin_are_told(clip: Any, tmp_path: Path) -> None:
    path = saved(clip, tmp_path / "unknown")
    with pytest.warns(Notice, match="taken as trained with QuickGELU and on pictures of CLIP's mean"):
        m2clip.load_clip("small-ViT-quickgelu", path)
    pictures = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}
    path = saved(clip, tmp_path / "told", {"model_cfg": {"quick_gelu": True}, "preprocess_cfg": pictures})
    model = m2clip.create_model("clip", m2clip.load_clip("small-ViT-quickgelu", path), ["a"], 2)
    normalize = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert model.views == {"normalize": normalize, "interpolation": "bilinear", "resize": "squash"}
    assert default_settings(model).normalize == normalize
    assert default_settings(model, normalize="clip").normalize[0][0] == 0.48145466


def test_l_14_of_laion2b_is_shown_other_pictures(clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag's own statistics reach the model, whatever its architecture's other tags have."""
    facts = open_clip.get_pretrained_cfg("ViT-L-14", "laion2b_s32b_b82k")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: facts)
    path = saved(clip, tmp_path / "kept")
    monkeypatch.setattr(weight_sources, "_kept_file", lambda facts: path)
    model = m2clip.create_model("clip", m2clip.load_clip("small-ViT", "laion2b_s32b_b82k"), ["a"], 2)
    assert default_settings(model).normalize == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert default_settings(model).interpolation == "bicubic"


def test_files_whose_content_is_a_tag_s_are_known(clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "renamed.pt"
    torch.save(clip.state_dict(), path)
    digest = weight_sources.file_digest(path)
    facts = {"url": f"https://github.com/mlfoundations/x/v-{digest[:8]}.pt", "quick_gelu": True, "mean": (0.5,) * 3}
    monkeypatch.setattr(weight_sources, "_tags", lambda name: [facts])
    with pytest.raises(InputError, match="use small-ViT-quickgelu"):
        m2clip.load_clip("small-ViT", path)
    assert m2clip.load_clip("small-ViT-quickgelu", path).visual.image_mean == (0.5,) * 3
    kept = tmp_path / "models--laion--CLIP-x" / "snapshots" / "1"
    kept.mkdir(parents=True)
    facts = {"hf_hub": "laion/CLIP-x/", "quick_gelu": False, "std": (0.5,) * 3}
    with pytest.raises(InputError, match="has QuickGELU: use small-ViT"):
        m2clip.load_clip("small-ViT-quickgelu", saved(clip, kept))


# ---- the network ----


def test_endless_names_are_told_in_one_line() -> None:
    name = "a" * 5000
    for read in (load_words, partial(m2clip.load_clip, "small-ViT")):
        with pytest.raises(InputError, match="^'aa.*aa' cannot be looked up: File name too long$"):
            read(name)
    with pytest.raises(InputError, match="has a tokenizer of its own"):
        m2clip.load_clip("small-ViT-worldwide", None, tokenizer=name, offline=True)


def test_what_is_not_here_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(weight_sources, "_kept_file", lambda facts: None)
    monkeypatch.setattr(weight_sources, "reachable", lambda address: bool(asked.append(address)))
    with pytest.raises(InputError, match="cannot download the weights 'openai'"):
        m2clip.load_clip()
    assert len(asked) == 1
    with pytest.raises(InputError, match="give --clip ViT-B-16-quickgelu --pretrained openai, or pass clip="):
        m2clip.load_clip(offline=True)
    assert len(asked) == 1


def test_hosts_that_do_not_answer_are_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        assert weight_sources.reachable(address)
    assert not weight_sources.reachable(address)
    monkeypatch.setenv("http_proxy", "http://nowhere.invalid:1")
    assert weight_sources.reachable(address)  # which the proxy knows


def test_tensors_of_transposed_and_shared_storage_are_plain(tmp_path: Path) -> None:
    whole: Tensor = torch.arange(12.0).view(3, 4)
    torch.save({"a": whole.t(), "b": whole[1:], "module.c": whole[0, 0]}, tmp_path / "views.pt")
    state = read_weights(tmp_path / "views.pt")
    assert torch.equal(state["a"], whole.t()) and torch.equal(state["b"], whole[1:]) and "module.c" in state


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
def test_weights_are_in_memory_once(clip: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path, expected = tmp_path / f"weights.{kind}", clip.state_dict()
    (save_file if kind == "safetensors" else torch.save)(expected, path)
    others, read = {id(one) for one in parameters_with_numbers()}, set()

    def noted(file: Path) -> dict[str, Tensor]:
        assert all(id(one) in others for one in parameters_with_numbers())  # those of the model are gone by now
        state = read_weights(file)
        read.update(tensor.data_ptr() for tensor in state.values())
        return state

    monkeypatch.setattr("m2clip.towers.loading.read_weights", noted)
    loaded = m2clip.load_clip("small-ViT-quickgelu", path).state_dict()
    assert {tensor.data_ptr() for tensor in loaded.values()} == read
    path.write_bytes(bytes(path.stat().st_size))  # which a file that is only mapped would show
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_embeddings_of_another_size_are_resized_in_fp32(clip: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {name: tensor.to(dtype) for name, tensor in clip.state_dict().items()}
    for name, length in (("positional_embedding", 12), ("visual.positional_embedding", 10)):
        stored[name] = torch.randn(length, 16).to(dtype)
    resized = []
    for kind in (dtype, torch.float32):
        torch.save({name: tensor.to(kind) for name, tensor in stored.items()}, tmp_path / "weights.pt")
        loaded: Any = m2clip.load_clip("small-ViT-quickgelu", tmp_path / "weights.pt")
        resized.append((loaded.positional_embedding, loaded.visual.positional_embedding))
    assert all(torch.equal(half, single) for half, single in zip(*resized, strict=True))


def test_a_file_that_is_replaced_while_it_is_read_is_never_mixed_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "weights.safetensors", tmp_path / "other.safetensors"
    for file, number in ((path, 1.0), (other, 2.0)):
        save_file({"a": torch.full((4,), number), "b": torch.full((4,), number)}, file)
    opened = safetensors.safe_open

    class Replaced:
        """The reader of safetensors; after each tensor another file has the path."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.reader = opened(*arguments, **options)

        def __enter__(self) -> Any:
            self.file = self.reader.__enter__()
            return self

        def __exit__(self, *_: object) -> None:
            self.reader.__exit__(None, None, None)

        def keys(self) -> list[str]:
            return self.file.keys()

        def get_tensor(self, name: str) -> Tensor:
            tensor = self.file.get_tensor(name)
            if other.exists():
                other.replace(path)
            return tensor

    monkeypatch.setattr(safetensors, "safe_open", Replaced)
    assert {number for tensor in read_weights(path).values() for number in tensor.tolist()} == {1.0}


def parameters_with_numbers() -> list[torch.nn.Parameter]:
    found = [one for one in gc.get_objects() if type(one) is torch.nn.Parameter]
    return [one for one in found if not one.is_meta]


def test_weights_that_share_memory_in_a_file_are_apart_in_the_model(clip: Any, tmp_path: Path) -> None:
    one = torch.ones_like(clip.ln_final.weight)
    torch.save({**clip.state_dict(), "ln_final.weight": one, "ln_final.bias": one}, tmp_path / "weights.pt")
    loaded: Any = m2clip.load_clip("small-ViT-quickgelu", tmp_path / "weights.pt")
    with torch.no_grad():
        loaded.ln_final.weight.zero_()
    assert torch.equal(loaded.ln_final.bias, one)
