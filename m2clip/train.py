"""Training: one process or several, exact resume, and a stop that loses nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from m2clip import distributed, run_state
from m2clip.config import RunConfig, save_config, validate
from m2clip.errors import InputError
from m2clip.optim import WarmupCosine, build_optimizer
from m2clip.run_log import RunLog
from m2clip.run_state import Progress
from m2clip.train_setup import (
    LossModule,
    StopRequest,
    build_model,
    datasets,
    ignore_interrupt,
    mix_seeds,
    run_identity,
    seed_everything,
    training_list,
)

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
    """Train as the configuration says, or go on with the run that its output folder holds; returns that folder.

    SIGINT or SIGTERM ends training after the current step with a checkpoint, and the function returns as usual: the
    same call goes on from there, with the same losses as if it had never stopped.

    Args:
        config: the run (`m2clip.config.load_config`).
        resume: go on with an earlier run in the folder; False refuses a folder that holds one.
        device: "cpu", "cuda" or "cuda:N"; None takes a GPU where there is one.
        clip: an open_clip CLIP to build on, in place of the one that config.model names.
        quiet: print nothing.
        on_step: called in every process after each optimiser step.

    Raises:
        InputError: bad configuration, data or folder; settings that differ from those of the run to be resumed.
        NonFiniteError: three steps in a row without a finite loss and gradient; the videos are named.
    """
    validate(config)
    started_group = not distributed.is_distributed()
    device = distributed.init(config.timeout, device)
    threads = torch.get_num_threads()
    if device.type == "cpu":
        # Threads that wait for a core taken by a decoding worker make every step many times slower.
        torch.set_num_threads(max(1, threads - config.data.workers))
    try:
        trainer = _Trainer(config, device, clip, resume, quiet, on_step)
        trainer.train()
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
    ) -> None:
        self.config, self.device, self.on_step = config, device, on_step
        self.folder = Path(config.output)
        self.checkpoints = self.folder / "checkpoints"
        self.stop = StopRequest()
        if config.optim.precision == "fp16" and device.type == "cpu":
            raise InputError("optim.precision is fp16, which needs a GPU: use bf16 or fp32 on the CPU")
        say = print if distributed.is_main() and not quiet else lambda line: None
        if not resume and run_state.list_checkpoints(self.checkpoints):
            raise InputError(f"{self.folder} already holds a run: resume it, or choose another output folder")

        annotations, class_names = training_list(config)
        seed_everything(config.seed)
        self.model = build_model(config, class_names, clip).to(device)
        if config.optim.precision != "fp32":
            self.model.set_precision(config.optim.precision)
        self.train_set, self.val_set = datasets(config, annotations, class_names, self.model.image_size)

        optim = config.optim
        processes = distributed.world_size()
        self.samples_per_step = optim.batch_size * optim.accumulate * processes
        self.optimizer = build_optimizer(
            self.model,
            lr=optim.lr,
            samples_per_step=self.samples_per_step,
            weight_decay=optim.weight_decay,
            text_lr_scale=optim.text_lr_scale,
        )
        self.parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        self.scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
        self.batches_per_epoch = len(self.train_set) // processes // optim.batch_size
        if self.batches_per_epoch == 0:
            raise InputError(
                f"{config.data.train} lists {len(self.train_set)} videos, fewer than optim.batch_size x processes "
                f"({optim.batch_size} x {processes}): use a smaller optim.batch_size"
            )
        self.steps_per_epoch = math.ceil(self.batches_per_epoch / optim.accumulate)
        total_steps = self.steps_per_epoch * optim.epochs
        self.schedule = WarmupCosine(total_steps, round(optim.warmup_epochs * self.steps_per_epoch))
        self.identity = run_identity(config, self.model, annotations)

        self.progress = Progress()
        checkpoint = run_state.load_newest(self.checkpoints, say)
        if checkpoint is not None:
            self.restore(checkpoint)
            say(f"{self.folder}: going on after step {self.progress.step} of {total_steps}")
        elif distributed.is_main():
            self.folder.mkdir(parents=True, exist_ok=True)
        self.wrapped: LossModule | nn.parallel.DistributedDataParallel = LossModule(self.model)
        if processes > 1:
            self.wrapped = nn.parallel.DistributedDataParallel(self.wrapped)
        if distributed.is_main():
            save_config(config, self.folder / "config.yaml")
        self.log = RunLog(self.folder, total_steps, self.progress.step, quiet, distributed.is_main())
        # Last of all, because building and importing may draw numbers too. Processes draw different dropout masks.
        if checkpoint is not None:
            run_state.set_rng_state(checkpoint.state["rng"][distributed.rank()])
        else:
            seed_everything(mix_seeds(config.seed, distributed.rank()))

    def restore(self, checkpoint: run_state.Checkpoint) -> None:
        run_state.check_same_run(checkpoint.state["identity"], self.identity, self.folder)
        run_state.restore_tensors(self.model, self.optimizer, checkpoint.tensors)
        self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = checkpoint.progress

    # ---- the loop ----

    def train(self) -> None:
        self.model.train()
        try:
            with self.stop.active():
                self.train_epochs()
        except KeyboardInterrupt:
            if not self.stop.requested:
                raise
            self.log.say(f"stopped; the checkpoint of step {self.progress.step} or the one before it is kept")
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
                return
            if not self.train_epoch():
                self.log.say(f"{self.folder}: stopped after step {progress.step}; start again to go on from there")
                return

    def train_epoch(self) -> bool:
        """Train to the end of the epoch, or until a stop is asked for: then False."""
        progress, accumulate = self.progress, self.config.optim.accumulate
        batches = self.batches()
        self.clock, self.clips = time.monotonic(), 0
        while True:
            size = min(accumulate, self.batches_per_epoch - progress.batches)
            stopping = self.step([next(batches) for _ in range(size)])
            progress.batches += size
            progress.step += 1
            done = progress.batches == self.batches_per_epoch
            self.log.advance(progress.step)
            if progress.step % self.config.log_every == 0 or done:
                self.log_numbers()
            if done:
                progress.epoch, progress.batches = progress.epoch + 1, 0
            every = self.config.checkpoint_every
            # Skipped steps changed no weight, so between them there is nothing new to keep.
            if stopping or done or (every and progress.step % every == 0 and progress.bad_steps == 0):
                self.checkpoint()
            if self.on_step is not None:
                self.on_step(progress)
            if stopping or done:
                return not stopping

    def batches(self) -> Iterator[dict[str, Any]]:
        """What the epoch has left, in this process's share."""
        from torch.utils.data import DataLoader

        from m2clip.data.clips import EpochSampler, collate

        config, progress = self.config, self.progress
        sampler = EpochSampler(
            len(self.train_set),
            seed=config.seed,
            epoch=progress.epoch,
            shuffle=True,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            start=progress.batches * config.optim.batch_size,
            drop_last=True,
        )
        loader = DataLoader(
            self.train_set,
            batch_size=config.optim.batch_size,
            sampler=sampler,
            num_workers=config.data.workers,
            collate_fn=collate,
            drop_last=True,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=ignore_interrupt,
            # Its own generator: starting workers would otherwise draw from the one that dropout draws from.
            generator=torch.Generator().manual_seed(config.seed),
        )
        iterator = iter(loader)
        while True:
            try:
                yield next(iterator)
            except StopIteration:
                return
            except InputError as error:
                # A worker's error comes back with its whole traceback as the message.
                raise InputError(str(error).strip().splitlines()[-1].partition("Error: ")[2] or str(error)) from None

    def step(self, batches: list[dict[str, Any]]) -> bool:
        """One optimiser step; returns whether any process was asked to stop."""
        config, progress = self.config, self.progress
        lr = self.schedule.apply(self.optimizer, progress.step)
        sums: dict[str, Tensor] = {}
        bad: list[int] = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            hold = nullcontext() if last or isinstance(self.wrapped, LossModule) else self.wrapped.no_sync()
            video = batch["video"].to(self.device, non_blocking=True)
            labels = batch["label"].to(self.device, non_blocking=True)
            # Words are masked by position in the run, not by what was drawn before, and alike in all processes: the
            # model deals the numbers out among them.
            generator = torch.Generator().manual_seed(mix_seeds(config.seed, progress.epoch, progress.batches + number))
            with hold:
                total, parts = self.wrapped(video, labels, generator)
                self.scaler.scale(total / len(batches)).backward()
            for name, value in {"loss": total.detach(), **{f"loss_{k}": v for k, v in parts.items()}}.items():
                sums[name] = sums.get(name, 0.0) + value.float() / len(batches)
            if not torch.isfinite(total.detach()):
                bad.append(number)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, config.optim.clip_grad or math.inf)

        replaced = [entry for batch in batches for entry in batch.get("replaced", ()) if entry]
        totals = distributed.sum_scalars(
            {
                **{name: value.item() for name, value in sums.items()},
                "bad": float(bool(bad)),
                "stop": float(self.stop.requested),
                "replaced": float(len(replaced)),
            },
            self.device,
        )
        stopping, some_bad, some_replaced = (totals.pop(name) > 0 for name in ("stop", "bad", "replaced"))
        if some_replaced:
            entries = [entry for part in distributed.gather_objects(replaced) for entry in part]
            self.log.record_bad_videos(entries, progress.step)
        finite = not some_bad and (bool(torch.isfinite(norm)) or self.overflow_expected())
        if finite:
            self.scaler.step(self.optimizer)
            progress.bad_steps = 0
            numbers = {name: value / distributed.world_size() for name, value in totals.items()}
            for name, value in {**numbers, "lr": lr, "grad_norm": float(norm)}.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.summed_steps += 1
        if not some_bad:
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.clips += self.samples_per_step * len(batches) // config.optim.accumulate
        if not finite:
            self.note_bad_step([batches[number] for number in bad] or ([] if some_bad else batches))
        return stopping

    def overflow_expected(self) -> bool:
        """Whether an infinite gradient only tells of too high an fp16 loss scale: the scaler skips the step."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0

    def note_bad_step(self, batches: list[dict[str, Any]]) -> None:
        progress = self.progress
        progress.bad_steps += 1
        items = self.train_set.annotations.items
        own = [str(items[index].path) for batch in batches for index in batch["index"].tolist()]
        paths = [path for part in distributed.gather_objects(own) for path in part]
        named = ", ".join(paths)
        self.log.say(f"step {progress.step + 1}: loss or gradient is not finite, step skipped; videos: {named}")
        if progress.bad_steps >= MAX_BAD_STEPS:
            raise NonFiniteError(
                f"loss or gradient was not finite in {MAX_BAD_STEPS} steps in a row, up to step {progress.step + 1}: "
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
        error = None
        if distributed.is_main():
            state = {"identity": self.identity, "scaler": self.scaler.state_dict(), "rng": rng}
            tensors = run_state.collect_tensors(self.model, self.optimizer)
            try:
                run_state.save_checkpoint(self.checkpoints, tensors, self.progress, state, self.config.keep_checkpoints)
                if self.config.keep == "last" or self.val_set is None:
                    self.save_adapters()
            except InputError as problem:
                error = str(problem)
        # All processes must learn of a failure, or the others would wait for the main one until the timeout.
        error = distributed.gather_objects(error)[0]
        if error is not None:
            raise InputError(error)

    def save_adapters(self) -> None:
        import m2clip

        m2clip.save_adapters(self.model, self.folder)

    def finish_epoch(self) -> None:
        """Validate after an epoch where it is due and not in metrics.csv yet."""
        config, progress = self.config, self.progress
        every, last = config.validate_every, progress.epoch == config.optim.epochs
        due = self.val_set is not None and every > 0 and (progress.epoch % every == 0 or last)
        rows = [row for row in self.log.rows() if row.get("val_top1")]
        done = any(int(row["step"]) == progress.step for row in rows)
        if not due or distributed.gather_objects(done)[0]:
            return
        from m2clip.evaluate import evaluate_model

        generators = run_state.rng_state()
        self.stop.immediate = distributed.world_size() == 1
        result = evaluate_model(
            self.model,
            self.val_set,
            config.eval,
            device=self.device,
            workers=config.data.workers,
            precision=config.optim.precision,
        )
        self.stop.immediate = False
        run_state.set_rng_state(generators)
        self.model.train()
        if not distributed.is_main():
            return
        values = {"val_top1": result.top1, "val_top5": result.top5}
        for head, scores in result.heads.items():
            values[f"val_top1_{head.replace('-', '_')}"] = scores.top1
        if config.keep == "best" and result.top1 > max((float(row["val_top1"]) for row in rows), default=-1.0):
            self.save_adapters()
        result.save(self.folder / f"eval_epoch_{progress.epoch:03d}.json")
        self.log.write(progress.step, progress.epoch, {k: v for k, v in values.items() if v is not None})
        self.log.say(f"epoch {progress.epoch}: top-1 {result.top1:.4f} of {result.denominator} videos")
