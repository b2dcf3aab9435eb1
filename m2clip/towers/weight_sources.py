"""Where the weights of an open_clip tag are, and what is known of a file of weights: activation and pictures."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from m2clip.errors import InputError
from m2clip.files.disk import file_digest, read_json
from m2clip.towers.weight_files import is_scripted

CONFIG_FILE = "open_clip_config.json"  # which open_clip writes beside weights on the hub
PICTURES = ("mean", "std", "interpolation", "resize_mode")
_PATIENCE = 5.0  # seconds until a host counts as out of reach


# ---- tags ----


def tag_file(name: str, tag: str, facts: dict[str, Any], offline: bool) -> Path:
    """The file of a tag's weights, downloaded where it is not on this machine yet.

    Args:
        name: the architecture.
        tag: one of its tags.
        facts: what open_clip knows of the tag.
        offline: download nothing.

    Raises:
        InputError: it is not on this machine, and cannot or shall not be downloaded.
    """
    found = _kept_file(facts)
    if found is not None:
        return found
    if offline:
        raise InputError(
            f"the CLIP {name} with the weights {tag!r} is not on this machine, and nothing is downloaded because a "
            f"file names it: give --clip {name} --pretrained {tag}, or pass clip=m2clip.load_clip({name!r}, {tag!r})"
        )
    import open_clip

    if reachable(hub_address() if facts.get("hf_hub") else facts["url"]):
        try:
            with quiet():
                return Path(open_clip.download_pretrained(facts))
        except Exception:  # of the hub, the network and the disk, told by one line in any case
            pass
    raise InputError(
        f"cannot download the weights {tag!r} of {name}: no network, or no such file on the hub; give the path of a "
        "checkpoint you have, or use the CLIP 'tiny'"
    )


def is_kept(name: str, tag: str) -> bool:
    """Whether the weights of a tag of open_clip's are on this machine.

    Args:
        name: the architecture.
        tag: one of its tags.
    """
    import open_clip

    facts = open_clip.get_pretrained_cfg(name, tag)
    return bool(facts) and _kept_file(facts) is not None


def _kept_file(facts: dict[str, Any]) -> Path | None:
    """What an earlier download left on this machine."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    if facts.get("hf_hub"):
        repository, file = os.path.split(facts["hf_hub"])
        for wanted in (file,) if file else (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
            found = try_to_load_from_cache(repository, wanted)
            if isinstance(found, str):
                return Path(found)
    file = Path("~/.cache/clip").expanduser() / os.path.basename(facts.get("url") or "none")
    # open_clip compares the digest of such a file, and loads it again where it was cut off.
    digest = _digest_in(facts.get("url") or "")
    return file if digest and file.is_file() and file_digest(file).startswith(digest) else None


def kept_folder(repository: str) -> str | None:
    """Where an earlier download left a tokenizer of the hub on this machine; transformers would ask the hub for it."""
    found = kept_file(repository, "tokenizer_config.json")
    return None if found is None else str(found.parent)


def kept_file(repository: str, name: str) -> Path | None:
    """Where an earlier download left a file of the hub on this machine, or where it is in a folder."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if os.path.isdir(repository):
        found: Any = os.path.join(repository, name)
        return Path(found) if os.path.isfile(found) else None
    try:
        found = try_to_load_from_cache(repository, name)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def hub_file(repository: str, name: str, offline: bool) -> Path | None:
    """A file of the hub or of a folder, downloaded where it is not on this machine yet; None where there is none.

    Args:
        repository: its name on the hub, or a folder.
        name: of the file.
        offline: download nothing.
    """
    found = kept_file(repository, name)
    if found is not None or offline or os.path.isdir(repository) or not reachable(hub_address()):
        return found
    from huggingface_hub import hf_hub_download

    try:
        with quiet():
            return Path(hf_hub_download(repository, name))
    except Exception:  # of the hub, the network and the disk: there is no such file here
        return None


def hub_address() -> str:
    """Address of the Hugging Face hub."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def reachable(address: str) -> bool:
    """Whether the host of an address answers at once; the libraries' own attempts take most of a minute to fail."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    parts = urllib.parse.urlsplit(address)
    if parts.scheme in urllib.request.getproxies():
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=_PATIENCE).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' messages below errors that stop everything; failures are told by us."""
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


# ---- files ----


def facts_of_file(path: Path, name: str) -> dict[str, Any]:
    """What is known of a file of weights for an architecture: "quick_gelu" and pictures, as far as they are known.

    Known are OpenAI's archives, files with open_clip's configuration beside them, files in the hub's cache, and those
    whose content is a tag's.

    Raises:
        InputError: a configuration beside it that cannot be read.
    """
    beside = path.with_name(CONFIG_FILE)
    if beside.is_file():
        return _facts_in(beside)
    if is_scripted(path):
        return {"quick_gelu": True}
    tags = list(_tags(name))
    repository = next((part for part in path.absolute().parts if part.startswith("models--")), None)
    for facts in tags:
        if repository and facts.get("hf_hub", "").rstrip("/").replace("/", "--") == repository.removeprefix("models--"):
            return facts
    known = {digest: facts for facts in tags if (digest := _digest_in(facts.get("url", "")))}
    digest = file_digest(path) if known else ""
    return next((facts for start, facts in known.items() if digest.startswith(start)), {})


def _facts_in(file: Path) -> dict[str, Any]:
    try:
        told = read_json(file)
        model, pictures = told["model_cfg"], told.get("preprocess_cfg", {})
        facts: dict[str, Any] = {"quick_gelu": bool(model.get("quick_gelu", False))}
        facts |= {name: pictures[name] for name in PICTURES if name in pictures}
        for name in ("mean", "std"):
            if name in facts:
                facts[name] = tuple(map(float, facts[name]))
        numbers = [number for name in ("mean", "std") for number in facts.get(name, ())]
        if len(numbers) % 3 or not all(map(math.isfinite, numbers)) or 0 in facts.get("std", ()):
            raise ValueError("mean and std are not three numbers each")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file} cannot be read as open_clip's configuration of the weights: {error}") from None
    return facts


def _tags(name: str) -> Iterator[dict[str, Any]]:
    """What open_clip knows of all tags of an architecture, with either activation."""
    import open_clip

    plain = name.removesuffix("-quickgelu")
    for architecture in (plain, f"{plain}-quickgelu"):
        for tag in open_clip.list_pretrained_tags_by_model(architecture):
            yield {"quick_gelu": False, **open_clip.get_pretrained_cfg(architecture, tag)}


def _digest_in(url: str) -> str:
    """The beginning of a file's SHA-256 that its address tells, as open_clip reads it; empty where there is none."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    return os.path.splitext(os.path.basename(url))[0].rsplit("-", 1)[-1] if "mlfoundations" in url else ""
