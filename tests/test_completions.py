"""Scores of completions: against a plain computation of each image, and on models made by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastvae import evaluate
from fastvae.completions import COLUMNS, completion_report, cross_entropy, ink_scores
from fastvae.config import replace
from fastvae.data.batch import Batch
from fastvae.models import Inputs, Model, build_model
from fastvae.presets import get_preset
from fastvae.start import parse_train
from fastvae.train import train

SHAPE = (1, 8, 8)


def small(**changes: Any) -> Model:
    torch.manual_seed(0)
    fields = {"image_shape": SHAPE, "latent_dim": 3, "channels": (4, 6)}
    config = replace(
        get_preset("quickdraw-cvae"), **{f"model__{k}": v for k, v in {**fields, **changes}.items()}
    )
    return build_model(config.model)


def batch(count: int = 6, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = (torch.rand(count, *SHAPE, generator=generator) > 0.6).float()
    y = x * (torch.rand(x.shape, generator=generator) > 0.4)
    index = torch.arange(count)
    return Batch(x, y, None, torch.ones(count), index, index)


def rows(b: Batch, index: slice) -> Batch:
    assert b.y is not None
    return Batch(b.x[index], b.y[index], None, b.weight[index], b.index[index], b.ordinal[index])


class Given(torch.nn.Module):
    """A model whose k-th completion of the batch is the k-th of these pixel means."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means, self.calls = means, 0
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.config = get_preset("quickdraw-cvae").model
        self.likelihood = SimpleNamespace(mean=lambda params: params)
        self.temperatures: list[float] = []

    def prior_latents(self, inputs: Inputs, seed: int, temperature: float) -> Tensor:
        self.temperatures.append(temperature)
        return torch.zeros(len(inputs.x), 1)

    def generate(self, z: Tensor, inputs: Inputs) -> Tensor:
        self.calls += 1
        return self.means[self.calls - 1]


def by_hand(mean: Tensor, x: Tensor, threshold: float) -> list[float]:
    """bce, iou, precision, recall, f1 of one image, pixel by pixel."""
    tp = fp = fn = 0
    bce = 0.0
    for p, t in zip(mean.flatten().tolist(), x.flatten().tolist(), strict=True):
        p = min(max(p, 1e-7), 1.0 - 1e-7)
        bce -= math.log(p) if t else math.log(1.0 - p)
        guess = p > threshold
        tp, fp, fn = tp + (guess and t), fp + (guess and not t), fn + (not guess and t)
    precision, recall = tp / max(1, tp + fp), tp / max(1, tp + fn)
    f1 = 0.0 if tp == 0 else 2 * precision * recall / (precision + recall)
    return [bce, tp / max(1, tp + fp + fn), precision, recall, f1]


def values(score: Any) -> list[float]:
    return [score.bce, score.iou, score.precision, score.recall, score.f1]


def test_against_a_plain_computation() -> None:
    b = batch()
    assert b.y is not None
    means = torch.rand(3, *b.x.shape, generator=torch.Generator().manual_seed(5))
    report = completion_report(Given(means), [b], samples=3, threshold=0.55)  # type: ignore[arg-type]
    each = torch.tensor([[by_hand(m, x, 0.55) for m, x in zip(k, b.x, strict=True)] for k in means])
    assert values(report.mean) == pytest.approx(each.mean(dim=(0, 1)).tolist(), rel=1e-5)
    best = torch.cat((each[..., :1].amin(dim=0), each[..., 1:].amax(dim=0)), dim=1).mean(dim=0)
    assert values(report.best) == pytest.approx(best.tolist(), rel=1e-5)
    average = [by_hand(m, x, 0.55) for m, x in zip(means.mean(dim=0), b.x, strict=True)]
    assert values(report.average) == pytest.approx(
        torch.tensor(average).mean(dim=0).tolist(), rel=1e-5
    )
    copied = torch.tensor([by_hand(y, x, 0.5)[1:] for y, x in zip(b.y, b.x, strict=True)])
    assert values(report.copy)[1:] == pytest.approx(copied.mean(dim=0).tolist(), rel=1e-5)
    ink = (means > 0.55).flatten(2).float()
    pairs = [(ink[i] != ink[j]).float().sum(dim=1).mean() for i, j in ((0, 1), (0, 2), (1, 2))]
    assert report.diversity == pytest.approx(float(sum(pairs)) / 3, rel=1e-6)
    assert (report.images, report.samples, report.threshold) == (6, 3, 0.55)


def test_the_baseline_has_the_best_constant_probabilities() -> None:
    """No other pair of probabilities for paper and ink of the partial drawing does better."""
    b = batch(20)
    assert b.y is not None
    report = completion_report(small(), [b], samples=1)
    costs = []
    for step in range(1, 200):
        p = torch.where(b.y > 0.5, torch.tensor(1.0), torch.tensor(step / 200))
        costs.append(cross_entropy(p.flatten(1), b.x.flatten(1)).mean().item())
    assert report.copy.bce <= min(costs)
    assert report.copy.bce == pytest.approx(min(costs), rel=1e-3)
    assert report.copy.precision == 1.0  # what is given is in the whole drawing


