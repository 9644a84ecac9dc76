"""A folder of tars or .beton files: made whole or not at all, it replaces nothing but its like."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastvae.data import format as shards
from fastvae.data.beton_layout import description_path, read_description
from fastvae.data.sample_tar import CLASSES, SIZES
from fastvae.data_tools.shard_job import check_target, locked
from fastvae.errors import UserError

_OURS = re.compile(r"(train|val|test)(-\d{6})?\.(tar|beton|beton\.json)")
_BESIDE = (SIZES, CLASSES, "preview.png")


def converting(out: Path) -> Path:
    """Where ``out`` is made, until it is complete."""
    return out.with_name(f".{out.name}.converting")


@contextmanager
def whole_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, which gets the name ``out`` when all of it is there.

    Raises:
        UserError: ``out`` is there and may not be replaced, or another process is at work on it.
    """
    out = out.resolve()
    _check_folder(out, overwrite=overwrite)
    before = _inode(out)
    building = converting(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.with_name(f".{out.name}.lock")):
            try:
                shutil.rmtree(building, ignore_errors=True)
                building.mkdir()
                yield building
                # What has come meanwhile is not what was to be replaced.
                _check_folder(out, overwrite=overwrite and _inode(out) == before)
                _put(building, out)
            finally:
                shutil.rmtree(building, ignore_errors=True)
    except BrokenPipeError:
        raise  # who reads what is printed has gone
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or building}: {error.strerror or error}"
        ) from None


def _inode(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_dev, about.st_ino


def _put(building: Path, out: Path) -> None:
    """Give a folder its name; what has that name is removed last."""
    if out.exists() and any(out.iterdir()):
        aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.old-"))
        out.rename(aside / out.name)
        try:
            building.rename(out)
        except OSError:
            (aside / out.name).rename(out)
            raise
        shutil.rmtree(aside)
    else:
        building.rename(out)  # of an empty folder, if there is one; the system refuses others
    shards.sync_folder(out.parent)


def _check_folder(out: Path, *, overwrite: bool) -> None:
    """Raise UserError if ``out`` is there and is not a folder of ours that may be replaced."""
    if not overwrite or not out.is_dir() or not any(out.iterdir()) or os.path.ismount(out):
        check_target(out, overwrite=overwrite)
        return
    if shards.is_shards(out):
        check_target(out, overwrite=True)
        return
    names = sorted(path.name for path in out.iterdir())
    for name in names:
        path = out / name
        if path.is_symlink() or not path.is_file():
            raise UserError(f"{path} is no file: --overwrite will not remove it")
        if name not in _BESIDE and not _OURS.fullmatch(name):
            raise UserError(f"{out} also holds {name}: --overwrite will not remove it")
    tars = {name for name in names if name.endswith(".tar")}
    betons = {name for name in names if name.endswith(".beton")}
    described = {name.removesuffix(".json") for name in names if name.endswith(".beton.json")}
    if tars != set(_sizes(out)):
        raise UserError(
            f"{out}: {SIZES} does not list exactly the tars there: --overwrite will not remove them"
        )
    unproven = sorted(betons ^ described) or [
        name for name in betons if read_description(out / name) is None
    ]
    if unproven:
        what = description_path(out / unproven[0]).name
        raise UserError(
            f"{out / unproven[0]} and {what} are no pair: --overwrite will not remove them"
        )
    if not tars and not betons:
        raise UserError(f"{out} holds no packed data: --overwrite will not remove {names[0]}")


def _sizes(folder: Path) -> dict[str, int]:
    """What the list of tars says; nothing where there is none."""
    try:
        sizes = json.loads((folder / SIZES).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return sizes if isinstance(sizes, dict) else {}
