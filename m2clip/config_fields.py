"""The fields of a run's configuration, their defaults, and the values that they may have."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class ModelConfig:
    """Which model: method, open_clip architecture and weights, preset, and further options of the method.

    Attributes:
        method: a name `m2clip.create_model` knows; "clip" is frozen CLIP, which has nothing to train.
        clip: open_clip architecture, or "tiny" for the bundled CLIP.
        pretrained: open_clip tag or path of a local checkpoint; null for "tiny".
        preset: "official" (the authors' code) or "paper" (the equations) for m2clip; null is the method's own default.
        options: keyword arguments of the method's own configuration, such as {width: 384, placement: both}.
    """

    method: str = "m2clip"
    clip: str = "ViT-B-16-quickgelu"
    pretrained: str | None = "openai"
    preset: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class DataConfig:
    """Which videos, and how clips are drawn from them.

    Attributes:
        train, val: list files or folders of videos.
        train_split, val_split: which part of them, where the format has parts ("train1", "test1").
        root: folder that relative paths in the lists start from; null is the list's own folder.
        format: annotation format, or "auto".
        classes: a bundled label set ("k400") or a file of class names; null takes the names from the lists.
        num_frames: frames of a clip.
        sampling: "uniform" (one frame from each of num_frames equal segments) or "dense" (every stride-th frame).
        stride: distance between the frames of a dense clip, in frames.
        reader: video reader, or "auto".
        shuffle: of training videos: "full", or "shards" for a pack on a disk that is slow to seek: a random order that
            takes videos from a few shards at a time.
        isolate: decode in child processes: a video that crashes, hangs or bloats its decoder counts as unreadable, and
            nothing else is lost.
        workers: decoding processes of each training process.
        timeout: how long they may take for a batch, in seconds, before they count as hung and are started anew.
        augmentation: "crop_flip" (short-side jitter, random crop), "randaugment" (and random resized crop),
            "multi_scale_crop" (crops of four sizes at five places, colour jitter, grey clips) or "none".
        flip: whether clips are mirrored at random; not where class names tell left from right.
        normalize: channel statistics, "clip" or "imagenet".
    """

    train: str | None = None
    train_split: str | None = None
    val: str | None = None
    val_split: str | None = None
    root: str | None = None
    format: str = "auto"
    classes: str | None = None
    num_frames: int = 8
    sampling: Literal["uniform", "dense"] = "uniform"
    stride: int = 16
    reader: str = "auto"
    shuffle: Literal["full", "shards"] = "full"
    isolate: bool = False
    workers: int = 4
    timeout: float = 300.0
    augmentation: Literal["crop_flip", "randaugment", "multi_scale_crop", "none"] = "crop_flip"
    flip: bool = True
    normalize: Literal["clip", "imagenet"] = "clip"


@dataclass
class OptimConfig:
    """How the trained tensors are optimised.

    Attributes:
        epochs, warmup_epochs: length of training and of the linear warm-up, in epochs.
        schedule: "cosine_after_warmup"; "cosine_under_warmup": a cosine over all epochs, its beginning warmed up; or
            "steps": after the warm-up constant, a tenth from 60 % of all steps on and a hundredth from 80 % on.
        lr_floor: the least the learning rate falls to, as a share of it.
        batch_size: clips of one process in one forward pass; in training by episodes that is an episode instead.
        lr: learning rate for 256 clips a step; scaled linearly with the clips of a step: batch_size x processes x
            accumulate, and in training by episodes way x (shots + queries) x processes x accumulate.
        text_lr_scale: factor on the learning rate of text adapters.
        weight_decay: AdamW's; whether biases have it is up to the method.
        beta2: AdamW's, the decay of the running mean of squared gradients.
        accumulate: forward passes of one optimiser step.
        clip_grad: largest norm of all gradients together; null does not clip.
        precision: of the frozen weights and of what the towers compute: "fp32", "bf16" or "fp16" (with loss scaling, on
            GPUs). Trained tensors, heads and losses are fp32 in any case.
        compile: "none", or the mode in which torch.compile compiles forward and backward pass: "default",
            "reduce-overhead" or "max-autotune". The first step then takes a minute or more.
        cuda_graph: record forward and backward pass once as a CUDA graph and replay it in every step: for small
            batches, where launching kernels takes longer than running them. One process, one GPU.
    """

    epochs: int = 12
    warmup_epochs: float = 2.0
    schedule: Literal["cosine_after_warmup", "cosine_under_warmup", "steps"] = "cosine_after_warmup"
    lr_floor: float = 0.0
    batch_size: int = 36
    lr: float = 1e-3
    text_lr_scale: float = 0.5
    weight_decay: float = 1e-2
    beta2: float = 0.999
    accumulate: int = 1
    clip_grad: float | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: Literal["none", "default", "reduce-overhead", "max-autotune"] = "none"
    cuda_graph: bool = False


@dataclass
class EpisodesConfig:
    """Training by few-shot episodes: some classes, a few support videos of each, and queries to be told apart.

    Attributes:
        train: whether a forward pass of training is an episode, drawn anew each time from the classes of data.train.
        way: classes of an episode.
        shots: support videos of a class. One as a rule, also for models that are tested with more.
        queries: query videos of a class.
        per_epoch: episodes of an epoch, over all processes.
        val_episodes: episodes of a validation, always the same ones, with one query a class.
        val_shots: support videos of a class in validation.
        val_classes: class names of data.val, which must not be those of data.train: a label set or a class file; null
            takes them from the list.
        select_by: videos of the validation, by which keep=best chooses: those of data.val, or with "test" those that
            results are given for, as some published code does; such results are too good.
        test, test_split, test_classes: these videos, for select_by=test.
    """

    train: bool = False
    way: int = 5
    shots: int = 1
    queries: int = 5
    per_epoch: int = 250
    val_episodes: int = 1000
    val_shots: int = 1
    val_classes: str | None = None
    select_by: Literal["val", "test"] = "val"
    test: str | None = None
    test_split: str | None = None
    test_classes: str | None = None


@dataclass
class EvalConfig:
    """How a model is scored.

    Attributes:
        clips: clips of a video along time.
        crops: crops of a clip: 1, 3, or "m2clip4" (the authors' four-crop code).
        on_error: what an unreadable video does: "raise", "skip" or "wrong" (counts as an error).
        batch_size: views of one forward pass.
    """

    clips: int = 1
    crops: Literal[1, 3, "m2clip4"] = 1
    on_error: Literal["raise", "skip", "wrong"] = "wrong"
    batch_size: int = 16


@dataclass
class RunConfig:
    """A whole run.

    Attributes:
        output: the run folder.
        seed: of data order, clips, augmentation, masked words, dropout and initial weights.
        log_every: steps between two lines of metrics.csv.
        checkpoint_every: steps between two checkpoints; 0 writes one at the end of each epoch only.
        keep_checkpoints: how many of the newest checkpoints stay.
        validate_every: epochs between two validations (the last epoch is always validated); 0 never.
        keep: which adapters the run folder offers for use: "last", or "best" by validation top-1 (of episodes, where
            training is by episodes).
        timeout: how long a process waits for the others, in seconds.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    episodes: EpisodesConfig = field(default_factory=EpisodesConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    output: str = "runs/m2clip"
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    validate_every: int = 1
    keep: Literal["last", "best"] = "last"
    timeout: float = 1800.0


AT_LEAST = {
    "data.num_frames": 1,
    "data.stride": 1,
    "data.workers": 0,
    "optim.epochs": 1,
    "optim.warmup_epochs": 0,
    "optim.batch_size": 1,
    "optim.text_lr_scale": 0,
    "optim.weight_decay": 0,
    "optim.lr_floor": 0,
    "optim.beta2": 0,
    "optim.accumulate": 1,
    "episodes.way": 2,
    "episodes.shots": 1,
    "episodes.queries": 1,
    "episodes.per_epoch": 1,
    "episodes.val_episodes": 2,
    "episodes.val_shots": 1,
    "eval.clips": 1,
    "eval.batch_size": 1,
    "seed": 0,
    "log_every": 1,
    "checkpoint_every": 0,
    "keep_checkpoints": 1,
    "validate_every": 0,
}
ABOVE_ZERO = ("optim.lr", "optim.clip_grad", "timeout", "data.timeout")
BELOW_ONE = ("optim.lr_floor", "optim.beta2")
