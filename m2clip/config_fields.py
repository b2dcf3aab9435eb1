"""The fields of a run's configuration, each declared once: default, meaning, unit, range, and what it decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, get_type_hints

from m2clip.choices import Augmentation, Crops, OnError, Precision, Sampling, Statistics, Transform
from m2clip.sizes import plain_size

DECISIONS = {
    "training": "what training computes; a run resumes only with the same value",
    "choice": "which of the trained weights a run offers for use",
    "clip": "what the CLIP below the adapters computes of a clip",
    "views": "which pictures of a video are shown in testing",
    "scores": "how a score is counted",
    "features": "what is stored of single videos, bit for bit",
    "videos": "which videos and classes there are; identities hold their hash in place of these fields",
    "nothing": "no result: where files lie, how fast a machine works, how often something is written",
}


@dataclass(frozen=True)
class Setting:
    """What is to say of a field.

    Attributes:
        decides: names of `DECISIONS`.
        meaning: for `--help`.
        unit: of a number.
        at_least: the lowest value of a number.
        at_most: the highest value of a number.
        above: what a number must be above.
        below: what a number must be below.
        read: what gives a value that may be written in several ways its one form, or raises an InputError that begins
            with the name that is its second argument; None for the value itself.
        type: as annotated.
        default: the value without a choice.
    """

    decides: frozenset[str]
    meaning: str
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None
    read: Callable[[Any, str], Any] | None = None
    type: Any = None
    default: Any = None


def setting(default: Any, decides: str, meaning: str, **more: Any) -> Any:
    """A field of a configuration.

    Args:
        default: its value, of which a list is copied; of `dict` an empty one.
        decides: names of `DECISIONS`, parted by blanks.
        meaning: for `--help`.
        more: unit and range, as in `Setting`.

    Raises:
        ValueError: it decides nothing that there is a name for.
    """
    names = frozenset(decides.split())
    if not names or names - DECISIONS.keys():
        raise ValueError(f"a field decides one or more of {', '.join(DECISIONS)}, not {decides!r}")
    metadata = {"setting": Setting(names, meaning, **more)}
    if default is dict:
        return field(default_factory=dict, metadata=metadata)
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def same(kind: type, name: str, default: Any = MISSING) -> Any:
    """A field of another dataclass, declared as field `name` of `kind` is, with another default where one is given."""
    found = next(entry for entry in fields(kind) if entry.name == name)
    return field(default=found.default if default is MISSING else default, metadata=found.metadata)


@cache
def settings_of(kind: Any) -> dict[str, Setting]:
    """By dotted name all fields of a dataclass, and of those within it.

    Raises:
        TypeError: a field that does not say what it decides.
    """
    hints: dict[str, Any] = get_type_hints(kind)
    found: dict[str, Setting] = {}
    for entry in fields(kind):
        hint = hints[entry.name]
        if is_dataclass(hint):
            found |= {f"{entry.name}.{name}": inner for name, inner in settings_of(hints[entry.name]).items()}
        elif "setting" in entry.metadata:
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            found[entry.name] = replace(entry.metadata["setting"], type=hint, default=default)
        else:
            raise TypeError(f"{kind.__name__}.{entry.name} does not say what it decides: declare it by setting(...)")
    return found


def flatten(config: Any) -> dict[str, Any]:
    """Dotted names and values of all fields; `model.options` stays one value."""
    found: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            found |= {f"{entry.name}.{name}": inner for name, inner in flatten(value).items()}
        else:
            found[entry.name] = value
    return found


def deciding(config: Any, *what: str) -> dict[str, Any]:
    """Dotted names and values of the fields that decide any of what is named (`DECISIONS`).

    Raises:
        ValueError: there is no such name.
        TypeError: a field does not say what it decides.
    """
    if unknown := set(what) - DECISIONS.keys():
        raise ValueError(f"{unknown} is nothing that fields decide: use {', '.join(DECISIONS)}")
    kind: Any = type(config)
    settings = settings_of(kind)
    return {name: value for name, value in flatten(config).items() if settings[name].decides & set(what)}


def _image_size(value: Any, name: str) -> int | list[int]:
    size = plain_size(value, name)
    return size if isinstance(size, int) else list(size)  # as it comes back from a file


@dataclass
class ModelConfig:
    """Which model is trained."""

    method: str = setting(
        "m2clip",
        "training",
        "m2clip, msta, st_adapter, aim, ma_fsar, or one of another package; clip (frozen CLIP) cannot be trained",
    )
    clip: str = setting(
        "ViT-B-16-quickgelu", "training clip", "open_clip architecture, repository or folder, or tiny, the bundled CLIP"
    )
    pretrained: str | None = setting("openai", "clip", "open_clip tag, or path of a local checkpoint; null for tiny")
    tokenizer: str | None = setting(
        None, "clip", "of a CLIP with a tokenizer of its own: its name on the hub, or a folder that holds it"
    )
    image_size: int | list[int] | None = setting(
        None,
        "training clip",
        "of the images, to which position embeddings are fitted: 224, or height and width as in 224x320 or "
        "[224, 320]; null is the CLIP's own",
        unit="pixels",
        read=_image_size,
    )
    init: str | None = setting(
        None,
        "training",
        "run folder, checkpoint or saved adapters that training starts from; heads are taken only for the same "
        "classes. --init also takes over what has to agree",
    )
    preset: str | None = setting(
        None, "training", "options by one name; of m2clip: official (the authors' code) or paper (the equations)"
    )
    options: dict[str, Any] = setting(
        dict,
        "training",
        "options of the method, such as {width: 384}, which are added to those of a recipe; {} drops these; "
        "--model.options.width 384 gives a single one",
    )


@dataclass
class DataConfig:
    """Which videos there are, and how clips are drawn from them."""

    train: str | None = setting(None, "videos", "training videos: a list file, or a folder of videos")
    train_split: str | None = setting(None, "videos", "which part of that list, where its format has parts (train1)")
    val: str | None = setting(None, "videos", "validation videos: a list file, or a folder of videos")
    val_split: str | None = setting(None, "videos", "which part of that list, where its format has parts (test1)")
    root: str | None = setting(
        None, "videos", "folder that relative paths in the lists start from; null is the list's own folder"
    )
    format: str = setting("auto", "videos", "annotation format of the lists")
    classes: str | None = setting(
        None, "videos", "bundled label set (k400) or file of class names; null takes the names from the lists"
    )
    allow_mismatched_folders: bool = setting(
        False, "nothing", "take videos that lie in the folder of another class than their label's"
    )
    num_frames: int = setting(8, "training clip", "frames of a clip", unit="frames", at_least=1, at_most=10_000)
    sampling: Sampling = setting(
        "uniform",
        "training views",
        "uniform: one frame from each of num_frames equal segments. dense: every stride-th frame. dense_centres: "
        "likewise, with test clips in the middle of equal parts, as in AIM's code",
    )
    stride: int = setting(
        16, "training views", "distance of the frames of a dense clip", unit="frames", at_least=1, at_most=1_000_000
    )
    reader: str = setting(
        "auto", "features", "video reader; frames:img_{:05d}.jpg chooses among images of several names"
    )
    shuffle: Literal["full", "shards"] = setting(
        "full", "training", "shards: for a pack on a disk that is slow to seek, videos from a few shards at a time"
    )
    repeat: int = setting(
        1,
        "training",
        "passes over the training videos in one epoch: for lists so short that epochs would end every few steps",
        unit="passes",
        at_least=1,
        at_most=1_000_000,
    )
    balance: Literal["none", "classes", "sqrt"] = setting(
        "none",
        "training",
        "how an epoch draws videos of classes of unequal size. classes: equally many of each. sqrt: in proportion to "
        "the square roots of their numbers",
    )
    isolate: bool = setting(
        False, "nothing", "decode in child processes: a video that crashes or hangs its decoder counts as unreadable"
    )
    workers: int = setting(
        4, "nothing", "decoding processes per training process", unit="processes", at_least=0, at_most=1024
    )
    timeout: float = setting(
        300.0,
        "nothing",
        "how long a batch may take before its decoding starts anew",
        unit="seconds",
        above=0,
        at_most=1_000_000,
    )
    augmentation: Augmentation = setting(
        "crop_flip",
        "training",
        "crop_flip: short-side jitter, random crop. randaugment: with a random resized crop. multi_scale_crop: crops "
        "of four sizes at five places, colour jitter, grey clips",
    )
    flip: bool = setting(
        True, "training", "mirror half of the training clips; not where class names tell left from right"
    )
    normalize: Literal["model", Statistics] = setting(
        "model", "training views", "channel statistics. model: those of the CLIP's training. inception: 0.5 everywhere"
    )
    transform: Transform = setting(
        "standard",
        "training views",
        "how frames are resized. standard: with antialias. authors: bicubic, without, as in M2-CLIP's code, which also "
        "fills clips of short videos in another way",
    )


@dataclass
class OptimConfig:
    """How the trained tensors are optimised."""

    epochs: int = setting(12, "training", "length of training", unit="epochs", at_least=1, at_most=1_000_000)
    warmup_epochs: float = setting(2.0, "training", "length of the linear warm-up", unit="epochs", at_least=0)
    schedule: Literal["cosine_after_warmup", "cosine_under_warmup", "steps"] = setting(
        "cosine_after_warmup",
        "training",
        "cosine_after_warmup: a linear warm-up, then a cosine. cosine_under_warmup: a cosine over all epochs, its "
        "beginning warmed up. steps: after the warm-up constant, a tenth from 60 percent of all steps on and a "
        "hundredth from 80 percent on",
    )
    lr_floor: float = setting(0.0, "training", "lowest learning rate, as a share of the highest", at_least=0, below=1)
    batch_size: int = setting(
        36,
        "training",
        "clips per forward pass and process; by episodes a pass is one episode",
        unit="clips",
        at_least=1,
        at_most=100_000,
    )
    lr: float = setting(
        1e-3,
        "training",
        "learning rate for 256 clips per step. It scales linearly with the clips of a step: batch_size x processes x "
        "accumulate; by episodes way x (shots + queries) x processes x accumulate",
        above=0,
        at_most=1000,
    )
    text_lr_scale: float = setting(
        0.5, "training", "factor on the learning rate of text adapters", at_least=0, at_most=1000
    )
    weight_decay: float = setting(
        1e-2, "training", "AdamW's; whether biases have it is up to the method", at_least=0, at_most=1000
    )
    beta2: float = setting(0.999, "training", "AdamW's, of the mean of squared gradients", at_least=0, below=1)
    accumulate: int = setting(
        1, "training", "forward passes per optimiser step", unit="passes", at_least=1, at_most=1_000_000
    )
    class_weights: Literal["none", "classes", "sqrt"] = setting(
        "none",
        "training",
        "factors on the classification losses of each class's videos. classes: one over the class's number of videos. "
        "sqrt: one over its square root",
    )
    ema: float = setting(
        0.0,
        "training",
        "decay per step of a moving average of the trained weights, which is validated and offered for use; 0: none",
        at_least=0,
        below=1,
    )
    clip_grad: float | None = setting(None, "training", "largest norm of all gradients; null does not clip", above=0)
    precision: Precision = setting(
        "fp32", "training clip", "of frozen weights and towers; trained tensors, heads and losses are fp32 in any case"
    )
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = setting(
        "none", "nothing", "torch.compile's mode; the first step then takes a minute or more"
    )
    checkpointing: int = setting(
        0,
        "nothing",
        "computed again in the backward pass, of each tower's blocks from the first with adapters on: less memory and "
        "more time, the same numbers",
        unit="blocks",
        at_least=0,
        at_most=1000,
    )
    cuda_graph: bool = setting(
        False, "nothing", "replay each step as a CUDA graph: faster for small batches; one process, one GPU"
    )


@dataclass
class EpisodesConfig:
    """Training by few-shot episodes: some classes, support videos of each, and queries to be told apart."""

    train: bool = setting(False, "training", "draw an episode from data.train for each forward pass of training")
    way: int = setting(5, "training", "classes per episode", unit="classes", at_least=2, at_most=10_000)
    shots: int = setting(
        1,
        "training",
        "support videos per class; 1 as a rule, whatever tests have",
        unit="videos",
        at_least=1,
        at_most=10_000,
    )
    queries: int = setting(5, "training", "query videos per class", unit="videos", at_least=1, at_most=10_000)
    per_epoch: int = setting(
        250, "training", "episodes per epoch, over all processes", unit="episodes", at_least=1, at_most=1_000_000
    )
    val_episodes: int = setting(
        1000,
        "choice",
        "episodes of a validation, always the same; 1 query per class",
        unit="episodes",
        at_least=2,
        at_most=1_000_000,
    )
    val_shots: int = setting(
        1, "choice", "support videos per class in validation", unit="videos", at_least=1, at_most=10_000
    )
    val_classes: str | None = setting(
        None, "choice", "label set or class file of data.val, none of whose classes is trained on; null: as in the list"
    )
    select_by: Literal["val", "test"] = setting(
        "val",
        "choice",
        "videos by which keep=best chooses. test: those that results are given for, as some published code does. Such "
        "results are too good",
    )
    test: str | None = setting(None, "choice", "these videos for select_by=test: a list file, or a folder of videos")
    test_split: str | None = setting(None, "choice", "which part of that list, where its format has parts")
    test_classes: str | None = setting(None, "choice", "label set or class file of that list; null: as in the list")


@dataclass
class EvalConfig:
    """How a model is scored."""

    clips: int = setting(1, "views", "clips per video, along time", unit="clips", at_least=1, at_most=10_000)
    crops: Crops = setting(1, "views", "crops per clip. m2clip4: the four of the authors' code")
    on_error: OnError = setting(
        "wrong", "scores", "an unreadable video ends the evaluation, is left out, or counts as an error"
    )
    batch_size: int = setting(16, "nothing", "views per forward pass", unit="views", at_least=1, at_most=100_000)


@dataclass
class RunConfig:
    """The run as a whole."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    output: str = setting("runs/m2clip", "nothing", "run folder")
    seed: int = setting(
        0,
        "training",
        "of order, clips, augmentation, masked words, dropout and initial weights",
        at_least=0,
        below=1 << 63,
    )
    loggers: list[Literal["tensorboard", "wandb", "mlflow"]] = setting(
        ["tensorboard"],
        "nothing",
        "what shows the numbers of metrics.csv as well: tensorboard, wandb, mlflow, parted by commas; [] for none",
    )
    log_every: int = setting(
        10, "nothing", "steps between two lines of metrics.csv", unit="steps", at_least=1, at_most=1_000_000_000
    )
    checkpoint_every: int = setting(
        500,
        "nothing",
        "steps between two checkpoints; 0: only at the end of an epoch",
        unit="steps",
        at_least=0,
        at_most=1_000_000_000,
    )
    keep_checkpoints: int = setting(
        2, "nothing", "how many of the newest stay", unit="checkpoints", at_least=1, at_most=1_000_000_000
    )
    validate_every: int = setting(
        1,
        "choice",
        "epochs between two validations; the last always has one; 0: never",
        unit="epochs",
        at_least=0,
        at_most=1_000_000_000,
    )
    keep: Literal["last", "best"] = setting(
        "last",
        "choice",
        "adapters that the run offers for use. best: those of the best validation top-1, of equals the latest",
    )
    timeout: float = setting(
        1800.0,
        "nothing",
        "how long a process waits for the others; one that dies is noticed at once",
        unit="seconds",
        above=0,
        at_most=1_000_000,
    )
