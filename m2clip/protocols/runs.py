"""The runs of a protocol: each in its folder, what it scored beside it, nothing done twice."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m2clip import distributed
from m2clip.checkpoints.adapters import load_adapters, weights_hash
from m2clip.config import RunConfig
from m2clip.config_fields import deciding
from m2clip.data.clips import ClipDataset
from m2clip.data.lists.annotations import Annotations, list_hash, packed_hash
from m2clip.data.lists.splits import WrittenList, write_list
from m2clip.errors import InputError
from m2clip.evaluate.results import EvalResult
from m2clip.evaluate.scoring import evaluate_model
from m2clip.evaluate.tables import PREDICTIONS, write_predictions
from m2clip.files.disk import file_digest, seal, write_json
from m2clip.files.folders import check_apart
from m2clip.files.kept_work import check_replaceable, plain, read_record, write_result
from m2clip.methods import VideoModel, create_model
from m2clip.train import trainer
from m2clip.train.checks import check_model
from m2clip.train.setup import base_clip, clip_settings

FROZEN = "frozen CLIP"
SCORES = "scores.json"
RESULTS = "results.json"
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class Contender:
    """A method that takes part.

    Attributes:
        name: in tables and pictures.
        config: how it is trained; the protocol sets its lists, seed and folder.
    """

    name: str
    config: RunConfig


@dataclass(frozen=True)
class ScoredSet:
    """What is scored.

    Attributes:
        name: in tables and files, such as "base" or "split 1".
        annotations: the videos, with class names.
    """

    name: str
    annotations: Annotations

    @property
    def class_names(self) -> list[str]:
        """Names of the labels."""
        return list(self.annotations.class_names or ())


@dataclass(frozen=True)
class Reporter:
    """How a protocol tells what it does.

    Attributes:
        quiet: print nothing of training.
        say: receives a line where a run begins or was finished before.
        bar: what is going on -> a context whose value, if any, is called with (videos done, videos wanted).
    """

    quiet: bool = False
    say: Callable[[str], None] = print
    bar: Callable[[str], AbstractContextManager[Advance | None]] = lambda what: nullcontext()


def slug(name: str) -> str:
    """A name as a file name: letters, digits, dots, dashes and underscores stay."""
    return "".join(c if c.isalnum() or c in ".-_" else "_" for c in name).lower()


class ProtocolFolder:
    """The output folder of a protocol while it runs, with its lists and runs; a context, for the process group.

    Args:
        protocol: its name, as in results.json.
        contenders: who takes part, all on the same videos.
        output: the folder.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
        reporter: how to tell what is done.

    Raises:
        InputError: contenders that cannot be compared; entered, a results.json of somebody else or of another protocol.
    """

    def __init__(
        self,
        protocol: str,
        contenders: Sequence[Contender],
        output: str | Path,
        device: str | torch.device | None,
        reporter: Reporter,
    ) -> None:
        check_contenders(contenders)
        check_apart(output, contenders[0].config.data.train, contenders[0].config.data.val)
        self.protocol = protocol
        self.contenders, self.config, self.output = contenders, contenders[0].config, Path(output)
        self.wanted_device, self.reporter = device, reporter

    def __enter__(self) -> ProtocolFolder:
        self.started_group = not distributed.is_distributed()
        self.device = distributed.init(self.config.timeout, self.wanted_device)
        self._held = ExitStack()
        try:
            self._held.enter_context(distributed.locked_by_main(self.output, "comparison"))
            distributed.by_main(self._check)
            for contender in self.contenders:
                check_model(contender.config, self.device)
        except InputError:
            self.__exit__()
            raise
        return self

    def _check(self) -> None:
        path = self.output / RESULTS
        check_replaceable(path)
        other = read_record(path).get("protocol", self.protocol)
        if other != self.protocol:
            raise InputError(f"{path} holds results of {other}: give another folder with --output")

    def say(self, line: str) -> None:
        """Tell a line, once for all processes."""
        if distributed.is_main():
            self.reporter.say(line)

    def __exit__(self, *error: object) -> None:
        self._held.close()
        if self.started_group:
            distributed.shutdown()

    def write(self, annotations: Annotations, name: str) -> WrittenList:
        """The list as a file that all processes can read."""
        path = self.output / "lists" / f"{name}.txt"
        written = None
        if distributed.is_main():
            written = write_list(annotations, path)
        found = distributed.gather_objects(written)[0]
        assert isinstance(found, WrittenList)
        return found

    def run(
        self,
        contender: Contender,
        name: str,
        seed: int,
        train: WrittenList,
        val: WrittenList,
        parts: Sequence[ScoredSet],
    ) -> dict[str, Any]:
        """Train one run, or resume it, and score it; of a finished one only the scores are read.

        Args:
            contender: the method.
            name: of the run's folder.
            seed: of weights and order in training.
            train: its videos.
            val: videos to choose weights by, for contenders that keep the best ones.
            parts: what to score.

        Returns:
            By part what `brief` says.

        Raises:
            InputError: the folder holds a run of other settings.
            KeyboardInterrupt: training was stopped.
        """
        config = copy.deepcopy(contender.config)
        folder = self.output / "runs" / slug(contender.name) / name
        config.output, config.seed = str(folder), seed
        data = config.data
        data.train, data.classes, data.format = str(train.path), str(train.classes), train.format
        data.root = data.train_split = data.val_split = None
        # Validation costs time; its result is used only where it chooses the weights.
        data.val = str(val.path) if config.keep == "best" else None
        what = f"{contender.name}, {name.replace('_', ', ')}"
        settings = run_settings(config, parts, train.path)

        def work() -> dict[str, Any]:
            self.say(f"{what}: training")
            trainer.run(config, device=self.device, quiet=self.reporter.quiet)
            return self.score(what, load_adapters(folder), config, parts, folder)

        return kept(folder / SCORES, settings, work, lambda: self.say(f"{what}: finished before"))

    def frozen(self, parts: Sequence[ScoredSet]) -> dict[str, dict[str, Any]]:
        """By name the scores of every CLIP that the contenders are built on, without anything added."""
        by_clip = {(c.config.model.clip, c.config.model.pretrained): c.config for c in reversed(self.contenders)}
        found = {}
        for (clip, pretrained), config in reversed(by_clip.items()):
            name = FROZEN if len(by_clip) == 1 else f"{FROZEN} {clip}" + (f" {pretrained}" if pretrained else "")
            folder = self.output / "runs" / slug(name)
            settings = run_settings(config, parts)

            def work(name: str = name, config: RunConfig = config, folder: Path = folder) -> dict[str, Any]:
                clip = base_clip(config.model)
                model = create_model("clip", clip, ["any"], config.data.num_frames)
                return self.score(name, model, config, parts, folder)

            found[name] = kept(folder / SCORES, settings, work)
        return found

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Write results.json, with the protocol's name in it, and return what it holds."""
        results = {"protocol": self.protocol, **results}
        if distributed.is_main():
            write_result(results, self.output / RESULTS)
        return results

    def score(
        self, what: str, model: VideoModel, config: RunConfig, parts: Sequence[ScoredSet], folder: Path
    ) -> dict[str, Any]:
        """Evaluate a model on every part; eval_<part>.json in the folder has the result, eval_<part>_predictions.csv
        what is predicted of each video.
        """
        precision = config.optim.precision
        model = model.to(self.device)
        if precision != "fp32" and self.device.type == "cuda":
            model.set_precision(precision)
        scores = {}
        for part in parts:
            dataset = ClipDataset(part.annotations, clip_settings(config, model))
            with self.reporter.bar(f"{what}: scoring {part.name}") as advance:
                result = evaluate_model(
                    model,
                    dataset,
                    config.eval,
                    class_names=part.class_names,
                    device=self.device,
                    workers=config.data.workers,
                    precision=precision,
                    name=what,
                    progress=advance,
                )
            if distributed.is_main():
                result.save(folder / f"eval_{part.name}.json")
                write_predictions(result, part.annotations.items, folder / f"eval_{part.name}_{PREDICTIONS}")
            scores[part.name] = brief(result)
        return scores


