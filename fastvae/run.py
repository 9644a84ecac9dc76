"""Run folders: where they are, what is in them, and how to load a trained model from one."""

from __future__ import annotations

import fcntl
import json
import platform
import re
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

import fastvae
from fastvae.config import Config
from fastvae.configio import from_dict, read_toml, to_dict, to_toml
from fastvae.engine import checkpoint
from fastvae.errors import UserError
from fastvae.models import Model, build_model


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.toml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def images(self) -> Path:
        return self.path / "images"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def lock(self, *, wait: float = 0.0) -> None:
        """Claim the folder for this process until ``unlock`` or its end; UserError if taken.

        Args:
            wait: seconds to give a process that is ending time to let go.
        """
        handle = (self.path / _LOCK).open("w")
        deadline = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    handle.close()
                    raise UserError(
                        f"another process is training in {self.path}: wait for it, or give "
                        "another --name"
                    ) from None
                time.sleep(0.1)
            except OSError as error:  # some network file systems have no locks
                print(f"warning: {self.path} cannot be locked ({error.strerror})", file=sys.stderr)
                break
        _HELD[self.path] = handle

    def unlock(self) -> None:
        """Give the claim back; without one, do nothing."""
        if self.path in _HELD:
            _HELD.pop(self.path).close()

    def abandon(self) -> None:
        """Remove the folder again if nothing has been written to it."""
        if self.path.is_dir() and {p.name for p in self.path.iterdir()} <= {_LOCK}:
            shutil.rmtree(self.path)

    def begin(self, config: Config) -> None:
        """Write config.toml, environment.json and README.md."""
        self.images.mkdir(parents=True, exist_ok=True)
        _replace_text(self.config, config_text(config))
        write_json(self.path / "environment.json", environment())
        _replace_text(self.path / "README.md", _GUIDE.format(path=self.path, name=self.path.name))


_LOCK = ".lock"
_HELD: dict[Path, IO[str]] = {}
"""Lock files held by this process. The system lets go of them however the process ends."""


def config_text(config: Config) -> str:
    """The resolved configuration as TOML that ``fastvae train`` accepts.

    The run's name and --resume belong to one invocation and are left out: training from the file
    makes a new run.
    """
    data = to_dict(config)
    return to_toml({k: v for k, v in data.items() if k not in ("name", "resume")})


