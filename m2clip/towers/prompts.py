"""Prompts, tokens and masked words of a label set."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from m2clip.data.lists.class_names import name_list, prompt_name
from m2clip.data.lists.text_files import read_lines, whole_number
from m2clip.errors import InputError
from m2clip.files.disk import is_file

MASK_WORD = "mask"
IGNORE = -100
VOCABULARIES = ("words", "official", "clip")
WORD_LISTS = {"ssv2-official": Path(__file__).parent.parent / "assets" / "ssv2_words.txt"}
BYTE_PAIRS = 49408  # tokens of OpenAI's vocabulary
_PROBES = ("a video of playing the flute", "Petting animal (not cat)", "tai chi: naïve cafés, 日本語")


@dataclass(frozen=True)
class Prompts:
    """Token ids of prompts and the positions read after the text tower.

    Attributes:
        tokens: (N, S) int64, cut behind the longest prompt, or of the context length where the padding is read.
        positions: (N, K) int64.
    """

    tokens: Tensor
    positions: Tensor

    def to(self, device: torch.device) -> Prompts:
        return Prompts(self.tokens.to(device), self.positions.to(device))


class PromptTokenizer:
    """open_clip's tokenizer, word by word: each whitespace-separated word's token ids, remembered.

    Args:
        context_length: tokens a prompt may have at most, start and end included.
        encode: token ids of a piece of text without start and end; by default OpenAI's byte pairs.
        start: id of the start token; None for none.
        end: id of the end token; None for none.
        name: what the tokenizer is called.
        pad: id of the padding.
        padded: whether prompts have the context length, because the text tower reads their padding.
        read: the position that is read of every prompt; None for its end token's.
    """

    def __init__(
        self,
        context_length: int,
        encode: Callable[[str], list[int]] | None = None,
        start: int | None = 49406,
        end: int | None = 49407,
        name: str | None = None,
        *,
        pad: int = 0,
        padded: bool = False,
        read: int | None = None,
    ) -> None:
        self.context_length, self.end, self.pad, self.padded, self.read = context_length, end, pad, padded, read
        self.prefix = () if start is None else (start,)
        self.name = name or ("OpenAI's byte pairs" if encode is None else "custom")
        self._encode = encode or _byte_pairs
        self._known: dict[str, tuple[int, ...]] = {}

    @property
    def identity(self) -> dict[str, str]:
        """Its name, and a digest of what it makes of a few prompts."""
        ids = [self.prompt_ids(text.split()) for text in _PROBES]
        return {"name": self.name, "sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest()}

    def word_ids(self, word: str) -> tuple[int, ...]:
        """Token ids of a word."""
        if word not in self._known:
            self._known[word] = tuple(self._encode(word))
        return self._known[word]

    def prompt_ids(self, words: Sequence[str]) -> list[int]:
        """Start, the words' tokens and end; overlong prompts are cut and keep their end token."""
        return self.closed([*self.prefix, *(token for word in words for token in self.word_ids(word))])

    def closed(self, row: Sequence[int]) -> list[int]:
        """The ids of a prompt without its end, cut to the context length and with its end."""
        if self.end is None:
            return list(row[: self.context_length])
        return [*row[: self.context_length - 1], self.end]

    def has_separate_words(self, words: Sequence[str]) -> bool:
        """Whether a prompt's tokens are those of its words, so that words can be masked in it."""
        return True

    def batch(self, prompts: Sequence[Sequence[str]]) -> Prompts:
        """Tokens of prompts given as words, and the position that is read of each."""
        rows = [self.prompt_ids(words) for words in prompts]
        positions = [[len(row) - 1 if self.read is None else self.read] for row in rows]
        return Prompts(self.rectangle(rows), torch.tensor(positions))

    def rectangle(self, rows: Sequence[Sequence[int]], length: int | None = None) -> Tensor:
        """Rows of ids with their padding (N, S), S being a length, that of the longest row, or the context length."""
        length = self.context_length if self.padded else length or max((len(row) for row in rows), default=2)
        padded = [list(row) + [self.pad] * (length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(rows), length)


def _byte_pairs(text: str) -> list[int]:
    from open_clip import tokenizer

    return tokenizer._tokenizer.encode(text)  # the one that open_clip.tokenize uses, built once


def prompt_words(names: Sequence[str], template: str) -> list[list[str]]:
    """Words of each class's prompt.

    Args:
        names: C class names.
        template: where the class name goes it holds "{}", or "{plain}" for the name without round brackets.

    Raises:
        InputError: a template without such a place, no list of class names, an empty or repeated class name.
    """
    places = re.findall(r"\{\}|\{plain\}", template)
    if len(places) != 1:
        raise InputError(
            f'the prompt {template!r} must contain "{{}}" or "{{plain}}" once, where the class name goes, with or '
            "without its round brackets"
        )
    names = name_list(names)
    if not names:
        raise InputError("a label set needs at least one class name")
    if any(not name.strip() for name in names):
        raise InputError("class names must not be empty")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise InputError(f"class names must differ; repeated: {', '.join(repeated[:5])}")
    shown = [prompt_name(name) for name in names]
    if places == ["{plain}"]:
        shown = [re.sub(r"[()]", " ", name) for name in shown]
    wordless = next((name for name, words in zip(names, shown, strict=True) if not words.split()), None)
    if wordless is not None:
        raise InputError(f"the class name {wordless!r} holds no words")
    return [template.replace(places[0], name).split() for name in shown]


def vocabulary_word(word: str) -> str:
    """A word as the vocabulary lists it: in lower case and without brackets, as "(not cat)" holds the word "not"."""
    return word.lower().strip("()")


def word_vocabulary(names: Sequence[str], template: str, official: bool = False) -> list[str]:
    """The distinct lower-cased words of all prompts, sorted: the vocabulary of the masked-word head.

    Args:
        names: class names.
        template: of the prompts.
        official: with the word "name" as well, which the header line of the label file adds in the authors' code.
    """
    words = {vocabulary_word(word) for prompt in prompt_words(names, template) for word in prompt}
    return sorted(words | {"name"} if official else words)


def load_words(source: str | Path) -> tuple[str, ...]:
    """The words of a masked-word head in the order of their ids, in lower case.

    Args:
        source: a key of `WORD_LISTS`, or a file with one word per line; with `word id` on every line, as in the
            authors' word files, the ids say the order.

    Raises:
        InputError: an unreadable file, a line that is no word, repeated words, ids with gaps.
    """
    path = WORD_LISTS.get(str(source)) or Path(source)
    if not is_file(path):
        raise InputError(f"{source}: neither a file of words nor one of {', '.join(WORD_LISTS)}")
    lines = read_lines(path)
    numbered = [re.fullmatch(r"(\S+)\s+(\d+)", line) for _, line in lines]
    if not all(numbered):
        return checked_words([line for _, line in lines], str(path))
    by_id = {
        whole_number(match[2], f"{path}, line {line}"): match[1]
        for match, (line, _) in zip(numbered, lines, strict=True)
        if match is not None
    }
    if sorted(by_id) != list(range(len(lines))):
        raise InputError(f"{path}: the ids of its {len(lines)} words must be 0 to {len(lines) - 1}, each once")
    return checked_words([by_id[i] for i in range(len(lines))], str(path))


def checked_words(words: Sequence[str], where: str) -> tuple[str, ...]:
    """A vocabulary in lower case.

    Args:
        words: W words.
        where: what to call them in an error.

    Raises:
        InputError: no words, a word that is empty, holds spaces or is no text, a repeated word.
    """
    wrong = next((word for word in words if not isinstance(word, str) or word.split() != [word]), None)
    if wrong is not None or not words:
        raise InputError(f"{where}: {'no words' if wrong is None else f'{wrong!r} is not one word'}")
    lowered = tuple(word.lower() for word in words)
    repeated = next((word for word, times in Counter(lowered).items() if times > 1), None)
    if repeated is not None:
        raise InputError(f"{where}: the word {repeated!r} is there twice")
    return lowered


class WordMasker:
    """Masks words of prompts, drawing everything from given uniform numbers.

    Args:
        tokenizer: turns words into token ids.
        prompts: the words of every class's prompt.
        rate: share of a prompt's words that is masked, rounded, at least one word; 0 masks none.
        vocabulary: words whose rank is a masked word's target, a word that it lacks is never masked; None for targets
            in CLIP's own token vocabulary, where a word is stood for by its first token.

    Raises:
        InputError: another rate, or a vocabulary without a word of some prompt.
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
        merged = next((words for words in prompts if not tokenizer.has_separate_words(words)), None)
        if merged is not None:
            raise InputError(
                f"words cannot be masked with the tokenizer {tokenizer.name}, which splits {' '.join(merged)!r} in "
                "another way than its words: leave out the head cmlm"
            )
        self.max_words = max(len(words) for words in prompts)
        self.maskable = [[i for i, word in enumerate(words) if self._knows(word)] for words in prompts]
        for words, known in zip(prompts, self.maskable, strict=True):
            if not known:
                raise InputError(f"the word list has none of the words of {' '.join(words)!r}: it is of other classes")
        self.max_masked = max(map(self.count, range(len(prompts))))
        self.length = self._longest()

    def count(self, label: int) -> int:
        """How many words of a class's prompt are masked."""
        wanted = max(1, round(self.rate * len(self.prompts[label]))) if self.rate > 0 else 0
        return min(wanted, len(self.maskable[label]))

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
        last = self.tokenizer.context_length - (self.tokenizer.end is not None)
        for label, numbers in zip(labels, uniform.tolist(), strict=True):
            words = self.prompts[label]
            order = sorted(self.maskable[label], key=numbers.__getitem__)
            masked = set(order[: self.count(label)])
            row, place, target = [*self.tokenizer.prefix], [], []
            for i, word in enumerate(words):
                if i in masked and len(row) < last:
                    place.append(len(row))
                    target.append(self.target(word))
                row.extend(self.tokenizer.word_ids(MASK_WORD if i in masked else word))
            rows.append(self.tokenizer.closed(row))
            places.append(place + [0] * (self.max_masked - len(place)))
            targets.append(target + [IGNORE] * (self.max_masked - len(target)))
        shape = (len(rows), self.max_masked)
        positions = torch.tensor(places, dtype=torch.int64).reshape(shape)
        tokens = self.tokenizer.rectangle(rows, self.length)
        return Prompts(tokens, positions), torch.tensor(targets, dtype=torch.int64).reshape(shape)

    def _longest(self) -> int:
        """Tokens of the longest prompt, whichever of its words are masked."""
        mask = len(self.tokenizer.word_ids(MASK_WORD))
        lengths = [sum(max(mask, len(self.tokenizer.word_ids(word))) for word in words) for words in self.prompts]
        return min(len(self.tokenizer.prefix) + max(lengths) + 1, self.tokenizer.context_length)

    def _knows(self, word: str) -> bool:
        return self.ids is None or vocabulary_word(word) in self.ids

    def target(self, word: str) -> int:
        """Id of a word in the head's vocabulary."""
        return self.tokenizer.word_ids(word)[0] if self.ids is None else self.ids[vocabulary_word(word)]
