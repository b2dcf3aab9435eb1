"""Prompts, vocabularies and masked words."""

from __future__ import annotations

import open_clip
import pytest
import torch

from m2clip.data.label_sets import load_class_names
from m2clip.errors import InputError
from m2clip.text import IGNORE, PromptTokenizer, WordMasker, prompt_words, word_vocabulary

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


@pytest.mark.parametrize(
    ("names", "template", "message"),
    [
        (["a", "b"], "a video", "must contain"),
        ([], TEMPLATE, "at least one class name"),
        (["a", " "], TEMPLATE, "must not be empty"),
        (["run", "jump", "run"], TEMPLATE, "repeated: run"),
    ],
)
def test_bad_label_sets_are_told(names, template, message):
    with pytest.raises(InputError, match=message):
        prompt_words(names, template)


def test_a_bad_mask_rate_is_told():
    with pytest.raises(InputError, match="mask_rate"):
        WordMasker(PromptTokenizer(77), [["a"]], 1.5, ["a"])
