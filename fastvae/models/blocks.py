"""Building blocks of the networks.

Residual branches end in a layer that starts at zero, so that a block starts as the identity (Zhang,
Dauphin, Ma, "Fixup initialization", 2019).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "tanh": nn.Tanh,
    "elu": nn.ELU,
}


def norm2d(kind: str, channels: int) -> nn.Module:
    """Normalisation of feature maps (B, C, H, W): batch, group or none."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        groups = next(g for g in (8, 4, 2, 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels)
    return nn.Identity()


def norm1d(kind: str, features: int) -> nn.Module:
    """Normalisation of feature vectors (B, N): batch, group (all features of an image) or none."""
    if kind == "batch":
        return nn.BatchNorm1d(features)
    return nn.LayerNorm(features) if kind == "group" else nn.Identity()


class Stages(nn.Sequential):
    """A sequence that can keep only what lies between its steps and compute the rest again in the
    backward pass (Chen et al., "Training deep nets with sublinear memory cost", 2016).

    Args:
        layers: as of a Sequential.
        every: how many layers make a step.
    """

    recompute = False

    def __init__(self, *layers: nn.Module, every: int = 1) -> None:
        super().__init__(*layers)
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        if not (self.recompute and self.training):
            return super().forward(x)
        layers = list(self)
        for start in range(0, len(layers), self.every):
            step = layers[start : start + self.every]
            twice = functools.partial(_first_and_second, step)
            run = functools.partial(_through, step)
            x = checkpoint(run, x, use_reentrant=False, context_fn=twice)
        return x


def _through(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _first_and_second(
    layers: Sequence[nn.Module],
) -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    """What surrounds a step's first and its second computation."""
    return contextlib.nullcontext(), _statistics_kept(layers)


def set_recompute(model: nn.Module) -> bool:
    """Switch recomputation on in every ``Stages`` of a model; False when there is none."""
    sequences = [m for m in model.modules() if isinstance(m, Stages)]
    for stages in sequences:
        stages.recompute = True
    return bool(sequences)


@contextlib.contextmanager
def _statistics_kept(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Batch norms inside do not count the same batch a second time."""
    norms = [m for layer in layers for m in layer.modules() if isinstance(m, _BatchNorm)]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum


def mlp(
    sizes: Sequence[int],
    *,
    blocks: int,
    blocks_after: int,
    dropout: float,
    activation: str = "silu",
) -> nn.Sequential:
    """Linear layers with an activation after each, and residual blocks after one of them.

    Args:
        sizes: widths, input first.
        blocks: number of residual blocks.
        blocks_after: the linear layer that they follow, counted from 1.
        dropout: probability of dropping a feature after each activation.

    Shapes: (B, sizes[0]) -> (B, sizes[-1]).
    """
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(sizes), start=1):
        layers.append(nn.Linear(before, after))
        if i == blocks_after:
            layers += [LinearBlock(after, activation) for _ in range(blocks)]
        layers.append(ACTIVATIONS[activation]())
        if dropout > 0.0:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def start_at_zero(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """Set weight and bias to zero: the branch that ends here starts as nothing."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ConvBlock(nn.Module):
    """x + conv(act(conv(act(x)))), 3x3. Shapes: (B, C, H, W) -> the same."""

    def __init__(self, channels: int, activation: str = "silu") -> None:
        super().__init__()
        self.body = nn.Sequential(
            ACTIVATIONS[activation](),
            nn.Conv2d(channels, channels, 3, padding=1),
            ACTIVATIONS[activation](),
            start_at_zero(nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class LinearBlock(nn.Module):
    """x + linear(act(linear(act(x)))). Shapes: (B, N) -> the same."""

    def __init__(self, width: int, activation: str = "silu") -> None:
        super().__init__()
        self.body = nn.Sequential(
            ACTIVATIONS[activation](),
            nn.Linear(width, width),
            ACTIVATIONS[activation](),
            start_at_zero(nn.Linear(width, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)