def check_contenders(contenders: Sequence[Contender]) -> None:
    """InputError where names clash, data differ, or a configuration has nothing to train or no way to choose."""
    if not contenders:
        raise InputError("no configuration was given: name one at least")
    folders = [slug(contender.name) for contender in contenders]
    twice = next((c.name for c in contenders if folders.count(slug(c.name)) > 1 or slug(c.name) == slug(FROZEN)), None)
    if twice is not None:
        raise InputError(f"the name {twice!r} is taken: give every configuration its own, as in NAME=CONFIG")
    videos = [deciding(c.config, "videos") for c in contenders]
    for name, value in videos[0].items():
        if any(other[name] != value for other in videos):
            raise InputError(
                f"{name} differs between the configurations ({value!r} and others): methods are compared on the same "
                f"videos; give --{name} once for all"
            )
    for contender in contenders:
        config = contender.config
        if config.model.method == "clip":
            raise InputError(f"{contender.name} is frozen CLIP, which is always shown beside: leave it out")
        if config.keep == "best" and config.validate_every == 0:
            raise InputError(f"{contender.name}: keep is best, which needs validate_every of 1 or more")


def run_settings(config: RunConfig, parts: Sequence[ScoredSet], train: Path | None = None) -> dict[str, Any]:
    """What decides the scores of a run, or without a training list of frozen CLIP, as JSON values."""
    fields = deciding(config, "clip", "views", "scores")
    if train is not None:
        fields |= deciding(config, "training", "choice") | {"training list": file_digest(train)[:16]}
    return plain({**fields, "parts": {part.name: videos_identity(part) for part in parts}})


