"""How well a conditional model completes drawings that it has not seen.

For each drawing several completions are drawn from the learned prior p(z|y) of its partial drawing
y, and compared with the whole drawing x. The baseline is the partial drawing itself: a model that
has learned only to copy, or has learned its training drawings by heart, does not get beyond it.

A completion is one guess of what a person went on to draw. Good guesses differ from each other and
from x, so that even a perfect model's single completions may agree less with x than the partial
drawing does, which risks nothing. What shows that a model knows more than y are the bound on
-log p(x|y) (``estimate``), which the baseline's cross-entropy is to be compared with, and the
completions' average.

Ink is what is lighter than the paper, as fastvae stores drawings: pixels above a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from fastvae import ops
from fastvae.data.batch import Batch
from fastvae.engine.distributed import World
from fastvae.models import Inputs, Model

COLUMNS = 25
"""Sums over drawings: their number, 4 counts of pixels, 4 + 3 * 5 scores, and the diversity."""
LEAST_PROBABILITY = 1e-7
"""Bound of predicted means in the cross-entropy: a float32 sigmoid reaches 0 and 1."""


@dataclass(frozen=True)
class Score:
    """Agreement of predicted drawings with the whole ones: means over drawings."""

    bce: float
    """Cross-entropy of the whole drawing under the predicted pixel means, nats per image."""
    iou: float
    """Ink in both, as a share of ink in either."""
    precision: float
    """Share of the predicted ink that is there."""
    recall: float
    """Share of the ink that is predicted."""
    f1: float
    """Harmonic mean of the two."""


@dataclass(frozen=True)
class CompletionReport:
    """Scores over a split. Of several completions: the mean, the best one of each drawing in each
    column by itself, and their pixels' average as one prediction."""

    images: int
    samples: int
    threshold: float
    copy: Score
    """The partial drawing as its own completion. Its cross-entropy takes the share of ink on its
    paper and in its ink from the very drawings that are scored: the best two numbers there are."""
    mean: Score
    best: Score
    average: Score
    diversity: float
    """Pixels in which two completions of a drawing differ, on average."""

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)

    def rows(self) -> list[tuple[str, Score]]:
        """Names and scores, for a table."""
        n = self.samples
        return [
            ("the partial drawing", self.copy),
            (f"completions, mean of {n}", self.mean),
            (f"completions, best of {n}", self.best),
            (f"average of {n} completions", self.average),
        ]


def ink_scores(predicted: Tensor, target: Tensor) -> Tensor:
    """IoU, precision, recall and F1 of predicted ink.

    A share of nothing is 1 where nothing was right: blank for blank is perfect.

    Shapes: predicted (..., B, N) bool, target (B, N) bool; returns (4, ..., B) float64.
    """
    both = (predicted & target).sum(dim=-1).double()
    guessed, there = predicted.sum(dim=-1).double(), target.sum(dim=-1).double().expand_as(both)
    blank = (guessed == 0) & (there == 0)
    shares = (
        both / (guessed + there - both).clamp(min=1.0),
        both / guessed.clamp(min=1.0),
        both / there.clamp(min=1.0),
        2.0 * both / (guessed + there).clamp(min=1.0),
    )
    return torch.stack([torch.where(blank, 1.0, share) for share in shares])


def cross_entropy(mean: Tensor, target: Tensor) -> Tensor:
    """-sum (x log p + (1 - x) log(1 - p)), nats.

    Shapes: mean (..., B, N), target (B, N) in [0, 1]; returns (..., B) float64.
    """
    p = mean.double().clamp(LEAST_PROBABILITY, 1.0 - LEAST_PROBABILITY)
    return -(target * p.log() + (1.0 - target) * torch.log1p(-p)).sum(dim=-1)


