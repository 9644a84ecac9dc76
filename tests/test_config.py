"""Configurations: what values they refuse, TOML and back, options, presets."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from fastvae import config as config_module
from fastvae.config import (
    Config,
    DataConfig,
    KLConfig,
    ModelConfig,
    OptimConfig,
    StageConfig,
    replace,
)
from fastvae.configio import from_dict, option_names, parse_options, read_toml, to_dict, to_toml
from fastvae.errors import UserError, nearest
from fastvae.presets import get_preset, list_presets, preset
from fastvae.presets.registry import describe_preset
from fastvae.run import config_text, read_config
from fastvae.start import parse_train

# A list of stages is changed item by item where a preset has one, and capacity is for the ELBO
# only, while here every option changes.
APART = ("stages", "objective.capacity")
OPTIONS = [name for name in option_names(Config) if name not in APART]

# A value other than the default for every option, as words on the command line and as a field.
OTHER: dict[str, tuple[Sequence[str], Any]] = {
    "preset": (["mine"], "mine"),
    "name": (["a run"], "a run"),
    "out": (["else where"], "else where"),
    "data.root": (["/some where"], "/some where"),
    "model.encoder": (["mlp"], "mlp"),
    "model.decoder": (["mlp"], "mlp"),
    "model.prior": (["other"], "other"),
    "model.likelihood": (["other"], "other"),
    "model.image-shape": (["3", "64", "32"], (3, 64, 32)),
    "model.channels": (["8", "16", "24"], (8, 16, 24)),
    "model.hidden": (["99"], (99,)),
    "model.kind": (["other"], "other"),
    "model.commitment": (["0.5"], 0.5),
    "model.clamp-mean": (["-3", "3"], (-3.0, 3.0)),
    "model.clamp-logvar": (["-9", "2"], (-9.0, 2.0)),
    "model.arch-encode": (["8", "3", "2", "1"], ((8, 3, 2, 1),)),
    "model.arch-decode": (["8", "3", "2", "1", "4", "5", "1", "1"], ((8, 3, 2, 1), (4, 5, 1, 1))),
    "data.dataset": (["mnist"], "mnist"),
    "strokes.categories": (["cat", "hot dog"], ("cat", "hot dog")),
    "data.urls": (["a-{0..3}.tar", "b.tar"], ("a-{0..3}.tar", "b.tar")),
    "strokes.shown": (["0.25", "0.75"], (0.25, 0.75)),
    "kl.schedule": (["piecewise"], "piecewise"),
    "kl.points": (["0", "0.25", "5", "1"], ((0.0, 0.25), (5.0, 1.0))),
    "optim.schedule": (["piecewise"], "piecewise"),
    "optim.rates": (["1", "0.25", "5", "1"], ((1.0, 0.25), (5.0, 1.0))),
}


def field_of(config: Config, option: str) -> Any:
    value: Any = config
    for part in option.replace("-", "_").split("."):
        value = getattr(value, part)
    return value


def other_value(option: str, hint: Any) -> tuple[list[str], Any]:
    """Words that change an option, and the value that they stand for."""
    if option in OTHER:
        words, value = OTHER[option]
        return [f"--{option}", *words], value
    default = field_of(Config(), option)
    if hint is bool:
        section, dot, name = option.rpartition(".")
        return [f"--{section}{dot}{'no-' if default else ''}{name}"], not default
    if hint is int:
        return [f"--{option}", str(default + 1)], default + 1
    if hint is float:
        return [f"--{option}", repr(default / 2 + 0.125)], default / 2 + 0.125
    choice = next(c for c in get_args(hint) if c != default)
    return [f"--{option}", choice], choice


def all_changed() -> tuple[Config, list[str], dict[str, Any]]:
    """A configuration that differs from the defaults in every field."""
    words: list[str] = []
    values: dict[str, Any] = {}
    for option in OPTIONS:
        more, values[option] = other_value(option, option_names(Config)[option])
        words += more
    config = parse_options(Config, Config(), words, prog="test", about="")
    return config, words, values


def fails(function: Any, *args: Any) -> str:
    """The one line of the UserError that the call raises."""
    with pytest.raises(UserError) as error:
        function(*args)
    said = str(error.value)
    assert "\n" not in said
    return said


def write(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# ------------------------------------------------------------------------------------------ values
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 0}, "epochs = 0"),
        ({"batch_size": -1}, "batch_size = -1"),
        ({"accumulate": 0}, "accumulate = 0"),
        ({"max_steps": -1}, "max_steps = -1"),
        ({"threads": -1}, "threads = -1"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed = 9223372036854775808"),
        ({"name": "a/b"}, "name = 'a/b'"),
        ({"name": ".."}, "name = '..'"),
        ({"model__latent_dim": 0}, "model.latent_dim = 0"),
        ({"model__image_shape": (1, 0, 8)}, "model.image_shape"),
        ({"model__image_shape": (8, 8)}, "model.image_shape"),
        ({"model__channels": ()}, "model.channels"),
        ({"model__channels": (8, -8)}, "model.channels"),
        ({"model__hidden": (3, 0)}, "model.hidden"),
        ({"model__clamp_mean": (1.0, 1.0)}, "model.clamp_mean"),
        ({"model__arch_encode": ((8, 3, 0, 1),)}, "model.arch_encode, layer 1 = (8, 3, 0, 1)"),
        ({"model__conditioning": "film"}, "model.conditioning = 'film' but there is no condition"),
        ({"model__prior": "conditional"}, "needs something to depend on"),
        ({"objective__kind": "iwae"}, "set --objective.samples 50"),
        ({"objective__kind": "mmd", "objective__capacity": 3.0}, "objective.capacity is for"),
        ({"stages": (StageConfig(),), "max_steps": 3}, "max_steps = 3 with stages"),
        (
            {"model__likelihood": "continuous_bernoulli", "data__binarize": "static"},
            "set --data.binarize none (now 'static')",
        ),
        ({"optim__encoder_rate": 0.0}, "optim.encoder_rate = 0.0"),
        ({"model__hidden_blocks": -1}, "model.hidden_blocks = -1"),
        ({"model__input_std": 0.0}, "model.input_std = 0.0"),
        ({"model__dropout": 1.0}, "model.dropout = 1.0"),
        ({"model__dropout": float("nan")}, "model.dropout = nan"),
        ({"data__threshold": 1.0}, "data.threshold = 1.0"),
        ({"data__threshold": -0.1}, "data.threshold = -0.1"),
        ({"data__val_fraction": 0.0}, "data.val_fraction = 0.0"),
        ({"data__val_fraction": float("nan")}, "data.val_fraction = nan"),
        ({"data__test_fraction": 1.0}, "data.test_fraction = 1.0"),
        ({"data__val_fraction": 0.6, "data__test_fraction": 0.6}, "1.2: expected less than 1"),
        ({"kl__beta": -1.0}, "kl.beta = -1.0"),
        ({"kl__beta": float("inf")}, "kl.beta = inf"),
        ({"kl__free_bits": float("nan")}, "kl.free_bits = nan"),
        ({"kl__cycles": 0}, "kl.cycles = 0"),
        ({"kl__ramp": 0.0}, "kl.ramp = 0.0"),
        ({"kl__schedule": "linear"}, "kl.warmup = 0.0"),
        ({"kl__schedule": "piecewise"}, "kl.points"),
        ({"kl__schedule": "piecewise", "kl__points": ((2.0, 1.0), (1.0, 1.0))}, "ascending"),
        ({"kl__points": ((0.0, 1.0),)}, "set kl.schedule=piecewise"),
        ({"optim__lr": 0.0}, "optim.lr = 0.0"),
        ({"optim__lr": float("inf")}, "optim.lr = inf"),
        ({"optim__lr": float("nan")}, "optim.lr = nan"),
        ({"optim__beta1": 1.0}, "optim.beta1 = 1.0"),
        ({"optim__ema_decay": 1.0}, "optim.ema_decay = 1.0"),
        ({"optim__weight_decay": -0.1}, "optim.weight_decay = -0.1"),
        ({"optim__period": 0.0}, "optim.period = 0.0"),
        ({"optim__gamma": 1.5}, "optim.gamma = 1.5"),
        ({"optim__max_nonfinite": 0}, "optim.max_nonfinite = 0"),
        ({"log__every": 0}, "log.every = 0"),
        ({"log__eval_every": 0.0}, "log.eval_every = 0.0"),
        ({"log__image_every": -1.0}, "log.image_every = -1.0"),
        ({"log__images": 0}, "log.images = 0"),
        ({"checkpoint__every": -1}, "checkpoint.every = -1"),
        ({"checkpoint__keep": 1}, "checkpoint.keep = 1"),
    ],
)
def test_values_out_of_range(changes: dict[str, Any], expected: str) -> None:
    said = fails(lambda: replace(Config(), **changes))
    assert expected in said


def test_configurations_are_frozen_and_keyword_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        ModelConfig("conv")  # type: ignore[call-arg]


def test_replace() -> None:
    config = replace(Config(), epochs=3, optim__lr=0.5, optim__beta1=0.5, kl__beta=2.0)
    assert (config.epochs, config.optim.lr, config.optim.beta1, config.kl.beta) == (3, 0.5, 0.5, 2)
    assert config.optim.beta2 == OptimConfig().beta2
    assert Config() == Config(optim=OptimConfig(), kl=KLConfig(), data=DataConfig())


# -------------------------------------------------------------------------------------------- TOML
@pytest.mark.parametrize("name", list_presets())
def test_toml_round_trip_of_presets(tmp_path: Path, name: str) -> None:
    config = get_preset(name)
    assert config.preset == name
    path = Path(write(tmp_path, to_toml(to_dict(config))))
    assert read_config(path) == config
    assert parse_train([str(path)]) == config


def test_toml_round_trip_of_every_field(tmp_path: Path) -> None:
    config, _, _ = all_changed()
    assert from_dict(Config, to_dict(config)) == config
    assert read_config(Path(write(tmp_path, to_toml(to_dict(config))))) == config


def test_toml_round_trip_of_stages(tmp_path: Path) -> None:
    kl = KLConfig(schedule="lines", points=((0.0, 0.0), (1.0, 0.5), (1.0, 2.0)))
    stages = (StageConfig(epochs=3, kl=kl), StageConfig(lr=0.5, freeze=("encoder",), load="best"))
    config = replace(Config(), stages=stages)
    assert read_config(Path(write(tmp_path, to_toml(to_dict(config))))) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[stages]]\nepoch = 3", "unknown key stages.0.epoch; nearest: epochs"),
        ("[[stages]]\n[[stages]]\nlr = 0.0", "stages.lr = 0.0"),
        ("[[stages]]\n[[stages]]\nlr = 'a'", "stages.1.lr = 'a': expected a number"),
        ("[[stages]]\nfreeze = ['encodr']", "stages.freeze = ('encodr',)"),
        ("[stages]\nlr = 1.0", "stages = {'lr': 1.0}: expected a list"),
    ],
)
def test_mistakes_in_stages(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, f'preset = "digits"\n{text}\n')
    assert expected in fails(parse_train, [path])


def test_stages_on_the_command_line(tmp_path: Path) -> None:
    text = 'preset = "digits"\n[[stages]]\nepochs = 3\n[[stages]]\nfreeze = ["encoder"]\n'
    path = write(tmp_path, text)
    words = ["--stages.0.epochs", "7", "--stages.1.kl.beta", "0.5", "--stages.1.freeze", "decoder"]
    config = parse_train([path, *words])
    assert [s.epochs for s in config.stages] == [7, 10]
    assert [s.kl.beta for s in config.stages] == [1.0, 0.5]
    assert config.stages[1].freeze == ("decoder",)
    for word in ("--lr", "--epochs", "--kl.beta"):
        said = fails(parse_train, [path, word, "4"])
        assert "has no effect on a training in 2 stages" in said
        assert "--stages.0." in said


STRINGS = [
    "",
    " ",
    'quote " and \\ backslash',
    "\\",
    "\\u0041",
    "ends with \\",
    '"""',
    "'''",
    "line\nbreak\r\nand\ttab",
    "".join(map(chr, range(32))) + "\x7f\x80\x85\xa0",
    "gr\u00fc\u00dfe \u65e5\u672c \U0001f600 e\u0301",
    "\u2028\u2029\ufeff\ufffd",
    "# no comment",
    "[section]",
    "a = 1",
    "{path} %s $HOME",
]


