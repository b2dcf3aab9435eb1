"""The bundled tiny CLIP and the stills it was trained on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from m2clip.data.built_in.motion import BASE_CLASSES, CLASSES, MOTIONS, NOVEL_CLASSES, SHAPES, clip_seed, render_clip
from m2clip.towers.tiny import EMBEDDING, TINY_CONFIG, TINY_WEIGHTS, pack_state, tiny_clip, unpack_state
from tools.motion_stills import (
    ATTRIBUTES,
    OPENINGS,
    PLACES,
    draw_captions,
    draw_stills,
    held_out,
    vocabulary,
    write_caption,
)

MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(3, 1, 1)
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(3, 1, 1)


@pytest.fixture(scope="module")
def model():
    return tiny_clip()


@pytest.fixture(scope="module")
def tokenize():
    import open_clip

    return open_clip.SimpleTokenizer(context_length=TINY_CONFIG["text_cfg"]["context_length"])


@pytest.fixture(scope="module")
def facts():
    return json.loads(TINY_WEIGHTS.with_suffix(".json").read_text())


@torch.inference_mode()
def look_at(model, images: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    x = torch.nn.functional.interpolate(x, size=(48, 48), mode="bilinear", antialias=True)
    return model.encode_image((x - MEAN) / STD, normalize=True)


@torch.inference_mode()
def read(model, tokenize, texts: list[str]) -> torch.Tensor:
    return model.encode_text(tokenize(texts), normalize=True)


def test_it_is_a_small_open_clip_model_in_eval_mode(model):
    import open_clip

    assert isinstance(model, open_clip.CLIP) and not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(p.isfinite().all() for p in model.parameters())
    assert TINY_WEIGHTS.stat().st_size < 1_500_000
    assert model.visual.image_size == (48, 48) and model.context_length == 32


def test_it_names_the_shape_of_single_frames(model, tokenize, facts):
    """Frames of clips that training never saw, as good as the recorded figure."""
    texts = read(model, tokenize, [f"a video of a {shape}" for shape in SHAPES])
    rng = np.random.default_rng(7)
    for name, classes in (("base", BASE_CLASSES), ("novel", NOVEL_CLASSES)):
        clips = [(c, render_clip(c, clip_seed(2, "val", c, n))) for c in classes for n in range(400 // len(classes))]
        frames = np.stack([clip[rng.integers(len(clip))] for _, clip in clips])
        truth = torch.tensor([SHAPES.index(c.shape) for c, _ in clips])
        found = ((look_at(model, frames) @ texts.T).argmax(1) == truth).float().mean().item()
        assert found > facts[f"{name}_frame_shape"] - 0.06


def test_it_names_the_place_on_unseen_compositions(model, tokenize, facts):
    stills = draw_stills(np.random.default_rng(3), 400, unseen=True)
    assert held_out(stills.attributes).all()
    features, right = look_at(model, stills.images), []
    for shape in range(len(SHAPES)):
        texts = read(model, tokenize, [f"a photo of a {SHAPES[shape]} {place}" for place in PLACES])
        of_shape = stills.attributes[:, 0] == shape
        right.append((features[of_shape] @ texts.T).argmax(1).numpy() == stills.attributes[of_shape, 1])
    assert np.concatenate(right).mean() > facts["place"] - 0.06


def test_frozen_it_knows_no_motion(model, tokenize):
    texts = read(model, tokenize, [f"a video of {c.name}" for c in BASE_CLASSES])
    motion, shape = [], []
    for c in BASE_CLASSES:
        for number in range(4):
            clip = render_clip(c, clip_seed(3, "val", c, number))
            frames = look_at(model, clip[np.linspace(0, len(clip) - 1, 8).round().astype(int)])
            guess = BASE_CLASSES[int((frames.mean(0) @ texts.T).argmax())]
            motion.append(guess.motion == c.motion)
            shape.append(guess.shape == c.shape)
    assert np.mean(motion) < 0.3
    assert np.mean(shape) > 0.8


def test_no_caption_has_a_word_about_motion():
    rng = np.random.default_rng(0)
    captions, _ = draw_captions(rng, draw_stills(rng, 64).attributes.repeat(20, axis=0))
    words = set(" ".join(captions).split())
    motion_words = {w for m in MOTIONS for w in m.split()} - {"left", "right", "in"}
    assert not words & motion_words
    assert {"left", "circle", "faint", "video", "north"} <= words


def test_captions_are_true(facts):
    rng = np.random.default_rng(1)
    attributes = draw_stills(rng, 200, unseen=False).attributes
    assert not held_out(attributes).any()
    captions, says = draw_captions(rng, attributes)
    assert ((says == attributes) | (says == -1)).all() and (says >= 0).any(axis=1).all()
    for column, values in (("shape", SHAPES), ("place", PLACES)):
        column = ATTRIBUTES.index(column)
        for caption, row in zip(captions, says, strict=True):
            assert row[column] == -1 or values[row[column]] in caption
    row = np.array([3, 1, 0, 0, 0])
    assert write_caption(OPENINGS[0], row) == "a photo of a small faint star at the top pointing east"


def test_attributes_describe_the_image():
    """The place is read off the pixels of opaque shapes, brighter than any background."""
    stills = draw_stills(np.random.default_rng(2), 300)
    bright = stills.images.max(axis=3) > 0.5 * 255
    at = np.arange(64) + 0.5
    checked = 0
    for mask, row in zip(bright, stills.attributes, strict=True):
        if row[3] != 2 or mask.sum() < 100:
            continue
        x, y = (mask.sum(axis=0) * at).sum() / mask.sum(), (mask.sum(axis=1) * at).sum() / mask.sum()
        # The dot and the frame's edge shift the visible centre, so only clear places are compared.
        for value, third in ((x, row[1] % 3), (y, row[1] // 3)):
            if abs(value - 26.5) > 5 and abs(value - 37.5) > 5:
                assert third == np.digitize(value, [26.5, 37.5])
                checked += 1
    assert checked > 50


def test_the_file_stores_the_rows_of_every_word_in_use(tokenize):
    rows = set(load_file(TINY_WEIGHTS)["token_rows"].tolist())
    rng = np.random.default_rng(0)
    captions, _ = draw_captions(rng, draw_stills(rng, 64).attributes)
    texts = vocabulary() + captions + [f"a video of {c.name}" for c in CLASSES]
    assert set(tokenize(texts).flatten().tolist()) <= rows


def test_class_name_words_and_other_words_have_distinct_embeddings(model, tokenize):
    words = sorted({w for c in CLASSES for w in c.name.split()} | {"walking", "guitar", "swimming"})
    table = model.token_embedding.weight[torch.cat([tokenize(w)[:, 1] for w in words])]
    distance = torch.cdist(table, table) + torch.eye(len(words))
    assert table.norm(dim=1).min() > 0.05 and distance.min() > 0.05
    texts = read(model, tokenize, [c.name for c in CLASSES])
    assert (texts @ texts.T - 2 * torch.eye(60)).max() < 1 - 1e-6


def test_packing_keeps_the_state():
    width, rows = 64, torch.tensor([0, 5, 49407])
    state = {"a": torch.randn(3, 2).half().float(), EMBEDDING: torch.randn(3, width).half().float()}
    back = unpack_state(pack_state(state, rows))
    assert torch.equal(back["a"], state["a"]) and torch.equal(back[EMBEDDING][rows], state[EMBEDDING])
    assert back[EMBEDDING].shape == (49408, width) and (back[EMBEDDING].abs().amax(1) > 0).all()
