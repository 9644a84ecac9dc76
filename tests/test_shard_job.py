"""The engine of importers: the same bytes for any number of workers and after any kill."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fastvae.data.format import Field, read_manifest
from fastvae.data_tools.shard_job import (
    BAD_SAMPLES,
    BuildOptions,
    Recipe,
    building_folder,
    cut,
    default_out,
    locked,
)
from fastvae.errors import UserError
from tests.shard_cases import NumberMaker, contents, pack


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2, 3):
        pack(tmp_path / str(workers), workers=workers)
    one = contents(tmp_path / "1")
    assert len(one) == 1 + 6 + 1 + 1
    assert contents(tmp_path / "2") == one
    assert contents(tmp_path / "3") == one
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


BUILD = """
import sys
from pathlib import Path
from tests.shard_cases import pack

if __name__ == "__main__":
    pack(Path(sys.argv[1]), train=16000, shard_rows=400, workers=int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_at_random_points_and_go_on(tmp_path: Path, workers: int) -> None:
    script = tmp_path / "job.py"
    script.write_text(BUILD)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, str(script)]
    reference, out = tmp_path / "reference", tmp_path / "out"
    subprocess.run([*command, str(reference), "1"], check=True, env=environment)

    rng = random.Random(workers)
    done: list[int] = []
    killed = 0
    for _ in range(60):
        process = subprocess.Popen(
            [*command, str(out), str(workers)], env=environment, start_new_session=True
        )
        building = building_folder(out)
        before = finished_shards(building)
        deadline = time.monotonic() + 60
        # The clock starts when it gets going, so that kills fall into the work, not the imports.
        while finished_shards(building) == before and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.random() * 0.12)
        if process.poll() is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
        wait_for_workers(process.pid)
        if out.exists():  # killed after its last act: what has the name is whole
            break
        done.append(finished_shards(building))
    assert process.returncode == 0 or out.exists()
    assert killed >= 2, "the job was never killed in the middle"
    assert done == sorted(done), "finished shards were lost"
    assert contents(out) == contents(reference)
    assert not building_folder(out).exists()


def finished_shards(building: Path) -> int:
    notes = notes_of(building)
    return len(list(notes.glob("*.tar.json"))) if notes.exists() else 0


def notes_of(building: Path) -> Path:
    return building.with_name(building.name.replace(".building", ".notes"))


def wait_for_workers(session: int) -> None:
    """Workers end with their parent: none is left a few seconds later."""

    def alive() -> list[str]:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == session and fields[0] != "Z":
                    found.append(stat.parent.name)
        return found

    deadline = time.monotonic() + 10
    while alive():
        assert time.monotonic() < deadline, "workers outlived their parent"
        time.sleep(0.05)


def interrupted(tmp_path: Path) -> Path:
    """A job that has stopped at a bad sample, with shards finished before."""
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"number 130: it is bad; .*--on-bad-record skip"):
        pack(out, make=NumberMaker(bad=frozenset([130, 140])))
    assert not out.exists()
    return out


def test_finished_shards_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = interrupted(tmp_path)
    kept = building_folder(out) / "train-000000.tar"
    stamp = kept.stat().st_ino
    pack(out, make=NumberMaker(bad=frozenset([130, 140])), skip_bad=True)
    assert "going on: 3 of 8 shards" in capsys.readouterr().out
    assert (out / kept.name).stat().st_ino == stamp
    manifest = read_manifest(out)
    assert (manifest.count("train"), manifest.bad) == (201, 2)
    listed = [json.loads(line) for line in (out / BAD_SAMPLES).read_text().splitlines()]
    assert [entry["name"] for entry in listed] == ["number 130", "number 140"]
    assert listed[0]["reason"] == "it is bad"


@pytest.mark.parametrize("what", ["flip", "cut", "note", "other"])
def test_what_does_not_verify_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    out = interrupted(tmp_path)
    path = building_folder(out) / "train-000001.tar"
    if what == "flip":
        raw = bytearray(path.read_bytes())
        raw[5000] ^= 1
        path.write_bytes(raw)
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "note":
        (notes_of(path.parent) / f"{path.name}.json").write_text("{")
    else:
        (building_folder(out) / "train-000077.tar").write_bytes(b"of another job")
    pack(out, make=NumberMaker(bad=frozenset([130, 140])), skip_bad=True)
    kept = 3 if what == "other" else 2
    assert f"going on: {kept} of 8 shards" in capsys.readouterr().out
    pack(tmp_path / "again", make=NumberMaker(bad=frozenset([130, 140])), skip_bad=True)
    assert contents(out) == contents(tmp_path / "again")


