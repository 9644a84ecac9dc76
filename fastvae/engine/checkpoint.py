"""Checkpoints: folders that appear whole or not at all.

    checkpoints/step-00000120/
        model.safetensors    weights
        ema.safetensors      averaged weights, when averaging is on
        state.pt             optimizer, scaler, RNG states, position (loads with weights_only=True)
        config.toml          the resolved configuration
        meta.json            step, validation loss, versions, size and SHA-256 of each file
    checkpoints/last, best   links to the newest and to the best by validation loss

A checkpoint is written beside its place, every file is flushed to disk, and one rename puts it
there; a kill at any moment leaves either the whole folder or none. Links are replaced in the same
way.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastvae.errors import UserError

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds, verified and in memory (on the CPU)."""

    path: Path
    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    """Empty when averaging was off."""
    state: dict[str, Any]
    """Empty when only weights were asked for."""


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are not what its meta.json says: an earlier one may be used."""


class CheckpointStore:
    """The ``checkpoints`` folder of a run. Only the main rank writes."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(
        self,
        step: int,
        *,
        model: dict[str, Tensor],
        ema: dict[str, Tensor],
        state: dict[str, Any],
        config_toml: str,
        about: dict[str, Any],
        best: bool,
    ) -> Path:
        """Write checkpoint ``step``, point ``last`` (and ``best``) at it, remove old ones.

        Args:
            about: what else goes into meta.json (versions, validation loss).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for stale in self.folder.glob(".tmp-*"):
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        target = self.folder / f"step-{step:08d}"
        if not target.exists():
            temporary = self.folder / f".tmp-{target.name}"
            temporary.mkdir()
            try:
                _write(temporary, step, model, ema, state, config_toml, about)
            except (OSError, RuntimeError, safetensors.SafetensorError) as error:
                shutil.rmtree(temporary, ignore_errors=True)
                raise UserError(
                    f"cannot write checkpoint {target}: {error}: mend that (disk full?), then go "
                    "on with --resume from the one before"
                ) from error
            temporary.rename(target)
        self._point("last", target)
        if best:
            self._point("best", target)
        _fsync(self.folder)
        self._prune()
        return target

    def _point(self, name: str, target: Path) -> None:
        link = self.folder / f".{name}-link"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        link.replace(self.folder / name)

    def _prune(self) -> None:
        kept = set(self.steps()[: self.keep])
        if (self.folder / "best").exists():
            kept.add(_step_of((self.folder / "best").resolve().name))
        for step in self.steps():
            if step not in kept:
                # Renamed first: a kill half-way through the removal leaves no half checkpoint.
                doomed = self.folder / f".tmp-old-{step}"
                (self.folder / f"step-{step:08d}").rename(doomed)
                shutil.rmtree(doomed)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, newest first."""
        if not self.folder.is_dir():
            return []
        names = (p.name for p in self.folder.iterdir() if p.is_dir() and not p.is_symlink())
        return sorted((_step_of(n) for n in names if _NAME.fullmatch(n)), reverse=True)

    def newest_valid(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint whose checksums are right, and a line about each damaged one."""
        damaged = []
        for step in self.steps():
            path = self.folder / f"step-{step:08d}"
            try:
                verify(path)
            except DamagedCheckpoint as error:
                damaged.append(str(error))
                continue
            return path, damaged
        return None, damaged

    def set_aside_after(self, step: int) -> None:
        """Rename damaged checkpoints that are newer than the one resumed from."""
        for newer in [s for s in self.steps() if s > step]:
            name = f"step-{newer:08d}"
            shutil.rmtree(self.folder / f"damaged-{name}", ignore_errors=True)
            (self.folder / name).rename(self.folder / f"damaged-{name}")

    def relink(self, last: int, best: int) -> bool:
        """Point ``last`` and ``best`` at these steps; False when the best one is of no use."""
        self._point("last", self.folder / f"step-{last:08d}")
        target = self.folder / f"step-{best:08d}"
        try:
            verify(target)
        except DamagedCheckpoint:
            (self.folder / "best").unlink(missing_ok=True)
            return False
        self._point("best", target)
        return True


def _write(
    folder: Path,
    step: int,
    model: dict[str, Tensor],
    ema: dict[str, Tensor],
    state: dict[str, Any],
    config_toml: str,
    about: dict[str, Any],
) -> None:
    """Write all files of a checkpoint into ``folder`` and flush them to disk."""
    _save_weights(folder / "model.safetensors", model)
    if ema:
        _save_weights(folder / "ema.safetensors", ema)
    torch.save(state, folder / "state.pt")
    (folder / "config.toml").write_text(config_toml, encoding="utf-8")
    files = {p.name: _describe(p) for p in sorted(folder.iterdir())}
    meta = {"format": FORMAT, "step": step, **about, "files": files}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    for path in (*folder.iterdir(), folder):
        _fsync(path)


def _step_of(name: str) -> int:
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else -1


def _save_weights(path: Path, weights: dict[str, Tensor]) -> None:
    safetensors.torch.save_file(
        {k: v.detach().cpu().contiguous() for k, v in weights.items()}, path
    )


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else None
        if digest is None:  # Python 3.10
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify(path: Path) -> dict[str, Any]:
    """Check a checkpoint's files against its meta.json and return that.

    Raises:
        DamagedCheckpoint: a file is missing, cut or altered.
        UserError: the checkpoint was written in another format, or cannot be read at all.
    """

    def damaged(what: str) -> DamagedCheckpoint:
        return DamagedCheckpoint(
            f"checkpoint {path} is damaged: {what}; use an earlier one in the same folder"
        )

    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        files, number = dict(meta["files"]), meta["format"]
        complete = {"model.safetensors", "state.pt", "config.toml"} <= files.keys()
        if not complete or not isinstance(meta["step"], int):
            raise KeyError("files")
    except PermissionError as error:
        raise UserError(f"cannot read checkpoint {path}: {error.strerror}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(f"meta.json cannot be read ({type(error).__name__})") from None
    if number != FORMAT:
        raise UserError(
            f"checkpoint {path} has format {number} and this fastvae reads {FORMAT}: "
            "use the version of fastvae named in its meta.json"
        )
    for name, expected in files.items():
        file = path / name
        try:
            if not file.is_file():
                raise damaged(f"{name} is missing")
            if _describe(file) != expected:
                raise damaged(f"{name} does not match its checksum")
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
    return meta


def load(path: Path, *, weights_only: bool = False) -> Checkpoint:
    """Verify and read a checkpoint folder.

    Args:
        weights_only: leave out the training state.
    """
    meta = verify(path)
    try:
        model = safetensors.torch.load_file(path / "model.safetensors")
        ema_file = path / "ema.safetensors"
        ema = safetensors.torch.load_file(ema_file) if ema_file.exists() else {}
        state = {}
        if not weights_only:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, OSError, RuntimeError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}") from None
    return Checkpoint(path=path, step=int(meta["step"]), model=model, ema=ema, state=state)