def read_config(path: Path) -> Config:
    """Read a config.toml; a UserError names the file and the key."""
    data = read_toml(path)
    try:
        return from_dict(Config, data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def saved_config(folder: RunFolder) -> Config | None:
    """The configuration of a run, from its newest checkpoint that has a readable one.

    Those are checked and written whole; the run folder's own is for people and may be edited.
    None when the run was stopped before its first checkpoint.
    """
    for path in sorted(folder.checkpoints.glob("step-*/config.toml"), reverse=True):
        try:
            return read_config(path)
        except UserError:
            continue  # the checkpoint is damaged: the one before it will be used, and named
    return None


def environment() -> dict[str, str]:
    """Versions and the machine, for numbers that can be traced."""
    cuda = torch.cuda.is_available()
    return {
        "command": shlex.join(sys.argv),
        "fastvae": fastvae.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "gpu": torch.cuda.get_device_name() if cuda else "none",
        "threads": str(torch.get_num_threads()),
    }


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    _replace_text(path, json.dumps(data, indent=2) + "\n")


def _replace_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def new_run_folder(config: Config) -> RunFolder:
    """Make the folder of a new run: ``out/name``, or ``out/preset``, ``out/preset-2``, ...

    It is made at once, empty, so that runs started together get different ones.
    """
    out = Path(config.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if config.name:
            path = out / config.name
            path.mkdir(exist_ok=True)
            if {p.name for p in path.iterdir()} - {_LOCK}:
                raise UserError(
                    f"run folder {path} already exists: add --resume to go on with it, or give "
                    "another --name"
                )
            RunFolder(path).lock()
            return RunFolder(path)
        number = 1
        while True:
            path = out / (config.preset if number == 1 else f"{config.preset}-{number}")
            try:
                path.mkdir()
                RunFolder(path).lock()
                return RunFolder(path)
            except FileExistsError:
                number += 1
    except OSError as error:
        raise UserError(f"cannot make a run folder in {out}: {error.strerror}") from None


def find_run_folder(config: Config) -> RunFolder | None:
    """The folder --resume means: ``out/name``, or the newest run of the preset in ``out``."""
    out = Path(config.out)
    if config.name:
        path = out / config.name
        if not path.is_dir():
            return None
        if not any((path / mark).exists() for mark in ("config.toml", "checkpoints", _LOCK)):
            raise UserError(f"{path} is there and is not a run folder: give another --name")
        return RunFolder(path)
    pattern = re.compile(re.escape(config.preset) + r"(-\d+)?")
    runs = [p.parent for p in out.glob("*/config.toml") if pattern.fullmatch(p.parent.name)]
    return RunFolder(max(runs, key=lambda p: (p / "config.toml").stat().st_mtime)) if runs else None


def find_checkpoint(path: Path, which: str = "best") -> Path:
    """Turn a run folder or a checkpoint folder into a checkpoint folder.

    Args:
        which: for a run folder, ``best``, ``last`` or the name of a checkpoint (``step-00000100``).
    """
    if (path / "checkpoints").is_dir():
        chosen = path / "checkpoints" / which
        if which == "best" and not chosen.exists():
            chosen = path / "checkpoints" / "last"
    elif (path / "meta.json").is_file() or path.parent.name == "checkpoints":
        chosen = path
    else:
        raise UserError(f"{path} is neither a run folder nor a checkpoint (no checkpoints/ in it)")
    if not chosen.exists():
        there = sorted(p.name for p in chosen.parent.glob("[!.]*"))
        raise UserError(f"no checkpoint {chosen}; there are: {', '.join(there) or 'none'}")
    return chosen.resolve()


def load(
    path: str | Path, *, checkpoint_name: str = "best", device: str | torch.device = "cpu"
) -> Model:
    """Load a trained model, in evaluation mode, with averaged weights when the run kept them.

    Args:
        path: run folder or checkpoint folder.
        checkpoint_name: for a run folder, ``best`` (default), ``last`` or e.g. ``step-00000100``.
        device: where to put it.

    Returns:
        A model with ``encode``, ``decode``, ``reconstruct`` and ``sample``. It takes images as they
        are: a model trained on binarized pixels (``data.binarize``) wants such images.
    """
    folder = find_checkpoint(Path(path), checkpoint_name)
    saved = checkpoint.load(folder, weights_only=True)
    model = build_model(read_config(folder / "config.toml").model)
    load_weights(model, saved.ema or saved.model, folder)
    return model.to(device).eval()


def load_weights(model: Model, weights: dict[str, torch.Tensor], where: Path) -> None:
    """Copy weights into a model; a UserError names the first that does not fit."""
    own = model.state_dict()
    for name in sorted(own.keys() | weights.keys()):
        have = tuple(weights[name].shape) if name in weights else "missing"
        want = tuple(own[name].shape) if name in own else "not there"
        if have != want:
            raise UserError(
                f"{where}: weights do not fit the model: {name} is {have} in the checkpoint and "
                f"{want} in the model"
            )
    model.load_state_dict(weights)


_GUIDE = """# Run {name}

| file | what |
|---|---|
| config.toml | the resolved configuration; `fastvae train {path}/config.toml` repeats the run |
| environment.json | command, versions, machine |
| metrics.jsonl | JSON lines: per logging interval (train), per validation (val), test at the end |
| images/ | inputs above reconstructions, prior samples, curves |
| events/ | the same for `tensorboard --logdir {path}/events` |
| checkpoints/ | `last`, `best` (by validation loss) and numbered ones |

Go on after a stop: `fastvae train {path} --resume`
Evaluate: `fastvae evaluate {path}`
Python: `import fastvae; model = fastvae.load("{path}")`

Losses are sums over pixels and latents, means over images, in nats.
"""
