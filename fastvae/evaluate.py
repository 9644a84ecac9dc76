"""Evaluate a trained model: ELBO, importance-weighted bound, bits/dim, active units, completions.

    fastvae evaluate RUN [options]
    torchrun --nproc_per_node=N -m fastvae.evaluate RUN [options]

Evaluation runs in float32, counts each image exactly once over all ranks, and draws exactly the
number of posterior samples that was asked for.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_field
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from fastvae import ops
from fastvae.command import run_command
from fastvae.completions import CompletionReport, completion_report
from fastvae.config import Config, DataConfig
from fastvae.configio import parse_options
from fastvae.data.datasets import fingerprints, load_splits
from fastvae.data.loader import Loader, Pixels
from fastvae.data.packed import choose
from fastvae.engine import distributed, precision
from fastvae.engine.distributed import World
from fastvae.errors import UserError
from fastvae.estimate import ACTIVE_VARIANCE, Estimate, batch_that_fits, estimate
from fastvae.models import Model
from fastvae.run import environment, find_checkpoint, load, read_config, write_json

ABOUT = """Evaluate the model of a run folder or checkpoint.

Prints a table and writes evaluation-SPLIT.json into the run folder. Figures are nats per image:
sums over pixels and latents, means over images. Models that complete partial drawings are also
compared with those drawings themselves.
"""
TARGETS = {
    "none": "grey values as Bernoulli means (cross-entropy)",
    "threshold": "static, pixel > {threshold:g}",
    "static": "static, one Bernoulli(pixel) draw per image",
    "dynamic": "one fixed Bernoulli(pixel) draw per image (training draws anew each epoch)",
}


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Options of fastvae evaluate."""

    split: Literal["train", "val", "test"] = "test"
    """Which images."""
    samples: int = 50
    """Posterior samples per image, K of the importance-weighted bound (1 = ELBO only)."""
    checkpoint: str = "best"
    """For a run folder: best, last or a name such as step-00000100."""
    binarize: Literal["trained", "none", "threshold", "static", "dynamic"] = "trained"
    """Binarization of the targets; trained = as in training."""
    root: str = ""
    """Folder of the data files, or of packed data in any form (empty = those of the training)."""
    batch_size: int = 250
    """Images encoded at once on each rank (fewer where they are large)."""
    rows: int = 2048
    """Latent vectors decoded at once on each rank (fewer where images are large)."""
    completions: int = 8
    """Models with an image as condition: completions of each from the prior, which are compared
    with the whole image (0 = none)."""
    ink: float = 0.55
    """Predicted mean above which a pixel of a completion counts as ink, 0 to 1."""
    seed: int = 0
    """Seed of the posterior samples."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one."""

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)!r}: expected 1 or more")
        if self.completions < 0:
            raise UserError(f"completions = {self.completions}: expected 0 or more")
        if not 0.0 < self.ink < 1.0:
            raise UserError(f"ink = {self.ink!r}: expected a number between 0 and 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of ``fastvae evaluate`` and ``python -m fastvae.evaluate``."""
    run_command(_evaluate, argv)


def _evaluate(args: list[str]) -> None:
    prog = "fastvae evaluate RUN"
    if not args or args[0] in ("-h", "--help"):
        parse_options(EvaluateConfig, EvaluateConfig(), ["--help"], prog=prog, about=ABOUT)
    if args[0].startswith("-"):
        raise UserError("the run folder or checkpoint comes first: fastvae evaluate RUN [options]")
    options = parse_options(EvaluateConfig, EvaluateConfig(), args[1:], prog=prog, about=ABOUT)
    folder = find_checkpoint(Path(args[0]), options.checkpoint)
    trained = read_config(folder / "config.toml")
    world = distributed.join(options.device)
    try:
        precision.resolve_path(world.device)
        model = load(folder, device=world.device)
        data = trained.data
        if options.binarize != "trained":
            data = replace_field(data, binarize=options.binarize)
        if options.root:
            data = data_in(options.root, data)
        result, completed = evaluate_model(model, trained, data, options, world)
        if world.is_main:
            _report(result, completed, model, data, options, folder)
    finally:
        distributed.leave()


def data_in(root: str, trained: DataConfig) -> DataConfig:
    """What lies in a folder, whatever form the data had that the model was trained on."""
    if not Path(root).is_dir():
        raise UserError(f"--root {root}: no such folder")
    there = replace_field(trained, root=root, urls=(), source="auto")
    how = choose(there, needs_no_files=False)
    return replace_field(there, source=how)  # type: ignore[arg-type]


def evaluate_model(
    model: Model, trained: Config, data: DataConfig, options: EvaluateConfig, world: World
) -> tuple[Estimate, CompletionReport | None]:
    """Estimate on the chosen split, with a progress bar on a terminal; then completions of it."""
    config = replace_field(trained, data=data)
    sources = world.together(lambda: load_splits(config, only=options.split))
    source = sources[options.split]
    world.require_equal(fingerprints({options.split: source}), "data")
    if source.image_shape != model.config.image_shape:
        raise UserError(
            f"the model takes images {list(model.config.image_shape)} but data set {data.dataset} "
            f"has {list(source.image_shape)}"
        )
    pixels = Pixels(data, ops.derive_seed(trained.seed, options.split))
    loader = Loader(source, pixels, world.device)
    batch = batch_that_fits(source.image_shape, min(options.batch_size, options.rows))
    quiet = not (world.is_main and sys.stderr.isatty())
    count = len(source)
    wanted = options.completions > 0 and model.config.condition == "image"
    try:
        with tqdm(total=count, unit="image", disable=quiet, leave=False) as bar:
            result = estimate(
                model,
                loader.evaluation_batches(batch, world.size, world.rank),
                world,
                seed=options.seed,
                samples=options.samples,
                rows=options.rows,
                progress=lambda images: bar.update(min(images, count - bar.n)),
            )
            bar.reset()
            if not wanted:
                return result, None
            return result, completion_report(
                model,
                loader.evaluation_batches(batch, world.size, world.rank),
                world,
                samples=options.completions,
                threshold=options.ink,
                seed=options.seed,
                progress=lambda images: bar.update(min(images, count - bar.n)),
            )
    finally:
        loader.close()


def _report(
    result: Estimate,
    completed: CompletionReport | None,
    model: Model,
    data: DataConfig,
    options: EvaluateConfig,
    folder: Path,
) -> None:
    """Print the table and write the JSON beside the checkpoints."""
    k = result.samples
    targets = TARGETS[data.binarize].format(threshold=data.threshold)
    if data.binarize == "none" and model.config.likelihood != "bernoulli":
        targets = "pixel values as they are"
    about: dict[str, Any] = {
        "checkpoint": str(folder),
        "split": options.split,
        "targets": targets,
        "likelihood": model.config.likelihood,
        "constants": model.likelihood.constants,
        "posterior_samples": k,
        "seed": options.seed,
        "dimensions": math.prod(model.config.image_shape),
        "active_unit_threshold": ACTIVE_VARIANCE,
        "environment": environment(),
    }
    if completed is not None:
        about["completions"] = completed.as_dict()
    in_run = folder.parent.name == "checkpoints"
    place = folder.parent.parent if in_run else folder.parent
    path = place / f"evaluation-{options.split}.json"
    write_json(path, {**result.as_dict(), **about})

    rows: list[tuple[str, float, float | None]] = []
    rows.append(("-ELBO = nll + kl", result.nelbo, result.bits_per_dim))
    if result.iwae is not None:
        rows.append((f"-log p(x) <= IWAE, K = {k}", result.iwae, result.iwae_bits_per_dim))
    print(f"{folder}, {options.split} split, {result.images:,} images")
    print(f"{'':<28}{'nats/image':>12}{'bits/dim':>12}")
    for name, nats, bits in rows:
        print(f"{name:<28}{nats:>12.3f}{bits:>12.5f}")
    print(f"{'  nll':<28}{result.nll:>12.3f}")
    print(f"{'  kl':<28}{result.kl:>12.3f}")
    print(f"{'active units':<28}{result.active_units:>8} of {model.latent_dim}")
    if completed is not None:
        _print_completions(completed)
    samples = f"K = {k} samples per image, seed {options.seed}"
    print(f"targets: {targets}; {samples}; D = {about['dimensions']} values per image")
    print(f"likelihood {model.config.likelihood}: {model.likelihood.constants}")
    print(f"written to {path}")


def _print_completions(report: CompletionReport) -> None:
    print(f"{'':<28}{'BCE, nats':>12}{'ink IoU':>10}{'precision':>10}{'recall':>10}{'F1':>10}")
    for name, score in report.rows():
        shares = (score.iou, score.precision, score.recall, score.f1)
        print(f"{name:<28}{score.bce:>12.3f}" + "".join(f"{share:>10.4f}" for share in shares))
    print(
        f"ink: mean above {report.threshold:g}; two completions differ in {report.diversity:.1f} "
        "pixels on average\n"
        "the partial drawing's BCE is what -ELBO is to be compared with: both bound -log p(x|y)"
    )


if __name__ == "__main__":
    main()
