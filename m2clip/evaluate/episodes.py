"""Score a model by episodes: features of every video once, then thousands of episodes in a few large calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from m2clip import distributed
from m2clip.data.episode_clips import EpisodeVideos
from m2clip.data.episodes import EpisodeList, sources
from m2clip.data.lists.annotations import VideoItem
from m2clip.data.transforms import statistics_name
from m2clip.errors import InputError
from m2clip.evaluate.episode_features import VideoFeatures, video_features
from m2clip.evaluate.episode_results import EpisodeResult, accuracy, correct_shares
from m2clip.evaluate.episode_support import with_stand_ins
from m2clip.evaluate.results import ON_ERROR, Failure
from m2clip.evaluate.scoring import EvalSettings, scoring_mode
from m2clip.matching import bi_mhm, frame_distances, otam

VIDEOS_SCORED = 1024  # of a scoring call, unless its episodes are given
METRICS = {"otam": otam, "bi_mhm": bi_mhm}
Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None] | None]]


class Scores(NamedTuple):
    """Of Q queries of E episodes, each (E, Q, way): distances to the classes, and scaled cosines with their texts."""

    distances: Tensor
    text_logits: Tensor


class FrameMatching:
    """Any video model as a few-shot learner without training: its frame features are matched with those of the support.

    The K shots of a class become one sequence by the mean of their frame features. With `create_model("clip", ...)`
    this is the usual baseline, frozen CLIP with OTAM.

    Args:
        model: a video model; its frame features are (B, T, D_vl).
        metric: "otam" or "bi_mhm" (`m2clip.matching`).
    """

    def __init__(self, model: Any, metric: str = "otam") -> None:
        if metric not in METRICS:
            raise InputError(f"metric {metric!r} is unknown: use {' or '.join(METRICS)}")
        self.model, self.metric = model, METRICS[metric]

    def encode_query(self, video: Tensor) -> Tensor:
        """Frame features (M, T, D_vl) of videos (M, T, 3, H, W)."""
        return self.model(video).frame_features

    def encode_support(self, video: Tensor, labels: Tensor) -> Tensor:
        """The same: classes play no part."""
        return self.encode_query(video)

    def text_features(self) -> Tensor:
        """(C, D_vl) of the current class names."""
        return self.model.text_features()

    def score(self, support: Tensor, query: Tensor, text: Tensor) -> Scores:
        """Distances and text logits of support (E, way, K, T, D), query (E, Q, T, D) and text (E, way, D)."""
        distances = self.metric(frame_distances(query, support.mean(dim=2)))
        cosines = torch.nn.functional.cosine_similarity(
            query.mean(dim=2).float()[:, :, None], text.float()[:, None], dim=-1
        )
        return Scores(distances, self.model.logit_scale.float().exp().reshape(()) * cosines)


def evaluate_episodes(
    model: Any,
    videos: EpisodeVideos,
    lists: Sequence[EpisodeList],
    settings: EvalSettings,
    *,
    device: torch.device | str | None = None,
    workers: int = 0,
    precision: str = "fp32",
    metric: str = "otam",
    episode_batch: int | None = None,
    name: str | None = None,
    cache: str | Path | None = None,
    bar: Bar = lambda what: nullcontext(),
) -> list[EpisodeResult]:
    """Accuracy over each list of episodes; every process of a group returns the whole results.

    In memory are the features of the videos, 4 x T x D_vl bytes each (twice that where support and query are read
    differently), and one batch of episodes, however many there are.

    Args:
        model: a video model. One with `score`, `encode_support` and `encode_query` (`m2clip.methods.ma_fsar.MAFSAR`)
            answers itself, for others `FrameMatching` does. Its mode and its class names stay as they are.
        videos: the list, with class names.
        lists: episodes over it, such as one list for each K.
        settings: on_error and batch_size (videos of a forward pass).
        device: where the model runs; None is where its parameters are.
        workers: decoding processes of this process.
        precision: "fp32", or "bf16" / "fp16" for autocast.
        metric: of `FrameMatching`.
        episode_batch: episodes of one scoring call; None takes as many as have about 1024 videos.
        name: recorded; None takes the model's method.
        cache: folder that keeps the features, see `m2clip.evaluate.episode_features.video_features`; None keeps none.
        bar: what is going on -> a context whose value, if any, is called with (done, wanted).

    Raises:
        InputError: class names are missing, unknown settings, no episode that can be scored; with on_error "raise", a
            video that cannot be read or a query without finite scores.
    """
    if settings.on_error not in ON_ERROR:
        raise InputError(f"on_error is {settings.on_error!r}: use {', '.join(ON_ERROR)}")
    if min(settings.batch_size, 1 if episode_batch is None else episode_batch) < 1:
        raise InputError("batch sizes, of videos and of episodes, must be 1 or more")
    annotations = videos.annotations
    if annotations.class_names is None:
        raise InputError(f"{annotations.source}: gives class numbers but no names; name a label set or a class file")
    device = torch.device(device) if device is not None else next(model.parameters()).device
    answers_itself = hasattr(model, "score")
    name = name or model.method
    with scoring_mode(model, annotations.class_names) as asked:
        learner = asked if answers_itself else FrameMatching(asked, metric)
        with bar(f"{name}: reading videos") as progress:
            features = video_features(
                asked,
                learner,
                videos,
                roles=answers_itself,
                batch_size=settings.batch_size,
                device=device,
                workers=workers,
                precision=precision,
                on_error=settings.on_error,
                cache=None if cache is None else Path(cache),
                progress=progress,
            )
        failures = [
            Failure(index, annotations.items[index].name, text) for index, text in sorted(features.errors.items())
        ]
        scorer = _Scorer(learner, features, annotations.items, device, episode_batch, settings.on_error)
        results = []
        for episodes in lists:
            with bar(f"{name}: {episodes.shape.way}-way {episodes.shape.shots}-shot") as progress:
                heads, counted, stand_ins, not_finite = scorer(episodes, progress)
            if not counted.any():
                described = failures[0].describe() if failures else "the model's scores are not finite numbers"
                raise InputError(f"none of the {len(episodes)} episodes could be scored; the first: {described}")
            results.append(
                EpisodeResult(
                    name=name,
                    way=episodes.shape.way,
                    shots=episodes.shape.shots,
                    queries=episodes.shape.queries,
                    heads={head: accuracy(shares[counted]) for head, shares in heads.items()},
                    episodes=len(episodes),
                    denominator=int(counted.sum()),
                    seed=episodes.seed,
                    episodes_hash=episodes.sha256,
                    failures=failures,
                    on_error=settings.on_error,
                    stand_ins=stand_ins,
                    not_finite=not_finite,
                    frames=videos.describe_frames(),
                    normalisation=statistics_name(videos.settings.normalize),
                    prompt=str(model.prompt),
                    classes=len(annotations.class_names),
                    list_hash=episodes.list_hash,
                    list_length=episodes.list_length,
                )
            )
    return results


class _Scorer:
    def __init__(
        self,
        learner: Any,
        features: VideoFeatures,
        items: Sequence[VideoItem],
        device: torch.device,
        batch: int | None,
        on_error: str,
    ) -> None:
        self.learner, self.device, self.batch, self.on_error = learner, device, batch, on_error
        self.query = features.query.to(device)
        self.support = self.query if features.support is features.query else features.support.to(device)
        self.unreadable = torch.zeros(len(features.query), dtype=torch.bool)
        self.unreadable[list(features.errors)] = True
        self.labels, self.sources = [item.label for item in items], sources(items)
        with torch.no_grad():
            self.text = learner.text_features().float()

    def __call__(
        self, episodes: EpisodeList, progress: Callable[[int, int], None] | None
    ) -> tuple[dict[str, Tensor], Tensor, int, int]:
        """By head the accuracy of each episode (E,); which episodes count (E,); in how many of all a video stands in
        for another; and queries without finite scores.
        """
        own = episodes.share(distributed.rank(), distributed.world_size())
        parts: list[tuple[Tensor, dict[str, Tensor], Tensor, int, int]] = []
        done = 0
        for numbers in own.split(self.batch or max(1, VIDEOS_SCORED // episodes.shape.videos)):
            parts.append((numbers, *self._score(episodes, numbers)))
            done += len(numbers)
            if progress is not None:
                progress(done, len(own))
        gathered = [part for of_process in distributed.gather_objects(parts) for part in of_process]
        counted = torch.zeros(len(episodes), dtype=torch.bool)
        # In the order of the episodes, so that the sum is the same whatever the number of processes.
        heads = {head: torch.zeros(len(episodes), dtype=torch.float64) for head in gathered[0][1]}
        for numbers, shares, counts, *_ in gathered:
            counted[numbers] = counts
            for head, values in shares.items():
                heads[head][numbers] = values
        stand_ins, not_finite = (sum(part[place] for part in gathered) for place in (-2, -1))
        if not_finite and self.on_error == "raise":
            raise InputError(
                f"{not_finite} queries have no finite scores: try --precision fp32 (--on-error skip or wrong continues)"
            )
        return heads, counted, stand_ins, not_finite

    @torch.no_grad()
    def _score(self, episodes: EpisodeList, numbers: Tensor) -> tuple[dict[str, Tensor], Tensor, int, int]:
        shape = episodes.shape
        support, lost, replaced = with_stand_ins(
            episodes.support[numbers], episodes.query[numbers], self.unreadable, self.labels, self.sources
        )
        query = episodes.query[numbers].flatten(1)  # (E, Q)
        on_device = [tensor.to(self.device) for tensor in (support, query, episodes.classes[numbers])]
        found = self.learner.score(self.support[on_device[0]], self.query[on_device[1]], self.text[on_device[2]])
        heads = {"matching": -found.distances, "text": found.text_logits}
        if hasattr(found, "probabilities"):
            heads = {"fused": found.probabilities, **heads}
        if lost.any():
            # A class without support is no answer, but for what reads class texts alone.
            for head in heads.keys() - {"text"}:
                scores = heads[head]
                heads[head] = scores.masked_fill(lost[:, None].to(self.device), torch.finfo(scores.dtype).min)
        finite = torch.stack([scores.isfinite().all(dim=-1) for scores in heads.values()]).all(0).cpu()
        true = torch.arange(shape.way, device=self.device).repeat_interleave(shape.queries)
        right = torch.stack([scores.argmax(dim=-1) == true for scores in heads.values()]).cpu()
        right &= ~torch.stack([lost & (head != "text") for head in heads]).repeat_interleave(shape.queries, dim=-1)
        shares, counts = correct_shares(right, lost.any(dim=1), self.unreadable[query] | ~finite, self.on_error)
        return dict(zip(heads, shares, strict=True)), counts, int(replaced.sum()), int((~finite).sum())
