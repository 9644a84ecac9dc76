"""What the README shows works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from launch import ROOT, environment, run

from fastvae.config import Config
from fastvae.configio import parse_options
from fastvae.data.sources.ffcv import NEEDS
from fastvae.data_tools import cli as data_cli
from fastvae.evaluate import EvaluateConfig
from fastvae.export import ExportConfig
from fastvae.start import parse_train

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def shell_lines() -> list[str]:
    """The commands of the shell blocks, without their comments."""
    return [
        line.partition("  #")[0].strip() for text in blocks("bash") for line in text.splitlines()
    ]


def test_python_blocks_run_after_the_first_command(tmp_path: Path) -> None:
    run("digits", "--max-steps", "30", "--out", tmp_path / "runs")
    first, second = blocks("python")
    assert execute(first, tmp_path).count("torch.Size([") == 3
    assert "torch.Size([128])" in execute(second, tmp_path)


def execute(code: str, folder: Path) -> str:
    """Run a block of Python in a folder; returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("digits", "--max-steps", "3", "--out", tmp_path / "runs", "--log.no-tensorboard")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.json").write_text(
        '{"input": [28, 28, 1], "latent": 3, "encode": [[4, 3, 2], [8, 3, 2]]}'
    )
    (tmp_path / "config.ini").write_text("[MODEL_VARIABLES]\nz_dim = 10\n")
    seen = set()
    for line in shell_lines():
        words = shlex.split(line.replace(". .venv/bin/activate", ""))
        if not words:
            continue
        if words[0] == "make":
            targets = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{words[1]}:", targets, flags=re.MULTILINE), line
        elif words[0] == "torchrun":
            assert isinstance(parse_train(words[words.index("fastvae.train") + 1 :]), Config)
        elif words[:2] == ["fastvae", "train"]:
            assert isinstance(parse_train(words[2:]), Config)
        elif words[:2] == ["fastvae", "evaluate"]:
            parse_options(EvaluateConfig, EvaluateConfig(), words[3:], prog="", about="")
        elif words[:2] == ["fastvae", "export"]:
            parse_options(ExportConfig, ExportConfig(), words[3:], prog="", about="")
        elif words[0] == "fastvae-data":
            data_cli._parse(words[1:])
        elif words[0] in ("apt-get", "pip"):
            assert line in NEEDS  # what the error about a missing ffcv says, too
        else:
            assert words in (["fastvae", "presets"], ["fastvae", "models"]), (
                f"a command that no test covers: {line}"
            )
        seen.add(" ".join(words[:2]))
    assert {"make train", "make test", "fastvae train", "fastvae evaluate"} <= seen


def test_the_stages_are_a_training(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
    config = parse_train([str(tmp_path / "mine.toml")])
    assert [stage.freeze for stage in config.stages] == [(), ("encoder",)]


def test_files_that_are_named_exist() -> None:
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")):
        for name in re.findall(r"`((?:fastvae|kernels|data_tools|tests)/[\w/.]+)`", text):
            assert (ROOT / name).exists(), name
        for target in re.findall(r"\]\(([\w./-]+)\)", text):
            assert (ROOT / target).exists(), target
