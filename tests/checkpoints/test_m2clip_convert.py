"""M2-CLIP's checkpoints of its authors, by their names and shapes: read, written and refused."""

from __future__ import annotations

import pytest
import torch

import m2clip
from m2clip.checkpoints.convert import (
    authors_name,
    authors_options,
    convert_from_authors,
    convert_to_authors,
    to_authors_state,
)
from m2clip.cli import main
from m2clip.data.lists.label_sets import load_class_names
from m2clip.errors import InputError
from m2clip.towers.prompts import PromptTokenizer, load_words
from tests.clips import NAMES, randomise, small_clip

BOTH = ["pre_attn", "pre_mlp"]
TOKENIZER = PromptTokenizer(77)


def build(clip=None, **options):
    torch.manual_seed(3)
    options = {"width": 8, "text_width": 8, **options}
    return m2clip.create_model("m2clip", clip or small_clip(), NAMES, 4, tokenizer=TOKENIZER, **options)


def m2clip_shapes(vision, text, classes, words, text_layers, dim=768, joint=512, width=384, text_width=384, layers=12):
    """Names and shapes of a checkpoint of the authors, under "model"; text layer `layers` is the masked words'."""
    shapes = {"visual.adapter_fc.weight": (classes, dim), "visual.adapter_fc.bias": (classes,)}

    def bottleneck(start, dim, width, conv=None):
        found = {"fc1.weight": (width, dim), "fc1.bias": (width,), "fc2.weight": (dim, width), "fc2.bias": (dim,)}
        found |= {} if conv is None else {"conv.weight": (width, *conv), "conv.bias": (width,)}
        shapes.update({start + name: shape for name, shape in found.items()})

    for i in range(layers):
        for place in vision:
            start = f"visual.transformer.resblocks.{i}.adapter_{place}."
            bottleneck(start, dim, width, (1, 3))
            bottleneck(f"{start}offset_adapter.", dim, width, (1, 1, 3, 3))
    bottleneck("visual.t_adapter.", joint, joint // 2, (1, 3))
    for i in range(layers - text_layers, layers + 1):
        for place in text:
            bottleneck(f"transformer.resblocks.{i}.adapter_{place}.textad_", joint, text_width)
    shapes |= {"mlm_adapter.transform.dense.weight": (joint, joint), "mlm_adapter.decoder.weight": (words, joint)}
    norms = ("transform.dense.bias", "transform.LayerNorm.weight", "transform.LayerNorm.bias")
    return shapes | {f"mlm_adapter.{name}": (joint,) for name in norms} | {"mlm_adapter.bias": (words,)}


PUBLISHED = [
    ("k400", 8, ["pre_mlp"], ["pre_mlp"], 520, 1, 16_138_136),
    ("ssv2", 32, BOTH, BOTH, 234, 12, 39_524_248),
    ("ssv2", 8, BOTH, ["pre_mlp"], 234, 12, 34_400_792),  # their ViT-B/32 model 24x384 has none before attention
    ("k400", 8, ["pre_mlp"], ["pre_mlp"], 520, 0, 15_744_024),  # their ViT-B/32 model 12x384 has one, in the word layer
]


@pytest.mark.parametrize(("classes", "frames", "vision", "text", "words", "text_layers", "size"), PUBLISHED)
def test_names_and_shapes_of_the_authors_models(classes, frames, vision, text, words, text_layers, size):
    names = load_class_names(classes)
    shapes = m2clip_shapes(vision, text, len(names), words, text_layers)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert sum(tensor.numel() for tensor in state.values()) == size
    found = {**authors_options(state), "num_frames": frames}
    word_list = load_words("ssv2-official") if words == 234 else None
    with torch.device("meta"):
        clip = m2clip.load_clip("ViT-B-16-quickgelu", None, device="meta")
        model = m2clip.create_model(clip=clip, class_names=names, tokenizer=TOKENIZER, word_list=word_list, **found)
    own = model.trained_state_dict()
    assert sum(tensor.numel() for tensor in own.values()) == size
    assert {authors_name(name, 12) for name in own} == shapes.keys()
    m2clip.load_authors_checkpoint(model, {"model": state})


SMALL = [
    {},
    {"placement": "both", "text_layers": 0},
    {"placement": "both", "text_placement": "both", "text_layers": 3, "width": 6, "text_width": 7},
    {"placement": "pre_attn", "text_placement": "pre_attn", "text_layers": 2, "layers": "2-3"},
]


@pytest.mark.parametrize("options", SMALL)
def test_checkpoints_convert_both_ways(tmp_path, monkeypatch, options):
    monkeypatch.setattr("m2clip.towers.loading._open_clip_model", lambda *a: small_clip())
    clip = m2clip.load_clip("ViT-B-32", None)
    words = tuple(f"word{i}" for i in range(7)) + ("a", "video", "of")
    model = build(clip, word_list=words, **options).eval()
    randomise(model)
    folder = m2clip.save_adapters(model, tmp_path / "ours")
    file = convert_to_authors(folder, tmp_path / "theirs.pth")
    state = torch.load(file, weights_only=True)["model"]
    assert all("adapter" in name for name in state)
    listed = tmp_path / "words.txt"
    listed.write_text("".join(f"{word} {i}\n" for i, word in sorted(enumerate(words), key=lambda pair: pair[1])))
    for given in (words, listed):
        back = convert_from_authors(file, tmp_path / "back", "ViT-B-32", 4, NAMES, words=given)
        again = m2clip.load_adapters(back, clip)
        assert again.config.word_list == words
        assert again.config.text_placement == model.config.text_placement
        own = again.trained_state_dict()
        assert own.keys() == model.trained_state_dict().keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in model.trained_state_dict().items())
        assert all(torch.equal(tensor, state[name]) for name, tensor in to_authors_state(again).items())