@pytest.mark.parametrize("text", STRINGS)
def test_toml_round_trip_of_odd_strings(tmp_path: Path, text: str) -> None:
    config = replace(Config(), out=text, data__root=text + "x")
    path = Path(write(tmp_path, to_toml(to_dict(config))))
    assert read_config(path) == config


@pytest.mark.parametrize(
    "value", [1e-300, 1e300, 5e-324, 0.1 + 0.2, 1e16, 1e-5, 123456789.123456789, 1.0, float("inf")]
)
def test_toml_round_trip_of_numbers(tmp_path: Path, value: float) -> None:
    config = replace(Config(), optim__period=value, seed=2**63 - 1, model__hidden=(1, 2, 3))
    assert read_config(Path(write(tmp_path, to_toml(to_dict(config))))) == config


def test_run_config_leaves_out_what_belongs_to_one_invocation(tmp_path: Path) -> None:
    config = replace(get_preset("digits"), name="this-one", resume=True, epochs=3)
    got = parse_train([write(tmp_path, config_text(config), "config.toml")])
    assert got == replace(config, name="", resume=False)


def test_toml_integers_stand_for_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "[optim]\nlr = 1\n[kl]\nschedule='piecewise'\npoints=[[0, 1], [2, 3]]\n")
    config = parse_train([path])
    assert type(config.optim.lr) is float
    assert config.kl.points == ((0.0, 1.0), (2.0, 3.0))
    assert all(type(x) is float for point in config.kl.points for x in point)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epoch = 3", "unknown key epoch; nearest: epochs"),
        ("[modle]\nlatent_dim = 3", "unknown key modle; nearest: model"),
        ("[model]\nlatnt_dim = 3", "unknown key model.latnt_dim; nearest: latent_dim"),
        ("[optim]\nlearning = 3", "unknown key optim.learning"),
        ("[kl]\nbeta = 'one'", "kl.beta = 'one': expected a number"),
        ("[kl]\nbeta = true", "kl.beta = True: expected a number"),
        ("epochs = 1.5", "epochs = 1.5: expected an integer"),
        ("epochs = true", "epochs = True: expected an integer"),
        ("epochs = '3'", "epochs = '3': expected an integer"),
        ("resume = 1", "resume = 1: expected true or false"),
        ("out = 3", "out = 3: expected a string"),
        ("preset = 3", "preset = 3: expected a string"),
        ("out = 1979-05-27", "out = datetime.date(1979, 5, 27): expected a string"),
        ("device = 'gpu'", "device = 'gpu': expected one of auto, cpu, cuda"),
        ("[data]\nbinarize = 3", "data.binarize = 3: expected one of none, threshold"),
        ("model = 3", "model = 3: expected a section [model]"),
        ("[[model]]\nhidden = [3]", "expected a section [model]"),
        ("[model.hidden]\na = 3", "model.hidden = {'a': 3}: expected a list"),
        ("[model]\nhidden = 3", "model.hidden = 3: expected a list"),
        ("[model]\nhidden = [3, 'x']", "model.hidden = 'x': expected an integer"),
        ("[model]\nimage_shape = [1, 8]", "model.image_shape = [1, 8]: expected 3 values"),
        ("[kl]\npoints = [[0, 1], [2]]", "kl.points = [2]: expected 2 values"),
        ("[kl]\npoints = [1, 2]", "kl.points = 1: expected a list"),
        ("[optim]\nlr = -1", "optim.lr = -1.0: expected more than 0"),
        ("epochs = 0", "epochs = 0: expected 1 or more"),
        ("epochs = ", "is not valid TOML"),
        ("epochs = 1\nepochs = 2", "is not valid TOML"),
        ("epochs: 3", "is not valid TOML"),
    ],
)
@pytest.mark.parametrize("head", ["", "preset = 'mnist'\n"])
def test_toml_mistakes(tmp_path: Path, head: str, text: str, expected: str) -> None:
    if head and text.startswith("preset"):
        head = ""
    path = write(tmp_path, head + text)
    said = fails(parse_train, [path])
    assert said.startswith(path)
    assert expected in said


