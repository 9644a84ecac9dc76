"""Training from everything that data tools pack: the same run from each, on one rank and on two."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from launch import environment, metrics, run, weights
from sklearn.datasets import load_digits

from fastvae import evaluate
from fastvae.config import DataConfig
from fastvae.data.packed import choose
from fastvae.data_tools import cli
from fastvae.errors import UserError
from fastvae.start import parse_train
from fastvae.train import train
from tests.ffcv_here import require_ffcv
from tests.shard_cases import pack
from tests.test_idx_tool import write_idx

OPTIONS = ["digits", "--max-steps", "40", "--log.every", "5", "--log.no-tensorboard"]
FORMS = {"resident": "shards", "mapped": "shards", "beton": "beton", "webdataset": "tars"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits as idx files, shards, .beton and tars."""
    root = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    images = np.rint(digits.images * (255.0 / 16.0)).astype(np.uint8)
    (root / "idx").mkdir()
    for part, rows in (("train", slice(0, 1500)), ("t10k", slice(1500, None))):
        write_idx(root / "idx" / f"{part}-images-idx3-ubyte.gz", images[rows])
        write_idx(root / "idx" / f"{part}-labels-idx1-ubyte.gz", digits.target[rows])
    words = ["--out", str(root / "shards"), "--val", "0.1", "--shard-rows", "400"]
    assert cli.main(["idx", str(root / "idx"), *words]) == 0
    for target, form in (("beton", "beton"), ("tars", "webdataset")):
        words = ["--out", str(root / target), "--to", form]
        words += ["--shard-rows", "400"] if form == "webdataset" else []
        assert cli.main(["convert", str(root / "shards"), *words]) == 0
    return root


