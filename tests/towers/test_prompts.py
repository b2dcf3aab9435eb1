"""Prompts, vocabularies and masked words."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
import torch

import m2clip
from m2clip.data.lists.annotations import Annotations, VideoItem
from m2clip.data.lists.label_sets import load_class_names, match_key
from m2clip.errors import InputError
from m2clip.methods.descriptions import load_descriptions
from m2clip.methods.m2clip import PRESETS, M2CLIPOptions
from m2clip.towers.prompts import IGNORE, PromptTokenizer, WordMasker, load_words, prompt_words, word_vocabulary
from tests.fake_model import random_tiny_clip

TEMPLATE = "a video of {}"


@pytest.mark.parametrize("label_set", ["k400", "ssv2", "ucf101", "hmdb51"])
def test_word_by_word_tokens_equal_the_tokenizer_on_whole_prompts(label_set):
    words = prompt_words(load_class_names(label_set), TEMPLATE)
    expected = open_clip.get_tokenizer("ViT-B-16")([" ".join(prompt) for prompt in words])
    prompts = PromptTokenizer(77).batch(words)
    length = prompts.tokens.shape[1]
    assert torch.equal(prompts.tokens, expected[:, :length])
    assert not expected[:, length:].any()


def test_kinetics_prompts_are_cut_to_the_thirteen_tokens_of_the_longest():
    prompts = PromptTokenizer(77).batch(prompt_words(load_class_names("k400"), TEMPLATE))
    assert prompts.tokens.shape == (400, 13)
    assert prompts.positions.max() == 12


def test_overlong_prompts_are_cut_and_keep_their_end():
    tokenizer = PromptTokenizer(8)
    prompts = tokenizer.batch([["very"] * 20, ["short"]])
    assert prompts.tokens.shape == (2, 8)
    assert prompts.tokens[0, -1] == tokenizer.end
    assert prompts.positions.tolist() == [[7], [2]]


def test_vocabularies_of_kinetics():
    names = load_class_names("k400")
    words, official = word_vocabulary(names, TEMPLATE), word_vocabulary(names, TEMPLATE, official=True)
    assert (len(words), len(official)) == (519, 520)
    assert set(official) - set(words) == {"name"}
    assert official == sorted(official)
    assert "cat" in words and "cat)" not in words


def test_masked_words_become_the_word_mask_and_their_targets_name_them():
    names = ["juggling balls", "petting animal (not cat)"]
    words = prompt_words(names, TEMPLATE)
    vocabulary = word_vocabulary(names, TEMPLATE)
    tokenizer = PromptTokenizer(77)
    masker = WordMasker(tokenizer, words, 0.3, vocabulary)
    mask = tokenizer.word_ids("mask")[0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        prompts, targets = masker([1, 0], torch.rand(2, masker.max_words, generator=generator))
        for row, label in enumerate([1, 0]):
            count = max(1, round(0.3 * len(words[label])))
            kept = targets[row] != IGNORE
            assert kept.sum() == count
            positions = prompts.positions[row][kept].tolist()
            assert all(prompts.tokens[row, p] == mask for p in positions)
            spoken = list(words[label])
            by_position = dict(zip(positions, targets[row][kept].tolist(), strict=True))
            rebuilt, at = [], 1
            for word in spoken:
                if at in by_position and vocabulary[by_position[at]] == word.lower().strip("()"):
                    rebuilt.append("mask")
                    at += 1
                else:
                    rebuilt.append(word)
                    at += len(tokenizer.word_ids(word))
            assert rebuilt.count("mask") == count
            assert prompts.tokens[row].tolist()[: at + 1] == tokenizer.prompt_ids(rebuilt)


def test_every_word_is_masked_sometimes_and_the_rate_is_kept():
    words = prompt_words(["playing the very big flute"], TEMPLATE)
    masker = WordMasker(PromptTokenizer(77), words, 0.15, word_vocabulary(["playing the very big flute"], TEMPLATE))
    _, targets = masker([0] * 400, torch.rand(400, masker.max_words, generator=torch.Generator().manual_seed(0)))
    assert (targets != IGNORE).sum(dim=1).eq(1).all()
    counts = torch.bincount(targets.flatten(), minlength=len(masker.ids))
    assert (counts > 20).all()


def test_a_rate_of_zero_masks_nothing():
    masker = WordMasker(PromptTokenizer(77), [["a", "video"]], 0.0, ["a", "video"])
    prompts, targets = masker([0, 0], torch.rand(2, 2))
    assert targets.shape == (2, 0) and prompts.positions.shape == (2, 0)


def test_clip_vocabulary_targets_are_the_words_first_tokens():
    tokenizer = PromptTokenizer(77)
    masker = WordMasker(tokenizer, [["flute"]], 1.0, None)
    assert masker([0], torch.rand(1, 1))[1].tolist() == [[tokenizer.word_ids("flute")[0]]]


def test_prompts_without_round_brackets_are_those_of_the_authors_label_file():
    names = load_class_names("k400")
    written = prompt_words(names, "a video of {}"), prompt_words(names, "a video of {plain}")
    differing = {name: " ".join(plain) for name, kept, plain in zip(names, *written, strict=True) if kept != plain}
    assert differing == {
        "hurling (sport)": "a video of hurling sport",
        "passing American football (in game)": "a video of passing American football in game",
        "passing American football (not in game)": "a video of passing American football not in game",
        "petting animal (not cat)": "a video of petting animal not cat",
        "punching person (boxing)": "a video of punching person boxing",
        "shooting goal (soccer)": "a video of shooting goal soccer",
        "skiing (not slalom or crosscountry)": "a video of skiing not slalom or crosscountry",
        "tying knot (not on a tie)": "a video of tying knot not on a tie",
        "using remote controller (not gaming)": "a video of using remote controller not gaming",
    }
    assert match_key("hurling (sport)") == match_key("hurling sport")
    assert M2CLIPOptions(**PRESETS["official"]).prompt == "a video of {plain}"


def test_words_that_a_word_list_lacks_are_never_masked():
    masker = WordMasker(PromptTokenizer(77), [["a", "hand", "video"]], 0.67, ["a", "video"])
    for _ in range(5):
        prompts, targets = masker([0], torch.rand(1, masker.max_words))
        assert sorted(targets[0].tolist()) == [0, 1]
        assert prompts.tokens[0, 2] == masker.tokenizer.word_ids("hand")[0]
    with pytest.raises(InputError, match="none of the words of 'a hand'"):
        WordMasker(PromptTokenizer(77), [["a", "hand"]], 0.15, ["flute"])


def test_the_word_list_of_the_authors_ssv2_model():
    words = load_words("ssv2-official")
    own = word_vocabulary(load_class_names("ssv2"), TEMPLATE, official=True)
    assert len(words) == 234 and list(words) == sorted(words)
    assert (set(words) - set(own), set(own) - set(words)) == ({"hands", "person"}, {"hand"})


@pytest.mark.parametrize(
    ("names", "template", "message"),
    [
        (["a", "b"], "a video", "must contain"),
        ([], TEMPLATE, "at least one class name"),
        (["a", " "], TEMPLATE, "must not be empty"),
        (["run", "jump", "run"], TEMPLATE, "repeated: run"),
        (["run", "()"], "a video of {plain}", "'.*' holds no words"),
        (["run"], "{} of {plain}", "must contain"),
    ],
)
def test_bad_label_sets_are_told(names, template, message):
    with pytest.raises(InputError, match=message):
        prompt_words(names, template)


def test_a_bad_mask_rate_is_told():
    with pytest.raises(InputError, match="mask_rate"):
        WordMasker(PromptTokenizer(77), [["a"]], 1.5, ["a"])


class CountedName(str):
    """A class name that counts how often it is compared."""

    comparisons = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        CountedName.comparisons += 1
        return str.__eq__(self, other)


def test_repeated_names_are_found_with_few_comparisons() -> None:
    names = [CountedName(f"class {number}") for number in range(300)] * 2
    with pytest.raises(InputError, match=r"repeated: class 0, class 1, "):
        prompt_words(names, "a video of {}")
    assert CountedName.comparisons < 10 * len(names)


NO_LISTS = ["abc", b"abc", {"a": 0, "b": 1}, {"a"}, 7, ["a", 1], ["a", None], [["a"], ["b"]], Path("classes.txt")]


@pytest.mark.parametrize("names", NO_LISTS, ids=repr)
def test_one_text_is_no_list_of_names(names, tmp_path):
    model = m2clip.create_model("clip", random_tiny_clip(), class_names=("a", "b"), num_frames=2)
    m2clip.save_adapters(model, tmp_path)
    clip = random_tiny_clip()
    data = Annotations((VideoItem(Path("v.mp4"), 0),), ["a", "b"], "list", Path("l.txt"))
    for use in (
        lambda: model.set_class_names(names),
        lambda: m2clip.create_model("clip", clip, class_names=names, num_frames=2),
        lambda: m2clip.create_model("m2clip", clip, class_names=names, num_frames=2, width=8),
        lambda: m2clip.load_adapters(tmp_path, clip, class_names=names),
        lambda: data.select_classes(names),
        lambda: load_descriptions("motion-spatial", names),
    ):
        with pytest.raises(InputError, match=r"^class names are (a list of )?texts, not [^\n]*$"):
            use()
    assert model.class_names == ["a", "b"]