def test_toml_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert f"no such file: {missing}" in fails(parse_train, [str(missing)])
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00epochs")
    assert f"{binary} is not valid TOML" in fails(parse_train, [str(binary)])
    assert "is not a run folder" in fails(parse_train, [str(tmp_path)])
    assert read_toml(Path(write(tmp_path, ""))) == {}


def test_partial_file_is_filled_from_its_preset(tmp_path: Path) -> None:
    path = write(tmp_path, "preset = 'mnist'\nepochs = 3\n[optim]\nlr = 0.5\n")
    config = parse_train([path])
    assert config == replace(get_preset("mnist"), epochs=3, optim__lr=0.5)
    assert config.optim.clip_norm == 50.0  # the rest of a section that the file touches


def test_file_without_preset_is_filled_with_defaults(tmp_path: Path) -> None:
    config = parse_train([write(tmp_path, "epochs = 3\n", "faces.toml")])
    assert config == Config(preset="faces", epochs=3)


def test_precedence_preset_file_command_line(tmp_path: Path) -> None:
    path = write(tmp_path, "preset = 'mnist'\nepochs = 3\nbatch_size = 32\n[optim]\nlr = 0.5\n")
    config = parse_train([path, "--epochs", "7", "--optim.lr", "0.25"])
    assert config == replace(get_preset("mnist"), epochs=7, batch_size=32, optim__lr=0.25)


