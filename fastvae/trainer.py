"""The trainer: everything the loop works with, how it is built, saved and restored."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastvae import ops
from fastvae.config import Config
from fastvae.data.datasets import fingerprints, load_splits
from fastvae.data.loader import Loader, Pixels
from fastvae.data.plan import Plan
from fastvae.data.sources import Source
from fastvae.engine import checkpoint, graph, precision, schedules
from fastvae.engine.checkpoint import CheckpointStore
from fastvae.engine.distributed import World
from fastvae.engine.ema import EMA
from fastvae.engine.metrics import Meter
from fastvae.engine.optim import GuardedStep, build_optimizer
from fastvae.errors import UserError
from fastvae.models import VAE, build_model
from fastvae.objective import Objective
from fastvae.run import config_text, environment, load_weights


@dataclass
class Trainer:
    """Everything the loop works with."""

    config: Config
    world: World
    plan: Plan
    loaders: dict[str, Loader]
    model: VAE
    objective: nn.Module
    """Objective, wrapped by DDP when there are several ranks."""
    optimizer: torch.optim.Optimizer
    guard: GuardedStep
    ema: EMA
    meter: Meter
    rng: Tensor
    """(2,) int64 on the device: seed of the posterior's noise, number of the step's first image."""
    beta: Tensor
    """() on the device: weight of the KL term in this step."""
    total_steps: int
    best: float = float("inf")
    """Lowest validation loss so far (at the final beta), nats per image."""
    best_step: int = 0
    """Steps done when that was measured."""

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a training step."""
        return schedules.learning_rate(
            self.config.optim,
            step,
            total_steps=self.total_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
        )

    def beta_at(self, step: int) -> float:
        """Weight of the KL term at a training step."""
        return schedules.beta(
            self.config.kl,
            step,
            total_steps=self.total_steps,
            steps_per_epoch=self.plan.steps_per_epoch,
        )


def build(config: Config, world: World) -> Trainer:
    """Make data, model, optimizer and the rest from the configuration."""
    ops.prefer("compiled" if config.compile else "auto")
    precision.resolve_path(world.device)
    torch.manual_seed(config.seed)
    channels_last = config.channels_last and config.model.encoder != "mlp"
    sources = world.together(lambda: load_splits(config))
    shape = sources["train"].image_shape
    if shape != config.model.image_shape:
        raise UserError(
            f"model.image_shape = {list(config.model.image_shape)} but the images of data set "
            f"{config.data.dataset} are {list(shape)}: "
            f"use --model.image-shape {' '.join(map(str, shape))}"
        )
    world.require_equal(fingerprints(sources), "data")
    loaders = {
        name: Loader(
            place(source, config.data.resident, world.device),
            Pixels(config.data, ops.derive_seed(config.seed, name)),
            world.device,
            channels_last=channels_last,
        )
        for name, source in sources.items()
    }
    plan = Plan(
        n=len(sources["train"]),
        batch_size=config.batch_size,
        seed=ops.derive_seed(config.seed, "order"),
        world_size=world.size,
        rank=world.rank,
        accumulate=config.accumulate,
        tail=config.data.tail,
        order=sources["train"].order,
    )
    try:
        model = build_model(config.model).to(world.device)
    except (RuntimeError, MemoryError) as error:  # torch says it in one of these
        raise UserError(f"the model does not fit into memory: {error}") from error
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    autocast = precision.DTYPES[config.precision]
    objective: nn.Module = Objective(
        model,
        free_bits=config.kl.free_bits,
        autocast=autocast,
        scale=1.0 / config.accumulate,
    )
    if config.compile:
        objective.compile()
    capturable = config.cuda_graph and not graph.why_not(config, world)
    optimizer = build_optimizer(config.optim, model, capturable=capturable)
    ema = EMA(model, config.optim.ema_decay)
    if world.size > 1:
        devices = [world.device.index] if world.device.type == "cuda" else None
        objective = DistributedDataParallel(
            objective, device_ids=devices, gradient_as_bucket_view=True
        )
    guard = GuardedStep(
        optimizer,
        clip_norm=config.optim.clip_norm,
        scaler=precision.make_scaler(config.precision, world.device),
        device=world.device,
    )
    # Weights come from the seed alone; what is random from here on (dropout) differs by rank.
    torch.manual_seed(ops.derive_seed(config.seed, "rank", world.rank))
    return Trainer(
        config=config,
        world=world,
        plan=plan,
        loaders=loaders,
        model=model,
        objective=objective,
        optimizer=optimizer,
        guard=guard,
        ema=ema,
        meter=Meter(("loss", "nll", "kl", "grad_norm"), world.device),
        rng=ops.rng_state(ops.derive_seed(config.seed, "posterior"), world.device),
        beta=torch.zeros((), device=world.device),
        total_steps=config.max_steps or config.epochs * plan.steps_per_epoch,
    )


