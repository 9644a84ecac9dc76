"""The guarded step skips bad batches as if they had never been; the average follows its formula."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastvae.config import Config, OptimConfig, replace
from fastvae.engine.distributed import World
from fastvae.engine.ema import EMA
from fastvae.engine.optim import GuardedStep, build_optimizer, set_learning_rate
from fastvae.engine.precision import make_scaler
from fastvae.errors import UserError
from fastvae.presets import get_preset

CPU = torch.device("cpu")
OPTIMIZERS = ["adamw", "adam", "rmsprop"]


class Bench:
    """A small network, its optimizer and guard, and a stream of fixed batches."""

    def __init__(
        self,
        name: str = "adamw",
        *,
        clip: float = 0.0,
        scaler: torch.amp.GradScaler | None = None,
        **fields: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        config = OptimConfig(**{"optimizer": name, "lr": 0.05, "weight_decay": 0.1, **fields})
        self.optimizer = build_optimizer(config, self.model)
        self.guard = GuardedStep(
            self.optimizer,
            clip_norm=clip,
            scaler=scaler or make_scaler("fp32", CPU),
            device=CPU,
        )

    def output(self, number: int) -> Tensor:
        x = torch.randn(6, 3, generator=torch.Generator().manual_seed(number))
        return self.model(x)

    def good(self, number: int, factor: float = 1.0) -> Tensor:
        self.guard.backward((self.output(number) - 1.0).square().mean() * factor)
        return self.guard.step()

    def bad(self, kind: str) -> Tensor:
        out = self.output(99)
        loss = out.square().mean()
        if kind == "nan loss":
            loss = loss * float("nan")
        elif kind == "inf loss":
            loss = loss + float("inf")  # its gradient alone would be finite
        elif kind == "inf gradient":
            loss = loss + (out - out.detach()).sqrt().sum()
            assert torch.isfinite(loss)
        self.guard.backward(loss)
        if kind == "one inf":
            weight = self.model[0].weight
            assert weight.grad is not None
            weight.grad[1, 2] = float("inf")
        assert not all(torch.isfinite(p.grad).all() for p in self.model.parameters())
        return self.guard.step()

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def counters(self) -> tuple[float, float]:
        return float(self.guard.skipped), float(self.guard.streak)


def assert_identical(a: Any, b: Any) -> None:
    """Equal to the bit, all the way down."""
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_identical(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_identical(left, right)
    else:
        assert a == b


BAD = ["nan loss", "inf loss", "inf gradient", "one inf"]


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_bad_step_changes_nothing(name: str, kind: str, clip: float) -> None:
    bench = Bench(name, clip=clip)
    for number in range(3):
        bench.good(number)
    before = bench.snapshot()
    norm = bench.bad(kind)
    assert not torch.isfinite(norm)
    assert_identical(bench.snapshot(), before)
    assert bench.counters() == (1.0, 1.0)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_as_if_the_bad_batch_had_never_been(name: str, kind: str) -> None:
    interrupted, clean = Bench(name), Bench(name)
    for number in range(6):
        if number in (0, 2, 3):  # before the first step too, and twice in a row
            interrupted.bad(kind)
        interrupted.good(number)
        clean.good(number)
    interrupted.bad(kind)
    assert_identical(interrupted.snapshot(), clean.snapshot())
    assert interrupted.counters() == (4.0, 1.0)
    assert clean.counters() == (0.0, 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_streak_counts_in_a_row_and_skipped_counts_all(name: str) -> None:
    bench = Bench(name)
    seen = []
    for bad in (True, True, False, True, False, False, True, True, True):
        if bad:
            bench.bad("nan loss")
        else:
            bench.good(1)
        seen.append(bench.counters())
    assert seen == [(1, 1), (2, 2), (2, 0), (3, 1), (3, 0), (3, 0), (4, 1), (5, 2), (6, 3)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_good_step_is_the_plain_step_of_torch(name: str) -> None:
    guarded, plain = Bench(name), Bench(name)
    for number in range(4):
        guarded.good(number)
        (plain.output(number) - 1.0).square().mean().backward()
        plain.optimizer.step()
        plain.optimizer.zero_grad()
    assert_identical(guarded.snapshot(), plain.snapshot())


def test_fused_adam_skips_by_itself_and_rmsprop_is_restored() -> None:
    assert Bench("adamw").guard.skips_itself
    assert Bench("adam").guard.skips_itself
    assert not Bench("rmsprop").guard.skips_itself


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("clip", [1e-3, 0.3, 1e6])
def test_clipping_is_that_of_torch(name: str, clip: float) -> None:
    guarded, plain = Bench(name, clip=clip), Bench(name)
    for number in range(3):
        norm = guarded.good(number)
        (plain.output(number) - 1.0).square().mean().backward()
        expected = torch.nn.utils.clip_grad_norm_(plain.model.parameters(), clip)
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        # The parameters come in another order (decayed ones first): the sum may round otherwise.
        torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(guarded.model.state_dict(), plain.model.state_dict())


def test_reported_norm_is_the_one_before_clipping() -> None:
    assert torch.equal(Bench(clip=1e-3).good(0), Bench(clip=0.0).good(0))


def test_gradients_accumulate_until_the_step() -> None:
    whole, parts = Bench("rmsprop"), Bench("rmsprop")
    targets = (whole.output(0) - 1.0).square()
    whole.guard.backward(targets.mean())
    whole.guard.step()
    for half in (slice(0, 3), slice(3, 6)):
        parts.guard.backward((parts.output(0)[half] - 1.0).square().mean() / 2)
    parts.guard.step()
    torch.testing.assert_close(whole.model.state_dict(), parts.model.state_dict())
    assert all(p.grad is None for p in parts.model.parameters())


@pytest.mark.parametrize("bad_micro", [0, 1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_one_bad_micro_batch_skips_the_whole_step(name: str, bad_micro: int) -> None:
    bench = Bench(name)
    bench.good(0)
    before = bench.snapshot()
    for micro in range(2):
        loss = bench.output(micro).square().mean() / 2
        bench.guard.backward(loss * float("nan") if micro == bad_micro else loss)
    bench.guard.step()
    assert_identical(bench.snapshot(), before)
    assert bench.counters() == (1.0, 1.0)
    bench.good(1)
    assert bench.counters() == (1.0, 0.0)


# ---------------------------------------------------------------------------------- loss scaling
@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_loss_gives_the_weights_of_the_plain_loss(name: str, clip: float) -> None:
    scaled = Bench(name, clip=clip, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16))
    plain = Bench(name, clip=clip)
    for number in range(4):  # a power of two: scaling and unscaling are exact
        assert torch.equal(scaled.good(number), plain.good(number))
    assert_identical(scaled.snapshot(), plain.snapshot())
    assert scaled.guard.scaler.get_scale() == 2.0**16


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_overflow_halves_the_scale_and_skips(name: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    bench, plain = Bench(name, scaler=scaler), Bench(name)
    before = bench.snapshot()
    bench.good(0, factor=64.0)  # gradients times 2^126 are past float32
    assert scaler.get_scale() == 2.0**125
    assert_identical(bench.snapshot()[0], before[0])
    assert bench.counters() == (1.0, 1.0)
    while scaler.get_scale() > 2.0**110:
        bench.bad("nan loss")
    bench.good(0, factor=64.0)
    plain.good(0, factor=64.0)
    assert_identical(bench.snapshot(), plain.snapshot())
    assert bench.counters()[1] == 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scale_grows_after_good_steps_only(name: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    bench = Bench(name, scaler=scaler)
    scales = []
    for bad in (False, False, False, True, False, False):
        if bad:
            bench.bad("inf gradient")
        else:
            bench.good(0)
        scales.append(scaler.get_scale())
    assert scales == [8.0, 16.0, 16.0, 8.0, 8.0, 16.0]


def test_only_fp16_scales_the_loss() -> None:
    enabled = {p: make_scaler(p, CPU).is_enabled() for p in ("fp32", "bf16", "fp16")}
    assert enabled == {"fp32": False, "bf16": False, "fp16": True}


# ---------------------------------------------------------------------------------- optimizers
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_leaves_biases_out(name: str) -> None:
    bench = Bench(name)
    decay = {id(p): g["weight_decay"] for g in bench.optimizer.param_groups for p in g["params"]}
    for parameter in bench.model.parameters():
        assert decay[id(parameter)] == (0.1 if parameter.dim() >= 2 else 0.0)


def test_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = build_optimizer(OptimConfig(), model)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 2


def test_options_reach_the_optimizer() -> None:
    fields = {"beta1": 0.7, "beta2": 0.8, "eps": 1e-4}
    for name in ("adam", "adamw"):
        for group in Bench(name, **fields).optimizer.param_groups:
            assert (group["lr"], group["betas"], group["eps"]) == (0.05, (0.7, 0.8), 1e-4)
    for group in Bench("rmsprop", **fields).optimizer.param_groups:
        assert (group["lr"], group["alpha"], group["eps"]) == (0.05, 0.8, 1e-4)


def test_set_learning_rate_reaches_all_groups() -> None:
    bench = Bench()
    set_learning_rate(bench.optimizer, 0.125)
    assert [g["lr"] for g in bench.optimizer.param_groups] == [0.125, 0.125]


@pytest.mark.parametrize("capturable", [False, True])
def test_parts_can_have_rates_of_their_own(capturable: bool) -> None:
    model = nn.ModuleDict({k: nn.Linear(2, 3) for k in ("encoder", "prior", "decoder")})
    config = OptimConfig(lr=1.0, encoder_rate=0.5, decoder_rate=4.0, weight_decay=0.1)
    optimizer = build_optimizer(config, model)
    if capturable:  # as for a CUDA graph, whose rates are tensors
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(1.0)
    set_learning_rate(optimizer, 0.25)
    rates = {id(p): float(g["lr"]) for g in optimizer.param_groups for p in g["params"]}
    for part, rate in (("encoder", 0.125), ("prior", 0.25), ("decoder", 1.0)):
        assert [rates[id(p)] for p in model[part].parameters()] == [rate, rate]
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.1}


def test_learning_rate_zero_moves_nothing() -> None:
    bench = Bench("adamw")
    before = bench.snapshot()[0]
    set_learning_rate(bench.optimizer, 0.0)
    bench.good(0)
    assert_identical(bench.snapshot()[0], before)


@pytest.mark.parametrize("name", ["apex_adam", "apex_lamb"])
def test_missing_apex_is_a_clear_error(name: str) -> None:
    try:
        import apex.optimizers  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match="NVIDIA"):
            Bench(name)
    else:
        pytest.skip("apex is installed")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_counters_and_optimizer_are_restored(name: str) -> None:
    first, second = Bench(name), Bench(name)
    first.good(0)
    first.bad("nan loss")
    first.bad("nan loss")
    second.model.load_state_dict(first.model.state_dict())
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.guard.load_state_dict(copy.deepcopy(first.guard.state_dict()))
    assert second.counters() == (2.0, 2.0)
    for bench in (first, second):
        bench.bad("inf gradient")
        bench.good(1)
    assert_identical(first.snapshot(), second.snapshot())
    assert first.counters() == second.counters() == (3.0, 0.0)


# ---------------------------------------------------------------------------------- averaging
def test_average_follows_its_formula() -> None:
    model = nn.Linear(2, 2)
    ema = EMA(model, decay=0.9)
    expected = [p.detach().clone().double() for p in model.parameters()]
    for step in range(200):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * p.detach().double()
            for e, p in zip(expected, model.parameters(), strict=True)
        ]
        for shadow, value in zip(ema.shadow, expected, strict=True):
            torch.testing.assert_close(shadow.double(), value, rtol=1e-4, atol=1e-5)


def test_average_is_applied_and_taken_back_exactly() -> None:
    bench = Bench()
    ema = EMA(bench.model, decay=0.5)
    bench.good(0)
    ema.update(100)
    weights = copy.deepcopy(bench.model.state_dict())
    average = ema.state_dict()
    assert not torch.equal(weights["0.weight"], average["0.weight"])
    with ema.applied():
        assert_identical(dict(bench.model.state_dict()), average)
    assert_identical(dict(bench.model.state_dict()), dict(weights))
    with pytest.raises(ZeroDivisionError), ema.applied():
        raise ZeroDivisionError
    assert_identical(dict(bench.model.state_dict()), dict(weights))
    assert_identical(ema.state_dict(), average)


def test_training_goes_on_after_the_average_was_applied() -> None:
    looked, plain = Bench(), Bench()
    averages = [EMA(b.model, decay=0.9) for b in (looked, plain)]
    for number in range(4):
        for bench, ema in zip((looked, plain), averages, strict=True):
            bench.good(number)
            ema.update(number)
        with averages[0].applied():
            looked.output(7)
        averages[0].state_dict()
    assert_identical(looked.snapshot(), plain.snapshot())
    assert_identical(averages[0].state_dict(), averages[1].state_dict())


def test_state_of_the_average_does_not_change_with_it() -> None:
    bench = Bench()
    ema = EMA(bench.model, decay=0.5)
    saved = ema.state_dict()
    copied = copy.deepcopy(saved)
    bench.good(0)
    ema.update(0)
    assert_identical(saved, copied)


def test_average_is_restored() -> None:
    first, second = Bench(), Bench()
    a, b = EMA(first.model, decay=0.9), EMA(second.model, decay=0.9)
    for number in range(3):
        first.good(number)
        a.update(number)
    second.model.load_state_dict(first.model.state_dict())
    b.load_state_dict(a.state_dict())
    assert_identical(a.state_dict(), b.state_dict())
    for ema in (a, b):
        ema.update(3)
    assert_identical(a.state_dict(), b.state_dict())


def test_average_that_is_off_does_nothing() -> None:
    bench = Bench()
    ema = EMA(bench.model, decay=0.0)
    before = bench.snapshot()
    ema.update(0)
    with ema.applied():
        assert_identical(bench.snapshot(), before)
    assert not ema.active
    assert ema.state_dict() == {}
    assert ema.shadow == []


# ---------------------------------------------------------------------------------- on a GPU
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c,
        lambda c: replace(c, optim__clip_norm=1.0, accumulate=2),
        lambda c: replace(c, precision="fp16"),
        lambda c: replace(c, data__binarize="dynamic", data__resident="ram"),
    ],
    ids=["plain", "clipped", "fp16", "from RAM"],
)
def test_train_step_never_waits_for_the_device(change: Callable[[Config], Config]) -> None:
    from fastvae.engine.metrics import Stopwatch
    from fastvae.train import make_step, train_step
    from fastvae.trainer import build

    world = World(rank=0, size=1, device=torch.device("cuda", 0))
    trainer = build(change(replace(get_preset("digits"), max_steps=10)), world)
    watch, run = Stopwatch(), make_step(trainer)
    for step in range(2):
        train_step(trainer, run, step, watch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(2, 5):
            train_step(trainer, run, step, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
