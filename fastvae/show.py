"""What a training shows of itself: words about what is to be done, pictures of what has been."""

from __future__ import annotations

import numpy as np
import torch

import fastvae
from fastvae import figures
from fastvae.data import packed
from fastvae.engine import graph, precision
from fastvae.engine.metrics import RunLog
from fastvae.models import Inputs, count_parameters
from fastvae.run import RunFolder
from fastvae.trainer import Trainer


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


def draw(t: Trainer, log: RunLog, folder: RunFolder, done: int) -> None:
    """Write inputs above reconstructions, and prior samples."""
    if not t.world.is_main:
        return
    count = min(t.config.log.images, len(t.loaders["val"].source))
    t.model.eval()
    with t.ema.applied():
        batch = t.loaders["val"].rows(np.arange(count))
        shown = Inputs.for_model(t.config.model, batch.x, batch.y, batch.label)
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
