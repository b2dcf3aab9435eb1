"""Score a video model on a list of videos: each video once, its views averaged, every failure counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from m2clip import distributed
from m2clip.data.clips import EpochSampler
from m2clip.data.lists.annotations import list_hash
from m2clip.data.lists.class_names import name_list
from m2clip.data.loading import TIMEOUT, load
from m2clip.data.transforms import statistics_name
from m2clip.errors import InputError
from m2clip.evaluate.results import BEST, ON_ERROR, Answer, EvalResult, Failure, VideoScore, head_scores

FUSION = "mean of softmax over views"


class EvalSettings(Protocol):
    """What evaluation reads from its settings; `m2clip.config_fields.EvalConfig` has these fields."""

    @property
    def on_error(self) -> str:
        """What a video that cannot be scored does: "raise", "skip" or "wrong"."""

    @property
    def batch_size(self) -> int:
        """Views of a forward pass."""


def evaluate_model(
    model: Any,
    dataset: Any,
    settings: EvalSettings,
    *,
    class_names: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    workers: int = 0,
    precision: str = "fp32",
    prompt: str | None = None,
    name: str | None = None,
    adapters_off: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
    shard: tuple[int, int] | None = None,
    timeout: float = TIMEOUT,
) -> EvalResult:
    """Top-1, top-5 and confusion of both heads over a dataset; each process of a group returns the whole result.

    Args:
        model: a video model (`m2clip.create_model`); its mode and its class names stay as they are.
        dataset: `m2clip.data.clips.ClipDataset` with training=False: an item has all views of a video, (V, T, 3, H, W).
        settings: on_error ("raise", "skip" or "wrong") and batch_size (views a forward pass).
        class_names: names of the labels in the dataset; None takes the dataset's, else the model's. Where they differ
            from the model's, it is asked about them through its text tower and only the similarity is scored.
        device: where the model runs; None is where its parameters are.
        workers: decoding processes of this process.
        precision: "fp32", or "bf16" / "fp16" for autocast.
        prompt: recorded; None takes the model's.
        name: recorded; None takes the model's method.
        adapters_off: "visual" and/or "text": adapters switched off while scoring.
        progress: called with (videos done, videos of this process).
        shard: (rank, world size) to score that share alone, without gathering; None takes the process group's.
        timeout: how long decoding a video may take, in seconds, before the decoding processes count as hung.

    Raises:
        InputError: empty dataset, labels that the class names do not reach, unknown settings, no video that can be
            scored, or, with on_error "raise", one that cannot.
    """
    if settings.on_error not in ON_ERROR:
        raise InputError(f"on_error is {settings.on_error!r}: use {', '.join(ON_ERROR)}")
    if settings.batch_size < 1:
        raise InputError(f"batch_size is {settings.batch_size}: it counts views and must be 1 or more")
    items = dataset.annotations.items
    names = name_list(class_names or dataset.annotations.class_names or model.class_names)
    _check_labels(items, names)
    rank, size = shard or (distributed.rank(), distributed.world_size())
    device = torch.device(device) if device is not None else next(model.parameters()).device

    scores: list[VideoScore] = []
    problem: InputError | KeyboardInterrupt | None = None
    try:
        with scoring_mode(model, names, adapters_off) as scorer:
            scores += _score_shard(scorer, dataset, settings, device, workers, precision, progress, rank, size, timeout)
    except (InputError, KeyboardInterrupt) as error:
        if size == 1 or shard is not None:
            raise
        problem = error
    if shard is None:
        # All processes learn of an error of one, or they would wait for it without end.
        parts = distributed.gather_objects((scores, problem))
        if (first := next((error for _, error in parts if error is not None), None)) is not None:
            raise problem or first
        scores = [score for part, _ in parts for score in part]
    scores.sort(key=lambda score: score.index)
    failures = [Failure(score.index, items[score.index].name, score.error) for score in scores if score.error]
    if failures and settings.on_error == "raise":
        raise InputError(f"{failures[0].describe()} (--on-error skip or wrong continues without it)")

    views = dataset.settings
    heads = {head for score in scores for head in score.answers}
    if not heads:
        raise InputError(f"none of the {len(scores)} videos could be scored; the first: {failures[0].describe()}")
    return EvalResult(
        class_names=names,
        supervised=head_scores(scores, "supervised", len(names), settings.on_error) if "supervised" in heads else None,
        zero_shot=head_scores(scores, "zero-shot", len(names), settings.on_error) if "zero-shot" in heads else None,
        denominator=len(scores) - (len(failures) if settings.on_error == "skip" else 0),
        failures=failures,
        on_error=settings.on_error,
        clips=views.clips,
        crops=views.crops,
        frames=f"{views.num_frames} {views.sampling}"
        + (f", stride {views.stride}" if views.sampling != "uniform" else ""),
        fusion=FUSION,
        normalisation=statistics_name(views.normalize),
        prompt=prompt or str(getattr(model, "prompt", "model default")),
        list_hash=list_hash(items),
        list_length=len(items),
        name=name or model.method,
        adapters_off=list(adapters_off),
        videos=scores,
    )


def fuse_views(logits: Tensor) -> Tensor:
    """Mean over views of the softmax over classes.

    Args:
        logits: (V, C), one row a view.

    Returns:
        (C,) float64 probabilities.
    """
    return logits.double().softmax(dim=-1).mean(dim=0)


def rank_classes(probabilities: Tensor) -> Tensor:
    """Class numbers (C,), most probable first; equal scores in the order of their numbers, so that every run agrees.

    Args:
        probabilities: (C,).
    """
    return probabilities.sort(descending=True, stable=True).indices


def autocast(device: torch.device, precision: str) -> Any:
    """The autocast context for "fp32" (none), "bf16" or "fp16".

    Raises:
        InputError: any other precision.
    """
    types = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision == "fp32":
        return nullcontext()
    if precision not in types:
        raise InputError(f"precision is {precision!r}: use fp32, bf16 or fp16")
    return torch.autocast(device.type, dtype=types[precision])


@contextmanager
def scoring_pass(model: Any, device: torch.device, precision: str) -> Iterator[None]:
    """Forward passes without gradients, under autocast unless the model's frozen weights are kept in the precision.

    Raises:
        InputError: another precision than "fp32", "bf16" and "fp16".
    """
    kept = getattr(model, "precision", "fp32") == precision
    # no_grad and not inference_mode: text features that the model caches here must stay usable in a training step.
    with torch.no_grad(), nullcontext() if kept else autocast(device, precision):
        yield


def score_views(
    model: Any, batches: Iterable[Tensor], device: torch.device, precision: str = "fp32"
) -> tuple[Tensor | None, Tensor]:
    """VC logits (V, C) or None, and similarity (V, C), of V views in all; both on the CPU.

    Args:
        model: a video model in evaluation mode.
        batches: the views of each forward pass, (views, T, 3, H, W), normalised.
        device: where the model is.
        precision: "fp32", "bf16" or "fp16"; autocast, unless the model's frozen weights are kept in it anyway.
    """
    logits, similarity = [], []
    with scoring_pass(model, device, precision):
        for views in batches:
            out = model(views.to(device, non_blocking=True))
            logits.append(None if out.logits is None else out.logits.float())
            similarity.append(out.similarity.float())
    supervised = (
        None if any(part is None for part in logits) else torch.cat([part for part in logits if part is not None])
    )
    # Read at the very end: a GPU would have to be waited for after every part.
    return None if supervised is None else supervised.cpu(), torch.cat(similarity).cpu()


@contextmanager
def scoring_mode(model: Any, names: Sequence[str] | None, adapters_off: Sequence[str] = ()) -> Iterator[Any]:
    """The model in evaluation mode and with these class names; for other threads it stays as it is.

    Args:
        model: a video model, of whose weights the yielded one is.
        names: class names; None for the model's own.
        adapters_off: "visual" and/or "text": adapters switched off.
    """
    scorer = model.with_class_names(names).eval()
    with scorer.adapters_disabled(*adapters_off) if adapters_off else nullcontext():
        yield scorer


def _score_shard(
    model: Any,
    dataset: Any,
    settings: EvalSettings,
    device: torch.device,
    workers: int,
    precision: str,
    progress: Callable[[int, int], None] | None,
    rank: int,
    size: int,
    timeout: float,
) -> Iterator[VideoScore]:
    sampler = EpochSampler(len(dataset), seed=0, epoch=0, shuffle=False, rank=rank, world_size=size, drop_last=False)
    # One video a batch: videos may differ in nothing but their pixels, yet a failed one must not take others with it.
    items = load(dataset, list(sampler), workers=workers, pin_memory=device.type == "cuda", timeout=timeout)
    total = len(range(rank, len(dataset), size))
    pending: list[dict[str, Any]] = []
    for done, item in enumerate(items, start=1):
        if item["error"] and settings.on_error == "raise" and size == 1:
            name = dataset.annotations.items[item["index"]].name
            failure = Failure(item["index"], name, item["error"])
            raise InputError(f"{failure.describe()} (--on-error skip or wrong continues without it)")
        pending.append(item)
        views = sum(0 if waiting["error"] else len(waiting["video"]) for waiting in pending)
        if views >= settings.batch_size or done == total:
            yield from _score_videos(model, pending, settings, device, precision)
            pending = []
        if progress is not None:
            progress(done, total)
    yield from _score_videos(model, pending, settings, device, precision)


def _score_videos(
    model: Any,
    pending: list[dict[str, Any]],
    settings: EvalSettings,
    device: torch.device,
    precision: str,
) -> Iterator[VideoScore]:
    """The scores of a few videos, their views sharing forward passes."""
    readable = [item for item in pending if not item["error"]]
    for item in pending:
        if item["error"]:
            yield VideoScore(int(item["index"]), int(item["label"]), {}, str(item["error"]))
    if not readable:
        return
    counts = [len(item["video"]) for item in readable]
    # A video alone may have many views, which are not copied.
    video = torch.cat([item["video"] for item in readable]) if len(readable) > 1 else readable[0]["video"]
    supervised, similarity = score_views(model, video.split(settings.batch_size), device, precision)
    heads = {"zero-shot": similarity}
    if supervised is not None:
        heads = {"supervised": supervised, **heads}
    parts = {head: values.split(counts) for head, values in heads.items()}
    for number, item in enumerate(readable):
        fused = {head: fuse_views(views[number]) for head, views in parts.items()}
        finite = all(bool(torch.isfinite(values).all()) for values in fused.values())
        # A NaN compares as smaller than nothing: without this a diverged model would be scored as if it had answered.
        error = None if finite else "the model's scores are not finite numbers"
        label = int(item["label"])
        answers = {head: _answer(values, label) for head, values in fused.items()} if finite else {}
        yield VideoScore(int(item["index"]), label, answers, error)


def _answer(probabilities: Tensor, label: int) -> Answer:
    """What the probabilities (C,) of a head say of a video of class `label`."""
    order = rank_classes(probabilities).tolist()
    scores = probabilities.tolist()  # at once: a number at a time waits for a GPU each time
    best = tuple((number, scores[number]) for number in order[:BEST])
    return Answer(best, order.index(label), scores[label])


def _check_labels(items: Sequence[Any], names: list[str]) -> None:
    if not items:
        raise InputError("the list has no video to evaluate")
    outside = next((item for item in items if not 0 <= item.label < len(names)), None)
    if outside is not None:
        raise InputError(
            f"{outside.name} has label {outside.label}, but there are {len(names)} class names (0 to {len(names) - 1})"
        )
