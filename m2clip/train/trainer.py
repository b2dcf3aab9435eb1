"""Training: one process or several, exact resume, and a stop that loses nothing."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2clip import distributed
from m2clip.checkpoints.adapters import save_adapters
from m2clip.config import RunConfig, save_config, validate
from m2clip.data.seeds import mix_seeds
from m2clip.errors import InputError
from m2clip.evaluate.tables import VALIDATION
from m2clip.files.kept_work import check_same, remove_partial_files
from m2clip.kernels import choices
from m2clip.towers.precision import prepare_kernels
from m2clip.train import state as run_state
from m2clip.train import validation
from m2clip.train.averaging import WeightAverage
from m2clip.train.checks import check_flip, check_loss, check_schedule
from m2clip.train.imbalance import check_balance, class_weights
from m2clip.train.log import RunLog
from m2clip.train.loggers import Logger, check_loggers, open_loggers
from m2clip.train.optim import SCHEDULES, build_optimizer
from m2clip.train.resuming import accept_changes
from m2clip.train.setup import (
    LossModule,
    batches_per_epoch,
    build_model,
    check_folder,
    check_output,
    clip_settings,
    clips_per_pass,
    complete_identity,
    datasets,
    epoch_batches,
    run_identity,
    seed_everything,
    training_list,
)
from m2clip.train.starting import start_from
from m2clip.train.state import Progress
from m2clip.train.stepping import Launched, Stepper, check_step_options, compile_loss, cuda_capture
from m2clip.train.stopping import Stopped, StopRequest, room_needed

MAX_BAD_STEPS = 3


class NonFiniteError(InputError):
    """The loss or its gradient was not finite several steps in a row; the last checkpoint is intact."""


def run(
    config: RunConfig,
    *,
    resume: bool = True,
    device: str | torch.device | None = None,
    clip: nn.Module | None = None,
    quiet: bool = False,
    on_step: Callable[[Progress], None] | None = None,
) -> Path:
    """Train as the configuration says, or resume the run that its output folder holds; returns that folder.

    SIGINT or SIGTERM ends training after the current step with a checkpoint: the same call resumes from there, with
    the same losses as if it had never stopped. A second SIGTERM changes nothing; a second Ctrl-C ends at once, and the
    checkpoint before is what is left.

    Args:
        config: the run (`m2clip.config.load_config`).
        resume: resume an earlier run in the folder; False refuses a folder that holds one.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
        clip: an open_clip CLIP to build on, in place of the one that config.model names.
        quiet: print nothing but warnings, on standard error.
        on_step: called in every process after each optimiser step.

    Raises:
        InputError: bad configuration, data or folder; a schedule of warm-up alone; settings that differ from those of
            the run to be resumed.
        NonFiniteError: three steps in a row without a finite loss and gradient; the videos are named.
        LostProcessError: another process of the group is gone, or has not answered within config.timeout.
        Stopped: a signal ended training early (a KeyboardInterrupt).
    """
    validate(config)
    check_balance(config)
    check_output(config)
    check_loggers(config)
    started_group = not distributed.is_distributed()
    device = distributed.init(config.timeout, device)
    threads = torch.get_num_threads()
    if device.type == "cpu":
        # Threads that wait for a core taken by a decoding worker make every step many times slower.
        torch.set_num_threads(max(1, threads - config.data.workers))
    stop = StopRequest(immediate=True)
    try:
        with (
            distributed.report_lost_processes(),
            distributed.locked_by_main(config.output, "training"),
            room_needed(config.output),
            stop.active(),
        ):
            distributed.by_main(lambda: check_folder(config))
            trainer = _Trainer(config, device, clip, resume, quiet, on_step, stop)
            trainer.train()
    except KeyboardInterrupt as end:
        if isinstance(end, Stopped) or (stop.number is None and distributed.world_size() == 1):
            raise
        raise stop.stopped(f"{config.output}: stopped; start again to resume from the newest checkpoint") from None
    finally:
        torch.set_num_threads(threads)
        if started_group:
            distributed.shutdown()
    return trainer.folder


class _Trainer:
    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        clip: nn.Module | None,
        resume: bool,
        quiet: bool,
        on_step: Callable[[Progress], None] | None,
        stop: StopRequest,
    ) -> None:
        self.config, self.device, self.on_step, self.stop = config, device, on_step, stop
        self.folder = Path(config.output)
        self.checkpoints = self.folder / "checkpoints"
        check_step_options(config.optim, device)
        say = print if distributed.is_main() and not quiet else lambda line: None
        if not resume and run_state.list_checkpoints(self.checkpoints):
            raise InputError(f"{self.folder} already holds a run: resume it, or choose another output folder")

        annotations, class_names = training_list(config)
        seed_everything(config.seed)
        self.model = build_model(config, class_names, clip).to(device)
        begun = bool(run_state.list_checkpoints(self.checkpoints))
        # A run that resumes has weights of its own, and does without those it started from.
        if config.model.init is not None and (not begun or Path(config.model.init).exists()):
            line = start_from(self.model, config.model.init)
            if not begun:
                say(line)
        if config.optim.precision != "fp32":
            self.model.set_precision(config.optim.precision)
        weights = class_weights(annotations, len(class_names), config.optim.class_weights)
        if weights is not None and not self.model.weighs_classes:
            raise InputError("optim.class_weights: no loss of this model has weights of classes; use data.balance")
        self.model.class_weights = None if weights is None else weights.to(device)
        self.model.train()
        kernels = prepare_kernels(self.model)
        self.train_set, self.val_set = datasets(config, annotations, class_names, self.model)
        self.model.views = clip_settings(config, self.model).views
        if config.episodes.train and config.episodes.select_by == "test":
            say("weights are chosen by test videos (episodes.select_by=test): their accuracy will be too good")

        optim = config.optim
        processes = distributed.world_size()
        self.samples_per_step = clips_per_pass(config) * optim.accumulate * processes
        self.optimizer = build_optimizer(
            self.model,
            lr=optim.lr,
            samples_per_step=self.samples_per_step,
            weight_decay=optim.weight_decay,
            text_lr_scale=optim.text_lr_scale,
            beta2=optim.beta2,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
        self.batches_per_epoch = batches_per_epoch(config, self.train_set)
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / optim.accumulate)
        total_steps = self.steps_per_epoch * optim.epochs
        warmup_steps = round(optim.warmup_epochs * self.steps_per_epoch)
        self.schedule = SCHEDULES[optim.schedule](total_steps, warmup_steps, optim.lr_floor)
        doubts = [
            check_schedule(
                config,
                total_steps=total_steps,
                warmup_steps=warmup_steps,
                samples_per_step=self.samples_per_step,
                videos=len(annotations.items) * config.data.repeat,
            ),
            check_flip(config, class_names),
        ]
        self.identity = run_identity(config, self.model, annotations)

        self.average = WeightAverage(self.model, optim.ema)
        self.progress = Progress()
        checkpoint = run_state.load_newest(self.checkpoints, say)
        if distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_partial_files(self.folder)
        if checkpoint is not None:
            self.restore(checkpoint, say)
            say(f"{self.folder}: going on after step {self.progress.step} of {total_steps}")
            if line := run_state.other_kernels(checkpoint.state, kernels):
                say(line)
        loss: nn.Module = LossModule(self.model)
        if optim.compile != "none":
            compile_loss(loss, optim.compile, optim.cuda_graph)
        if processes > 1:
            loss = nn.parallel.DistributedDataParallel(loss)
        self.stepper = Stepper(
            loss,
            self.optimizer,
            self.scaler,
            optim.clip_grad,
            device,
            capture=cuda_capture if optim.cuda_graph else None,
            keep_gradients=optim.compile != "none",
        )
        self.launched: deque[Launched] = deque()
        # On a GPU the host reads what a step found while the next one runs.
        self.unread = 1 if device.type == "cuda" else 0
        if distributed.is_main():
            save_config(config, self.folder / "config.yaml")
        loggers: list[Logger] = []
        distributed.by_main(lambda: loggers.extend(open_loggers(config, self.progress.step)))
        self.log = RunLog(self.folder, total_steps, self.progress.step, quiet, distributed.is_main(), loggers)
        for doubt in filter(None, doubts):
            self.log.warn(doubt)
        # Last of all, because building and importing may draw numbers too. Processes draw different dropout masks.
        if checkpoint is not None and len(states := checkpoint.state["rng"]) == processes:
            run_state.set_rng_state(states[distributed.rank()])
        else:
            seed_everything(mix_seeds(config.seed, distributed.rank(), *([self.progress.step] if checkpoint else [])))

    def restore(self, checkpoint: run_state.Checkpoint, say: Callable[[str], None]) -> None:
        saved = complete_identity(checkpoint.state["identity"])
        if self.config.model.init is not None and self.model.started_from is None:  # it is gone
            self.identity["model.init"] = saved["model.init"]
        saved.setdefault("frozen weights", self.identity["frozen weights"])  # which earlier runs did not note
        for line in accept_changes(saved, self.identity, checkpoint.progress, self.config.episodes.train):
            say(f"{self.folder}: {line}")
        check_same(saved, self.identity, self.folder)
        run_state.restore_tensors(self.model, self.optimizer, checkpoint.tensors)
        self.average.load(checkpoint.tensors)
        self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = checkpoint.progress
        if distributed.is_main():
            # A process that was killed after writing this checkpoint may not have come to this.
            self.keep_last_adapters()

    # ---- the loop ----

    def train(self) -> None:
        self.model.train()
        self.stop.immediate = False
        try:
            self.train_epochs()
        finally:
            self.log.close()

    def train_epochs(self) -> None:
        epochs = self.config.optim.epochs
        while True:
            progress = self.progress
            if progress.batches == 0 and progress.epoch > 0:
                self.finish_epoch()
            if progress.epoch == epochs:
                self.log.say(f"{self.folder}: trained {progress.step} steps, {epochs} epochs")
                if doubt := check_loss(self.log.rows()):
                    self.log.warn(doubt)
                return
            if not self.train_epoch():
                what = f"stopped after step {progress.step}; start again to resume from there"
                raise self.stop.stopped(f"{self.folder}: {what}")

    def train_epoch(self) -> bool:
        """Train to the end of the epoch, or until a stop is asked for: then False."""
        progress, accumulate = self.progress, self.config.optim.accumulate
        say = None if self.log.quiet else self.log.say
        batches = epoch_batches(self.config, self.train_set, self.device, progress.epoch, progress.batches, say)
        self.clock, self.clips = time.monotonic(), 0
        while True:
            size = min(accumulate, self.batches_per_epoch - progress.batches)
            self.step([next(batches) for _ in range(size)])
            progress.batches += size
            progress.step += 1
            done = progress.batches == self.batches_per_epoch
            logging = done or progress.step % self.config.log_every == 0
            every = self.config.checkpoint_every
            saving = done or (every > 0 and progress.step % every == 0)
            stopping = self.read_steps(0 if logging or saving else self.unread)
            self.log.advance(progress.step)
            if stopping:
                self.read_steps(0)
            if logging:
                self.log_numbers()
            if done:
                progress.epoch, progress.batches = progress.epoch + 1, 0
            # Skipped steps changed no weight, so between them there is nothing new to keep.
            if stopping or done or (saving and progress.bad_steps == 0):
                self.checkpoint()
            if self.on_step is not None:
                self.on_step(progress)
            if stopping or done:
                return not stopping

    def step(self, batches: list[dict[str, Any]]) -> None:
        """Launch one optimiser step."""
        progress = self.progress
        lr = self.schedule.apply(self.optimizer, progress.step)
        replaced = [entry for batch in batches for entry in batch.get("replaced", ()) if entry]
        inputs = [self.inputs(batch, progress.batches + number) for number, batch in enumerate(batches)]
        pending = self.stepper(inputs, {"stop": float(self.stop.requested), "replaced": float(len(replaced))})
        self.average.update(progress.step + 1)
        videos = [batch["index"].tolist() for batch in batches]
        self.launched.append(Launched(progress.step, lr, pending, videos, replaced))
        self.clips += self.samples_per_step * len(batches) // self.config.optim.accumulate

    def inputs(self, batch: dict[str, Any], number: int) -> tuple[Tensor, ...]:
        """What the loss takes, of the batch of this number in the epoch."""
        # Words are masked by position in the run, not by what was drawn before, and alike in all processes: the
        # model deals the numbers out among them.
        generator = torch.Generator().manual_seed(mix_seeds(self.config.seed, self.progress.epoch, number))
        drawn = self.model.draw(batch["label"], generator)
        if self.device.type == "cuda":
            drawn = tuple(tensor.pin_memory() for tensor in drawn)
        return batch["video"], batch["label"], *drawn

    def read_steps(self, leave: int) -> bool:
        """Take note of all launched steps but the newest few; returns whether any process was asked to stop."""
        stopping = False
        while len(self.launched) > leave:
            stopping |= self.note(self.launched.popleft())
        return stopping

    def note(self, launched: Launched) -> bool:
        progress, found = self.progress, launched.pending.read()
        if found.counts["replaced"]:
            entries = [entry for part in distributed.gather_objects(launched.replaced) for entry in part]
            self.log.record_bad_videos(entries, launched.step)
        if found.finite:
            progress.bad_steps = 0
            for name, value in {**found.losses, "lr": launched.lr, "grad_norm": found.grad_norm}.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.summed_steps += 1
        else:
            suspects = found.bad_passes if found.bad_loss else range(len(launched.videos))
            self.note_bad_step(launched.step + 1, [index for number in suspects for index in launched.videos[number]])
        return found.counts["stop"] > 0

    def note_bad_step(self, step: int, videos: list[int]) -> None:
        self.progress.bad_steps += 1
        own = [self.train_set.annotations.items[index].name for index in videos]
        named = ", ".join(path for part in distributed.gather_objects(own) for path in part)
        self.log.say(f"step {step}: loss or gradient is not finite, step skipped; videos: {named}")
        if self.progress.bad_steps >= MAX_BAD_STEPS:
            raise NonFiniteError(
                f"loss or gradient was not finite in {MAX_BAD_STEPS} steps in a row, up to step {step}: "
                f"look at these videos or lower optim.lr; the last checkpoint is intact; videos: {named}"
            )

    # ---- records ----

    def log_numbers(self) -> None:
        progress = self.progress
        if progress.summed_steps == 0:
            return
        means = {name: value / progress.summed_steps for name, value in progress.sums.items()}
        progress.sums, progress.summed_steps = {}, 0
        speed = self.clips / max(1e-9, time.monotonic() - self.clock)
        self.clock, self.clips = time.monotonic(), 0
        epoch = progress.epoch + 1
        self.log.write(progress.step, epoch, {**means, "clips_per_s": round(speed, 2)})
        self.log.show(progress.step, epoch, self.config.optim.epochs, means["loss"], means["lr"], speed)

    def checkpoint(self) -> None:
        rng = distributed.gather_objects(run_state.rng_state())

        def write() -> None:
            state = {"identity": self.identity, "scaler": self.scaler.state_dict(), "rng": rng}
            state["kernels"] = choices()
            tensors = run_state.collect_tensors(self.model, self.optimizer) | self.average.tensors()
            self.log.flush()
            run_state.save_checkpoint(self.checkpoints, tensors, self.progress, state, self.config.keep_checkpoints)
            self.keep_last_adapters()

        distributed.by_main(write)

    def keep_last_adapters(self) -> None:
        if self.config.keep == "last" or self.val_set is None:
            self.save_adapters()

    def save_adapters(self) -> None:
        with self.average.in_use():
            save_adapters(self.model, self.folder)

    def finish_epoch(self) -> None:
        """Validate after an epoch where it is due and not in metrics.csv yet."""
        config, progress = self.config, self.progress
        every, last = config.validate_every, progress.epoch == config.optim.epochs
        due = every > 0 and (progress.epoch % every == 0 or last)
        rows = [row for row in self.log.rows() if row.get("val_top1")]
        done = any(int(row["step"]) == progress.step for row in rows)
        if self.val_set is None or not due or distributed.gather_objects(done)[0]:
            return
        generators = run_state.rng_state()
        # Several processes stop together, between two videos.
        self.stop.immediate = distributed.world_size() == 1
        with self.average.in_use():
            found = validation.score(self.model, self.val_set, config, self.device, self.stop.check)
        self.stop.immediate = False
        run_state.set_rng_state(generators)
        self.model.train()
        if not distributed.is_main():
            return
        best = found.top1 >= max((float(row["val_top1"]) for row in rows), default=-1.0)
        if config.keep == "best" and best:
            self.save_adapters()
        if found.save_predictions is not None and (best or config.keep == "last"):
            found.save_predictions(self.folder / VALIDATION)
        found.save(self.folder / f"eval_epoch_{progress.epoch:03d}.json")
        self.log.write(progress.step, progress.epoch, found.columns)
        self.log.say(f"epoch {progress.epoch}: {found.line}")
