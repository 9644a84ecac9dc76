"""GenZoo's config.ini: every key of the original, and mistakes that name the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastvae.config import Config
from fastvae.errors import UserError
from fastvae.ini_file import with_ini
from fastvae.presets import get_preset

# Sections, keys and values of the original's configs/mnist.ini.
ORIGINAL = """
[MODEL_PARAMETERS]
lr = 1e-3
epochs = 100
batch_size = 50

[MODEL_VARIABLES]
exp_name = mnist
dataset = mnist
gpu = 0
z_dim = 20
t_sne_points = 3000

[SAVE_PARAMETERS]
model_save_frequency = 10
image_print_frequency = 10
"""


def read(folder: Path, text: str, config: Config | None = None) -> Config:
    path = folder / "config.ini"
    path.write_text(text, encoding="utf-8")
    return with_ini(config or get_preset("mnist-genzoo"), path)


def fails(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as error:
        read(folder, text)
    said = str(error.value)
    assert "\n" not in said
    assert "config.ini" in said
    return said


def test_the_original_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = get_preset("mnist-genzoo")
    config = read(tmp_path, ORIGINAL)
    # What the preset takes from the original is what the original's file says.
    assert (config.model, config.optim, config.data) == (before.model, before.optim, before.data)
    assert (config.epochs, config.batch_size, config.name) == (100, 50, "mnist")
    assert config.device == "cpu"
    assert (config.log.eval_every, config.log.image_every) == (10.0, 10.0)
    assert (config.checkpoint.every, config.checkpoint.keep) == (0, 10)
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "t_sne_points = 3000 has no effect" in said


def test_other_values_arrive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (
        ORIGINAL.replace("1e-3", "2.5e-4")
        .replace("100", "7")
        .replace("= 50", "= 32")
        .replace("= mnist", "= other", 1)
        .replace("= mnist", "= cifar", 1)
        .replace("gpu = 0", "gpu = 1")
        .replace("= 20", "= 3")
        .replace("model_save_frequency = 10", "model_save_frequency = 2")
        .replace("image_print_frequency = 10", "image_print_frequency = 5")
    )
    config = read(tmp_path, text)
    assert config.optim.lr == 2.5e-4
    assert (config.epochs, config.batch_size, config.name) == (7, 32, "other")
    assert (config.device, config.model.latent_dim) == ("auto", 3)
    assert (config.log.eval_every, config.log.image_every) == (2.0, 5.0)
    assert config.checkpoint.keep == 4  # after epochs 2, 4, 6 and the last one
    said = capsys.readouterr().err
    assert "dataset = cifar has no effect" in said
    assert "data.dataset is mnist" in said


def test_what_the_file_leaves_out_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = get_preset("digits")
    config = read(tmp_path, "\ufeff[MODEL_PARAMETERS]\nEPOCHS: 3\n", before)
    assert config.epochs == 3
    assert (config.optim, config.log, config.checkpoint, config.device) == (
        before.optim,
        before.log,
        before.checkpoint,
        before.device,
    )
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty: expected sections MODEL_PARAMETERS"),
        ("lr = 1\n", "no section headers"),
        ("[MODEL_PARAMETERS]\nlr\n", "not a valid ini file"),
        ("[MODEL_PARAMETERS]\nlr = 1\nlr = 2\n", "'lr'"),
        ("[MODEL_PARAMETER]\nlr = 1\n", "[MODEL_PARAMETER]; nearest: MODEL_PARAMETERS"),
        ("[DEFAULT]\nlr = 1\n", "unknown section [DEFAULT]"),
        ("[MODEL_PARAMETERS]\nepoch = 1\n", "epoch: unknown key; nearest: epochs"),
        ("[MODEL_PARAMETERS]\nzzz = 1\n", "known: lr, epochs, batch_size"),
        ("[MODEL_PARAMETERS]\nz_dim = 1\n", "z_dim: unknown key here; it belongs to [MODEL_VAR"),
        ("[MODEL_PARAMETERS]\nlr = fast\n", "lr = 'fast': expected a number"),
        ("[MODEL_PARAMETERS]\nlr = 0\n", "lr = '0': expected more than 0"),
        ("[MODEL_PARAMETERS]\nlr = nan\n", "lr = 'nan': expected more than 0"),
        ("[MODEL_PARAMETERS]\nepochs = 1.5\n", "epochs = '1.5': expected an integer"),
        ("[MODEL_PARAMETERS]\nbatch_size = 0\n", "batch_size = '0': expected 1 to"),
        ("[MODEL_VARIABLES]\ngpu = 2\n", "gpu = '2': expected 0 (train on the CPU)"),
        ("[MODEL_VARIABLES]\nexp_name = a/b\n", "exp_name = a/b: name = 'a/b': expected a folder"),
        ("[MODEL_VARIABLES]\nt_sne_points = many\n", "t_sne_points = 'many': expected an integer"),
        ("[SAVE_PARAMETERS]\nmodel_save_frequency =\n", "_frequency = '': expected an integer"),
        ("[SAVE_PARAMETERS]\nimage_print_frequency = " + "9" * 400, "expected 1 to 1000000000"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in fails(tmp_path, text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    config = get_preset("mnist-genzoo")
    with pytest.raises(UserError, match=r"no such file: .*missing\.ini"):
        with_ini(config, tmp_path / "missing.ini")
    with pytest.raises(UserError, match="cannot read"):
        with_ini(config, tmp_path)
    (tmp_path / "binary.ini").write_bytes(b"[MODEL_PARAMETERS]\nlr = \xff\xfe\n")
    with pytest.raises(UserError, match=r"binary\.ini is not a text file"):
        with_ini(config, tmp_path / "binary.ini")
