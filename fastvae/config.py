"""The configuration: frozen dataclasses, one section per concern.

Every field has a docstring that becomes its line in ``--help``, with the unit. A preset
(``fastvae/presets/``) is a function that returns a full ``Config``; the command line changes single
fields of it; the resolved result is written to ``config.toml`` in the run folder.
Reading and writing is in ``fastvae/configio.py``.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from fastvae.errors import UserError

Unit = Literal["epoch", "step"]


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise UserError(f"{name} = {value!r}: expected {expected}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What is trained: encoder x prior x decoder x likelihood (`fastvae models` lists them all)."""

    kind: str = "vae"
    """vae, vq (vector-quantised latents) or hvae (a hierarchy of latents, top down)."""
    encoder: str = "conv"
    """Network from images to the posterior: conv, mlp, resnet, vgg, larsen, panels, arch or
    genzoo."""
    decoder: str = "conv"
    """Network from latents to the likelihood's parameters: the same names, and unet."""
    prior: str = "standard"
    """Prior over latents: standard (a unit Gaussian), conditional (learned, given the condition or
    the label), vamp (mixture of posteriors of learned pseudo-inputs) or mog (mixture of
    Gaussians)."""
    likelihood: str = "bernoulli"
    """Pixel likelihood: bernoulli (on logits), continuous_bernoulli, gaussian or dlogistic."""
    image_shape: tuple[int, int, int] = (1, 28, 28)
    """Channels, height and width of an image, in pixels."""
    latent_dim: int = 20
    """Number of latent dimensions."""
    channels: tuple[int, ...] = (32, 64)
    """Feature channels of each level, from the image inwards (conv: after each halving)."""
    encoder_blocks: int = 0
    """Residual blocks of the encoder (conv: at the smallest side; resnet, panels: per level)."""
    decoder_blocks: int = 1
    """Residual blocks of the decoder (conv: at the smallest side; resnet, panels: per level)."""
    hidden: tuple[int, ...] = (256,)
    """Widths of the fully connected layers between features and latents, from the image inwards
    (resnet, panels: empty = one layer)."""
    hidden_blocks: int = 1
    """Residual fully connected blocks at the innermost width."""
    activation: Literal["silu", "relu", "leaky_relu", "tanh", "elu"] = "silu"
    """mlp, conv, resnet: the nonlinearity."""
    norm: Literal["none", "batch", "group"] = "none"
    """Normalisation of resnet, larsen, panels and genzoo: batch statistics (as the original
    systems), groups of channels of each image by itself, or none."""
    pool: Literal["max", "average"] = "max"
    """vgg: how the encoder halves the side."""
    input_mean: float = 0.5
    """Subtracted from pixels in [0, 1] before the encoder."""
    input_std: float = 0.5
    """Pixels are divided by this before the encoder."""
    dropout: float = 0.0
    """Probability of dropping a hidden feature while training, 0 to 1 (0 = off)."""
    clamp_mean: tuple[float, float] | None = None
    """Bounds of the posterior's mean (no gradient passes where they bind)."""
    clamp_logvar: tuple[float, float] | None = None
    """Bounds of the posterior's log variance."""
    condition: Literal["none", "image"] = "none"
    """What the model is given besides: none, or an image (a partial drawing: see
    strokes.partial)."""
    conditioning: Literal["none", "film", "concat", "skip"] = "none"
    """How the decoder sees the condition: not at all (only latents know of it), features scaled and
    shifted by it (FiLM), its pixels as further channels of the first feature map, or features of
    every size (skip: decoder unet)."""
    classes: int = 0
    """Class-conditional: number of classes of the labels that encoder and decoder are given
    (0 = labels are not used)."""
    label_dim: int = 16
    """Size of a class's learned embedding."""
    components: int = 128
    """mog: Gaussians of the mixture; vamp: pseudo-inputs."""
    gaussian_std: float = 1.0
    """gaussian: standard deviation of a pixel, in units of the range 0 to 1 (the starting value
    where it is learned)."""
    gaussian_scale: Literal["fixed", "shared", "pixel"] = "fixed"
    """gaussian: that deviation is fixed, learned as one number, or given by the decoder for each
    value."""
    mixtures: int = 5
    """dlogistic: logistics in the mixture of each value."""
    codes: int = 512
    """vq: entries of the codebook."""
    code_dim: int = 64
    """vq: length of a codebook entry."""
    code_decay: float = 0.99
    """vq: decay per step of the averages that the codebook follows."""
    commitment: float = 0.25
    """vq: weight of the term that keeps the encoder near its codes."""
    group_latents: int = 8
    """hvae: latent channels of each top-down block."""
    arch_encode: tuple[tuple[int, int, int, int], ...] = ()
    """arch: encoder layers from the image inwards: filters, kernel, stride down, stride across."""
    arch_decode: tuple[tuple[int, int, int, int], ...] = ()
    """arch: decoder layers from the latents outwards, alike (empty = the encoder's, mirrored)."""

    def __post_init__(self) -> None:
        shape_ok = len(self.image_shape) == 3 and min(self.image_shape) > 0
        _require(shape_ok, "model.image_shape", self.image_shape, "three positive integers")
        _require(
            len(self.channels) > 0 and min(self.channels) > 0,
            "model.channels",
            self.channels,
            "one or more positive integers",
        )
        for name in ("encoder_blocks", "decoder_blocks", "hidden_blocks", "classes"):
            value = getattr(self, name)
            _require(value >= 0, f"model.{name}", value, "0 or more")
        for name in ("latent_dim", "label_dim", "components", "mixtures", "codes", "code_dim"):
            value = getattr(self, name)
            _require(value > 0, f"model.{name}", value, "a positive integer")
        _require(self.group_latents > 0, "model.group_latents", self.group_latents, "1 or more")
        widths_ok = min(self.hidden, default=1) > 0
        _require(widths_ok, "model.hidden", self.hidden, "positive integers")
        mean_ok = math.isfinite(self.input_mean)
        _require(mean_ok, "model.input_mean", self.input_mean, "a finite number")
        for name in ("input_std", "gaussian_std"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"model.{name}", value, "more than 0, finite")
        _require(0.0 <= self.dropout < 1.0, "model.dropout", self.dropout, "0 <= dropout < 1")
        decay_ok = 0.0 <= self.code_decay < 1.0
        _require(decay_ok, "model.code_decay", self.code_decay, "0 <= value < 1")
        commitment_ok = 0.0 <= self.commitment < math.inf
        _require(commitment_ok, "model.commitment", self.commitment, "0 or more")
        for name in ("clamp_mean", "clamp_logvar"):
            bounds = getattr(self, name)
            ok = bounds is None or -math.inf < bounds[0] < bounds[1] < math.inf
            _require(ok, f"model.{name}", bounds, "two finite numbers, the lower one first")
        for name in ("arch_encode", "arch_decode"):
            for number, layer in enumerate(getattr(self, name), start=1):
                where = f"model.{name}, layer {number}"
                _require(min(layer) > 0, where, layer, "positive integers")
        if self.condition == "none" and self.conditioning != "none":
            raise UserError(
                f"model.conditioning = {self.conditioning!r} but there is no condition: set "
                "--model.condition image"
            )
        if self.prior == "conditional" and self.condition == "none" and not self.classes:
            raise UserError(
                "model.prior = 'conditional' needs something to depend on: set --model.condition "
                "image or --model.classes N"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from and what is done to them."""

    dataset: str = "digits"
    """digits (scikit-learn's 8x8 digits), mnist (idx files), strokes (drawings packed by
    `fastvae-data quickdraw`), doodles (generated sketches) or bitmaps (Quick, Draw!'s 28x28 .npy
    files); digits and doodles need no files."""
    root: str = "data/mnist"
    """Folder of the data files (not used by digits and doodles)."""
    source: Literal[
        "auto", "files", "shards", "resident", "mapped", "beton", "ffcv", "webdataset"
    ] = "auto"
    """How images are read: auto looks at what is in data.root; files: the data set's own files;
    shards made by fastvae-data: in memory when small (resident), else from the disk (mapped);
    beton: FFCV files, read natively; ffcv: by ffcv itself; webdataset: tars, window by window."""
    urls: tuple[str, ...] = ()
    """webdataset: tars of train, val and (if there are any) test, as URLs or paths with {000..009}
    for numbers; empty = train*.tar, val*.tar, test*.tar in data.root."""
    window: int = 16384
    """webdataset: samples that are shuffled among each other and held in memory, twice (fewer where
    images are large: 512 MiB of images at most)."""
    allow_pipe: bool = False
    """webdataset: allow URLs that are commands (pipe:...), which the shell runs."""
    on_damage: Literal["raise", "skip"] = "raise"
    """What to do about damaged or missing shards: stop with an error that names them, or leave out
    what is damaged (all bytes are then verified at the start; the count is told)."""
    binarize: Literal["none", "threshold", "static", "dynamic"] = "none"
    """none: grey values are Bernoulli means; threshold: 1 where pixel/255 > data.threshold; static:
    pixels drawn once as Bernoulli(pixel/255); dynamic: drawn anew each epoch (validation and test
    keep one fixed draw)."""
    threshold: float = 0.5
    """Grey value above which a pixel counts as ink, 0 to 1."""
    val_fraction: float = 0.1
    """Share of the training images held out for validation, 0 to 1, chosen by a hash of content."""
    test_fraction: float = 0.1
    """Share held out for testing, 0 to 1 (only data sets without a test set of their own)."""
    flip: bool = False
    """Training images are mirrored left to right, each with probability 1/2, anew in each epoch."""
    tail: Literal["drop", "wrap"] = "drop"
    """Last images of an epoch that do not fill a batch: drop them, or wrap round to the start."""
    resident: Literal["auto", "ram", "device"] = "auto"
    """Where the data (uint8 images, strokes) live: ram, the training device, or auto (device when
    they fit)."""

    def __post_init__(self) -> None:
        _require(0 <= self.threshold < 1, "data.threshold", self.threshold, "0 <= threshold < 1")
        for name in ("val_fraction", "test_fraction"):
            value = getattr(self, name)
            _require(0.0 < value < 1.0, f"data.{name}", value, "a share between 0 and 1")
        _require(self.window > 0, "data.window", self.window, "1 or more")
        _require(len(self.urls) in (0, 2, 3), "data.urls", self.urls, "train, val and perhaps test")
        total = self.val_fraction + self.test_fraction
        _require(total < 1.0, "data.val_fraction + data.test_fraction", total, "less than 1")


@dataclass(frozen=True, kw_only=True)
class StrokesConfig:
    """How drawings become images (data sets strokes and doodles). The images have the size of
    model.image_shape and are made anew for every batch; nothing is stored as pixels."""

    raster: Literal["fast", "exact", "binary"] = "fast"
    """fast: anti-aliased, on the CPU or on a GPU; exact: what Quick, Draw!'s own bitmaps show, on
    the CPU; binary: lines of 3 black-or-white pixels, on the CPU."""
    line_width: float = 16.0
    """Width of a line, in units of the drawings (they are 256 wide)."""
    padding: float = 16.0
    """Room around a drawing besides half a line, in the same units."""
    categories: tuple[str, ...] = ()
    """Train on these categories only (exact names; empty = all that are there)."""
    partial: Literal["none", "strokes", "points", "time", "box"] = "none"
    """The condition of conditional models: none; the first strokes, points, or share of the time of
    the drawing; or all but a box. A fresh cut for each drawing and epoch, fixed for evaluation."""
    shown: tuple[float, float] = (0.0, 1.0)
    """Range of the share that a partial drawing shows (at least one stroke or point)."""
    rotate: float = 0.0
    """Training images are turned by up to this many degrees, either way, before rasterization."""
    scale: float = 0.0
    """Each axis is stretched or shrunk by up to this share (0.1 = exp(-0.1) to exp(0.1))."""
    shear: float = 0.0
    """Slanted by up to this share of the height."""
    shift: float = 0.0
    """Moved by up to this many units along each axis."""
    doodles: int = 12000
    """Number of drawings in the generated data set doodles."""

    def __post_init__(self) -> None:
        width_ok = 0.0 < self.line_width <= 512.0
        _require(width_ok, "strokes.line_width", self.line_width, "more than 0, at most 512")
        _require(0.0 <= self.padding <= 512.0, "strokes.padding", self.padding, "0 to 512")
        low, high = self.shown
        _require(0.0 <= low <= high <= 1.0, "strokes.shown", self.shown, "0 <= low <= high <= 1")
        for name, most in (("rotate", 180.0), ("scale", 1.0), ("shear", 1.0), ("shift", 64.0)):
            value = getattr(self, name)
            _require(0.0 <= value <= most, f"strokes.{name}", value, f"0 to {most:g}")
        _require(self.doodles >= 100, "strokes.doodles", self.doodles, "100 or more")
        if self.raster == "binary" and (
            self.jittered or self.line_width != 16.0 or self.padding != 16.0
        ):
            raise UserError(
                "strokes.raster = 'binary' draws lines of 3 pixels as they are: leave rotate, "
                "scale, shear and shift at 0, line_width and padding alone, or use "
                "--strokes.raster fast"
            )

    @property
    def jittered(self) -> bool:
        """Whether training images are moved about."""
        return max(self.rotate, self.scale, self.shear, self.shift) > 0.0


@dataclass(frozen=True, kw_only=True)
class KLConfig:
    """Weight of the KL term: loss = nll + beta * kl, in nats per image."""

    beta: float = 1.0
    """Final weight of the KL term (1 = the evidence lower bound)."""
    schedule: Literal["constant", "linear", "cosine", "cyclical", "piecewise", "lines"] = "constant"
    """constant: beta throughout; linear, cosine: from start to beta over warmup; cyclical: that
    ramp `cycles` times over, each taking `ramp` of its cycle; piecewise: steps at `points`; lines:
    straight lines between `points` (two points of one time make a step)."""
    start: float = 0.0
    """Weight at the beginning of a ramp (linear, cosine, cyclical)."""
    warmup: float = 0.0
    """Length of the ramp in `unit`s (linear, cosine)."""
    cycles: int = 4
    """Number of cycles over the whole training (cyclical; Fu et al. 2019)."""
    ramp: float = 0.5
    """Share of each cycle spent on the ramp, 0 to 1 (cyclical)."""
    points: tuple[tuple[float, float], ...] = ()
    """Pairs (time in `unit`s, beta): that beta holds from then on (piecewise); corners (lines)."""
    unit: Unit = "epoch"
    """Unit of warmup and points: epoch or step. Values change at every step in either unit."""
    free_bits: float = 0.0
    """Each latent's batch-mean KL counts at least this many nats (0 = off; Kingma et al. 2016)."""

    def __post_init__(self) -> None:
        for name in ("beta", "start", "warmup", "free_bits"):
            value = getattr(self, name)
            _require(value >= 0 and math.isfinite(value), f"kl.{name}", value, "0 or more")
        _require(self.cycles >= 1, "kl.cycles", self.cycles, "1 or more")
        _require(0.0 < self.ramp <= 1.0, "kl.ramp", self.ramp, "0 < ramp <= 1")
        if self.schedule in ("piecewise", "lines"):
            _require(len(self.points) > 0, "kl.points", self.points, "at least one (time, beta)")
            pairs = list(itertools.pairwise(t for t, _ in self.points))
            steps = self.schedule == "lines"  # where a time may come twice
            ascending = all(a < b or (steps and a == b) for a, b in pairs)
            _require(ascending, "kl.points", self.points, "times in ascending order")
            values_ok = all(0 <= v < math.inf for point in self.points for v in point)
            _require(values_ok, "kl.points", self.points, "times and betas of 0 or more, finite")
        elif self.points:
            raise UserError(
                f"kl.points is set but kl.schedule is {self.schedule!r}: set kl.schedule=piecewise "
                "or lines"
            )
        if self.schedule in ("linear", "cosine"):
            _require(self.warmup > 0, "kl.warmup", self.warmup, "more than 0 for this schedule")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is minimised. Weight and schedule of the KL term are in [kl]."""

    kind: Literal["elbo", "iwae", "tc", "mmd"] = "elbo"
    """elbo: nll + beta kl; iwae: the importance-weighted bound; tc: the KL split into mutual
    information, total correlation (weighted by kl.beta) and the latents' own KL (beta-TC-VAE);
    mmd: elbo plus the maximum mean discrepancy between latents and prior (InfoVAE)."""
    samples: int = 1
    """Posterior samples per image (K): averaged over (elbo, tc, mmd) or weighted (iwae)."""
    capacity: float = 0.0
    """elbo: nats that the KL is drawn towards, loss = nll + beta |kl - capacity| (Burgess et al.
    2018); 0 = off."""
    capacity_warmup: float = 0.0
    """The capacity grows from 0 to its value over this many epochs."""
    mi_weight: float = 1.0
    """tc: weight of the mutual information between image and latents."""
    dimension_weight: float = 1.0
    """tc: weight of each latent's own KL."""
    mmd_weight: float = 100.0
    """mmd: weight of the squared discrepancy (InfoVAE: alpha + lambda - 1; kl.beta: 1 - alpha)."""

    def __post_init__(self) -> None:
        _require(self.samples >= 1, "objective.samples", self.samples, "1 or more")
        for name in (
            "capacity",
            "capacity_warmup",
            "mi_weight",
            "dimension_weight",
            "mmd_weight",
        ):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"objective.{name}", value, "0 or more, finite")
        if self.kind == "iwae" and self.samples == 1:
            raise UserError(
                "objective.kind = 'iwae' with 1 sample is the ELBO: set --objective.samples 50"
            )
        if self.capacity and self.kind != "elbo":
            raise UserError(f"objective.capacity is for the elbo, not for {self.kind}: set it to 0")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, learning rate schedule, clipping and averaging."""

    optimizer: Literal["adamw", "adam", "rmsprop", "apex_adam", "apex_lamb"] = "adamw"
    """adamw, adam, rmsprop (torch) or apex_adam, apex_lamb (NVIDIA apex, which must be there)."""
    lr: float = 1e-3
    """Peak learning rate."""
    beta1: float = 0.9
    """Decay of the gradient average (Adam family)."""
    beta2: float = 0.999
    """Decay of the squared-gradient average (Adam family; rmsprop: alpha)."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.0
    """Weight decay of matrices and convolutions (biases and norms are left out)."""
    schedule: Literal["constant", "cosine", "step", "exponential", "piecewise"] = "cosine"
    """Learning rate after the warm-up: constant; cosine down to final_lr; step: times gamma every
    period; exponential: times gamma per period, smoothly; piecewise: as `rates` say."""
    warmup: float = 1.0
    """Linear warm-up from 0 to lr, in `unit`s."""
    final_lr: float = 0.0
    """Learning rate at the end, as a share of lr (cosine)."""
    period: float = 10.0
    """Length of one decay period in `unit`s (step, exponential)."""
    gamma: float = 0.5
    """Decay factor per period (step, exponential)."""
    rates: tuple[tuple[float, float], ...] = ()
    """Pairs (time in `unit`s, share of lr): from then on that rate holds (piecewise)."""
    unit: Unit = "epoch"
    """Unit of warmup, period and rates: epoch or step. The rate changes at every step in either
    unit."""
    encoder_rate: float = 1.0
    """Learning rate of the encoder, as a multiple of lr."""
    decoder_rate: float = 1.0
    """Learning rate of the decoder, as a multiple of lr."""
    clip_norm: float = 0.0
    """Largest global gradient norm; larger gradients are scaled down to it (0 = off)."""
    ema_decay: float = 0.0
    """Decay per step of the moving average of the weights used for evaluation (0 = off)."""
    max_nonfinite: int = 25
    """Stop after this many steps in a row with a non-finite loss or gradient (each is skipped);
    looked at whenever metrics are logged."""

    def __post_init__(self) -> None:
        _require(self.lr > 0 and math.isfinite(self.lr), "optim.lr", self.lr, "more than 0")
        for name in ("beta1", "beta2", "ema_decay"):
            value = getattr(self, name)
            _require(0.0 <= value < 1.0, f"optim.{name}", value, "0 <= value < 1")
        for name in ("eps", "weight_decay", "warmup", "final_lr", "clip_norm"):
            value = getattr(self, name)
            _require(value >= 0 and math.isfinite(value), f"optim.{name}", value, "0 or more")
        for name in ("encoder_rate", "decoder_rate"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"optim.{name}", value, "more than 0 (stages freeze)")
        _require(self.period > 0, "optim.period", self.period, "more than 0")
        _require(0 < self.gamma <= 1, "optim.gamma", self.gamma, "0 < gamma <= 1")
        if self.schedule == "piecewise":
            times = [time for time, _ in self.rates]
            ascending = times == sorted(set(times)) and bool(times)
            _require(ascending, "optim.rates", self.rates, "(time, share) in ascending order")
            values_ok = all(0 <= t < math.inf and 0 < s < math.inf for t, s in self.rates)
            _require(values_ok, "optim.rates", self.rates, "times of 0 or more, shares above 0")
        elif self.rates:
            raise UserError(
                f"optim.rates is set but optim.schedule is {self.schedule!r}: set "
                "--optim.schedule piecewise"
            )
        _require(self.max_nonfinite > 0, "optim.max_nonfinite", self.max_nonfinite, "1 or more")


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written while training, and how often."""

    every: int = 20
    """Steps between two lines of metrics.jsonl (each reads the device once)."""
    eval_every: float = 1.0
    """Epochs between two validations; a checkpoint is saved at each."""
    image_every: float = 1.0
    """Epochs between two sets of pictures (0 = only at the end)."""
    images: int = 32
    """Number of images in a picture grid."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""

    def __post_init__(self) -> None:
        _require(self.every > 0, "log.every", self.every, "1 or more")
        eval_ok = 0 < self.eval_every < math.inf
        _require(eval_ok, "log.eval_every", self.eval_every, "more than 0, finite")
        image_ok = 0 <= self.image_every < math.inf
        _require(image_ok, "log.image_every", self.image_every, "0 or more, finite")
        _require(self.images > 0, "log.images", self.images, "1 or more")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved and how many are kept."""

    every: int = 1000
    """Steps between two checkpoints, besides those at validations (0 = only those)."""
    keep: int = 3
    """Number of newest checkpoints to keep; the best one is kept besides."""

    def __post_init__(self) -> None:
        _require(self.every >= 0, "checkpoint.every", self.every, "0 or more")
        _require(self.keep >= 2, "checkpoint.keep", self.keep, "2 or more (one may be damaged)")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a training in several: it has its own length, rate, KL weight and locked parts,
    and begins with a new optimizer."""

    epochs: int = 10
    """Passes over the training images in this stage."""
    lr: float = 1e-3
    """Peak learning rate in place of optim.lr; warm-up and schedule of [optim] span the stage."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are, dropout off and batch statistics fixed: encoder, decoder,
    prior."""
    kl: KLConfig = field(default_factory=KLConfig)
    """Weight of the KL term in place of [kl]; times count from the start of the stage."""
    load: str = "last"
    """Weights to begin with: last (go on), best (of the stage before), fresh (new ones), or the
    path of a run or checkpoint of the same model."""

    def __post_init__(self) -> None:
        _require(self.epochs > 0, "stages.epochs", self.epochs, "1 or more")
        _require(self.lr > 0 and math.isfinite(self.lr), "stages.lr", self.lr, "more than 0")
        parts = ("encoder", "decoder", "prior")
        known = all(name in parts for name in self.freeze)
        _require(known, "stages.freeze", self.freeze, "some of encoder, decoder, prior")
        _require(self.load != "", "stages.load", self.load, "last, best, fresh or a path")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A training run."""

    preset: str = "digits"
    """Preset the run was made from (set by the program; a label only)."""
    name: str = ""
    """Name of the run folder (empty = the preset's name, with a number when that is taken)."""
    out: str = "runs"
    """Folder that holds the run folders."""
    resume: bool = False
    """Go on from the newest valid checkpoint of the run; start afresh when there is none yet."""
    seed: int = 0
    """One seed for weights, order, noise, binarization and dropout."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU when there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Precision of the networks (weights, loss and sums stay fp32); fp16 scales the loss; auto is
    bf16 where the hardware computes in it, else fp32."""
    tf32: bool = True
    """Allow TF32 for fp32 matrix products on NVIDIA GPUs."""
    channels_last: bool = True
    """Keep images and convolutions in channels-last memory order (conv networks)."""
    compile: bool = False
    """Compile the objective, and on a CPU the fused losses, with torch.compile."""
    cuda_graph: bool = False
    """Capture the whole training step in one CUDA graph: the lever for small networks on a GPU.
    Where a step cannot be captured, a message says why and training goes on without."""
    recompute: bool = False
    """Keep only the activations between levels of the networks and compute the others again in the
    backward pass: less memory, about a third more time."""
    batchnorm: Literal["sync", "local"] = "sync"
    """With several processes, batch statistics are of the whole batch or of each process's share
    (model.norm group needs none)."""
    threads: int = 0
    """CPU threads per process (0 = torch's choice; small networks are fastest with 1)."""
    deterministic: bool = False
    """Use deterministic algorithms only: the same run gives the same bits."""
    epochs: int = 10
    """Passes over the training images."""
    max_steps: int = 0
    """End after this many steps instead (0 = epochs decide); schedules span what is left."""
    batch_size: int = 128
    """Images per optimizer step, over all ranks and accumulated micro-batches together."""
    accumulate: int = 1
    """Micro-batches per optimizer step on each rank (saves memory, same gradient)."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strokes: StrokesConfig = field(default_factory=StrokesConfig)
    kl: KLConfig = field(default_factory=KLConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    stages: tuple[StageConfig, ...] = ()
    """Stages one after the other in place of epochs, optim.lr and [kl] (empty = one stage)."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "1 or more")
        _require(self.max_steps >= 0, "max_steps", self.max_steps, "0 or more")
        if self.model.likelihood == "continuous_bernoulli" and self.data.binarize != "none":
            raise UserError(
                f"model.likelihood = 'continuous_bernoulli' is for grey images and has no bound on "
                f"black-and-white ones: set --data.binarize none (now {self.data.binarize!r})"
            )
        if self.stages and self.max_steps:
            raise UserError(f"max_steps = {self.max_steps} with stages: shorten stages.epochs")
        _require(0 <= self.threads <= 1024, "threads", self.threads, "0 to 1024")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0 <= seed < 2^63")
        for key in ("name", "preset"):
            value = getattr(self, key)
            plain = (
                value not in (".", "..") and not set(value) & set("/\\\0") and value.isprintable()
            )
            plain = plain and len(value.encode(errors="replace")) <= 200
            _require(plain, key, value, "a folder name without slashes (the place is --out)")
        _require(self.preset != "", "preset", self.preset, "a name")


def replace(config: Config, **changes: Any) -> Config:
    """Return a copy with fields changed; dotted sections are given with double underscores.

    Example: ``replace(config, epochs=2, optim__lr=1e-4)``.
    """
    top: dict[str, Any] = {}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            sections.setdefault(section, {})[name] = value
        else:
            top[key] = value
    for section, fields in sections.items():
        top[section] = dataclasses.replace(getattr(config, section), **fields)
    return dataclasses.replace(config, **top)
