"""Train a VAE: parse, set up, loop, checkpoint. Read this file first.

    fastvae train PRESET [options]                                one process
    torchrun --nproc_per_node=N -m fastvae.train PRESET [options]  N processes (GPUs)

The loop computes the whole loss in one forward of ``Objective`` (which DDP wraps), reads the device
only when it logs, and takes everything that varies with time (order, noise, learning rate, beta) as
pure functions of the step, so that a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import fastvae
from fastvae import figures
from fastvae.command import run_command
from fastvae.config import Config
from fastvae.data import packed
from fastvae.engine import checkpoint, distributed, graph, precision
from fastvae.engine.checkpoint import CheckpointStore, DamagedCheckpoint
from fastvae.engine.distributed import World
from fastvae.engine.graph import StepGraph
from fastvae.engine.metrics import RunLog, Stopwatch
from fastvae.engine.optim import set_learning_rate
from fastvae.engine.signals import StopSignal
from fastvae.errors import Diverged, LocalError, Stopped, UserError
from fastvae.estimate import Estimate, estimate
from fastvae.models import Inputs, count_parameters
from fastvae.run import RunFolder, find_checkpoint
from fastvae.start import choose_start, parse_train
from fastvae.trainer import (
    Trainer,
    build,
    load_everywhere,
    model_inputs,
    next_stage,
    restore,
    save,
)

EVAL_BATCH = 500  # images per rank in an evaluation, fewer where they are large
EVAL_VALUES = 2**22  # image values in such a batch


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of ``fastvae train``, ``python -m fastvae.train`` and torchrun."""
    run_command(lambda args: train(parse_train(args)), argv)


def train(config: Config) -> Path:
    """Train as configured and return the run folder."""
    world = distributed.join(config.device)
    try:
        return _train(config, world)
    finally:
        distributed.leave()


def _train(config: Config, world: World) -> Path:
    start = choose_start(config, world)
    folder = start.folder
    precision.set_backend_flags(
        tf32=config.tf32, deterministic=config.deterministic, threads=config.threads
    )
    try:
        trainer = build(start.config, world)
        store = CheckpointStore(folder.checkpoints, config.checkpoint.keep)
        first = restore(trainer, store, start.checkpoint) if start.checkpoint else 0
        if world.is_main:
            folder.begin(start.config)
        run_training(trainer, folder, store, first)
    finally:
        if world.is_main:
            folder.abandon()
            folder.unlock()
    return folder.path


Step = Callable[[Iterable[Inputs]], None]


def make_step(t: Trainer) -> Step:
    """The step on the device: ``optimizer_step``, as one CUDA graph when asked for and possible."""

    def step(batches: Iterable[Inputs]) -> None:
        optimizer_step(t, batches)

    if t.config.cuda_graph and not graph.why_not(t.config, t.world):
        return StepGraph(step, forget=lambda: t.optimizer.zero_grad())
    return step


def train_step(t: Trainer, run: Step, step: int, watch: Stopwatch) -> dict[str, float]:
    """One optimizer step over one global batch; nothing is read back from the device.

    Returns the values of the schedules.
    """
    lr, beta = t.stage.learning_rate_at(step), t.stage.beta_at(step)
    set_learning_rate(t.optimizer, lr)
    t.beta.fill_(beta)
    t.capacity.fill_(t.stage.capacity_at(step))
    t.rng[1].fill_(step * t.config.batch_size * t.config.objective.samples)
    run(load_batches(t, step, watch))
    t.ema.update(step)
    return {"lr": lr, "beta": beta}


def load_batches(t: Trainer, step: int, watch: Stopwatch) -> Iterator[Inputs]:
    """The micro-batches of a step for this rank, with what the model looks at."""
    for micro in range(t.config.accumulate):
        since = time.perf_counter()
        try:
            batch = t.loaders["train"].train_batch(t.plan, step, micro)
        except UserError as error:  # damage that this rank alone may have met
            raise LocalError(str(error)) from None
        watch.data(since)
        yield model_inputs(batch, t.config.model)


def optimizer_step(t: Trainer, batches: Iterable[Inputs]) -> None:
    """Forward and backward of each micro-batch, then the optimizer: all of it on the device."""
    losses, stats = [], []
    t.guard.begin()
    for micro, inputs in enumerate(batches):
        last = micro == t.config.accumulate - 1
        # DDP averages gradients over ranks in the last backward only; the others just add up.
        ddp = t.objective if isinstance(t.objective, DistributedDataParallel) else None
        with ddp.no_sync() if ddp and not last else contextlib.nullcontext():
            loss, terms = t.objective(inputs, t.rng, t.plan.offset(micro), t.beta, t.capacity)
            t.guard.backward(loss)
        losses.append(loss.detach())
        stats.append(terms.mean(dim=1))
    norm = t.guard.step()
    nll, kl = torch.stack(stats).mean(dim=0)
    t.meter.add([torch.stack(losses).sum(), nll, kl, norm])


