"""Prompts, tokens and masked words of a label set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .data.label_sets import prompt_name
from .errors import InputError

MASK_WORD = "mask"
IGNORE = -100
VOCABULARIES = ("words", "official", "clip")


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts and the positions read after the text tower.

    tokens: (N, S) int64, cut behind the longest prompt. positions: (N, K) int64.
    """

    tokens: Tensor
    positions: Tensor

    def to(self, device: torch.device) -> Prompts:
        return Prompts(self.tokens.to(device), self.positions.to(device))


class PromptTokenizer:
    """open_clip's tokenizer, word by word: each whitespace-separated word's token ids, remembered.

    Args:
        context_length: tokens a prompt may have at most, start and end included.
        encode: token ids of a piece of text without start and end; by default open_clip's standard CLIP tokenizer.
        start, end: ids of the start and end token.
    """

    def __init__(
        self,
        context_length: int,
        encode: Callable[[str], list[int]] | None = None,
        start: int = 49406,
        end: int = 49407,
    ) -> None:
        if encode is None:
            from open_clip.tokenizer import SimpleTokenizer

            tokenizer = SimpleTokenizer()
            start, end = tokenizer.sot_token_id, tokenizer.eot_token_id

            def encode(text: str) -> list[int]:
                return tokenizer.encode(tokenizer.clean_fn(text))

        self.context_length, self.start, self.end = context_length, start, end
        self.word_ids = lru_cache(maxsize=None)(lambda word: tuple(encode(word)))

    def prompt_ids(self, words: Sequence[str]) -> list[int]:
        """Start, the words' tokens and end; overlong prompts are cut and keep their end token."""
        body = [token for word in words for token in self.word_ids(word)]
        return [self.start, *body[: self.context_length - 2], self.end]

    def batch(self, prompts: Sequence[Sequence[str]]) -> Prompts:
        """Tokens of prompts given as words; the position read is the end token's."""
        rows = [self.prompt_ids(words) for words in prompts]
        return Prompts(_pad(rows, 0), torch.tensor([[len(row) - 1] for row in rows]))


def prompt_words(names: Sequence[str], template: str) -> list[list[str]]:
    """Words of each class's prompt; the template holds "{}" where the class name goes.

    Raises:
        InputError: a template without "{}", no class names, an empty or repeated class name.
    """
    if template.count("{}") != 1:
        raise InputError(f'the prompt {template!r} must contain "{{}}" once, where the class name goes')
    if not names:
        raise InputError("a label set needs at least one class name")
    if any(not name.strip() for name in names):
        raise InputError("class names must not be empty")
    repeated = sorted({name for name in names if list(names).count(name) > 1}) if len(set(names)) < len(names) else []
    if repeated:
        raise InputError(f"class names must differ; repeated: {', '.join(repeated[:5])}")
    return [template.replace("{}", prompt_name(name)).split() for name in names]


def vocabulary_word(word: str) -> str:
    """A word as the vocabulary lists it: in lower case and without brackets, as "(not cat)" holds the word "not"."""
    return word.lower().strip("()")


def word_vocabulary(names: Sequence[str], template: str, official: bool = False) -> list[str]:
    """The distinct lower-cased words of all prompts, sorted: the vocabulary of the masked-word head.

    official: with the word "name" as well, which the header line of the label file adds in the authors' code.
    """
    words = {vocabulary_word(word) for prompt in prompt_words(names, template) for word in prompt}
    return sorted(words | {"name"} if official else words)


class WordMasker:
    """Masks words of prompts, drawing everything from given uniform numbers.

    Args:
        tokenizer: turns words into token ids.
        prompts: the words of every class's prompt.
        rate: share of a prompt's words that is masked, rounded, at least one word; 0 masks none.
        vocabulary: words whose rank is a masked word's target; None for targets in CLIP's own token vocabulary, where
            a word is stood for by its first token.
    """

    def __init__(
        self,
        tokenizer: PromptTokenizer,
        prompts: Sequence[Sequence[str]],
        rate: float,
        vocabulary: Sequence[str] | None,
    ) -> None:
        if not 0 <= rate <= 1:
            raise InputError(f"mask_rate must lie between 0 and 1, got {rate}")
        self.tokenizer, self.prompts, self.rate = tokenizer, prompts, rate
        self.ids = None if vocabulary is None else {word: i for i, word in enumerate(vocabulary)}
        self.max_words = max(len(words) for words in prompts)
        self.max_masked = max(self.count(len(words)) for words in prompts)
        self.length = self._longest()

    def count(self, words: int) -> int:
        """How many words of a prompt are masked."""
        return max(1, round(self.rate * words)) if self.rate > 0 else 0

    def __call__(self, labels: Sequence[int], uniform: Tensor) -> tuple[Prompts, Tensor]:
        """Masked prompts of the labels' classes.

        Args:
            labels: class of each sample, N of them.
            uniform: (N, max_words) numbers in [0, 1): the words with the smallest numbers are masked.

        Returns:
            Prompts whose positions (N, K) are those of the mask words, and targets (N, K), -100 in unused places.
            Whatever is drawn they have the same shapes, which compiled steps and CUDA graphs need.
        """
        rows, places, targets = [], [], []
        for label, numbers in zip(labels, uniform.tolist(), strict=True):
            words = self.prompts[label]
            order = sorted(range(len(words)), key=numbers.__getitem__)
            masked = set(order[: self.count(len(words))])
            row, place, target = [self.tokenizer.start], [], []
            for i, word in enumerate(words):
                if i in masked and len(row) < self.tokenizer.context_length - 1:
                    place.append(len(row))
                    target.append(self.target(word))
                row.extend(self.tokenizer.word_ids(MASK_WORD if i in masked else word))
            rows.append([*row[: self.tokenizer.context_length - 1], self.tokenizer.end])
            places.append(place + [0] * (self.max_masked - len(place)))
            targets.append(target + [IGNORE] * (self.max_masked - len(target)))
        shape = (len(rows), self.max_masked)
        positions = torch.tensor(places, dtype=torch.int64).reshape(shape)
        return Prompts(_pad(rows, 0, self.length), positions), torch.tensor(targets, dtype=torch.int64).reshape(shape)

    def _longest(self) -> int:
        """Tokens of the longest prompt, whichever of its words are masked."""
        mask = len(self.tokenizer.word_ids(MASK_WORD))
        lengths = [sum(max(mask, len(self.tokenizer.word_ids(word))) for word in words) for words in self.prompts]
        return min(2 + max(lengths), self.tokenizer.context_length)

    def target(self, word: str) -> int:
        """Id of a word in the head's vocabulary."""
        return self.tokenizer.word_ids(word)[0] if self.ids is None else self.ids[vocabulary_word(word)]


def _pad(rows: Sequence[Sequence[int]], value: int, length: int | None = None) -> Tensor:
    length = length or max((len(row) for row in rows), default=2)
    padded = [list(row) + [value] * (length - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), length)
