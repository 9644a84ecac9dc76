"""The command line as a user meets it: words in, one line and an exit code out."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastvae
from fastvae.cli import COMMANDS, main
from fastvae.command import run_command
from fastvae.errors import Diverged, Stopped, UserError
from fastvae.optional import require, require_apex
from fastvae.presets import get_preset, list_presets
from fastvae.run import read_config

Capture = pytest.CaptureFixture[str]


def ends(capsys: Capture, code: int, *words: str) -> str:
    """Run ``fastvae words`` in this process, check its exit code, return what it printed."""
    try:
        main(list(words))
        ended: object = 0  # a console script that returns None exits with 0
    except SystemExit as stop:
        ended = stop.code
    said = capsys.readouterr()
    assert ended == code, said.err
    if code == 0:
        assert not said.err
        return said.out
    assert not said.out
    assert said.err.endswith("\n")
    assert len(said.err.splitlines()) == 1, said.err
    assert said.err.startswith("fastvae: error: ")
    return said.err.removeprefix("fastvae: error: ").rstrip("\n")


# ---------------------------------------------------------------------------------------- commands
@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_names_every_command(capsys: Capture, words: list[str]) -> None:
    out = ends(capsys, 0, *words)
    for name, (module, line) in COMMANDS.items():
        assert f"{name} " in out
        assert line in out
        assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(capsys: Capture, command: str) -> None:
    assert f"usage: fastvae {command}" in ends(capsys, 0, command, "--help")


def test_version(capsys: Capture) -> None:
    assert ends(capsys, 0, "--version").strip() == fastvae.__version__


def test_unknown_command(capsys: Capture) -> None:
    assert ends(capsys, 2, "trian") == "unknown command 'trian'; nearest: train"
    assert "train" in ends(capsys, 2, "--lr", "3")
    assert "''" in ends(capsys, 2, "")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["mnits"], "unknown preset 'mnits'; nearest: mnist, mnist-vq"),
        (["digits", "--lrr", "3"], "unknown option --lrr; nearest: --optim.lr"),
        (["digits", "--schedule", "x"], "ambiguous: --kl.schedule, --optim.schedule"),
        (["digits", "--lr", "fast"], "could not convert string to float: 'fast'"),
        (["digits", "--lr"], "--optim.lr"),
        (["digits", "--lr=-1"], "optim.lr = -1.0: expected more than 0"),
        (["digits", "--epochs", "0"], "epochs = 0: expected 1 or more"),
        (["digits", "--optimizer", "sgd"], "'sgd'"),
        (["digits", "more"], "unexpected word 'more'"),
        (["--resume", "digits"], "the preset comes first"),
        (["nowhere.toml"], "no such file: nowhere.toml"),
        (["digits", "--name", "two\nlines/"], "two\\nlines/"),
        (["two\nlines"], "unknown preset 'two\\nlines'"),
    ],
)
def test_bad_words_end_in_one_line(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in ends(capsys, 2, "train", *words)
    assert not list(tmp_path.iterdir()), "a failed start leaves something behind"


def test_mistakes_in_a_file_end_in_one_line(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[model]\nlatnt_dim = 3\n")
    said = ends(capsys, 2, "train", str(path))
    assert said == f"{path}: unknown key model.latnt_dim; nearest: latent_dim, label_dim"


# ----------------------------------------------------------------------------------------- presets
def test_presets_are_listed(capsys: Capture) -> None:
    lines = ends(capsys, 0, "presets").splitlines()
    for name, first in list_presets().items():
        assert any(line.split()[0] == name and first in line for line in lines if line)
    assert {"digits", "mnist"} <= set(list_presets())


@pytest.mark.parametrize("name", list_presets())
def test_a_shown_preset_is_a_file_that_trains_it(
    capsys: Capture, tmp_path: Path, name: str
) -> None:
    out = ends(capsys, 0, "presets", name)
    assert out.startswith("# ")
    assert f"fastvae train {name}" in out
    path = tmp_path / "shown.toml"
    path.write_text(out, encoding="utf-8")
    assert read_config(path) == get_preset(name)


def test_presets_mistakes(capsys: Capture) -> None:
    assert ends(capsys, 2, "presets", "mnits") == "unknown preset 'mnits'; nearest: mnist, mnist-vq"
    assert "one name" in ends(capsys, 2, "presets", "mnist", "digits")


# -------------------------------------------------------------------------------------- exit codes
@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a  long\n line"), 2, "fastvae: error: a long line"),
        (Diverged("at step 3"), 3, "fastvae: training diverged: at step 3"),
        (Stopped("by SIGTERM"), 75, "fastvae: by SIGTERM"),
        (KeyboardInterrupt(), 130, "fastvae: interrupted"),
        (PermissionError(13, "Permission denied", "/x"), 2, "cannot write /x: Permission denied"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
    ],
)
@pytest.mark.parametrize("rank", [None, "0", "1"])
def test_errors_become_exit_codes(
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    line: str,
    rank: str | None,
) -> None:
    """All ranks exit alike; under torchrun only the first one speaks."""

    def command(args: list[str]) -> None:
        assert args == ["a", "b"]
        raise error

    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stop:
        run_command(command, ["a", "b"])
    assert stop.value.code == code
    said = capsys.readouterr().err
    if rank == "1":
        assert not said
    else:
        assert len(said.splitlines()) == 1
        assert line in said


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), OSError(9, "bad descriptor")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    def command(args: list[str]) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        run_command(command, [])
    assert raised.value is error


# -------------------------------------------------------------------------- optional dependencies
def test_require_returns_the_module() -> None:
    import json.decoder

    assert require("json.decoder", extra="x", purpose="x") is json.decoder


@pytest.mark.parametrize("module", ["ffcv", "surely_absent", "surely_absent.reader"])
def test_require_names_the_extra(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(sys.modules, "ffcv", None)  # as if it were not installed
    with pytest.raises(UserError) as error:
        require(module, extra="fast", purpose="reading .beton files", alternative="--source mapped")
    assert str(error.value) == (
        f"{module} is needed for reading .beton files and is not installed: "
        "pip install 'fastvae[fast]'; or use --source mapped"
    )
    with pytest.raises(UserError) as error:
        require(module, extra="fast", purpose="reading .beton files")
    assert str(error.value).endswith("pip install 'fastvae[fast]'")


def test_require_shows_what_an_installed_package_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package is there: telling the user to install it would send them in a circle."""
    (tmp_path / "half_there.py").write_text("import surely_not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="is installed but lacks surely_not_installed_anywhere"):
        require("half_there", extra="x", purpose="x")


class Stubs:
    """Packages written into a folder that comes first on the import path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stubs]:
    """An import path on which apex and amp_C are what the test writes, whatever is installed."""

    def forget() -> dict[str, object]:
        names = [n for n in sys.modules if n.partition(".")[0] in ("apex", "amp_C")]
        return {name: sys.modules.pop(name) for name in names}

    before = forget()
    monkeypatch.syspath_prepend(tmp_path)
    yield Stubs(tmp_path)
    forget()
    sys.modules.update(before)  # type: ignore[arg-type]


RIGHT = "class FusedAdam:\n    pass\n"
GIT = "pip install --no-build-isolation git+https://github.com/NVIDIA/apex"


def apex_error(name: str = "FusedAdam") -> str:
    with pytest.raises(UserError) as error:
        require_apex(name)
    said = str(error.value)
    assert GIT in said
    assert "\n" not in said
    return said


def test_apex_absent(monkeypatch: pytest.MonkeyPatch, stubs: Stubs) -> None:
    monkeypatch.setitem(sys.modules, "apex", None)
    said = apex_error()
    assert "NVIDIA apex is not installed" in said
    assert "FusedAdam" in said


@pytest.mark.parametrize(
    "text",
    ["", "from pyramid.session import UnencryptedCookieSessionFactoryConfig\n", "1 / 0\n"],
)
def test_apex_of_pypi(stubs: Stubs, text: str) -> None:
    """Told by what it lacks, without running it: its own import fails on current systems."""
    stubs.write({"apex/__init__.py": text, "amp_C.py": ""})
    said = apex_error()
    assert "Pyramid" in said
    assert "pip uninstall apex" in said


def test_apex_that_is_a_single_module(stubs: Stubs) -> None:
    stubs.write({"apex.py": ""})
    assert "not NVIDIA apex" in apex_error()


def nvidia(stubs: Stubs) -> None:
    stubs.write({"apex/__init__.py": "", "apex/optimizers/__init__.py": RIGHT})


def test_apex_without_its_extensions(monkeypatch: pytest.MonkeyPatch, stubs: Stubs) -> None:
    nvidia(stubs)
    monkeypatch.setitem(sys.modules, "amp_C", None)
    assert "without its CUDA extensions (amp_C)" in apex_error()


def test_apex_without_the_optimizer(stubs: Stubs) -> None:
    nvidia(stubs)
    stubs.write({"amp_C.py": ""})
    assert "has no FusedLAMB" in apex_error("FusedLAMB")


def test_apex_of_nvidia(stubs: Stubs) -> None:
    nvidia(stubs)
    stubs.write({"amp_C.py": ""})
    found = require_apex("FusedAdam")
    assert found.__name__ == "FusedAdam"
    assert found.__module__ == "apex.optimizers"