def run_training(t: Trainer, folder: RunFolder, store: CheckpointStore, first: int) -> None:
    """The loop: steps, logging, validation, checkpoints, and a last evaluation on the test set."""
    config, world = t.config, t.world
    log = RunLog(
        folder.path,
        world,
        tensorboard=config.log.tensorboard,
        start=first,
        total=t.total_steps,
    )
    log.say(describe(t, folder, first))
    for source in {id(loader.source): loader.source for loader in t.loaders.values()}.values():
        for line in source.quarantined:
            log.say(f"warning: left out: {line}")
    if first == 0 and t.stage.settings.load not in ("last", "best", "fresh"):
        next_stage(t, t.stage, folder)  # which begins with the weights of another run
    run = make_step(t)
    if first >= t.total_steps:
        log.say("nothing left to train: raise --epochs to go on")
    signal = StopSignal(world)
    watch = Stopwatch()
    begin = time.perf_counter()
    eval_every = max(1, round(config.log.eval_every * t.plan.steps_per_epoch))
    image_every = round(config.log.image_every * t.plan.steps_per_epoch)
    logged = first
    try:
        for step in range(first, t.total_steps):
            stage = t.stage_at(step)
            if stage is not t.stage:
                next_stage(t, stage, folder)
                run = make_step(t)
                log.say(describe_stage(t))
            if not t.model.training:  # validation and pictures leave it in evaluation mode
                t.train_mode()
            values = train_step(t, run, step, watch)
            done = step + 1
            at_end = done == t.stage.end
            shown = None
            if done % config.log.every == 0 or at_end:
                shown = log_training(t, log, done, values, watch, done - logged)
                logged = done
            pause = time.perf_counter()
            if done % eval_every == 0 or at_end:
                validate(t, log, store, done, values, begin)
            elif config.checkpoint.every and done % config.checkpoint.every == 0:
                save(t, store, done, best=False)
            if at_end or (image_every and done % image_every == 0):
                draw(t, log, folder, done)
            watch.skip(pause)
            log.advance(shown)
            if signal.agreed() and done < t.total_steps:
                if not at_end:  # then validation has saved one
                    save(t, store, done, best=False)
                raise Stopped(
                    f"stopped by {signal.name or 'a signal to another rank'} after step {done}; "
                    f"checkpoint saved; go on with: fastvae train {folder.path} --resume"
                )
        finish(t, log, folder, begin)
    finally:
        signal.close()
        log.close()
        for loader in t.loaders.values():
            loader.close()


def log_training(
    t: Trainer, log: RunLog, done: int, values: dict[str, float], watch: Stopwatch, steps: int
) -> dict[str, str]:
    """Read the device once, write a line, stop when training has diverged."""
    means = t.meter.read(t.world)
    speed = watch.read(steps * t.config.batch_size)
    skipped, streak = torch.stack((t.guard.skipped, t.guard.streak)).tolist()
    epoch = done / t.plan.steps_per_epoch
    log.scalars("train", done, {"epoch": epoch, **means, **values, **speed, "skipped": skipped})
    if streak >= t.config.optim.max_nonfinite:
        raise Diverged(
            f"the last {streak:.0f} steps up to step {done} had a non-finite loss or gradient and "
            f"were skipped; the weights are those before them. Lower optim.lr (now "
            f"{t.config.optim.lr:g}), set optim.clip_norm, or use --precision fp32; "
            "the last good checkpoint is kept"
        )
    shown = {name: f"{means[name]:.2f}" for name in ("loss", "nll", "kl")}
    return {**shown, "img/s": f"{speed['images_per_s']:.0f}"}