@torch.no_grad()
def complete(
    model: Model, y: Tensor, label: Tensor | None, samples: int, temperature: float, seed: int
) -> Tensor:
    """Completions of partial drawings. Shapes: y (B, C, H, W); returns (samples, B, C, H, W)."""
    inputs = Inputs(y, y, label)  # only the length of x counts
    drawn = []
    for k in range(samples):
        z = model.prior_latents(inputs, ops.derive_seed(seed, "completion", k), temperature)
        drawn.append(model.likelihood.mean(model.generate(z, inputs)))
    return torch.stack(drawn)


@torch.no_grad()
def completion_report(
    model: Model,
    batches: Iterable[Batch],
    world: World | None = None,
    *,
    samples: int = 8,
    threshold: float = 0.55,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Callable[[int], object] | None = None,
) -> CompletionReport:
    """Score completions against the whole drawings, and the partial drawings as baseline.

    Args:
        model: a model with an image as condition.
        batches: evaluation batches of this rank (weight 0 marks padding).
        world: the ranks to sum over (None = this process alone).
        samples: completions of each drawing.
        threshold: predicted mean above which a pixel is ink. Of x and y it is one half.
        temperature: scale of the prior's standard deviation.
        seed: of the noise, which depends on a drawing's place in its batch.
        progress: called with the number of images after each batch.
    """
    if model.config.condition != "image":
        raise ValueError("completions need a model with an image as condition")
    was_training = model.training
    model.eval()
    totals = torch.zeros(COLUMNS, dtype=torch.float64, device=next(model.parameters()).device)
    for number, batch in enumerate(batches):
        assert batch.y is not None
        of_batch = ops.derive_seed(seed, number)
        drawn = complete(model, batch.y, batch.label, samples, temperature, of_batch)
        totals += _sums(batch, drawn.flatten(2), threshold)
        if progress is not None:
            progress(len(batch.weight) * (world.size if world else 1))
    model.train(was_training)
    return _finish((world.sum(totals) if world else totals).tolist(), samples, threshold)


def _sums(batch: Batch, drawn: Tensor, threshold: float) -> Tensor:
    """Sums over a batch (COLUMNS,), in the order in which ``_finish`` takes them up again."""
    weight = batch.weight.double()
    x, y = batch.x.flatten(1), batch.y.flatten(1) > 0.5  # type: ignore[union-attr]
    ink, samples = x > 0.5, len(drawn)
    counts = [(where * value).sum(dim=1) for where in (~y, y) for value in (torch.ones_like(x), x)]
    guessed = drawn > threshold
    bce, scores = cross_entropy(drawn, x), ink_scores(guessed, ink)
    average = drawn.mean(dim=0)
    share = guessed.double().mean(dim=0)
    differ = 2.0 * (share * (1.0 - share)).sum(dim=1) * samples / max(1, samples - 1)
    columns = [
        torch.ones_like(weight),
        *(count.double() for count in counts),
        *ink_scores(y, ink),
        bce.mean(dim=0),
        *scores.mean(dim=1),
        bce.min(dim=0).values,
        *scores.max(dim=1).values,
        cross_entropy(average, x),
        *ink_scores(average > threshold, ink),
        differ,
    ]
    return (torch.stack(columns) * weight).sum(dim=1)


def _finish(totals: list[float], samples: int, threshold: float) -> CompletionReport:
    """Means over drawings."""
    images, *rest = totals
    stream: Iterator[float] = (value / images for value in rest)
    paper, ink_on_paper, shown, ink_in_shown = (next(stream) for _ in range(4))
    copied = _entropy(paper, ink_on_paper) + _entropy(shown, ink_in_shown)

    def score(bce: float | None = None) -> Score:
        return Score(next(stream) if bce is None else bce, *(next(stream) for _ in range(4)))

    return CompletionReport(
        images=round(images),
        samples=samples,
        threshold=threshold,
        copy=score(copied),
        mean=score(),
        best=score(),
        average=score(),
        diversity=next(stream),
    )


def _entropy(pixels: float, ink: float) -> float:
    """Nats that pixels cost when each is ink with the same, right probability."""
    paper = pixels - ink
    return -sum(n * math.log(n / pixels) for n in (ink, paper) if n > 0.0)
