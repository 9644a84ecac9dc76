"""``fastvae models``: every part is listed with its summary and the presets that use it."""

from __future__ import annotations

import inspect

import pytest

from fastvae.cli import main
from fastvae.models.__main__ import TABLES, users
from fastvae.presets import get_preset, list_presets

Capture = pytest.CaptureFixture[str]


def say(capsys: Capture, *words: str) -> str:
    main(["models", *words])
    said = capsys.readouterr()
    assert not said.err
    return said.out


def fails(capsys: Capture, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["models", *words])
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert not said.out
    return said.err.strip()


PARTS = [(option, name) for option, table in TABLES.items() for name in table]


def test_every_part_is_listed_under_its_option(capsys: Capture) -> None:
    out = say(capsys)
    blocks = dict(block.split("\n", 1) for block in out.split("\n\n")[:-1])
    assert list(blocks) == [f"--{option}" for option in TABLES]
    for option, name in PARTS:
        summary = (inspect.getdoc(TABLES[option][name]) or "").splitlines()[0]
        assert f"  {name:<20} {summary}\n" in blocks[f"--{option}"] + "\n"


@pytest.mark.parametrize(("option", "name"), PARTS, ids=lambda value: str(value))
def test_summaries_are_one_sentence(option: str, name: str) -> None:
    first, *rest = (inspect.getdoc(TABLES[option][name]) or "").split("\n")
    assert first.endswith("."), "the first line is not a whole sentence"
    assert not rest or rest[0] == ""
    assert len(first) <= 100


def test_presets_are_named_where_they_belong(capsys: Capture) -> None:
    out = say(capsys)
    assert "mnist" in users("model.encoder", "conv")
    assert "digits" in users("model.encoder", "mlp")
    assert "digits" not in users("model.encoder", "conv")
    assert users("model.kind", "nothing") == []
    for preset in list_presets():
        config = get_preset(preset)
        assert preset in users("model.kind", config.model.kind)
        assert preset in users("model.likelihood", config.model.likelihood)
        assert preset in users("objective.kind", config.objective.kind)
        is_vae = config.model.kind == "vae"
        assert (preset in users("model.encoder", config.model.encoder)) == is_vae
        assert preset in out


def test_one_name_is_explained_in_every_place(capsys: Capture) -> None:
    out = say(capsys, "mlp")
    for option in ("model.encoder", "model.decoder"):
        assert f"--{option} mlp\n" in out
        assert (inspect.getdoc(TABLES[option]["mlp"]) or "?") in out
    assert "Presets that use it: digits" in out
    vamp = say(capsys, "vamp")
    assert "Tomczak and Welling" in vamp
    assert "mlp" not in vamp


def test_unknown_names(capsys: Capture) -> None:
    assert "no part of a model is called 'cnov'; nearest: conv" in fails(capsys, "cnov")
    assert "takes one name, got conv mlp" in fails(capsys, "conv", "mlp")


def test_help(capsys: Capture) -> None:
    assert say(capsys, "--help").startswith("usage: fastvae models [NAME]")