def test_run_folder_stands_for_its_run(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    write(folder, config_text(replace(get_preset("digits"), epochs=4)), "config.toml")
    config = parse_train([str(folder), "--seed", "3"])
    expected = replace(get_preset("digits"), epochs=4, seed=3, name="old", out=str(folder.parent))
    assert config == expected


# ----------------------------------------------------------------------------------------- options
def test_every_option_changes_its_field() -> None:
    config, words, values = all_changed()
    assert list(values) == OPTIONS
    for option, value in values.items():
        assert field_of(config, option) == value, option
        assert field_of(Config(), option) != value, option
    assert parse_options(Config, Config(), [], prog="test", about="") == Config()
    assert parse_options(Config, config, [], prog="test", about="") == config
    assert len(words) > len(OPTIONS)


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        (["--optim.lr", "1e-4"], {"optim__lr": 1e-4}),
        (["--lr", "1e-4"], {"optim__lr": 1e-4}),
        (["--lr=1e-4"], {"optim__lr": 1e-4}),
        (["--model.latent_dim", "7"], {"model__latent_dim": 7}),
        (["--latent-dim=7"], {"model__latent_dim": 7}),
        (["--latent_dim=7"], {"model__latent_dim": 7}),
        (["--batch_size", "32"], {"batch_size": 32}),
        (["--no-tensorboard"], {"log__tensorboard": False}),
        (["--log.no-tensorboard"], {"log__tensorboard": False}),
        (["--no-tf32", "--compile"], {"tf32": False, "compile": True}),
        (["--no-channels_last"], {"channels_last": False}),
        (["--no-tensorboard", "--tensorboard"], {}),
        (["--name=a=b"], {"name": "a=b"}),
        (["--name=--a"], {"name": "--a"}),
        (["--name", ""], {"name": ""}),
        (["--hidden", "4", "5", "6"], {"model__hidden": (4, 5, 6)}),
        (["--lr", "1", "--lr", "2"], {"optim__lr": 2.0}),
        (["--input-mean", "-0.5"], {"model__input_mean": -0.5}),
        (["--input-mean", "-.5"], {"model__input_mean": -0.5}),
        (["--input-mean=-5e-1"], {"model__input_mean": -0.5}),
    ],
)
def test_options(words: list[str], changes: dict[str, Any]) -> None:
    assert parse_train(["digits", *words]) == replace(get_preset("digits"), **changes)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--schedule", "cosine"], "--schedule is ambiguous: --kl.schedule, --optim.schedule"),
        (["--every", "3"], "--every is ambiguous: --log.every, --checkpoint.every"),
        (["--modle.latent-dim", "3"], "unknown option --modle.latent-dim; nearest: --model.latent"),
        (["--lrr", "3"], "unknown option --lrr; nearest: --optim.lr"),
        (["--bach_size=3"], "unknown option --bach_size; nearest: --batch-size"),
        (["--no-lr"], "unknown option --no-lr"),
        (["--model", "3"], "unknown option --model"),
        (["--"], "unknown option --"),
        (["-x", "3"], "unknown option -x (options start with two hyphens"),
        (["mnist"], "unexpected word 'mnist'"),
        (["lr=3"], "unexpected word 'lr=3'"),
        (["--lr"], "--optim.lr"),
        (["--lr", "--epochs", "3"], "--optim.lr"),
        (["--lr", "fast"], "--optim.lr: could not convert string to float: 'fast'"),
        (["--lr", "1", "2"], "2"),
        (["--epochs", "1.5"], "--epochs: invalid literal for int"),
        (["--image-shape", "1", "8"], "--model.image-shape"),
        (["--points", "1", "2", "3"], "--kl.points"),
        (["--hidden", "a"], "--model.hidden"),
        (["--resume", "yes"], "yes"),
        (["--device", "gpu"], "'gpu' for argument '--device'"),
        (["--binarize", "dynamc"], "'dynamic'"),
        (["--lr", "-1"], "optim.lr = -1.0: expected more than 0"),
        (["--val-fraction", "2"], "data.val_fraction = 2.0: expected a share between 0 and 1"),
        (["--name", "a/b"], "a folder name without slashes"),
        (["--seed", str(2**63)], "expected 0 <= seed < 2^63"),
    ],
)
@pytest.mark.parametrize("columns", ["20", "200"])
def test_option_mistakes(
    monkeypatch: pytest.MonkeyPatch, columns: str, words: list[str], expected: str
) -> None:
    """One line, whatever the width of the terminal."""
    monkeypatch.setenv("COLUMNS", columns)
    said = fails(parse_train, ["digits", *words])
    assert expected in said
    assert not set("\u2502\u256d\u256e\u2500") & set(said), "remains of a frame"