def trained(out: Path, name: str, *words: str) -> Path:
    return train(parse_train([*OPTIONS, "--out", str(out), "--name", name, *words]))


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in metrics(folder, "train")]


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the idx files themselves."""
    words = ["--data.dataset", "mnist", "--data.root", str(data / "idx"), "--data.source", "files"]
    return trained(tmp_path_factory.mktemp("runs"), "files", *words)


@pytest.mark.parametrize("source", FORMS)
def test_the_same_run_from_every_form(
    data: Path, reference: Path, tmp_path: Path, source: str
) -> None:
    words = ["--data.source", source, "--data.root", str(data / FORMS[source])]
    # A window as large as the set: any order is possible, though not the same one.
    folder = trained(tmp_path, source, *words, "--data.window", "2000")
    for kind in ("val", "test"):
        one, other = metrics(reference, kind)[-1], metrics(folder, kind)[-1]
        assert one["images"] == other["images"]
        if source != "webdataset":
            assert one["nelbo"] == other["nelbo"]
    if source == "webdataset":
        assert losses(folder)[-1] < 0.8 * losses(folder)[0]
    else:
        assert weights(folder) == weights(reference)


def test_ffcv_gives_the_same_run(data: Path, reference: Path, tmp_path: Path) -> None:
    require_ffcv()
    words = ["--data.source", "ffcv", "--data.root", str(data / "beton")]
    assert weights(trained(tmp_path, "ffcv", *words)) == weights(reference)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["shards", "mapped", "webdataset"])
def test_two_ranks_match_one(data: Path, tmp_path: Path, source: str) -> None:
    root = data / ("tars" if source == "webdataset" else "shards")
    words = [*OPTIONS, "--data.source", source, "--data.root", str(root), "--out", str(tmp_path)]
    words += ["--data.window", "300"]
    run(*words, "--name", "two", ranks=2)
    one = trained(tmp_path, "one", *words[len(OPTIONS) :])
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=2e-5)
    for kind in ("val", "test"):
        expected = metrics(one, kind)[-1]
        found = metrics(tmp_path / "two", kind)[-1]
        assert found["images"] == expected["images"]
        assert found["nelbo"] == pytest.approx(expected["nelbo"], rel=1e-5)


@pytest.mark.parametrize(("before", "after"), [("mapped", "resident"), ("webdataset",) * 2])
def test_resume_is_exact(data: Path, tmp_path: Path, before: str, after: str) -> None:
    """Also when the same shards are read in another way."""
    root = str(data / FORMS[before])
    words = ["--data.root", root, "--data.window", "300", "--deterministic"]
    words += ["--optim.schedule", "constant", "--optim.warmup", "0"]
    whole = trained(tmp_path, "whole", "--data.source", before, *words)
    part = [*words, "--data.source"]
    trained(tmp_path, "parts", *part, before, "--max-steps", "17")
    trained(tmp_path, "parts", *part, after, "--resume", "--max-steps", "40")
    assert weights(whole) == weights(tmp_path / "parts")


def test_another_window_or_other_shards_are_refused_on_resume(data: Path, tmp_path: Path) -> None:
    words = ["--data.source", "webdataset", "--data.root", str(data / "tars")]
    trained(tmp_path, "run", *words, "--max-steps", "3")
    with pytest.raises(UserError, match=r"data\.window"):
        trained(tmp_path, "run", *words, "--resume", "--data.window", "77")
    copy = Path(shutil.copytree(data / "tars", tmp_path / "tars"))
    (copy / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"train-000001\.tar|differ"):
        trained(tmp_path, "run", "--resume", "--data.root", str(copy))


def test_auto_looks_at_what_is_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.dataset", "mnist", "--max-steps", "2"]
    expected = {"idx": "resident", "shards": "resident shards", "beton": "beton", "tars": "tars"}
    for name, said in expected.items():
        trained(tmp_path, name, *words, "--data.root", str(data / name))
        line = next(ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("data "))
        assert said in line
    trained(tmp_path, "digits", "--max-steps", "2", "--data.root", str(data / "shards"))
    assert "data digits (resident, 0." in capsys.readouterr().out  # needs no files: reads none


def test_auto_maps_what_is_large(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastvae.data import packed

    monkeypatch.setattr(packed, "SMALL", 1000)
    words = ["--data.source", "shards", "--data.root", str(data / "shards"), "--max-steps", "2"]
    trained(tmp_path, "run", *words)
    assert "mapped shards" in capsys.readouterr().out


def test_without_a_test_split_val_is_tested(tmp_path: Path) -> None:
    pack(tmp_path / "data", test=0)
    words = ["--data.source", "shards", "--data.root", str(tmp_path / "data")]
    shape = ["--model.image-shape", "3", "5", "7", "--max-steps", "2"]
    folder = trained(tmp_path, "run", *words, *shape)
    one, other = metrics(folder, "val")[-1], metrics(folder, "test")[-1]
    assert one["images"] == other["images"] == 31


def test_damage_in_training_is_left_out_when_asked(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(data / "shards", tmp_path / "copy"))
    path = copy / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-600])
    words = ["--data.source", "mapped", "--data.root", str(copy), "--max-steps", "3"]
    with pytest.raises(UserError, match=r"train-000001\.tar is cut short"):
        trained(tmp_path, "a", *words)
    trained(tmp_path, "b", *words, "--data.on-damage", "skip")
    said = capsys.readouterr().out
    assert "warning: left out" in said
    assert "400 samples in quarantine" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        ("train-000002.tar", "rank 1 sees other data than rank 0"),
        ("test-000000.tar", "rank 1: data: nothing is left of the test split"),
    ],
)
def test_ranks_that_see_other_data_are_told(
    data: Path, tmp_path: Path, damaged: str, expected: str
) -> None:
    """Each rank has a folder of its own here, as on the local disks of several nodes."""
    for rank in range(2):
        shutil.copytree(data / "shards", tmp_path / f"node{rank}" / "data")
    (tmp_path / "node1" / "data" / damaged).unlink()
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "from fastvae.train import main\n"
        "os.chdir(sys.argv[1] + os.environ['RANK'])\n"
        "main(sys.argv[2:])\n"
    )
    words = [*OPTIONS, "--data.source", "mapped", "--data.root", "data"]
    words = [str(tmp_path / "node"), *words, "--data.on-damage", "skip"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*launcher, str(script), *words, "--out", str(tmp_path / "runs")],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    assert expected in done.stderr


def test_evaluate_opens_one_split_from_anywhere(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data.source", "mapped", "--data.root", str(data / "shards")]
    folder = trained(tmp_path, "run", *words)
    copy = Path(shutil.copytree(data / "shards", tmp_path / "copy"))
    for path in copy.glob("train-*.tar"):
        path.unlink()
    found = {}
    for root in (data / "shards", copy, data / "tars", data / "beton"):
        evaluate.main([str(folder), "--root", str(root), "--samples", "1"])
        found[root.name] = json.loads((folder / "evaluation-test.json").read_text())["nelbo"]
    assert len(found) == 4
    assert list(found.values()) == pytest.approx([found["shards"]] * 4, rel=1e-6)
    for root, said in ((tmp_path / "nowhere", "nowhere"), (copy, "train-000000.tar is missing")):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            evaluate.main([str(folder), "--root", str(root), "--split", "train"])
        assert said in capsys.readouterr().err


def test_options_about_strokes_are_not_ignored(tmp_path: Path) -> None:
    assert cli.main(["doodles", "--out", str(tmp_path / "nd"), "--count", "120"]) == 0
    words = ["--as", "images", "--side", "16", "--partial", "strokes", "--workers", "1"]
    words += ["--val", "0.2", "--test", "0.2", "--out", str(tmp_path / "data")]
    assert cli.main(["quickdraw", str(tmp_path / "nd"), *words]) == 0
    words = ["--data.source", "shards", "--data.root", str(tmp_path / "data")]
    words += ["--model.image-shape", "1", "16", "16", "--max-steps", "1", "--data.source"]
    for source in ("resident", "mapped"):
        trained(tmp_path, source, *words, source, "--strokes.partial", "strokes")
        trained(tmp_path, f"{source}-plain", *words, source)
        for option, said in (
            (["--strokes.categories", "cat"], r"strokes\.categories is for strokes"),
            (["--strokes.rotate", "30"], r"strokes\.rotate is for strokes"),
            (["--strokes.partial", "box"], "were made with 'strokes'"),
            (["--strokes.line-width", "40"], r"were made with 16\.0"),
        ):
            with pytest.raises(UserError, match=said):
                trained(tmp_path, "bad", *words, source, *option)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.source", "mapped", "--data.root", "ROOT/shards", "--data.resident", "device"],
         r"data\.resident"),
        (["--data.source", "shards", "--data.root", "ROOT/idx"], "holds no shards"),
        (["--data.source", "shards", "--data.root", "ROOT/nothing"], "no such folder"),
        (["--data.source", "beton", "--data.root", "ROOT/idx"], "holds no train.beton"),
        (["--data.source", "webdataset", "--data.root", "ROOT/idx"], r"holds no train\*.tar"),
        (["--data.source", "mapped", "--data.root", "ROOT/tars"], "convert"),
        (["--data.source", "webdatset"], "data.source"),
        (["--data.urls", "a.tar", "b.tar", "--data.source", "shards"], "data.urls is for"),
        (["--data.urls", "pipe:cat a.tar", "pipe:cat b.tar"], "allow-pipe"),
        (["--data.urls", "a.tar"], "train, val"),
        (["--data.source", "shards", "--data.root", "ROOT/shards", "--strokes.partial", "strokes"],
         "whole images only"),
        (["--data.source", "shards", "--data.root", "ROOT/shards", "--model.image-shape",
          "1", "28", "28"], "--model.image-shape 1 8 8"),
    ],
)  # fmt: skip
def test_bad_input(data: Path, tmp_path: Path, words: list[str], said: str) -> None:
    given = [word.replace("ROOT", str(data)) for word in words]
    with pytest.raises(UserError, match=said) as error:
        trained(tmp_path, "run", *given)
    assert "\n" not in str(error.value)


def test_choose(data: Path) -> None:
    def chosen(**settings: object) -> str:
        return choose(DataConfig(**settings), needs_no_files=False)  # type: ignore[arg-type]

    assert chosen(root=str(data / "nowhere")) == "files"
    assert chosen(root=str(data / "nowhere"), urls=("a", "b")) == "webdataset"
    assert chosen(root=str(data / "shards"), source="mapped") == "mapped"
