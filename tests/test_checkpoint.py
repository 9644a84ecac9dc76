"""Checkpoints are there whole or not at all; run folders find them; models load from them."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastvae
from fastvae.config import Config, replace
from fastvae.engine import checkpoint
from fastvae.engine.checkpoint import CheckpointStore, load, verify
from fastvae.errors import UserError
from fastvae.models import VAE, build_model
from fastvae.presets import get_preset
from fastvae.run import (
    RunFolder,
    config_text,
    find_checkpoint,
    find_run_folder,
    load_weights,
    new_run_folder,
    read_config,
)


def weights(step: int) -> dict[str, Tensor]:
    return {"a": torch.full((2, 3), float(step)), "b": torch.arange(4) + step}


def training_state(step: int) -> dict[str, Any]:
    """Something of every kind that a trainer saves."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], fused=True)
    parameter.sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "rng": [torch.get_rng_state()],
        "plan": {"n": 7, "tail": "drop"},
        "best": float("inf"),
        "step": step,
    }


def save(store: CheckpointStore, step: int, *, best: bool = False, ema: bool = True) -> Path:
    return store.save(
        step,
        model=weights(step),
        ema=weights(step + 1000) if ema else {},
        state=training_state(step),
        config_toml=f"seed = {step}\n",
        about={"versions": {"fastvae": "0"}, "best_val_loss": 1.5},
        best=best,
    )


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "run" / "checkpoints", keep=2)


def names(store: CheckpointStore) -> list[str]:
    return sorted(os.listdir(store.folder))


def target(store: CheckpointStore, link: str) -> str:
    return (store.folder / link).resolve().name


def test_layout_and_checksums(store: CheckpointStore) -> None:
    path = save(store, 120, best=True)
    assert path == store.folder / "step-00000120"
    assert names(store) == ["best", "last", "step-00000120"]
    files = ["config.toml", "ema.safetensors", "model.safetensors", "state.pt"]
    assert sorted(os.listdir(path)) == sorted([*files, "meta.json"])
    meta = json.loads((path / "meta.json").read_text())
    assert meta["step"] == 120
    assert meta["format"] == checkpoint.FORMAT
    assert meta["versions"] == {"fastvae": "0"}
    assert sorted(meta["files"]) == files
    for name in files:
        content = (path / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        assert meta["files"][name] == {"bytes": len(content), "sha256": digest}
    for link in ("last", "best"):
        assert (store.folder / link).is_symlink()
        assert not Path(os.readlink(store.folder / link)).is_absolute()  # folders may be moved
    assert (path / "config.toml").read_text() == "seed = 120\n"


def test_what_is_saved_is_loaded(store: CheckpointStore) -> None:
    path = save(store, 7)
    saved = load(path)
    assert (saved.path, saved.step) == (path, 7)
    for have, want in ((saved.model, weights(7)), (saved.ema, weights(1007))):
        assert have.keys() == want.keys()
        assert all(torch.equal(have[k], want[k]) for k in want)
    assert saved.state["best"] == float("inf")
    moments = saved.state["optimizer"]["state"][0]
    assert torch.equal(moments["step"], torch.tensor(1.0))
    only = load(path, weights_only=True)
    assert only.state == {}
    assert torch.equal(only.model["a"], weights(7)["a"])


def test_state_needs_no_unpickling_of_code(store: CheckpointStore) -> None:
    state = torch.load(save(store, 1) / "state.pt", weights_only=True)
    assert state["step"] == 1


def test_without_average_there_is_no_file_of_it(store: CheckpointStore) -> None:
    path = save(store, 1, ema=False)
    assert not (path / "ema.safetensors").exists()
    assert load(path).ema == {}


def test_weights_that_share_memory_or_are_not_contiguous(store: CheckpointStore) -> None:
    matrix = torch.arange(6.0).view(2, 3)
    model = {"t": matrix.T, "row": matrix[0], "last": torch.ones(1, 2, 3, 3)}
    model["last"] = model["last"].contiguous(memory_format=torch.channels_last)
    store.save(1, model=model, ema={}, state={}, config_toml="", about={}, best=False)
    saved = load(store.folder / "last").model
    assert all(torch.equal(saved[k], model[k]) for k in model)


def test_links_follow_the_newest_and_the_best(store: CheckpointStore) -> None:
    save(store, 10, best=True)
    save(store, 20)
    assert (target(store, "last"), target(store, "best")) == ("step-00000020", "step-00000010")
    save(store, 30, best=True)
    assert (target(store, "last"), target(store, "best")) == ("step-00000030", "step-00000030")


def test_old_ones_are_removed_but_never_the_best(store: CheckpointStore) -> None:
    for step in (10, 20, 30, 40, 50):
        save(store, step, best=step == 20)
    assert store.steps() == [50, 40, 20]
    verify(store.folder / "best")
    save(store, 60, best=True)
    assert store.steps() == [60, 50]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=10)
    for step in (99_999_999, 100_000_000, 3):
        save(store, step)
    assert store.steps() == [100_000_000, 99_999_999, 3]
    assert CheckpointStore(tmp_path / "none", keep=2).steps() == []


