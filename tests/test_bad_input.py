"""Bad input ends with exit code 2 and one line that names the thing and the fix."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from launch import run

from fastvae.cli import main


def fails(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """Run a command in this process; return its one line on stderr."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    lines = [line for line in said.splitlines() if not line.startswith("warning:")]
    assert len(lines) == 1, said
    assert lines[0].startswith("fastvae: error: ")
    return lines[0]


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """A small data set in the form of MNIST."""
    root = tmp_path / "mnist"
    root.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 50)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write_idx(root / f"{part}-images-idx3-ubyte.gz", images)
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        write_idx(root / f"{part}-labels-idx1-ubyte.gz", labels)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short finished run."""
    out = tmp_path_factory.mktemp("runs")
    words = ("--max-steps", "6", "--checkpoint.every", "2", "--log.no-tensorboard")
    run("digits", "--out", out, "--name", "run", *words)
    return out / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run to damage."""
    return Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("train", "mnits"), "unknown preset 'mnits'; nearest: mnist"),
        (("train", "digits", "--modle.latent-dim", "3"), "nearest: --model.latent-dim"),
        (("train", "digits", "--optimizer", "sgd"), "invalid choice 'sgd'"),
        (("train", "digits", "--optim.lr", "fast"), "could not convert string to float"),
        (("train", "digits", "--epochs", "0"), "epochs = 0: expected 1 or more"),
        (("train", "digits", "--batch-size", "5000"), "is larger than the training set of 1446"),
        (("train", "digits", "--model.encoder", "conf"), "unknown model.encoder 'conf'"),
        (("train", "digits", "--model.image-shape", "1", "9", "9"), "--model.image-shape 1 8 8"),
        (("train", "digits", "--data.dataset", "digit"), "nearest: digits"),
        (("train", "missing.toml"), "no such file: missing.toml"),
        (("train", "--lr", "1"), "the preset comes first"),
        (("train", "digits", "--kl.points", "1", "2"), "set kl.schedule=piecewise"),
        (("trian", "digits"), "unknown command 'trian'; nearest: train"),
        (("evaluate", "nowhere"), "neither a run folder nor a checkpoint"),
        (("train", "digits", "--optimizer", "apex_adam"), "NVIDIA"),
    ],
)
def test_words(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in fails(capsys, *words)
    left = [p for p in tmp_path.rglob("*") if p.name != "runs"]
    assert not left, f"a failed start leaves {left} behind"


def truncate(root: Path) -> str:
    path = root / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:5000])
    return str(path)


def mismatch(root: Path) -> str:
    write_idx(root / "train-labels-idx1-ubyte.gz", np.zeros(299, np.uint8))
    return "300 images but"


def not_idx(root: Path) -> str:
    (root / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"<html>moved</html>"))
    return "is not an idx file"


def removed(root: Path) -> str:
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    return "t10k-labels-idx1-ubyte.gz is missing"


def no_folder(root: Path) -> str:
    shutil.rmtree(root)
    return "does not exist"


@pytest.mark.parametrize("damage", [truncate, mismatch, not_idx, removed, no_folder])
def test_data_files(
    capsys: pytest.CaptureFixture[str],
    mnist: Path,
    tmp_path: Path,
    damage: Callable[[Path], str],
) -> None:
    expected = damage(mnist)
    line = fails(capsys, "train", "mnist", "--data.root", mnist, "--out", tmp_path / "runs")
    assert expected in line
    if damage is not not_idx:
        assert f"fastvae-data download mnist --root {mnist}" in line
    assert not list((tmp_path / "runs").iterdir())


def test_resume_with_a_changed_model(capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    words = ("train", "digits", "--out", copied.parent, "--name", "run", "--resume")
    line = fails(capsys, *words, "--model.latent-dim", "7")
    assert "model.latent_dim is 7 but" in line
    assert "was trained with 10" in line
    assert "--name" in line


def test_resume_with_a_changed_stream(capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    line = fails(capsys, "train", copied, "--resume", "--batch-size", "32")
    assert "batch_size is 32 but" in line


def test_resume_with_another_optimizer(capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    before = (copied / "config.toml").read_text()
    for _ in range(2):  # the second start in this process: the first has let go of the folder
        line = fails(capsys, "train", copied, "--resume", "--optimizer", "rmsprop")
        assert "optim.optimizer is 'rmsprop' but" in line
    assert (copied / "config.toml").read_text() == before, "a failed start changes nothing"


def test_resume_when_every_checkpoint_is_damaged(
    capsys: pytest.CaptureFixture[str], copied: Path
) -> None:
    for file in copied.glob("checkpoints/step-*/state.pt"):
        file.write_bytes(b"")
    line = fails(capsys, "train", copied, "--resume")
    assert "no undamaged checkpoint" in line
    assert "state.pt" in line


@pytest.mark.parametrize("name", ["model.safetensors", "config.toml", "meta.json"])
def test_evaluating_a_damaged_checkpoint(
    capsys: pytest.CaptureFixture[str], copied: Path, name: str
) -> None:
    file = (copied / "checkpoints" / "best").resolve() / name
    file.write_bytes(file.read_bytes()[:-20])
    line = fails(capsys, "evaluate", copied)
    assert "is damaged" in line
    assert name in line


def test_same_name_twice(capsys: pytest.CaptureFixture[str], copied: Path) -> None:
    line = fails(capsys, "train", "digits", "--out", copied.parent, "--name", "run")
    assert "already exists: add --resume" in line


def test_one_line_under_torchrun(tmp_path: Path) -> None:
    """Two ranks fail alike; the sentence is said once (torchrun adds a report of its own)."""
    done = run("digits", "--batch-size", "63", "--out", tmp_path, ranks=2, code=None)
    assert done.returncode != 0
    assert done.stderr.count("cannot be split over 2 ranks") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('preset = "mnits"\n', "unknown preset 'mnits'; nearest: mnist"),
        ('preset = ["mnist"]\n', "preset = ['mnist']: expected a string"),
        ("lr = 3\n", "unknown key lr; it belongs to optim.lr"),
        ("[optim]\nlrr = 3\n", "unknown key optim.lrr; nearest: lr"),
        ('[optim]\nlr = "x"\n', "optim.lr = 'x': expected a number"),
        ("optim = 3\n", "optim = 3: expected a section [optim]"),
        ("[optim\n", "is not valid TOML"),
    ],
)
def test_toml_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, expected: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    line = fails(capsys, "train", path, "--out", tmp_path / "runs")
    assert expected in line
    assert str(path) in line


@pytest.mark.parametrize("size", [3, 9, 15, 16, 100])
def test_cut_headers(capsys: pytest.CaptureFixture[str], mnist: Path, size: int) -> None:
    path = mnist / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:size]))
    assert str(path) in fails(capsys, "train", "mnist", "--data.root", mnist)
    path.write_bytes(gzip.compress(struct.pack(">BBBB4I", 0, 0, 8, 4, *(65536,) * 4)))
    assert str(path) in fails(capsys, "train", "mnist", "--data.root", mnist)


def test_no_images(capsys: pytest.CaptureFixture[str], mnist: Path) -> None:
    write_idx(mnist / "train-images-idx3-ubyte.gz", np.zeros((0, 28, 28), np.uint8))
    write_idx(mnist / "train-labels-idx1-ubyte.gz", np.zeros(0, np.uint8))
    assert "split is empty" in fails(capsys, "train", "mnist", "--data.root", mnist)
