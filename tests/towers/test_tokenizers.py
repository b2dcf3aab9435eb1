"""A CLIP's own tokenizer: used for whole prompts and masked words, saved with adapters, and never fetched unasked."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

import m2clip
from m2clip.errors import InputError
from m2clip.towers import tokenizers as own_tokenizers
from m2clip.towers.prompts import PromptTokenizer
from m2clip.towers.vision import tower_signature
from tests.clips import small_clip
from tests.towers.families import family
from tests.towers.small_architectures import SMALL, add_architectures

NAME = "small-ViT-worldwide"
NAMES = ["Playing the flute!", "riding (not a horse)", "tai-chi"]


def write_tokenizer(folder: Path, start: bool = False, merged: bool = False, pieces: str = "aeiou") -> Path:
    """A SentencePiece-like tokenizer of single letters and a few pieces; some pieces may span two words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [*"▁abcdefghijklmnopqrstuvwxyz", *(f"▁{letter}" for letter in pieces), *(["▁of▁p"] if merged else [])]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("<s>", 0.0)]
    vocabulary += [(piece, -1.0 - number / 100) for number, piece in enumerate(letters)]
    made = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=not merged)
    template = "<s> $A </s>" if start else "$A </s>"
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("</s>", 1), ("<s>", 3)])
    named = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizers")
    add_architectures(made)
    return made


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    return write_tokenizer(folder / "plain")


def opened(tokenizer: Path | str | None) -> Any:
    torch.manual_seed(0)
    return m2clip.load_clip(NAME, None, tokenizer=tokenizer)