def test_tensors_end_up_where_their_names_say():
    model = build(text_placement="both", text_layers=3)
    randomise(model)
    state = to_authors_state(model)
    for theirs, ours in (
        ("1.adapter_pre_attn", model.text.blocks[1].pre_attn),
        ("2.adapter_pre_mlp", model.text.blocks[2].pre_mlp),
        ("3.adapter_pre_attn", model.cmlm.pre_attn),
        ("3.adapter_pre_mlp", model.cmlm.adapter),
    ):
        assert torch.equal(state[f"transformer.resblocks.{theirs}.textad_fc1.weight"], ours.down.weight)
        assert torch.equal(state[f"transformer.resblocks.{theirs}.textad_fc2.bias"], ours.up.bias)


def test_word_lists_and_classes_that_do_not_fit_are_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("m2clip.towers.loading._open_clip_model", lambda *a: small_clip())
    file, classes, words = tmp_path / "theirs.pth", tmp_path / "classes.txt", tmp_path / "words.txt"
    classes.write_text("\n".join(NAMES))
    torch.save({"model": to_authors_state(build(word_list=["a", "video", "of", *"bcdefgh"]))}, file)
    arguments = ["convert", str(file), str(tmp_path / "run"), "--clip", "ViT-B-32", "--frames", "4"]

    def said(*more):
        capsys.readouterr()
        assert main([*arguments, *map(str, more)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "has 5 classes and the label set 400: name its own (--classes)" in said()
    assert "has 10 words and the class names give 18: give the authors' word file (--words)" in said(
        "--classes", classes
    )
    for text, message in (
        ("a\nvideo\nof\n", "has 10 words and the word list has 3"),
        ("a\nvideo of\n", "'video of' is not one word"),
        ("a\nA\n", "the word 'a' is there twice"),
        ("a 0\nvideo 2\n", "the ids of its 2 words must be 0 to 1"),
        ("", "no words"),
    ):
        words.write_text(text)
        assert message in said("--classes", classes, "--words", words)
    assert "neither a file of words nor one of ssv2-official" in said("--classes", classes, "--words", "nowhere")
    words.write_text("\n".join(["a", "video", "of", *"bcdefgh"]))
    assert main([*arguments, "--classes", str(classes), "--words", str(words)]) == 0


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("visual.transformer.resblocks.0.adapter_pre_mlp.fc1.weight", torch.tensor(1.0), "a single number"),
        ("transformer.resblocks.0.adapter_pre_attn.textad_fc1.weight", torch.zeros(2, 2), "only some of its layers"),
    ],
)
def test_strange_checkpoints_are_told(tmp_path, name, tensor, message):
    torch.save({"model": {**to_authors_state(build()), name: tensor}}, tmp_path / "strange.pth")
    with pytest.raises(InputError, match=message) as error:
        convert_from_authors(tmp_path / "strange.pth", tmp_path / "run", class_names=NAMES)
    assert "\n" not in str(error.value)


def test_loading_an_authors_checkpoint_is_strict(tmp_path):
    model = build()
    state = to_authors_state(model)
    missing = {name: tensor for name, tensor in state.items() if name != "visual.adapter_fc.bias"}
    with pytest.raises(InputError, match=r"lacks 1 tensors, among them 'visual\.adapter_fc\.bias'"):
        m2clip.load_authors_checkpoint(model, {"model": missing})
    with pytest.raises(InputError, match="has unknown 1 tensors"):
        m2clip.load_authors_checkpoint(model, {**state, "visual.adapter_extra": torch.zeros(1)})
    with pytest.raises(InputError, match=r"has shape \(3,\), expected \(5,\)"):
        m2clip.load_authors_checkpoint(model, {**state, "visual.adapter_fc.bias": torch.zeros(3)})
    with pytest.raises(InputError, match="only M2-CLIP with preset 'official'"):
        m2clip.load_authors_checkpoint(build(preset="paper"), state)

    class Payload:
        def __reduce__(self):
            return (print, ("code in a checkpoint ran",))

    torch.save({"model": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="cannot be read as a file of tensors only"):
        m2clip.load_authors_checkpoint(model, tmp_path / "evil.pth")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    with pytest.raises(InputError, match="cannot be read as a file of tensors only"):
        m2clip.load_authors_checkpoint(model, tmp_path / "page.pth")
    with pytest.raises(InputError, match="does not exist"):
        m2clip.load_authors_checkpoint(model, tmp_path / "none.pth")


def test_names_of_an_authors_checkpoint():
    assert authors_name("visual.blocks.3.pre_mlp.temporal.down.weight", 12) == (
        "visual.transformer.resblocks.3.adapter_pre_mlp.fc1.weight"
    )
    assert authors_name("cmlm.adapter.up.bias", 12) == "transformer.resblocks.12.adapter_pre_mlp.textad_fc2.bias"
    assert authors_name("text.blocks.11.pre_mlp.down.weight", 12) == (
        "transformer.resblocks.11.adapter_pre_mlp.textad_fc1.weight"
    )
