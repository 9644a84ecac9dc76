"""fastvae export: what is written computes what the model does, without fastvae."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from fastvae import export
from fastvae.config import Config, ModelConfig
from fastvae.configio import from_dict
from fastvae.errors import UserError
from fastvae.export import export_model
from fastvae.models import Model, build_model

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

BASE: dict[str, Any] = {
    "image_shape": (1, 8, 8),
    "latent_dim": 3,
    "channels": (4, 6),
    "hidden": (8,),
    "input_mean": 0.2,
}
CASES: dict[str, dict[str, Any]] = {
    "arch": {
        "encoder": "arch",
        "decoder": "arch",
        "arch_encode": ((4, 3, 2, 2), (6, 3, 2, 2)),
        "likelihood": "gaussian",
        "gaussian_scale": "pixel",
    },
    "conditional": {
        "condition": "image",
        "conditioning": "film",
        "prior": "conditional",
        "classes": 3,
        "clamp_mean": (-0.3, 0.3),
    },
    "no condition in the decoder": {"condition": "image", "prior": "conditional"},
    "classes": {"classes": 3, "prior": "conditional", "likelihood": "continuous_bernoulli"},
    "vamp": {"prior": "vamp", "components": 4, "likelihood": "dlogistic"},
    "mog": {"prior": "mog", "components": 4, "encoder": "mlp", "decoder": "mlp"},
    "vq": {"kind": "vq", "classes": 2, "codes": 16, "code_dim": 5},
    "hvae": {"kind": "hvae", "classes": 2, "group_latents": 2},
}
DRAWN = {
    "image": torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(1)),
    "condition": torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(2)),
    "label": torch.tensor([0, 1, 1, 0, 1, 0, 0]),
}


def make(case: str) -> Model:
    """A model whose every weight matters: branches that start at zero do not stay there."""
    torch.manual_seed(0)
    model = build_model(ModelConfig(**(BASE | CASES[case])))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.1)
    return model.eval()


def write(model: Model, out: Path, to: str) -> dict[str, Any]:
    """Export, and read the description of what was written."""
    rows = export_model(model, Config(preset="mine", model=model.config), out, to)
    assert [path for path, _, _ in rows if not path.is_file()] == []
    assert {path.name for path, _, _ in rows} == {path.name for path in out.iterdir()}
    return json.loads((out / "export.json").read_text())


def check(model: Model, networks: dict[str, Any], run: Callable[..., Any]) -> None:
    """Compare networks with the model's own calls for people, on a batch of 7."""
    config = model.config
    y = DRAWN["condition"] if config.condition == "image" else None
    label = DRAWN["label"] if config.classes else None
    z = model.encode_mean(DRAWN["image"], y, label)
    given = DRAWN | {"latents": z, "noise": torch.zeros(7, model.latent_dim)}

    def call(name: str) -> list[Tensor]:
        assert all(shape[0] == "batch" for shape in networks[name]["inputs"].values())
        return run(name, [given[key] for key in networks[name]["inputs"]])

    encoded = call("encoder")
    torch.testing.assert_close(encoded[0], z, rtol=1e-5, atol=1e-5)
    if config.kind == "vae":
        expected = model.encode(DRAWN["image"], y, label)
        torch.testing.assert_close(encoded[1], expected.logvar, rtol=1e-5, atol=1e-5)
    decoded = model.decode(z, y, label)
    torch.testing.assert_close(call("decoder")[0], decoded, rtol=1e-5, atol=1e-5)
    if "prior" in networks:  # at temperature 0 a sample is the decoded mean of the prior
        prior = call("prior")[0]
        cold = model.sample(7, y=y, label=label, temperature=0.0)
        torch.testing.assert_close(model.decode(prior, y, label), cold, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_torchscript(case: str, tmp_path: Path) -> None:
    model = make(case)
    networks = write(model, tmp_path, "torchscript")["networks"]
    with_prior = case in ("conditional", "no condition in the decoder", "classes", "hvae")
    assert ("prior" in networks) == with_prior
    loaded = {name: torch.jit.load(tmp_path / f"{name}.pt") for name in networks}
    check(model, networks, lambda name, args: list(loaded[name](*args)))


@pytest.mark.parametrize(
    "case",
    [
        "conditional",
        pytest.param("arch", marks=pytest.mark.slow),
        pytest.param("hvae", marks=pytest.mark.slow),
    ],
)
def test_onnx(case: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = make(case)
    networks = write(model, tmp_path, "onnx")["networks"]

    def run(name: str, args: list[Tensor]) -> list[Tensor]:
        session = runtime.InferenceSession(tmp_path / f"{name}.onnx")
        names = list(networks[name]["inputs"])
        assert [value.name for value in session.get_inputs()] == names
        assert [value.name for value in session.get_outputs()] == networks[name]["outputs"]
        feed = {key: arg.numpy() for key, arg in zip(names, args, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    check(model, networks, run)


@pytest.mark.parametrize("case", ["conditional", "vq"])
def test_safetensors(case: str, tmp_path: Path) -> None:
    model = make(case)
    described = write(model, tmp_path, "safetensors")
    config = from_dict(Config, described["config"])
    assert config == Config(preset="mine", model=model.config)
    again = build_model(config.model).eval()
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    y, label = DRAWN["condition"], DRAWN["label"]
    expected = model.reconstruct(DRAWN["image"], y, label)
    assert torch.equal(again.reconstruct(DRAWN["image"], y, label), expected)


def test_priors_that_are_tables(tmp_path: Path) -> None:
    for case in ("vamp", "mog"):
        model = make(case)
        write(model, tmp_path / case, "torchscript")
        table = safetensors.torch.load_file(tmp_path / case / "prior.safetensors")
        assert table["log_weight"].exp().sum().item() == pytest.approx(1.0)
        z = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(3))
        each = torch.distributions.Normal(table["mean"], torch.exp(0.5 * table["logvar"]))
        log_p = torch.logsumexp(table["log_weight"] + each.log_prob(z).sum(dim=-1), dim=1)
        prior = model.prior(model.inputs(DRAWN["image"]), model)
        torch.testing.assert_close(log_p, prior.log_prob(z[:, 0]), rtol=1e-4, atol=1e-4)
    write(make("vq"), tmp_path / "vq", "torchscript")
    table = safetensors.torch.load_file(tmp_path / "vq" / "prior.safetensors")
    torch.testing.assert_close(table["log_prob"].exp().sum(dim=-1), torch.ones(2, 4))


def test_a_file_holds_the_weights_of_its_network_only(tmp_path: Path) -> None:
    model = make("classes")
    write(model, tmp_path, "torchscript")
    for name, without in (("encoder", "decoder"), ("decoder", "encoder")):
        held = sum(p.numel() for p in torch.jit.load(tmp_path / f"{name}.pt").parameters())
        rest = sum(p.numel() for p in (*getattr(model, without).parameters(),))
        own = sum(p.numel() for p in getattr(model, name).parameters())
        assert own < held < own + rest
    assert hasattr(model, "encoder")


def test_what_deviates_is_an_error_and_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch.jit.load

    def other(path: str) -> Any:
        script = load(path)
        return lambda *args: tuple(value + 1e-3 for value in script(*args))

    monkeypatch.setattr(torch.jit, "load", other)
    with pytest.raises(UserError, match=r"encoder\.pt is not what the model computes: encoder dif"):
        export_model(make("arch"), Config(), tmp_path, "torchscript")
    assert list(tmp_path.iterdir()) == []


def test_onnx_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str, **_: str) -> None:
        raise UserError(f"{module} is not installed")

    monkeypatch.setattr(export, "require", missing)
    with pytest.raises(UserError, match="onnx is not installed"):
        export_model(make("arch"), Config(), tmp_path, "onnx")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make("arch")
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    monkeypatch.setattr(export, "load", lambda folder: model)
    monkeypatch.setattr(export, "read_config", lambda path: Config(model=model.config))
    export.main([str(run), "--to", "safetensors", "--checkpoint", checkpoint.name])
    printed = capsys.readouterr().out
    assert "model.safetensors" in printed
    assert "0.0e+00" in printed
    assert (run / "export" / "model.safetensors").is_file()
    export.main([str(checkpoint), "--to", "safetensors", "--out", str(tmp_path / "there")])
    held = safetensors.torch.load_file(tmp_path / "there" / "model.safetensors")
    weight = model.encoder.head.weight.detach().numpy()
    np.testing.assert_array_equal(held["encoder.head.weight"].numpy(), weight)
    for args, message in (
        (["--to", "onnx"], "the run folder or checkpoint comes first"),
        ([str(run), "--to", "onxx"], "onnx"),
        ([str(tmp_path / "nothing")], "neither a run folder nor a checkpoint"),
    ):
        with pytest.raises(SystemExit) as ending:
            export.main(args)
        assert ending.value.code == 2
        assert message in capsys.readouterr().err