def test_saving_a_step_again_keeps_what_is_there(store: CheckpointStore) -> None:
    path = save(store, 10)
    before = (path / "model.safetensors").stat().st_mtime_ns
    save(store, 10, best=True)
    assert (path / "model.safetensors").stat().st_mtime_ns == before
    assert target(store, "best") == "step-00000010"


def test_leftovers_of_a_kill_are_removed(store: CheckpointStore) -> None:
    save(store, 10)
    for name in (".tmp-step-00000020", ".tmp-old-5"):
        (store.folder / name).mkdir()
        (store.folder / name / "model.safetensors").write_bytes(b"half")
    (store.folder / ".last-link").symlink_to("step-00000020")
    assert store.steps() == [10]
    save(store, 20)
    assert names(store) == ["last", "step-00000010", "step-00000020"]
    verify(store.folder / "step-00000020")


# ---------------------------------------------------------------------------------- damage
def truncate(path: Path) -> str:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    return "model.safetensors does not match its checksum"


def flip_a_byte(path: Path) -> str:
    content = bytearray((path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "state.pt").write_bytes(content)
    return "state.pt does not match its checksum"


def remove_ema(path: Path) -> str:
    (path / "ema.safetensors").unlink()
    return "ema.safetensors is missing"


def remove_meta(path: Path) -> str:
    (path / "meta.json").unlink()
    return "meta.json cannot be read"


def garbage_meta(text: str) -> Callable[[Path], str]:
    def damage(path: Path) -> str:
        (path / "meta.json").write_bytes(text.encode("latin-1"))
        return "meta.json cannot be read"

    return damage


DAMAGES = [
    truncate,
    flip_a_byte,
    remove_ema,
    remove_meta,
    *map(garbage_meta, ("", "{", "[]", "null", "{}", '{"files": 3}', "\xff\xfe", "\0\0\0")),
    garbage_meta('{"format": 1, "step": 20, "files": {}}'),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_named(store: CheckpointStore, damage: Callable[[Path], str]) -> None:
    save(store, 10)
    path = save(store, 20)
    expected = damage(path)
    for read in (verify, load, lambda p: load(p, weights_only=True)):
        with pytest.raises(UserError) as error:
            read(path)
        assert expected in str(error.value)
        assert str(path) in str(error.value)
    newest, lines = store.newest_valid()
    assert newest == store.folder / "step-00000010"
    assert len(lines) == 1
    assert expected in lines[0]


def test_each_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=5)
    for step in (10, 20, 30, 40):
        save(store, step)
    messages = [
        damage(store.folder / f"step-{step:08d}")
        for step, damage in ((40, truncate), (30, flip_a_byte), (20, remove_meta))
    ]
    newest, lines = store.newest_valid()
    assert newest == tmp_path / "step-00000010"
    for line, message, step in zip(lines, messages, (40, 30, 20), strict=True):
        assert message in line
        assert f"step-{step:08d}" in line
    assert load(newest).step == 10
    truncate(newest)
    newest, lines = store.newest_valid()
    assert newest is None
    assert len(lines) == 4


def test_nothing_there(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "none", keep=2).newest_valid() == (None, [])


def test_setting_the_damaged_aside_makes_room(store: CheckpointStore) -> None:
    save(store, 10, best=True)
    for _ in range(2):
        truncate(save(store, 20))
        store.set_aside_after(10)
        assert store.steps() == [10]
        assert (store.folder / "damaged-step-00000020").is_dir()
    save(store, 20)
    assert verify(store.folder / "last")["step"] == 20


def test_another_format_is_refused_and_not_called_damaged(store: CheckpointStore) -> None:
    """Older code must not push aside what newer code wrote."""
    save(store, 10)
    path = save(store, 20)
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        store.newest_valid()


def test_relinking_mends_what_a_kill_left(store: CheckpointStore) -> None:
    for step in (10, 20, 30):
        save(store, step, best=step == 10)
    (store.folder / "last").unlink()
    assert store.relink(30, 20)
    assert verify(store.folder / "last")["step"] == 30
    assert verify(store.folder / "best")["step"] == 20
    assert not store.relink(30, 15)
    assert not (store.folder / "best").exists()


# ---------------------------------------------------------------------------------- a kill
class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


# What save does to the disk, one call at a time.
CALLS = [
    (torch, "save"),
    (os, "fsync"),
    (shutil, "rmtree"),
    *((pathlib.Path, name) for name in ("mkdir", "rename", "replace", "symlink_to", "unlink")),
    (pathlib.Path, "write_text"),
]


def kill_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Raise at the ``number``-th call that touches the disk. Returns the log of calls."""
    log: list[str] = []

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            log.append(name)
            if len(log) == number:
                raise Killed
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    for owner, name in CALLS:
        wrap(owner, name)
    return log


@pytest.mark.parametrize("best", [False, True])
def test_a_kill_at_any_call_of_save_leaves_a_valid_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: bool
) -> None:
    original = tmp_path / "original"
    store = CheckpointStore(original, keep=2)
    for step in (10, 20, 30):
        save(store, step, best=step == 10)
    seen: set[str] = set()
    for number in range(1, 100):
        folder = Path(shutil.copytree(original, tmp_path / f"{best}-{number}", symlinks=True))
        store = CheckpointStore(folder, keep=2)
        with monkeypatch.context() as patch:
            log = kill_at(patch, number)
            try:
                save(store, 40, best=best)
            except Killed:
                seen.add(log[-1])
            else:
                assert number > 15, "the calls of save are not seen"
                break
        newest, damaged = store.newest_valid()
        assert newest is not None
        assert newest.name in ("step-00000030", "step-00000040")
        assert damaged == []
        for link in ("last", "best"):
            verify(folder / link)
        assert target(store, "best") in ("step-00000010", "step-00000040")
        assert load(newest).step == int(newest.name[5:])
        save(store, 50)  # and the next save cleans up
        steps = (f"step-{s:08d}" for s in (10, 30, 40, 50))
        allowed = {"best", "last", ".best-link", *steps}  # the link goes with the next best one
        assert set(names(store)) <= allowed, f"killed in {log[-1]}, call {number}"
        assert target(store, "last") == "step-00000050"
        verify(folder / "best")
    else:
        pytest.fail("save never came to its end")
    assert {"save", "fsync", "rename", "replace", "symlink_to", "rmtree"} <= seen


@pytest.mark.parametrize("call", [(os, "fsync"), (pathlib.Path, "rename")])
def test_a_full_disk_leaves_the_earlier_checkpoint(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, call: tuple[Any, str]
) -> None:
    save(store, 10, best=True)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*call, fail)
        with pytest.raises((OSError, UserError), match="No space left"):
            save(store, 20, best=True)
    assert store.newest_valid() == (store.folder / "step-00000010", [])
    assert (target(store, "last"), target(store, "best")) == ("step-00000010", "step-00000010")
    save(store, 20)
    assert store.newest_valid() == (store.folder / "step-00000020", [])


def test_every_file_is_flushed_before_the_rename(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    rename, fsync = pathlib.Path.rename, os.fsync

    def seen_rename(self: Path, to: Path) -> Path:
        events.append("rename")
        return rename(self, to)

    def seen_fsync(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(pathlib.Path, "rename", seen_rename)
    monkeypatch.setattr(os, "fsync", seen_fsync)
    save(store, 10)
    before = events[: events.index("rename")]
    expected = {"config.toml", "ema.safetensors", "model.safetensors", "state.pt", "meta.json"}
    assert set(before) == {*expected, ".tmp-step-00000010"}
    assert "checkpoints" in events[events.index("rename") :]


# ---------------------------------------------------------------------------------- run folders
@pytest.fixture
def config(tmp_path: Path) -> Config:
    small = {"model__latent_dim": 3, "model__hidden": (8,), "out": str(tmp_path / "runs")}
    return replace(get_preset("digits"), **small)


def test_run_folders_are_numbered(config: Config) -> None:
    made = [new_run_folder(config).path.name for _ in range(3)]
    assert made == ["digits", "digits-2", "digits-3"]
    other = replace(config, preset="mnist")
    assert new_run_folder(other).path.name == "mnist"
    assert new_run_folder(replace(config, name="mine")).path.name == "mine"


def test_a_name_that_is_taken(config: Config) -> None:
    named = replace(config, name="mine")
    folder = new_run_folder(named)
    folder.begin(named)
    with pytest.raises(UserError, match=r"mine already exists: add --resume .* --name"):
        new_run_folder(named)


def test_an_empty_folder_of_that_name_is_used(config: Config) -> None:
    named = replace(config, name="mine")
    first = new_run_folder(named)
    with pytest.raises(UserError, match="another process is training in"):
        new_run_folder(named)
    first.unlock()
    assert new_run_folder(named) == first


def test_abandoning_removes_only_what_is_empty(config: Config) -> None:
    folder = new_run_folder(config)
    folder.abandon()
    assert not folder.path.exists()
    folder.abandon()
    folder = new_run_folder(config)
    folder.begin(config)
    folder.abandon()
    assert folder.config.is_file()


def test_a_place_that_cannot_be_written(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make a run folder in"):
        new_run_folder(replace(config, out=str(tmp_path / "file")))


def test_the_newest_run_of_a_preset_is_found(config: Config) -> None:
    assert find_run_folder(config) is None
    folders = [new_run_folder(config) for _ in range(3)]
    decoys = [
        new_run_folder(replace(config, preset=preset)) for preset in ("digits-x", "my-digits")
    ]
    for time, folder in enumerate([folders[0], folders[2], folders[1], *decoys], start=1):
        folder.begin(config)
        os.utime(folder.config, (1000 * time, 1000 * time))
    assert find_run_folder(config) == folders[1]
    assert find_run_folder(replace(config, name="digits-3")) == folders[2]
    assert find_run_folder(replace(config, name="digits-9")) is None


def test_a_folder_without_config_is_no_run(config: Config) -> None:
    new_run_folder(config)
    assert find_run_folder(config) is None


def test_begin_writes_a_config_that_reads_back(config: Config) -> None:
    named = replace(config, name="mine", resume=True, optim__lr=1.25e-5)
    folder = new_run_folder(replace(named, resume=False))
    folder.begin(named)
    assert read_config(folder.config) == replace(named, name="", resume=False)
    assert sorted(os.listdir(folder.path)) == [
        ".lock",
        "README.md",
        "config.toml",
        "environment.json",
        "images",
    ]
    assert json.loads((folder.path / "environment.json").read_text())["torch"] == torch.__version__


@pytest.fixture
def trained(config: Config) -> tuple[RunFolder, VAE, VAE]:
    """A run with two checkpoints: the first is best and has averaged weights."""
    folder = new_run_folder(config)
    folder.begin(config)
    store = CheckpointStore(folder.checkpoints, keep=3)
    torch.manual_seed(0)
    models = [build_model(config.model) for _ in range(3)]
    for step, ema in ((1, models[2].state_dict()), (2, {})):
        store.save(
            step,
            model=models[step - 1].state_dict(),
            ema=ema,
            state={},
            config_toml=config_text(config),
            about={},
            best=step == 1,
        )
    return folder, models[2], models[1]


def same_weights(a: VAE, b: VAE) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_load(trained: tuple[RunFolder, VAE, VAE]) -> None:
    folder, averaged, last = trained
    model = fastvae.load(folder.path)
    assert not model.training
    assert same_weights(model, averaged)
    assert same_weights(fastvae.load(str(folder.path), checkpoint_name="last"), last)
    assert same_weights(fastvae.load(folder.path, checkpoint_name="step-00000002"), last)
    assert same_weights(fastvae.load(folder.checkpoints / "step-00000001"), averaged)
    assert same_weights(fastvae.load(folder.checkpoints / "best"), averaged)
    images = torch.zeros(2, 1, 8, 8)
    assert torch.equal(model.reconstruct(images), averaged.eval().reconstruct(images))


def test_find_checkpoint_errors(trained: tuple[RunFolder, VAE, VAE], tmp_path: Path) -> None:
    folder = trained[0]
    with pytest.raises(UserError) as error:
        find_checkpoint(folder.path, "step-00000077")
    assert "no checkpoint" in str(error.value)
    assert "there are: best, last, step-00000001, step-00000002" in str(error.value)
    with pytest.raises(UserError, match="neither a run folder nor a checkpoint"):
        find_checkpoint(tmp_path / "nowhere")
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="there are: none"):
        find_checkpoint(tmp_path / "new")
    (folder.checkpoints / "best").unlink()
    assert find_checkpoint(folder.path).name == "step-00000002"


def test_loading_what_is_damaged(trained: tuple[RunFolder, VAE, VAE]) -> None:
    folder = trained[0]
    truncate(folder.checkpoints / "best")
    with pytest.raises(UserError, match=r"model\.safetensors does not match its checksum"):
        fastvae.load(folder.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model__latent_dim": 5}, r"decoder\.body\.0\.weight is \(8, 3\) in .* \(8, 5\) in the"),
        ({"model__hidden": (8, 8)}, r"is missing in the checkpoint and \(.*\) in the model"),
        ({"model__hidden_blocks": 1}, r"is missing in the checkpoint"),
    ],
)
def test_weights_that_do_not_fit(
    config: Config, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    saved = build_model(config.model).state_dict()
    other = build_model(replace(config, **change).model)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(UserError, match=message) as error:
        load_weights(other, saved, tmp_path)
    assert str(tmp_path) in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_weights_that_the_model_lacks(config: Config, tmp_path: Path) -> None:
    model = build_model(config.model)
    extra = {**model.state_dict(), "zz": torch.ones(1)}
    with pytest.raises(UserError, match=r"zz is \(1,\) in the checkpoint and not there in the mod"):
        load_weights(model, extra, tmp_path)