def test_other_options_make_other_shards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = interrupted(tmp_path)
    pack(out)  # without the bad ones: another maker, so nothing is kept
    assert "going on" not in capsys.readouterr().out
    pack(tmp_path / "again")
    assert contents(out) == contents(tmp_path / "again")


def test_a_shard_of_bad_samples_only_is_left_out(tmp_path: Path) -> None:
    bad = NumberMaker(bad=frozenset(range(40, 80)))
    pack(tmp_path / "out", make=bad, skip_bad=True)
    manifest = read_manifest(tmp_path / "out")
    assert [s.name for s in manifest.splits["train"]] == [
        f"train-{i:06d}.tar" for i in (0, 2, 3, 4, 5)
    ]
    assert manifest.count("train") == 163
    with pytest.raises(UserError, match="no sample for training"):
        pack(tmp_path / "none", make=NumberMaker(bad=frozenset(range(203))), skip_bad=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_sample_stops_the_job_with_its_name(tmp_path: Path, workers: int) -> None:
    with pytest.raises(UserError, match="number 7: it is bad"):
        pack(tmp_path / "out", make=NumberMaker(bad=frozenset([7])), workers=workers)


class KilledMaker(NumberMaker):
    def __call__(self, samples):  # type: ignore[no-untyped-def]
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a worker process was killed .*again to go on"):
        pack(tmp_path / "out", make=KilledMaker(), workers=2)


def test_folders_that_are_there_are_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(out)
    before = contents(out)
    with pytest.raises(UserError, match="is there already"):
        pack(out, train=100)
    assert contents(out) == before
    pack(out, train=100, overwrite=True)
    assert read_manifest(out).count("train") == 100
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"also holds thesis\.txt"):
        pack(out, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no shards: --overwrite will not remove it"):
        pack(other, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is there already"):
        pack(tmp_path / "file", overwrite=True)
    (tmp_path / "empty").mkdir()
    pack(tmp_path / "empty")
    assert read_manifest(tmp_path / "empty").count("val") == 31


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / ".out.lock"):
        with pytest.raises(UserError, match=f"another process is at work on {tmp_path / 'out'}"):
            pack(tmp_path / "out")
        with pytest.raises(UserError, match="another process"), locked(tmp_path / ".out.lock"):
            pass
    pack(tmp_path / "out")


def test_what_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Slow(NumberMaker):
        def __call__(self, samples):  # type: ignore[no-untyped-def]
            out.mkdir(exist_ok=True)
            (out / "thesis.txt").write_text("mine")
            return super().__call__(samples)

    with pytest.raises(UserError, match="is there already"):
        pack(out, make=Slow())
    assert (out / "thesis.txt").read_text() == "mine"


def test_folders_of_others_beside_it_are_left_alone(tmp_path: Path) -> None:
    pack(tmp_path / "out")
    mine = tmp_path / ".out.old"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    pack(tmp_path / "out", train=90, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"out", ".out.old"}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "set")
    pack(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert read_manifest(tmp_path / "disk" / "set").count("val") == 31
    pack(tmp_path / "out", train=90, overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert read_manifest(tmp_path / "out").count("train") == 90


def test_a_mount_point_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="where a disk is mounted"):
        pack(Path("/proc"))


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        pack(tmp_path / "out", train=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match="cannot write"):
            pack(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device; run the same command again"):
        pack(tmp_path / "out")
    monkeypatch.undo()
    pack(tmp_path / "out")
    assert read_manifest(tmp_path / "out").count("train") == 203


@pytest.mark.parametrize(
    ("source", "expected"),
    [("a/b", "a/b-shards"), ("a/b.zip", "a/b-shards"), ("a/b.tar.gz", "a/b-shards")],
)
def test_default_out(source: str, expected: str) -> None:
    assert str(default_out(Path(source))) == expected


def test_default_out_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert re.fullmatch(rf"{tmp_path}-shards", str(default_out(Path("."))))


@pytest.mark.parametrize(
    ("slow", "total", "rows"),
    # 28x28 bytes and 8: packs of 1024; 64 or 16 MiB are 82 or 20 of them.
    [(False, 100, 84_992), (False, 10**6, 84_992), (True, 100, 1024), (True, 10**6, 20_480)],
)
def test_shards_of_slow_recipes_are_smaller(
    tmp_path: Path, slow: bool, total: int, rows: int
) -> None:
    image = Field(dtype="uint8", shape=(28, 28, 1))
    recipe = Recipe(fields={"image": image}, make=NumberMaker(), preprocess={}, slow=slow)
    tasks = cut(tmp_path, {"train": range(total)}, recipe, BuildOptions(out=tmp_path))
    assert len(tasks[0].samples) == min(total, rows)
    assert [task.first_pack for task in tasks[:2]] == [0, rows // 1024][: len(tasks)]
    assert sum(len(task.samples) for task in tasks) == total