def evaluate_split(t: Trainer, split: str) -> Estimate:
    """ELBO of a split with the averaged weights (when averaging is on), one sample per image."""
    if t.world.size > 1 and t.config.batchnorm == "local":  # the main rank's are what is saved
        for buffer in t.model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    values = math.prod(t.config.model.image_shape)
    size = min(EVAL_BATCH, max(1, EVAL_VALUES // values))
    batches = t.loaders[split].evaluation_batches(size, t.world.size, t.world.rank)
    with t.ema.applied():
        return estimate(t.model, batches, t.world, seed=t.config.seed)


def validate(
    t: Trainer,
    log: RunLog,
    store: CheckpointStore,
    done: int,
    values: dict[str, float],
    begin: float,
) -> None:
    """Evaluate on the validation split, print a line, save a checkpoint."""
    result = evaluate_split(t, "val")
    epoch = done / t.plan.steps_per_epoch
    loss = result.nll + values["beta"] * result.kl
    log.scalars("val", done, {"epoch": epoch, "loss": loss, **result.as_dict()})
    # Compared at the final beta: while beta warms up, later losses would look worse than earlier.
    final = result.nll + t.stage.beta_at(t.stage.end - 1) * result.kl
    better = final < t.best
    if better:
        t.best, t.best_step = final, done
    save(t, store, done, best=better)
    log.say(
        f"epoch {epoch:6.1f}  step {done:6d}  val loss {loss:8.2f}  "
        f"-elbo {result.nelbo:8.2f}  nll {result.nll:8.2f}  kl {result.kl:6.2f} nats/image  "
        f"{time.perf_counter() - begin:6.0f} s"
        f"{'  *' if better else ''}"
    )


def draw(t: Trainer, log: RunLog, folder: RunFolder, done: int) -> None:
    """Write inputs above reconstructions, and prior samples."""
    if not t.world.is_main:
        return
    count = min(t.config.log.images, len(t.loaders["val"].source))
    t.model.eval()
    with t.ema.applied():
        shown = model_inputs(t.loaders["val"].rows(np.arange(count)), t.config.model)
        pictures = {
            "reconstructions": figures.under(shown.x, t.model.reconstruct(*shown)),
            "samples": draw_samples(t, shown),
        }
    for name, pixels in pictures.items():
        figures.save_png(folder.images / f"{name}-{done:08d}.png", pixels)
        figures.save_png(folder.images / f"{name}.png", pixels)
        log.image(name, done, pixels)


def draw_samples(t: Trainer, shown: Inputs) -> figures.Pixels:
    """Samples from the prior: with a condition, conditions above two completions and the images
    they were taken from; with classes, a column for each."""
    count, config, seed = len(shown.x), t.config.model, t.config.seed
    if config.condition == "image":
        first = t.model.sample(count, y=shown.y, label=shown.label, seed=seed)
        second = t.model.sample(count, y=shown.y, label=shown.label, seed=seed + 1)
        assert shown.y is not None
        return figures.under(shown.y, first, second, shown.x)
    if config.classes:
        columns = min(config.classes, 16)
        label = torch.arange(columns).repeat(max(1, t.config.log.images // columns))
        return figures.grid(t.model.sample(len(label), label=label, seed=seed), columns)
    return figures.grid(t.model.sample(t.config.log.images, seed=seed), 8)


def finish(t: Trainer, log: RunLog, folder: RunFolder, begin: float) -> None:
    """Evaluate the best checkpoint on the test split, plot the curves, say where to look."""

    def best() -> Path:
        path = find_checkpoint(folder.path)
        try:
            checkpoint.load(path, weights_only=True)
        except DamagedCheckpoint as error:
            log.say(f"warning: {error}; evaluating the last one instead of the best")
            return find_checkpoint(folder.path, "last")
        return path

    load_everywhere(t, best)
    result = evaluate_split(t, "test")
    log.scalars("test", t.total_steps, result.as_dict())
    if not t.world.is_main:
        return
    figures.save_curves(folder.metrics, folder.images / "curves.png")
    log.say(
        f"test -elbo {result.nelbo:.2f} nats/image ({result.bits_per_dim:.4f} bits/dim)  "
        f"nll {result.nll:.2f}  kl {result.kl:.2f}  active units {result.active_units}"
        f"/{t.model.latent_dim}  ({result.images} images, best checkpoint, targets: "
        f"{t.config.data.binarize})\n"
        f"done in {time.perf_counter() - begin:.0f} s; look at:\n"
        f"  {folder.images / 'reconstructions.png'}   inputs above reconstructions\n"
        f"  {folder.images / 'samples.png'}   images drawn from the prior\n"
        f"  {folder.images / 'curves.png'}   loss, nll, kl over time\n"
        f"  {folder.path / 'README.md'}   what everything in the run folder is\n"
        f"next: fastvae evaluate {folder.path}"
    )


def describe_stage(t: Trainer) -> str:
    """What a stage is, for a person."""
    settings, count = t.stage.settings, len(t.stages)
    frozen = f", {' and '.join(settings.freeze)} frozen" if settings.freeze else ""
    return (
        f"stage {t.stage.number + 1} of {count}: {settings.epochs} epochs, lr {settings.lr:g}, "
        f"beta {t.stage.beta_at(t.stage.first):g} to {t.stage.beta_at(t.stage.end - 1):g}"
        f"{frozen}, weights: {settings.load}"
    )


def describe(t: Trainer, folder: RunFolder, first: int) -> str:
    """What is about to happen, for a person."""
    config, sizes = t.config, {k: len(loader.source) for k, loader in t.loaders.items()}
    data = f"{config.data.dataset} ({packed.describe(t.loaders['train'].source)})"
    refusal = graph.why_not(config, t.world) if config.cuda_graph else ""
    return (
        f"fastvae {fastvae.__version__}: preset {config.preset}, "
        f"{count_parameters(t.model):,} parameters, {config.precision} on "
        f"{t.world.size} x {t.world.device.type}, losses: "
        f"{precision.resolve_path(t.world.device)}\n"
        f"data {data}: {sizes['train']:,} train, {sizes['val']:,} val, "
        f"{sizes['test']:,} test images; {t.plan.steps_per_epoch} steps per epoch of "
        f"{config.batch_size} images\n"
        f"run folder {folder.path}, "
        + (f"resumed at step {first} of {t.total_steps}" if first else f"{t.total_steps} steps")
        + (f"\n{describe_stage(t)}" if len(t.stages) > 1 else "")
        + (f"\n--cuda-graph: not captured: {refusal}" if refusal else "")
    )


if __name__ == "__main__":
    main()
