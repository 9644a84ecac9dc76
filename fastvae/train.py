"""Train a VAE: parse, set up, loop, checkpoint. Read this file first.

    fastvae train PRESET [options]                                one process
    torchrun --nproc_per_node=N -m fastvae.train PRESET [options]  N processes (GPUs)

The loop computes the whole loss in one forward of ``Objective`` (which DDP wraps), reads the device
only when it logs, and takes everything that varies with time (order, noise, learning rate, beta) as
pure functions of the step, so that a resumed run repeats an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from fastvae import figures, show
from fastvae.command import run_command
from fastvae.config import Config
from fastvae.engine import checkpoint, distributed, graph, precision
from fastvae.engine.checkpoint import CheckpointStore, DamagedCheckpoint
from fastvae.engine.distributed import World
from fastvae.engine.graph import StepGraph
from fastvae.engine.metrics import RunLog, Stopwatch
from fastvae.engine.optim import set_learning_rate
from fastvae.engine.signals import StopSignal
from fastvae.errors import Diverged, LocalError, Stopped, UserError
from fastvae.estimate import Estimate, batch_that_fits, estimate
from fastvae.models import Inputs
from fastvae.run import RunFolder, find_checkpoint
from fastvae.start import choose_start, parse_train
from fastvae.trainer import (
    Trainer,
    build,
    load_everywhere,
    next_stage,
    restore,
    save,
)

EVAL_BATCH = 500  # images per rank in an evaluation, fewer where they are large


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
        yield Inputs.for_model(t.config.model, batch.x, batch.y, batch.label)


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
    log.say(show.describe(t, folder, first))
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
                log.say(show.describe_stage(t))
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
                show.draw(t, log, folder, done)
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


def evaluate_split(t: Trainer, split: str, *, averaged: bool = True) -> Estimate:
    """ELBO of a split, one sample per image; of a training by the importance-weighted bound, that
    bound with as many samples as training takes.

    Args:
        averaged: use the averaged weights, when averaging is on, in place of the model's own.
    """
    if t.world.size > 1 and t.config.batchnorm == "local":  # the main rank's are what is saved
        for buffer in t.model.buffers():
            torch.distributed.broadcast(buffer, src=0)
    size = batch_that_fits(t.config.model.image_shape, EVAL_BATCH)
    batches = t.loaders[split].evaluation_batches(size, t.world.size, t.world.rank)
    samples = t.config.objective.samples if t.config.objective.kind == "iwae" else 1
    with t.ema.applied() if averaged else contextlib.nullcontext():
        return estimate(t.model, batches, t.world, seed=t.config.seed, samples=samples)


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
    # Compared at the final beta: while beta warms up, later losses would look worse than earlier.
    final = result.nll + t.stage.beta_at(t.stage.end - 1) * result.kl
    if result.iwae is not None:
        loss = final = result.iwae
    log.scalars("val", done, {"epoch": epoch, "loss": loss, **result.as_dict()})
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
    result = evaluate_split(t, "test", averaged=False)
    log.scalars("test", t.total_steps, result.as_dict())
    if not t.world.is_main:
        return
    figures.save_curves(folder.metrics, folder.images / "curves.png")
    log.say(
        f"test -elbo {result.nelbo:.2f} nats/image ({result.bits_per_dim:.4f} bits/dim)  "
        f"nll {result.nll:.2f}  kl {result.kl:.2f}  "
        + (f"iwae {result.iwae:.2f} (K = {result.samples})  " if result.iwae is not None else "")
        + f"active units {result.active_units}"
        f"/{t.model.latent_dim}  ({result.images} images, best checkpoint, targets: "
        f"{t.config.data.binarize})\n"
        f"done in {time.perf_counter() - begin:.0f} s; look at:\n"
        f"  {folder.images / 'reconstructions.png'}   inputs above reconstructions\n"
        f"  {folder.images / 'samples.png'}   images drawn from the prior\n"
        f"  {folder.images / 'curves.png'}   loss, nll, kl over time\n"
        f"  {folder.path / 'README.md'}   what everything in the run folder is\n"
        f"next: fastvae evaluate {folder.path}"
    )


if __name__ == "__main__":
    main()
