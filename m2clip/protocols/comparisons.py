"""The protocols that papers compare methods by: few-shot, base-to-novel, zero-shot over several splits.

Every run of a protocol has its folder, and what was scored lies beside it with the settings that decided it: the same
call resumes where a stopped one was, and repeats nothing that is finished.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from m2clip.config import RunConfig
from m2clip.data.hold_out import tell_in_both
from m2clip.data.lists.annotations import Annotations
from m2clip.data.lists.label_sets import match_key
from m2clip.data.lists.splits import frequent_half
from m2clip.errors import InputError
from m2clip.evaluate.results import EvalResult
from m2clip.files.kept_work import plain
from m2clip.methods import VideoModel
from m2clip.protocols.runs import (
    Contender,
    ProtocolFolder,
    Reporter,
    ScoredSet,
    brief,
    kept,
    model_identity,
    slug,
    summary,
    videos_identity,
)
from m2clip.train.setup import named_list

SHOTS = (2, 4, 8, 16)


def few_shot(
    contenders: Sequence[Contender],
    output: str | Path,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = (0,),
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train every contender on K videos a class for each K and seed, and score all of data.val.

    Args:
        contenders: their configurations name the same videos. data.train may hold "{shots}" and "{seed}" for published
            lists; otherwise the K videos of a class are drawn from it by the seed.
        output: folder for lists, runs and results.json.
        shots: the Ks.
        seeds: of the draw, and of weights and order in training.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
        reporter: how to tell what is done; None prints.

    Returns:
        What results.json holds: by method and K the mean and deviation of top-1 over the seeds, frozen CLIP beside.

    Raises:
        InputError: bad lists or configurations, or a folder that holds runs of other settings.
        KeyboardInterrupt: training was stopped; the same call resumes.
    """
    with ProtocolFolder("few-shot", contenders, output, device, reporter or Reporter()) as place:
        data = place.config.data
        val = ScoredSet("val", named_list(place.config, data.val, data.val_split, data.classes, "data.val"))
        written = place.write(val.annotations, "val")
        runs: dict[str, dict[int, list[dict[str, Any]]]] = {c.name: {k: [] for k in shots} for c in contenders}
        for k in shots:
            for seed in seeds:
                drawn = place.write(_draw(place.config, k, seed, val), f"train_shots{k}_seed{seed}")
                for contender in contenders:
                    scores = place.run(contender, f"shots{k}_seed{seed}", seed, drawn, written, [val])
                    runs[contender.name][k].append(scores["val"])
        frozen = place.frozen([val])
        results = {
            "shots": list(shots),
            "seeds": list(seeds),
            "classes": len(val.class_names),
            "chance": 1 / len(val.class_names),
            "frozen": {name: scores["val"] for name, scores in frozen.items()},
            "methods": {name: {str(k): summary(of_k) for k, of_k in by_k.items()} for name, by_k in runs.items()},
            "evaluation": next(iter(frozen.values()))["val"]["evaluation"],
        }
        return place.finish(results)


