"""A CLIP's own tokenizer, where that is not OpenAI's byte pairs: those of the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m2clip.errors import InputError
from m2clip.towers.parts import TextStem
from m2clip.towers.prompts import BYTE_PAIRS, PromptTokenizer
from m2clip.towers.sources import open_text
from m2clip.towers.weight_sources import hub_address, kept_folder, quiet, reachable


class HubTokenizer(PromptTokenizer):
    """A tokenizer of the hub: whole prompts are encoded by itself, masked words one by one.

    Args:
        tokenizer: an `open_clip.tokenizer.HFTokenizer`.
        name: what it is called on the hub.
        stem: of the text tower that reads its ids.
    """

    def __init__(self, tokenizer: Any, name: str, stem: TextStem) -> None:
        self.tokenizer, self.padded = tokenizer, stem.padded
        pad = tokenizer.tokenizer.pad_token_id or 0
        self.pad, self.end = pad, stem.end
        if stem.padded:
            # What an empty prompt and another one begin with alike is in front of all, the rest of it behind.
            empty, other = self._whole(""), self._whole("a")
            start = empty[0] if empty and other[:1] == empty[:1] else None
            behind = empty if start is None else empty[1:]
            end = behind[0] if behind else None
        else:
            end = stem.end
            empty = self._whole("")
            start = empty[0] if len(empty) > 1 else None
        super().__init__(
            tokenizer.context_length, self._piece, start, end, name, pad=pad, padded=stem.padded, read=stem.read
        )

    def prompt_ids(self, words: Sequence[str]) -> list[int]:
        return self._whole(" ".join(words))

    def has_separate_words(self, words: Sequence[str]) -> bool:
        return super().prompt_ids(words) == self.prompt_ids(words)

    def _whole(self, text: str) -> list[int]:
        """Ids of a text up to its end token, without padding."""
        with torch.device("cpu"):  # models are built on others, too
            ids = self.tokenizer(text)[0].tolist()
        if self.padded:
            while ids and ids[-1] == self.pad:
                ids.pop()
            return ids
        if self.end not in ids:
            raise InputError(f"the tokenizer does not end a prompt with the token {self.end} that the CLIP reads")
        return ids[: ids.index(self.end) + 1]

    def _piece(self, text: str) -> list[int]:
        return self.tokenizer.tokenizer(self.tokenizer.clean_fn(text), add_special_tokens=False).input_ids


class _Unchanged:
    """A tokenizer of transformers, to be asked as open_clip's are; texts reach it as they are.

    Args:
        tokenizer: it.
        context_length: to which it pads and cuts.
    """

    def __init__(self, tokenizer: Any, context_length: int) -> None:
        self.tokenizer, self.context_length = tokenizer, context_length

    def clean_fn(self, text: str) -> str:
        return text

    def __call__(self, text: str) -> Tensor:
        sizes: dict[str, Any] = {"padding": "max_length", "truncation": True, "max_length": self.context_length}
        return self.tokenizer([text], return_tensors="pt", **sizes).input_ids


def own_tokenizer(
    architecture: str, text: dict[str, Any], clip: Any, source: str | Path | None, offline: bool
) -> PromptTokenizer:
    """The tokenizer of an open_clip architecture.

    Args:
        architecture: its name.
        text: the configuration of its text side.
        clip: of it, weights or none.
        source: a name on the hub, which may be downloaded, or a folder; None takes what is on this machine.
        offline: download nothing, whatever is named.

    Raises:
        InputError: it is not there, cannot be downloaded or read; one is named where it is OpenAI's.
    """
    name = text.get("hf_tokenizer_name")
    if not name:
        if source is not None:
            raise InputError(f"{architecture} has OpenAI's tokenizer, which is built in: leave the tokenizer out")
        return byte_pairs(clip)
    folder = source is not None and os.path.isdir(source)
    kept = str(source) if folder else kept_folder(str(source or name))
    here = None if kept is None else _opened(text, kept, local=True)
    if here is None and not folder and source is not None and not offline and reachable(hub_address()):
        here = _opened(text, str(source), local=False)
    if here is None and folder:
        raise InputError(f"{source} holds no tokenizer that can be read for {architecture}")
    if here is None:
        raise InputError(
            f"{architecture} has a tokenizer of its own, {name}, which is not on this machine: name it to download it "
            f"(model.tokenizer={name}, --tokenizer {name}, or load_clip's tokenizer), or a folder that holds it"
            + ("" if source is None or offline else "; the hub cannot be reached or has no such tokenizer")
        )
    return HubTokenizer(here, name, open_text(clip).stem)


def byte_pairs(clip: Any) -> PromptTokenizer:
    """OpenAI's tokenizer, for the prompts of a CLIP's text tower."""
    stem = open_text(clip).stem
    return PromptTokenizer(stem.context_length, padded=stem.padded, read=stem.read)


def _opened(text: dict[str, Any], source: str, local: bool) -> Any:
    try:
        from open_clip.tokenizer import HFTokenizer

        with quiet():
            return HFTokenizer(
                source,
                context_length=text.get("context_length", 77),
                tokenizer_mode=text.get("tokenizer_mode"),
                local_files_only=local,
                **text.get("tokenizer_kwargs", {}),
            )
    except ImportError as error:
        raise InputError(f"the tokenizer {source} needs transformers: {str(error).splitlines()[0]}") from None
    except Exception:  # of the hub, the network, files and their formats: there is no such tokenizer here
        return None


def tokenizer_of(clip: Any, given: Any = None) -> PromptTokenizer:
    """The tokenizer of a CLIP: the given one, else the one `m2clip.load_clip` opened with it, else OpenAI's.

    Args:
        clip: of open_clip or transformers.
        given: one of this package or, called with texts, one of transformers; None for none.

    Raises:
        InputError: a CLIP with another vocabulary that was opened without its tokenizer; something that is none.
    """
    if isinstance(given, PromptTokenizer):
        return given
    if given is not None:
        if not callable(given) or not hasattr(given, "pad_token_id"):
            raise InputError(f"tokenizer must be one of m2clip or transformers, not {type(given).__name__}")
        stem = open_text(clip).stem
        return HubTokenizer(_Unchanged(given, stem.context_length), given.name_or_path or "given", stem)
    own = getattr(clip, "m2clip_tokenizer", None)
    if own is not None:
        return own
    stem = open_text(clip).stem
    if stem.vocab_size != BYTE_PAIRS or stem.token_embedding is None:
        raise InputError(
            f"this CLIP has a tokenizer of its own (a vocabulary of {stem.vocab_size} tokens): open it with "
            "m2clip.load_clip, or give create_model its tokenizer"
        )
    return byte_pairs(clip)