def test_words_before_the_preset() -> None:
    said = fails(parse_train, ["--lr", "3"])
    assert "the preset comes first" in said
    assert "digits" in said


# -------------------------------------------------------------------------------------------- help
def squash(text: str) -> str:
    """Without white space and frames, so that line breaks in the help do not matter."""
    return re.sub(r"[\s\u2500-\u257f]", "", text)


def help_text(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse_train(list(args))
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert not said.err
    return said.out


def documented_fields() -> dict[str, str]:
    """Dotted option name -> docstring below the field, from the source text."""
    tree = ast.parse(inspect.getsource(config_module))
    documents: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        documents[node.name] = {}
        for item, below in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                text = ""
                if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                    text = str(below.value.value)
                documents[node.name][item.target.id] = text
    names: dict[str, str] = {}
    for key, hint in get_type_hints(Config).items():
        if dataclasses.is_dataclass(hint):
            fields = documents[hint.__name__]  # type: ignore[union-attr]
            names |= {f"{key}.{k}".replace("_", "-"): text for k, text in fields.items()}
        else:
            names[key.replace("_", "-")] = documents["Config"][key]
    return {name: text for name, text in names.items() if name not in APART}


def test_every_field_has_a_docstring_that_help_shows(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    shown = squash(help_text(capsys, "digits", "--help"))
    documents = documented_fields()
    assert list(documents) == OPTIONS
    for option, text in documents.items():
        assert text.endswith("."), f"{option} has no docstring, or not a sentence"
        assert squash(text) in shown, option
        assert f"--{option}" in shown


def test_help_shows_the_defaults_of_the_preset(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    documents = documented_fields()
    for args, config in (
        (["--help"], Config()),
        (["mnist", "--lr", "9", "--help"], get_preset("mnist")),
    ):
        shown = squash(help_text(capsys, *args))
        for option, text in documents.items():
            default = field_of(config, option)
            words = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            assert squash(f"{text} (default: {words or repr(words)})") in shown or (
                default in ("", ()) and squash(f"{text} (default:") in shown
            ), option


@pytest.mark.parametrize("args", [[], ["-h"], ["--help"], ["digits", "-h"]])
def test_help_lists_the_presets(capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    shown = squash(help_text(capsys, *args))
    for name, line in list_presets().items():
        assert squash(name + line) in shown


# ----------------------------------------------------------------------------------------- presets
@pytest.mark.parametrize("name", list_presets())
def test_presets_say_how_to_run_them(name: str) -> None:
    text = describe_preset(name)
    assert text.strip().splitlines()[0].endswith(".")
    assert f"fastvae train {name}" in text


def test_unknown_preset_names_the_nearest() -> None:
    said = fails(parse_train, ["mnits"])
    assert said == "unknown preset 'mnits'; nearest: mnist, mnist-vq"
    assert fails(get_preset, "zzz") == "unknown preset 'zzz'; `fastvae presets` lists them"


def test_presets_are_registered_once_and_documented() -> None:
    def digits() -> Config:
        """Another one."""
        return Config()

    def undocumented() -> Config:
        return Config()

    with pytest.raises(ValueError, match="registered twice"):
        preset(digits)
    with pytest.raises(ValueError, match="no docstring"):
        preset(undocumented)


def test_nearest() -> None:
    assert nearest("latnt", ["latent", "patent", "other"]) == "; nearest: latent, patent"
    assert nearest("zzz", ["a", "b"]) == "; known: a, b"
    assert nearest("zzz", list(map(str, range(100)))) == ""


# ----------------------------------------------------------------- files in other programs' forms
ARCH = '{"name": "mine", "input": [28, 28, 1], "latent": 12, "encode": [[32, 3, 2], [64, 3, 2]]}'


def test_files_change_the_preset_and_options_change_that(tmp_path: Path) -> None:
    path = write(tmp_path, ARCH, "my.json")
    config = parse_train(["arch", "--lr", "0.5", "--arch", path, "--model.latent-dim", "3"])
    assert config.model.arch_encode == ((32, 3, 2, 2), (64, 3, 2, 2))
    assert (config.name, config.model.latent_dim, config.optim.lr) == ("mine", 3, 0.5)
    assert parse_train(["arch", f"--arch={path}"]).model.latent_dim == 12
    ini = write(tmp_path, "[MODEL_PARAMETERS]\nlr = 0.25\n", "config.ini")
    assert parse_train(["mnist-genzoo", "--ini", ini]).optim.lr == 0.25
    for words in (["--arch"], ["--arch", "--lr", "1"], ["--ini="]):
        assert "needs the path of a file" in fails(parse_train, ["arch", *words])