def videos_identity(part: ScoredSet) -> dict[str, Any]:
    """Which videos of which classes a part holds, as JSON values."""
    items = part.annotations.items
    return {"classes": part.class_names, "videos": len(items), "sha256": list_hash(items), "packed": packed_hash(items)}


def model_identity(model: VideoModel) -> dict[str, Any]:
    """What a model is, its trained tensors as a hash, as JSON values."""
    return {
        "method": model.method,
        "options": model.options(),
        "clip": model.clip_source,
        "views": plain(model.views),
        "frames": model.num_frames,
        "sha256": weights_hash(model.trained_state_dict())[:16],
    }


def kept(
    path: Path, settings: dict[str, Any], work: Callable[[], dict[str, Any]], known: Callable[[], None] | None = None
) -> dict[str, Any]:
    """What an earlier call scored with the same settings, or else the result of the work, which is then kept."""
    scores = None
    if distributed.is_main():
        saved = read_record(path)
        if saved.get("settings") == settings:
            scores = saved.get("scores")
    # All processes must agree on what there is left to do.
    scores = distributed.gather_objects(scores)[0]
    if scores is not None:
        if known is not None:
            known()
        return scores
    scores = work()
    if distributed.is_main():
        write_json(seal({"settings": settings, "scores": scores}), path)
    return scores


def brief(result: EvalResult) -> dict[str, Any]:
    """Top-1 of the main head and of every head, how many videos, and the settings in a line."""
    return {
        "top1": result.top1,
        "heads": {head: scores.top1 for head, scores in result.heads.items()},
        "videos": result.denominator,
        "failures": len(result.failures),
        "evaluation": result.settings_line(),
    }


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Top-1 of the main head and of every head over several runs; the deviation is the sample's (n - 1)."""

    def spread(values: Sequence[float]) -> dict[str, Any]:
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}

    shared = [head for head in runs[0]["heads"] if all(head in run["heads"] for run in runs)]
    heads = {head: spread([run["heads"][head] for run in runs]) for head in shared}
    return {"top1": spread([run["top1"] for run in runs]), "heads": heads, "videos": [run["videos"] for run in runs]}