def place(source: Source, where: str, device: torch.device) -> Source:
    """Leave a source in RAM or put it on the device (auto: when it takes less than 60% of what is
    free there)."""
    if where == "auto" and device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        where = "device" if source.nbytes < 0.6 * free else "ram"
    return source.to(device) if where == "device" else source


def save(t: Trainer, store: CheckpointStore, done: int, *, best: bool) -> None:
    """Save everything needed to go on after ``done`` steps."""
    rng = t.world.gather(torch.get_rng_state())
    cuda_rng = []
    if t.world.device.type == "cuda":
        cuda_rng = t.world.gather(torch.cuda.get_rng_state(t.world.device))

    def write() -> None:
        store.save(
            done,
            model=t.model.state_dict(),
            ema=t.ema.state_dict(),
            state={
                "optimizer": t.optimizer.state_dict(),
                "scaler": t.guard.scaler.state_dict(),
                "guard": t.guard.state_dict(),
                "rng": rng,
                "cuda_rng": cuda_rng,
                "plan": t.plan.state(),
                "fingerprint": t.loaders["train"].source.fingerprint,
                "best": t.best,
                "best_step": t.best_step,
            },
            config_toml=config_text(t.config),
            about={"best_val_loss": t.best, "versions": environment()},
            best=best,
        )

    t.world.on_main(write)


def restore(t: Trainer, store: CheckpointStore, path: Path) -> int:
    """Load a checkpoint into the trainer and return the number of steps done."""
    saved = checkpoint.load(path)
    state = saved.state
    if state["fingerprint"] != t.loaders["train"].source.fingerprint:
        raise UserError(
            f"resume: the training images differ from those of {path} "
            "(data set or split changed); point --data.root at the same files"
        )
    if state["plan"] != t.plan.state():
        raise UserError(
            f"resume: the order of samples was {state['plan']} in {path} and would now be "
            f"{t.plan.state()}: use the options of the first start"
        )
    load_weights(t.model, saved.model, path)
    if t.ema.active:
        t.ema.load_state_dict(saved.ema or saved.model)
    # Options of the optimizer are this start's (a warning has named what changed), not the saved.
    options = [{k: v for k, v in g.items() if k != "params"} for g in t.optimizer.param_groups]
    t.optimizer.load_state_dict(state["optimizer"])
    for group, fresh in zip(t.optimizer.param_groups, options, strict=True):
        group.update(fresh)
    if state["scaler"] and t.guard.scaler.is_enabled():
        t.guard.scaler.load_state_dict(state["scaler"])
    t.guard.load_state_dict(state["guard"])
    if len(state["rng"]) != t.world.size:
        if t.config.model.dropout > 0.0 and t.world.is_main:
            print(
                f"warning: resume: {len(state['rng'])} processes before, {t.world.size} now: "
                "dropout goes on with other numbers",
                file=sys.stderr,
            )
    else:
        torch.set_rng_state(state["rng"][t.world.rank])
        if state["cuda_rng"] and t.world.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"][t.world.rank], t.world.device)
    # A kill can fall between a checkpoint and the links to it.
    if t.world.on_main(lambda: store.relink(saved.step, state["best_step"])):
        t.best, t.best_step = state["best"], state["best_step"]
    return saved.step