@pytest.mark.parametrize("start", [False, True])
def test_prompts_are_encoded_as_the_tokenizer_itself_does(folder: Path, start: bool) -> None:
    path = write_tokenizer(folder / f"start-{start}", start)
    clip = opened(path)
    reference = open_clip.tokenizer.HFTokenizer(str(path), context_length=16, clean="canonicalize")
    model = m2clip.create_model("clip", clip, NAMES, 2, prompt="a {}")
    texts = ["a Playing the flute!", "a riding (not a horse)", "a tai-chi"]  # the last ones are cut
    for i, (ids, tokens) in enumerate(zip(reference(texts), model._labels.prompts.tokens, strict=True)):
        last = int(model._labels.prompts.positions[i])
        assert ids[: last + 1].tolist() == tokens[: last + 1].tolist() and int(tokens[last]) == 1
        assert (ids[last + 1 :] == 0).all()
    assert int(model._labels.prompts.tokens[0][0]) == (3 if start else model.tokenizer.word_ids("a")[0])
    expected = clip.encode_text(reference(texts))
    torch.testing.assert_close(model.text_features(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("start", [False, True])
def test_words_are_masked_at_their_places(folder: Path, start: bool) -> None:
    clip = opened(write_tokenizer(folder / f"masks-{start}", start))
    model = m2clip.create_model("m2clip", clip, ["be it", "go on"], 2, prompt="do {}", width=8, text_width=8)
    masker = model.masker
    prompts, _ = masker([0], torch.tensor([[0.9, 0.1, 0.9]]))
    whole = model.tokenizer.prompt_ids(["do", "mask", "it"])
    assert prompts.tokens[0][: len(whole)].tolist() == whole
    place = len(model.tokenizer.prefix) + len(model.tokenizer.word_ids("do"))
    assert prompts.positions.tolist() == [[place]]
    assert whole[place:][: len(model.tokenizer.word_ids("mask"))] == list(model.tokenizer.word_ids("mask"))


def test_tokens_across_words_leave_no_word_to_mask(folder: Path) -> None:
    clip = opened(write_tokenizer(folder / "merged", merged=True))
    with pytest.raises(InputError, match="words cannot be masked with the tokenizer nobody/small"):
        m2clip.create_model("m2clip", clip, ["pi"], 2, prompt="of {}", width=8, text_width=8)
    m2clip.create_model("m2clip", clip, ["pi"], 2, prompt="of {}", width=8, heads=("contrastive",))


def test_the_tokenizer_is_saved_and_checked(folder: Path, plain: Path, tmp_path: Path) -> None:
    model = m2clip.create_model("st_adapter", opened(plain), NAMES, 2, width=8)
    saved = m2clip.save_adapters(model, tmp_path / "run")
    model.clip_source = None
    again = m2clip.load_adapters(saved, opened(plain))
    assert again.tokenizer.identity == model.tokenizer.identity
    other = write_tokenizer(folder / "other", pieces="bcdfg")
    with pytest.raises(InputError, match="was trained on another tokenizer: sha256"):
        m2clip.load_adapters(saved, opened(other))
    assert m2clip.load_adapters(saved).tokenizer.identity == model.tokenizer.identity  # from the folder it names


def test_without_its_tokenizer_a_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr(own_tokenizers, "reachable", lambda address: bool(asked.append(address)))
    for source in (None, "nobody/small"):
        with pytest.raises(InputError, match="has a tokenizer of its own, nobody/small, which is not on this machine"):
            opened(source)
    assert len(asked) == 1  # for the one that was named
    with pytest.raises(InputError, match="holds no tokenizer that can be read"):
        opened(tmp_path)
    with pytest.raises(InputError, match="which is built in: leave the tokenizer out"):
        m2clip.load_clip("small-ViT", None, tokenizer="nobody/small")
    with pytest.raises(InputError, match="which is built in: leave the tokenizer out"):
        m2clip.load_clip("tiny", tokenizer="nobody/small")
    with pytest.raises(InputError, match="has weights of its own: leave out .mine.pt."):
        m2clip.load_clip("tiny", "mine.pt")
    built = open_clip.create_model(NAME, pretrained=None)
    with pytest.raises(InputError, match="tokenizer of its own .a vocabulary of 64 tokens."):
        m2clip.create_model("clip", built, NAMES, 2)
    given = PromptTokenizer(16, lambda text: [len(text)], None, 1)
    assert m2clip.create_model("clip", built, NAMES, 2, tokenizer=given).tokenizer.name == "custom"


def test_every_accepted_architecture_has_openai_s_tokenizer_or_names_its_own() -> None:
    """Of those with a vision transformer of open_clip's own: thirteen have another."""
    others = []
    for name in open_clip.list_models():
        text = open_clip.get_model_config(name)["text_cfg"]
        own = {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"} & text.keys()
        if text.get("vocab_size", 49408) == 49408 and text.get("pool_type", "argmax") == "argmax" and not own:
            continue
        vision = open_clip.get_model_config(name)["vision_cfg"]
        if "timm_model_name" in vision or "hf_model_name" in text or name.startswith(("small", "coca")):
            continue
        with torch.device("meta"):
            clip = open_clip.create_model(name, pretrained=None, device="meta")
        try:
            tower_signature(clip)
        except InputError:
            continue
        others.append(name)
        with pytest.raises(InputError, match="tokenizer of its own"):
            m2clip.create_model("clip", clip, NAMES, 2)
    assert len(others) >= 13 and all("worldwide" in name or "CLIPA" in name for name in others)


def test_tokenizers_can_be_pickled(plain: Path) -> None:
    for tokenizer in (PromptTokenizer(77), m2clip.create_model("clip", small_clip(), NAMES, 2).tokenizer):
        again = pickle.loads(pickle.dumps(tokenizer))
        assert again.identity == tokenizer.identity
    own = m2clip.create_model("clip", opened(plain), NAMES, 2).tokenizer
    assert pickle.loads(pickle.dumps(own)).identity == own.identity


def test_a_tokenizer_of_transformers_can_be_given_beside_a_model(folder: Path) -> None:
    from transformers import AutoTokenizer

    path = write_tokenizer(folder / "given")
    given = AutoTokenizer.from_pretrained(path)
    for name in ("transformers_siglip", "siglip"):
        clip = family(name)
        model = m2clip.create_model("m2clip", clip, ["go on", "be it"], 2, prompt="do {}", tokenizer=given, width=8)
        length = model.tokenizer.context_length
        ids = given(["do go on", "do be it"], padding="max_length", max_length=length, return_tensors="pt").input_ids
        assert torch.equal(model.label_set().prompts.tokens, ids)
        masked, _ = model.masker([0], torch.tensor([[0.9, 0.1, 0.9]]))
        whole = given(["do mask on"], padding="max_length", max_length=length, return_tensors="pt").input_ids
        assert torch.equal(masked.tokens, whole)
    with pytest.raises(InputError, match="tokenizer must be one of m2clip or transformers, not str"):
        m2clip.create_model("clip", family("siglip"), NAMES, 2, tokenizer="google/siglip")


def test_a_folder_of_open_clip_has_its_tokenizer_beside_its_weights(tmp_path: Path) -> None:
    text = {"vocab_size": 64, "hf_tokenizer_name": "nobody/small", "pool_type": "last", "no_causal_mask": True}
    config = SMALL | {"text_cfg": SMALL["text_cfg"] | text}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    write_tokenizer(tmp_path)
    clip = m2clip.load_clip(f"local-dir:{tmp_path}", None)
    model = m2clip.create_model("clip", clip, ["go on", "be it"], 2, prompt="do {}")
    ids = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=16)(["do go on", "do be it"])
    assert torch.equal(model.label_set().prompts.tokens, ids)
    torch.testing.assert_close(model.text_features(), clip.encode_text(ids), rtol=1e-4, atol=1e-5)
