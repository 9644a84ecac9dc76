"""The trainer: everything the loop works with, how it is built, saved and restored."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
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
from fastvae.engine import checkpoint, graph, precision
from fastvae.engine.batchnorm import check_batch, over_all_ranks
from fastvae.engine.checkpoint import CheckpointStore
from fastvae.engine.distributed import World
from fastvae.engine.ema import EMA
from fastvae.engine.metrics import Meter
from fastvae.engine.optim import GuardedStep, build_optimizer
from fastvae.engine.stages import Stage, plan_stages
from fastvae.errors import UserError
from fastvae.models import Model, build_model
from fastvae.models.blocks import set_recompute
from fastvae.objective import Objective
from fastvae.run import (
    RunFolder,
    config_text,
    environment,
    find_checkpoint,
    load_weights,
)


@dataclass
class Trainer:
    """Everything the loop works with."""

    config: Config
    world: World
    plan: Plan
    loaders: dict[str, Loader]
    model: Model
    stages: tuple[Stage, ...]
    meter: Meter
    rng: Tensor
    """(2,) int64 on the device: seed of the posterior's noise, number of the step's first draw."""
    beta: Tensor
    """() on the device: weight of the KL term in this step."""
    capacity: Tensor
    """() on the device: nats that the KL is drawn towards in this step."""
    best: float = float("inf")
    """Lowest validation loss of the stage so far (at its final beta), nats per image."""
    best_step: int = 0
    """Steps done when that was measured."""

    # Of the stage, made anew by ``begin_stage``.
    stage: Stage = field(init=False)
    objective: nn.Module = field(init=False)
    """Objective, wrapped by DDP when there are several ranks."""
    optimizer: torch.optim.Optimizer = field(init=False)
    guard: GuardedStep = field(init=False)
    ema: EMA = field(init=False)

    @property
    def total_steps(self) -> int:
        return self.stages[-1].end

    def stage_at(self, step: int) -> Stage:
        """The stage that a training step belongs to (the last one for steps after the end)."""
        return next((s for s in self.stages if step < s.end), self.stages[-1])

    def train_mode(self) -> None:
        """Training mode for all but what is frozen."""
        self.objective.train()
        for name in self.stage.settings.freeze:
            getattr(self.model, name).eval()


def build(config: Config, world: World) -> Trainer:
    """Make data, model, optimizer and the rest from the configuration."""
    ops.prefer("compiled" if config.compile else "auto")
    precision.resolve_path(world.device)
    torch.manual_seed(config.seed)
    channels_last = config.channels_last and config.model.encoder != "mlp"
    sources = world.together(lambda: load_splits(config))
    for source in sources.values():
        check_source(source, config)
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
    model = make_model(config, world)
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    t = Trainer(
        config=config,
        world=world,
        plan=plan,
        loaders=loaders,
        model=model,
        stages=plan_stages(config, plan.steps_per_epoch),
        meter=Meter(("loss", "nll", "kl", "grad_norm"), world.device),
        rng=ops.rng_state(ops.derive_seed(config.seed, "posterior"), world.device),
        beta=torch.zeros((), device=world.device),
        capacity=torch.zeros((), device=world.device),
    )
    for stage in t.stages:  # before training, not hours into it
        check_stage(t, stage)
    begin_stage(t, t.stages[0])
    # Weights come from the seed alone; what is random from here on (dropout) differs by rank.
    torch.manual_seed(ops.derive_seed(config.seed, "rank", world.rank))
    return t


def make_model(config: Config, world: World) -> Model:
    """The model on its device, with batch norms and recomputation as configured."""
    try:
        model = build_model(config.model).to(world.device)
    except (RuntimeError, MemoryError) as error:  # torch says it in one of these
        raise UserError(f"the model does not fit into memory: {error}") from error
    check_batch(model, config, world)
    if world.size > 1 and config.batchnorm == "sync":
        over_all_ranks(model, world.device)
    if config.recompute and not set_recompute(model):
        raise UserError(
            "recompute = true, but this model has no levels to compute again "
            f"(encoder {config.model.encoder!r}, decoder {config.model.decoder!r})"
        )
    return model


def check_source(source: Source, config: Config) -> None:
    """A UserError where images, conditions or labels are not what the model takes."""
    model, dataset = config.model, config.data.dataset
    shape = source.image_shape
    if shape != model.image_shape:
        raise UserError(
            f"model.image_shape = {list(model.image_shape)} but the images of data set "
            f"{dataset} are {list(shape)}: use --model.image-shape {' '.join(map(str, shape))}"
        )
    if model.condition == "image" and not source.has_condition:
        raise UserError(
            f"model.condition = 'image' but data set {dataset} gives no partial images: use "
            "--strokes.partial strokes with drawings, or shards packed with partial images"
        )
    if model.classes:
        labels = source.resident[1] if source.resident is not None else None
        count = len(source.classes) or (0 if labels is None else int(labels.max()) + 1)
        if count > model.classes:
            raise UserError(
                f"model.classes = {model.classes} but data set {dataset} has {count} classes: "
                f"use --model.classes {count}"
            )


def begin_stage(t: Trainer, stage: Stage) -> None:
    """Freeze what the stage freezes, and make objective, optimizer and averages anew."""
    config = t.config
    t.stage = stage
    t.model.requires_grad_(True)
    for name in stage.settings.freeze:
        getattr(t.model, name).requires_grad_(False)
    objective: nn.Module = Objective(
        t.model,
        config.objective,
        free_bits=stage.kl.free_bits,
        autocast=precision.DTYPES[config.precision],
        scale=1.0 / config.accumulate,
        images=t.plan.n,
    )
    if config.compile:
        objective.compile()
    capturable = config.cuda_graph and not graph.why_not(config, t.world)
    t.optimizer = build_optimizer(config.optim, t.model, capturable=capturable)
    t.ema = EMA(t.model, config.optim.ema_decay)
    if t.world.size > 1:
        devices = [t.world.device.index] if t.world.device.type == "cuda" else None
        objective = DistributedDataParallel(
            objective, device_ids=devices, gradient_as_bucket_view=True
        )
    t.objective = objective
    t.guard = GuardedStep(
        t.optimizer,
        clip_norm=config.optim.clip_norm,
        scaler=precision.make_scaler(config.precision, t.world.device),
        device=t.world.device,
        buffers=t.model.buffers(),
    )
    t.train_mode()


def check_stage(t: Trainer, stage: Stage) -> None:
    """A UserError where a stage cannot be done with this model."""
    frozen = stage.settings.freeze
    for name in frozen:
        part = getattr(t.model, name, None)
        if not isinstance(part, nn.Module):
            raise UserError(
                f"stages.{stage.number}.freeze: model.kind {t.config.model.kind!r} has no {name}"
            )
    parts = (name.partition(".")[0] for name, _ in t.model.named_parameters())
    if all(part in frozen for part in parts):
        raise UserError(f"stages.{stage.number}.freeze leaves nothing to train")


def next_stage(t: Trainer, stage: Stage, folder: RunFolder) -> None:
    """Go on to a stage: its weights, then all that is made anew."""
    load = stage.settings.load
    if load == "fresh" and stage.number > 0:
        torch.manual_seed(ops.derive_seed(t.config.seed, "stage", stage.number))
        t.model.load_state_dict(make_model(t.config, t.world).state_dict())
    elif load == "best" and stage.number > 0:
        load_everywhere(t, lambda: find_checkpoint(folder.path))
    elif load not in ("last", "best", "fresh"):
        load_everywhere(t, lambda: find_checkpoint(Path(load)))
    t.best, t.best_step = float("inf"), 0
    begin_stage(t, stage)


def load_everywhere(t: Trainer, find: Callable[[], Path]) -> None:
    """Load weights (averaged ones where there are any) on the main rank, for all ranks."""

    def work() -> None:
        path = find()
        saved = checkpoint.load(path, weights_only=True)
        load_weights(t.model, saved.ema or saved.model, path)

    t.world.on_main(work)
    if t.world.size > 1:
        for tensor in t.model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)


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
    # Of the stage whose last step was done: the loop goes on to the next one by itself.
    begin_stage(t, t.stage_at(max(0, saved.step - 1)))
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
