"""VQ-VAE: quantisation, the moving codebook, the counted prior, and the same on several ranks."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from launch import environment
from torch import Tensor

from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.errors import UserError
from fastvae.models import Inputs, build_model
from fastvae.models.blocks import set_recompute
from fastvae.models.vq import DEAD, VQVAE, Codebook, CodePrior, worst_served
from fastvae.objective import Objective
from fastvae.presets import get_preset

RNG = ops.rng_state(2, counter=640)


def make(**fields: Any) -> VQVAE:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {
        "image_shape": (1, 8, 8),
        "channels": (4, 6),
        "encoder_blocks": 1,
        "codes": 7,
        "code_dim": 3,
    }
    model = build_model(ModelConfig(kind="vq", **{**defaults, **fields}))
    assert isinstance(model, VQVAE)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # some weight for the layers that start at zero
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return model


def images(shape: tuple[int, ...] = (1, 8, 8), count: int = 5) -> Tensor:
    return (torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) > 0.6).float()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def buffers(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers()}


def loss_of(model: VQVAE, x: Tensor, label: Tensor | None = None, **settings: Any) -> Tensor:
    objective = Objective(model, **settings)
    loss: Tensor = objective(Inputs(x, None, label), RNG, 0, torch.ones((), dtype=x.dtype))[0]
    return loss


# ---------------------------------------------------------------------------------- quantisation
def test_the_nearest_code_is_found() -> None:
    book = Codebook(50, 6, 0.99)
    vectors = random(400, 6)
    distance = (vectors.double()[:, None] - book.codes.double()).square().sum(dim=2)
    assert torch.equal(book.nearest(vectors), distance.argmin(dim=1))


def test_bf16_networks_quantise_in_float32() -> None:
    model = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(Inputs(images()), RNG)
    assert out.params.dtype == torch.bfloat16
    assert out.draw.z.dtype == out.draw.kl_row.dtype == torch.float32
    assert out.extra is not None
    assert out.extra.dtype == torch.float32
    assert all(b.dtype == torch.float32 for b in model.buffers())
    assert torch.isfinite(loss_of(model, images(), autocast=torch.bfloat16))


def test_the_gradient_goes_straight_through() -> None:
    model = make().eval()
    seen: list[Tensor] = []

    def note(tensor: Tensor) -> None:
        tensor.retain_grad()
        seen.append(tensor)

    model.encoder.register_forward_hook(lambda module, given, h: note(h))
    model.decoder.register_forward_pre_hook(lambda module, given: note(given[0]))
    out = model(Inputs(images()), RNG)
    h, quantised = seen
    codes = model.encoder.codebook.codes[out.draw.z.long()].view(5, 2, 2, 3)
    assert torch.equal(quantised, codes.permute(0, 3, 1, 2))  # to the bit
    out.params.square().sum().backward(retain_graph=True)
    assert h.grad is not None
    assert quantised.grad is not None
    assert quantised.grad.any()
    assert torch.equal(h.grad, quantised.grad)
    h.grad = None
    assert out.extra is not None
    distance = (h - quantised).detach()
    assert out.extra.item() == pytest.approx(0.25 * distance.square().sum().item() / 5, rel=1e-5)
    out.extra.backward()
    torch.testing.assert_close(h.grad, 0.25 * 2.0 * distance / 5)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_shape": (3, 64, 64), "channels": (4, 5, 6)},
        {"image_shape": (1, 28, 28), "channels": (4, 5, 6), "likelihood": "gaussian"},
        {"image_shape": (3, 7, 10), "likelihood": "dlogistic", "classes": 3, "label_dim": 2},
    ],
    ids=["small", "photos", "rounded up", "labels"],
)
def test_shapes_gradients_and_calls(fields: dict[str, Any]) -> None:
    model = make(**fields)
    shape = model.config.image_shape
    x = images(shape)
    label = torch.tensor([0, 1, 2, 2, 1]) if model.config.classes else None
    before = loss_of(model, x, label)
    before.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.any(), name
    model.eval()
    inputs = Inputs(x, None, label)
    for term in model.importance(inputs, model.infer(inputs), 1, torch.arange(10), 2):
        assert term.shape == (10,)
    z = model.encode_mean(x, label=label)
    assert z.shape == (5, model.latent_dim)
    assert torch.equal(z, z.round())
    assert 0 <= z.min() <= z.max() < model.config.codes
    rebuilt = model.reconstruct(x, label=label)
    assert rebuilt.shape == x.shape
    torch.testing.assert_close(model.decode(z + 0.3, label=label), rebuilt)
    assert model.decode(z * 1e6, label=label).isfinite().all()
    drawn = model.sample(5, label=label, seed=1)
    assert drawn.shape == x.shape
    assert torch.equal(drawn, model.sample(5, label=label, seed=1))
    assert model.sample(0, label=None if label is None else label[:0]).shape == (0, *shape)


def test_float64_agrees_with_float32() -> None:
    single, double = make(), make().double()
    narrow, wide = loss_of(single, images()), loss_of(double, images().double())
    assert wide.dtype == torch.float64
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-4)


def test_recomputing_changes_nothing_and_counts_once() -> None:
    plain, again = make(), make()
    assert set_recompute(again)
    for model in (plain, again):
        loss_of(model, images()).backward()
    for p, q in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    for name, buffer in buffers(plain).items():
        assert torch.equal(buffer, buffers(again)[name]), name


# ---------------------------------------------------------------------------------- the codebook
def test_the_codebook_follows_by_moving_averages() -> None:
    """Three batches against sums in NumPy, with every code alive."""
    book = Codebook(4, 2, 0.9)
    usage, sums = np.zeros(4), np.zeros((4, 2))
    for batch in range(3):
        centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
        vectors = centres.repeat(6, 1) + random(24, 2, seed=batch)
        if batch == 0:
            book.codes.copy_(centres)
        chosen = book.nearest(vectors)
        book.follow(vectors, chosen, RNG)
        for code in range(4):
            mine = vectors[chosen == code].double().numpy()
            usage[code] = 0.9 * usage[code] + 0.1 * len(mine)
            sums[code] = 0.9 * sums[code] + 0.1 * mine.sum(axis=0)
        np.testing.assert_allclose(book.usage, usage, rtol=1e-5)
        np.testing.assert_allclose(book.sums, sums, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(book.codes, sums / usage[:, None], rtol=1e-5, atol=1e-5)


def test_dead_codes_start_anew_on_an_encoding() -> None:
    book = Codebook(4, 2, 0.5)
    book.codes[:] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [90.0, 0.0], [0.0, 90.0]])
    vectors = torch.cat((random(20, 2), random(20, 2) + 4.0))
    for rng in (RNG, RNG, ops.rng_state(2, counter=704)):
        other = Codebook(4, 2, 0.5)
        other.load_state_dict(book.state_dict())
        other.follow(vectors, other.nearest(vectors), rng)
        alive = other.usage[:2]
        assert (alive > DEAD * other.usage.mean()).all()
        fresh = other.codes[2:]
        distance = (fresh[:, None] - vectors).square().sum(dim=2).amin(dim=1)
        assert (distance < 1e-8).all()
        if rng is RNG:
            first = other.codes.clone()
    assert not torch.equal(other.codes, first)  # another step's noise picks others
    assert torch.equal(other.codes[:2], first[:2])


def test_the_worst_served_encodings_are_the_likeliest() -> None:
    vectors = torch.arange(4.0)[:, None].repeat(1, 2)
    error = torch.tensor([0.0, 1.0, 3.0, 0.0])
    drawn = worst_served(vectors, error, 4000, RNG)[:, 0]
    shares = [(drawn == value).float().mean().item() for value in range(4)]
    assert shares == pytest.approx([0.0, 0.25, 0.75, 0.0], abs=0.03)


def test_what_is_not_finite_changes_nothing() -> None:
    book = Codebook(4, 2, 0.9)
    vectors = random(12, 2)
    book.follow(vectors, book.nearest(vectors), RNG)
    before = buffers(book)
    vectors[5, 1] = math.nan
    book.follow(vectors, book.nearest(vectors), RNG)
    vectors[5, 1] = math.inf
    book.follow(vectors, book.nearest(vectors), RNG)
    for name, buffer in buffers(book).items():
        assert torch.equal(buffer, before[name]), name


def test_only_training_moves_codes_and_counts() -> None:
    model = make()
    before = buffers(model)

    def moved() -> set[str]:
        names = {n for n, b in buffers(model).items() if not torch.equal(b, before[n])}
        return {name.rpartition(".")[0] for name in names}

    model.eval()(Inputs(images()), RNG)
    model.infer(Inputs(images()))
    assert moved() == set()
    model.train().encoder.eval()  # a stage that freezes the encoder
    model(Inputs(images()), RNG)
    assert moved() == {"prior"}
    model.train()(Inputs(images()), RNG)
    assert moved() == {"prior", "encoder.codebook"}


def test_state_is_all_in_the_state_dict() -> None:
    """A model that goes on from saved weights repeats one that went on without a break."""
    whole, parts = make(), make()
    for x in (images(), images().flip(0)):
        loss_of(whole, x)
    loss_of(parts, images())
    resumed = make()
    resumed.load_state_dict(parts.state_dict())
    loss_of(resumed, images().flip(0))
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


# ---------------------------------------------------------------------------------- the prior
def counted(classes: int = 0, batches: int = 3) -> tuple[CodePrior, list[tuple[Tensor, Tensor]]]:
    prior = CodePrior(2, 5, classes, 0.9)
    seen = []
    for batch in range(batches):
        generator = torch.Generator().manual_seed(batch)
        codes = torch.randint(0, 4, (6, 2), generator=generator)  # code 4 never occurs
        label = torch.randint(0, max(1, classes), (6,), generator=generator)
        prior.count(codes, label)
        seen.append((codes, label))
    return prior, seen


@pytest.mark.parametrize("classes", [0, 3])
def test_the_prior_is_a_distribution(classes: int) -> None:
    assert torch.allclose(CodePrior(2, 5, classes, 0.9).table().exp(), torch.tensor(0.2))
    prior, _ = counted(classes)
    table = prior.table().double().exp()
    assert table.shape == (max(1, classes), 2, 5)
    torch.testing.assert_close(table.sum(dim=-1), torch.ones_like(table[..., 0]))
    assert table.min() > 0.0
    assert table[..., 4].max() < 0.05


def test_the_kl_is_the_counts_own() -> None:
    """log p of codes by loops over the batches seen: decayed counts, smoothed twice."""
    prior, seen = counted()
    n = np.zeros((2, 5))
    for codes, _ in seen:
        n *= 0.9
        for row in codes.tolist():
            for position, code in enumerate(row):
                n[position, code] += 1.0
    general = (n.sum(axis=0) + 1.0) / (n.sum() + 5)
    p = (n + 0.5 * general) / (n.sum(axis=1, keepdims=True) + 0.5)
    codes = torch.tensor([[0, 3], [4, 4]])
    expected = [math.log(p[0, 0] * p[1, 3]), math.log(p[0, 4] * p[1, 4])]
    assert prior.log_prob(codes, None).tolist() == pytest.approx(expected, rel=1e-5)


def test_the_bound_is_nll_plus_kl() -> None:
    model = make()
    loss_of(model, images())  # some counts
    model.eval()
    inputs = Inputs(images())
    coded = model.infer(inputs)
    by_hand = -model.prior.table()[0, torch.arange(4), coded.codes].sum(dim=1)
    torch.testing.assert_close(model.exact_kl(coded), by_hand)
    ordinal = torch.arange(10)
    nll, log_ratio = model.importance(inputs, coded, 1, ordinal, 2)
    out = model(inputs, RNG, 0, 2)
    torch.testing.assert_close(log_ratio, -by_hand.repeat_interleave(2))
    torch.testing.assert_close(out.draw.kl_row, by_hand.repeat_interleave(2))
    torch.testing.assert_close(nll, model.likelihood.nll(out.params, inputs.x, 2))
    torch.testing.assert_close(out.draw.z, model.latent_mean(coded).repeat_interleave(2, dim=0))
    assert not out.draw.kl_row.requires_grad


def test_the_bound_is_below_the_evidence() -> None:
    """p(x) by summing over every code of every position, for all 16 images of 2x2 pixels."""
    model = make(image_shape=(1, 2, 4), channels=(4,), codes=3, encoder_blocks=0)
    x = images((1, 2, 4), 16)
    for _ in range(3):
        loss_of(model, x)
    model.eval()
    every = torch.tensor(list(itertools.product(range(3), repeat=2)))
    log_prior = model.prior.log_prob(every, None)
    assert log_prior.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    params = model.generate(every.float(), Inputs(x[:1]))
    for image in x:
        nll = model.likelihood.nll(params, image.expand(9, -1, -1, -1))
        evidence = torch.logsumexp(log_prior - nll, dim=0)
        coded = model.infer(Inputs(image[None]))
        nll, log_ratio = model.importance(Inputs(image[None]), coded, 1, torch.arange(1), 1)
        assert (log_ratio - nll).item() <= evidence.item() + 1e-5


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
def test_codes_are_drawn_from_the_prior(temperature: float) -> None:
    prior, _ = counted(classes=2)
    uniform = torch.rand(4000, 2, generator=torch.Generator().manual_seed(5)).double()
    label = torch.arange(4000) % 2
    codes = prior.sample(uniform, label, temperature)
    p = prior.table().exp().double()
    p = p ** (1.0 / temperature) if temperature else (p == p.amax(-1, keepdim=True)).double()
    p = p / p.sum(dim=-1, keepdim=True)
    for row, position in itertools.product(range(2), range(2)):
        drawn = codes[label == row, position].bincount(minlength=5) / 2000.0
        torch.testing.assert_close(drawn.double(), p[row, position], rtol=0.0, atol=0.04)


# ---------------------------------------------------------------------------------- limits, sizes
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "mlp"}, "model.encoder = 'mlp'.*networks and a prior of its own"),
        ({"prior": "vamp"}, "model.prior = 'vamp'.*leave it at standard"),
        ({"condition": "image"}, "model.condition = 'image'.*no image"),
        ({"dropout": 0.1}, "model.dropout = 0.1.*set it to 0"),
    ],
)
def test_what_it_cannot_do(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make(**fields)


def test_the_preset_halves_28_to_4() -> None:
    config = get_preset("mnist-vq").model
    model = build_model(config)
    assert model.latent_dim == 16
    assert model.sample(2).shape == (2, 1, 28, 28)


# ---------------------------------------------------------------------------------- several ranks
def test_two_ranks_keep_one_codebook(tmp_path: Path) -> None:
    """Equal gradients and buffers on both, and those of one process with the whole batch."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS, encoding="utf-8")
    words = [sys.executable, str(script), str(tmp_path)]
    running = [
        subprocess.Popen(
            [*words, str(rank)],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    one, two = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    alone: dict[str, Any] = {"__name__": "alone"}
    exec(RANKS, alone)
    expected = alone["train"](0, 1)
    for name in one:
        torch.testing.assert_close(one[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


RANKS = """
import sys
import torch, torch.distributed as dist
from fastvae import ops
from fastvae.config import ModelConfig
from fastvae.models import Inputs, build_model
from fastvae.objective import Objective

def train(rank, size):
    torch.manual_seed(0)
    fields = dict(image_shape=(1, 8, 8), channels=(4, 6), codes=7, code_dim=3)
    model = build_model(ModelConfig(kind="vq", code_decay=0.5, **fields))
    objective = Objective(model)
    if size > 1:
        objective = torch.nn.parallel.DistributedDataParallel(objective)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    share = 12 // size
    for step in range(4):
        x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        mine = Inputs(x[rank * share : (rank + 1) * share])
        optimizer.zero_grad()
        rng = ops.rng_state(1, counter=12 * step)
        objective(mine, rng, rank * share, torch.ones(()))[0].backward()
        optimizer.step()
    found = {f"grad {name}": p.grad for name, p in model.named_parameters()}
    return {**found, **{name: t.clone() for name, t in model.state_dict().items()}}

def main(folder, rank):
    where = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    torch.save(train(rank, 2), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
"""