def test_a_perfect_and_a_copying_model() -> None:
    b = batch()
    assert b.y is not None
    perfect = completion_report(Given(b.x[None]), [b], samples=1)  # type: ignore[arg-type]
    assert values(perfect.mean)[1:] == [1.0] * 4
    assert perfect.mean.bce < 1e-4
    assert perfect.diversity == 0.0
    copying = completion_report(Given(b.y[None]), [b], samples=1)  # type: ignore[arg-type]
    assert values(copying.mean)[1:] == values(copying.copy)[1:]
    assert values(copying.mean)[1:] == values(copying.best)[1:]
    assert copying.mean.bce > 5 * copying.copy.bce  # sure of itself, and wrong


def test_blank_drawings() -> None:
    nothing, something = torch.zeros(2, 4, dtype=torch.bool), torch.ones(2, 4, dtype=torch.bool)
    assert ink_scores(nothing, nothing).tolist() == [[1.0, 1.0]] * 4
    assert ink_scores(nothing, something).tolist() == [[0.0, 0.0]] * 4
    assert ink_scores(something, nothing).tolist() == [[0.0, 0.0]] * 4


def test_batches_padding_and_seeds() -> None:
    model, b = small(), batch(6)
    whole = completion_report(model, [b], samples=4, seed=1)
    assert whole == completion_report(model, [b], samples=4, seed=1)
    assert whole != completion_report(model, [b], samples=4, seed=2)
    assert model.training
    # Rows of weight 0 do not count; at temperature 0 neither does how the batches are cut.
    padded = batch(8)
    padded.weight[6:] = 0.0
    kept = completion_report(model, [rows(padded, slice(6))], samples=4, temperature=0.0)
    assert kept.images == 6
    in_two = [rows(padded, slice(0, 3)), rows(padded, slice(3, 8))]
    again = completion_report(model, in_two, samples=4, temperature=0.0)
    for a, c in zip(again.rows(), kept.rows(), strict=True):
        assert values(a[1]) == pytest.approx(values(c[1]), rel=1e-5)
    assert kept.diversity == again.diversity == 0.0


def test_completions_are_of_the_learned_prior() -> None:
    """At temperature 0 all completions are those of the prior's mean."""
    model, b = small(), batch()
    report = completion_report(model, [b], samples=3, temperature=0.0)
    at_mean = model.sample(6, y=b.y, temperature=0.0)
    expected = cross_entropy(at_mean.flatten(1), b.x.flatten(1)).mean().item()
    for score in (report.mean, report.best, report.average):
        assert score.bce == pytest.approx(expected, rel=1e-5)
    warm = completion_report(model, [b], samples=3, temperature=3.0)
    assert warm.average.bce <= warm.mean.bce  # a mean's cross-entropy is at most the means' mean
    assert warm.best.bce <= warm.mean.bce


def test_ranks_are_summed() -> None:
    class Twice:
        """Two ranks that have the same drawings."""

        size = 2

        def sum(self, tensor: Tensor) -> Tensor:
            assert tensor.shape == (COLUMNS,)
            return 2.0 * tensor

    model, b, seen = small(), batch(), []
    alone = completion_report(model, [b])
    both = completion_report(model, [b], Twice(), progress=seen.append)  # type: ignore[arg-type]
    assert both.images == 2 * alone.images
    assert both.mean == alone.mean
    assert seen == [12]


def test_models_without_a_condition_are_refused() -> None:
    model = small(condition="none", conditioning="none", prior="standard")
    with pytest.raises(ValueError, match="condition"):
        completion_report(model, [batch()])


# ---------------------------------------------------------------------------------- the command
def test_evaluate_prints_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On generated sketches: train two steps, evaluate, and look at the table and the JSON."""
    options = (
        "quickdraw-cvae --data.dataset doodles --strokes.doodles 100 --max-steps 2 --batch-size 8 "
        "--model.image-shape 1 16 16 --model.channels 4 6 --threads 1 --log.no-tensorboard "
        "--precision fp32"
    )
    folder = train(parse_train([*options.split(), "--out", str(tmp_path)]))
    capsys.readouterr()
    few = ["--samples", "2", "--batch-size", "4"]
    evaluate.main([str(folder), *few, "--completions", "3", "--ink", "0.25"])
    shown = capsys.readouterr().out
    report = json.loads((folder / "evaluation-test.json").read_text())["completions"]
    assert (report["samples"], report["threshold"]) == (3, 0.25)
    assert report["copy"]["precision"] == 1.0
    assert 0.0 < report["mean"]["iou"] <= report["best"]["iou"] <= 1.0
    line = next(line for line in shown.splitlines() if line.startswith("completions, mean of 3"))
    assert f"{report['mean']['bce']:.3f}" in line
    assert f"{report['mean']['f1']:.4f}" in line
    evaluate.main([str(folder), *few, "--completions", "0"])
    assert "ink IoU" not in capsys.readouterr().out
    assert "completions" not in json.loads((folder / "evaluation-test.json").read_text())


def test_options_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--completions", "-1"), ("--ink", "1.0")):
        with pytest.raises(SystemExit):
            evaluate.main(["nowhere", option, value])
        assert option.strip("-") in capsys.readouterr().err