def base_to_novel(
    contenders: Sequence[Contender],
    output: str | Path,
    *,
    shots: int = 16,
    seeds: Sequence[int] = (1, 2, 3),
    base_classes: Sequence[str] | None = None,
    novel_classes: Sequence[str] | None = None,
    novel_list: str | None = None,
    device: str | torch.device | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train every contender on K videos of each base class, and score base and novel classes by their held-out videos.

    Args:
        contenders: their configurations name the same videos: of all classes, or, with novel_list, of the base classes
            alone. data.train may hold "{shots}" and "{seed}" for published lists of the base classes.
        output: folder for lists, runs and results.json.
        shots: K.
        seeds: of the draw, and of weights and order in training.
        base_classes: one half; None takes the more frequent half of the training videos' classes.
        novel_classes: the other half. With novel_list they are its names in the order of its own labels.
        novel_list: held-out videos of the novel classes, where they have a list of their own.
        device: as for `few_shot`.
        reporter: as for `few_shot`.

    Returns:
        What results.json holds: by method base and novel top-1 (mean and deviation over the seeds) and the harmonic
        mean of the two means.

    Raises:
        InputError: bad lists or configurations, classes that are base and novel at once, or a folder that holds runs of
            other settings.
        KeyboardInterrupt: training was stopped; the same call resumes.
    """
    with ProtocolFolder("base-to-novel", contenders, output, device, reporter or Reporter()) as place:
        base, novel = _halves(place.config, base_classes, novel_classes, novel_list)
        written = place.write(base.annotations, "base_val")
        runs: dict[str, list[dict[str, Any]]] = {contender.name: [] for contender in contenders}
        for seed in seeds:
            drawn = place.write(_draw(place.config, shots, seed, base), f"base_train_shots{shots}_seed{seed}")
            for contender in contenders:
                runs[contender.name].append(
                    place.run(contender, f"shots{shots}_seed{seed}", seed, drawn, written, [base, novel])
                )
        place.write(novel.annotations, "novel_val")
        frozen = {name: [scores] for name, scores in place.frozen([base, novel]).items()}
        methods = {}
        for name, of_seeds in {**frozen, **runs}.items():
            halves = {part: summary([scores[part] for scores in of_seeds]) for part in ("base", "novel")}
            means = [half["top1"]["mean"] for half in halves.values()]
            methods[name] = {**halves, "harmonic_mean": harmonic_mean(means)}
        results = {
            "shots": shots,
            "seeds": list(seeds),
            "classes": {part.name: part.class_names for part in (base, novel)},
            "chance": {part.name: 1 / len(part.class_names) for part in (base, novel)},
            "frozen": list(frozen),
            "methods": methods,
            "evaluation": {part: next(iter(frozen.values()))[0][part]["evaluation"] for part in ("base", "novel")},
        }
        return place.finish(results)


def zero_shot(
    candidates: Mapping[str, VideoModel],
    parts: Sequence[ScoredSet],
    score: Callable[[str, VideoModel, ScoredSet], EvalResult],
    folder: str | Path,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Score models on several splits or label sets, and give mean and deviation over them.

    Args:
        candidates: models by name.
        parts: the splits.
        score: evaluates a candidate on a part.
        folder: where each finished part is kept, so that a stopped call can be repeated.
        settings: what decides the numbers besides model and videos (views, precision, adapters switched off).

    Returns:
        By model "top1", of similarity with the class texts: mean, deviation and values in the order of "splits".
    """
    models = {}
    for name, model in candidates.items():
        identity = model_identity(model)
        found = []
        for part in parts:

            def work(name: str = name, model: VideoModel = model, part: ScoredSet = part) -> dict[str, Any]:
                found = brief(score(name, model, part))
                # Also where a part's classes are those of the run: its classifier is not what is asked.
                return {**found, "top1": found["heads"]["zero-shot"]}

            decisive = plain({**settings, "model": identity, **videos_identity(part)})
            found.append(kept(Path(folder) / f"{slug(name)}_{slug(part.name)}.json", decisive, work))
        models[name] = {**summary(found), "evaluation": [scores["evaluation"] for scores in found]}
    return {
        "protocol": "zero-shot",
        "splits": [part.name for part in parts],
        "classes": [len(part.class_names) for part in parts],
        "models": models,
    }


def harmonic_mean(values: Sequence[float]) -> float:
    """Harmonic mean of shares; 0 where one of them is 0."""
    return statistics.harmonic_mean(values)


def _draw(config: RunConfig, shots: int, seed: int, val: ScoredSet) -> Annotations:
    """K videos of each class of val: the published list where data.train names one by place-holders, else drawn."""
    path = config.data.train or ""
    named = path.replace("{shots}", str(shots)).replace("{seed}", str(seed))
    found = named_list(config, named or None, config.data.train_split, config.data.classes)
    # Also where both have the same names: folders of different classes would number them differently.
    found = found.select_classes(val.class_names)
    tell_in_both(found.items, val.annotations.items)
    return found if named != path else found.few_shot(shots, seed)


def _halves(
    config: RunConfig,
    base_classes: Sequence[str] | None,
    novel_classes: Sequence[str] | None,
    novel_list: str | None,
) -> tuple[ScoredSet, ScoredSet]:
    """Held-out videos of base and of novel classes."""
    data = config.data
    val = named_list(config, data.val, data.val_split, data.classes, "data.val")
    base, novel = val, val
    if novel_list is not None:
        if base_classes is not None:
            raise InputError("with a list of their own for novel classes, data.classes names the base classes")
        # The labels of this list are its own: the configuration's class names are not for it.
        if novel_classes is None:
            raise InputError(f"{novel_list} needs its class names: give the novel classes")
        novel = named_list(config, novel_list, data.val_split, novel_classes)
    else:
        if (base_classes is None) != (novel_classes is None):
            raise InputError("give both base and novel classes, or neither for the more frequent half as base")
        if base_classes is None or novel_classes is None:
            if "{" in (data.train or ""):
                raise InputError("published lists of base classes need a list of the novel classes beside them")
            base_classes, novel_classes = frequent_half(named_list(config, data.train, data.train_split, data.classes))
        base, novel = val.select_classes(base_classes), val.select_classes(novel_classes)
    both = {match_key(n) for n in base.class_names or ()} & {match_key(n) for n in novel.class_names or ()}
    if both:
        name = next(n for n in novel.class_names or () if match_key(n) in both)
        raise InputError(f"class {name!r} is base and novel at once: novel classes must not be trained on")
    for part, videos in (("base", base), ("novel", novel)):
        if len(videos.class_names or ()) < 2:
            raise InputError(f"there is one {part} class only, which leaves nothing to choose from")
        if not videos.items:
            raise InputError(f"{data.val} has no video of a {part} class")
    return ScoredSet("base", base), ScoredSet("novel", novel)
