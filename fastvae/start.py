"""Where a training run starts: the words on the command line, the run folder, the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from fastvae.arch_file import with_arch
from fastvae.config import Config
from fastvae.configio import from_dict, parse_options, read_toml, to_dict
from fastvae.engine.checkpoint import CheckpointStore
from fastvae.engine.distributed import World
from fastvae.engine.precision import resolve_precision
from fastvae.errors import UserError
from fastvae.ini_file import with_ini
from fastvae.presets import get_preset, list_presets
from fastvae.presets.registry import preset_table
from fastvae.run import RunFolder, find_run_folder, new_run_folder, read_config, saved_config

ABOUT = """Train a VAE. PRESET is a name from the list below, a TOML file, or a run folder.

Options change single fields of the preset; a section's name may be left out where the rest is
unique: --lr stands for --optim.lr. Losses are in nats per image, summed over pixels and latents.
A TOML file may list stages, each a table [[stages]] with epochs, lr, freeze, load and [stages.kl];
where a preset has them (faces128), its --help shows --stages.0.lr and so on.
--arch FILE builds the layers that an arch_def (TOML or JSON) lists, for presets arch, faces128 and
faces512; --ini FILE takes the settings of an original config.ini, for preset mnist-genzoo.
"""


@dataclass(frozen=True)
class Start:
    """What a run begins with, the same on every rank."""

    config: Config
    folder: RunFolder
    checkpoint: Path | None
    """Checkpoint to go on from; None for a new run."""


def parse_train(args: Sequence[str]) -> Config:
    """Turn the words after ``fastvae train`` into a configuration.

    With --resume, options that are not given keep the values of the saved run, not the preset's.
    """
    if not args or args[0] in ("-h", "--help"):
        _print_usage()
    if args[0].startswith("-"):
        raise UserError(
            f"the preset comes first: fastvae train PRESET {' '.join(args)} "
            f"(presets: {', '.join(list_presets())})"
        )
    words, files = _take_files(args[1:])
    prog = f"fastvae train {args[0]}"
    base = _base_config(args[0], resume="--resume" in words)
    for option, path in files.items():
        base = FILES[option](base, Path(path))
    config = parse_options(Config, base, words, prog=prog, about=ABOUT + _preset_table())
    _check_stages(base, config)
    if not config.resume or _is_file(args[0]):
        return config
    folder = find_run_folder(config)
    saved = saved_config(folder) if folder else None
    if folder is None or saved is None:
        return config
    if args[0] in list_presets() and saved.preset != args[0]:
        raise UserError(
            f"resume: run folder {folder.path} was made from preset {saved.preset!r}, not "
            f"{args[0]!r}: run `fastvae train {folder.path} --resume`"
        )
    config = parse_options(Config, saved, words, prog=prog, about=ABOUT)
    return replace(config, name=folder.path.name, out=str(folder.path.parent), resume=True)


FILES: dict[str, Callable[[Config, Path], Config]] = {"--arch": with_arch, "--ini": with_ini}
"""Options that name a file in another program's form, which changes the preset it is given with."""


def _take_files(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split the words into ordinary options and those of ``FILES`` with their paths."""
    rest: list[str] = []
    files: dict[str, str] = {}
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name not in FILES:
            rest.append(word)
            continue
        value = value if equals else next(waiting, "")
        if not value or value.startswith("--"):
            raise UserError(f"{name} needs the path of a file")
        files[name] = value
    return rest, files


def _check_stages(base: Config, config: Config) -> None:
    """Options that a list of stages leaves without effect are refused."""
    if not config.stages:
        return
    settings = (
        ("epochs", base.epochs, config.epochs),
        ("optim.lr", base.optim.lr, config.optim.lr),
        ("kl", base.kl, config.kl),
    )
    for name, before, now in settings:
        if before != now:
            last = name.rpartition(".")[2]
            raise UserError(
                f"--{name} has no effect on a training in {len(config.stages)} stages: each has "
                f"its own, --stages.0.{last} and so on"
            )


def _is_file(word: str) -> bool:
    """Is this a user's TOML file (and not the config.toml of a run)?"""
    path = Path(word)
    return path.suffix == ".toml" and not (path.parent / "checkpoints").is_dir()


def _base_config(word: str, *, resume: bool) -> Config:
    """The configuration that a preset name, TOML file or run folder stands for.

    With ``resume``, the config.toml of a run folder stands for the folder.
    """
    if word in list_presets():
        return get_preset(word)
    path = Path(word)
    try:
        path.exists()
    except OSError as error:  # e.g. a name that is too long for a file
        raise UserError(f"{word[:60]}: {error.strerror}") from None
    if resume and path.name == "config.toml" and (path.parent / "checkpoints").is_dir():
        path = path.parent
    if (path / "checkpoints").is_dir() or (path / "config.toml").is_file():
        named = path if path.name not in ("", "..") else path.resolve()
        saved = saved_config(RunFolder(path)) or read_config(path / "config.toml")
        return replace(saved, name=named.name, out=str(named.parent))
    if path.suffix == ".toml" or path.is_file():
        return _file_config(path)
    if path.is_dir():
        raise UserError(f"{path} is not a run folder (no config.toml in it)")
    return get_preset(word)  # raises, naming the nearest


def _file_config(path: Path) -> Config:
    """A user's TOML file: what it leaves out comes from the preset that it names, if any."""
    data = read_toml(path)
    name = data.get("preset")
    whole = all(item.name in data for item in fields(Config) if item.name not in ("name", "resume"))
    # A complete file (a run's config.toml) may carry any label; a partial one needs its preset.
    base: dict[str, Any] = {}
    if isinstance(name, str) and (name in list_presets() or not whole):
        try:
            base = to_dict(get_preset(name))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    for key, value in data.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            base[key] = base[key] | value
        else:
            base[key] = value
    base.setdefault("preset", path.stem)
    try:
        return from_dict(Config, base)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _preset_table() -> str:
    return "\nPresets:\n" + preset_table("  ")


def _print_usage() -> None:
    """Help without a preset: usage, presets, every option with Config's defaults. Exits 0."""
    print(f"usage: fastvae train PRESET [options]\n\n{ABOUT}{_preset_table()}\n")
    print("Options, with the values they have when neither preset nor file says otherwise:\n")
    parse_options(Config, Config(), ["--help"], prog="fastvae train PRESET", about="")


def choose_start(config: Config, world: World) -> Start:
    """Decide the run folder and the checkpoint on the main rank and tell the others."""
    return world.on_main(lambda: _choose(config, world))


def _choose(config: Config, world: World) -> Start:
    if config.resume:
        folder = find_run_folder(config)
        if folder is not None:
            folder.lock(wait=10.0)  # a run that was just killed may still be on its way out
            try:
                return _resume(config, folder, world)
            except UserError:
                folder.unlock()
                raise
        print("nothing to resume yet: starting a new run", flush=True)
    config = _with_precision(config, config.precision, world)
    return Start(config=config, folder=new_run_folder(config), checkpoint=None)


def _with_precision(config: Config, wanted: str, world: World) -> Config:
    precision = resolve_precision(wanted, world.device)
    return replace(config, precision=precision)  # type: ignore[arg-type]


def _resume(config: Config, folder: RunFolder, world: World) -> Start:
    store = CheckpointStore(folder.checkpoints, config.checkpoint.keep)
    path, damaged = store.newest_valid()
    for line in damaged:
        print(f"warning: {line}", file=sys.stderr, flush=True)
    if path is None:
        if damaged:
            raise UserError(
                f"resume: no undamaged checkpoint in {folder.checkpoints} (newest: {damaged[0]}); "
                "start another run with --name"
            )
        print(f"no checkpoint in {folder.path} yet: starting it afresh", flush=True)
        config = _with_precision(config, config.precision, world)
        return Start(config=config, folder=folder, checkpoint=None)
    saved = read_config(path / "config.toml")
    wanted = saved.precision if config.precision == "auto" else config.precision
    config = _with_precision(config, wanted, world)
    check_resumable(saved, config, path)
    store.set_aside_after(int(path.name.removeprefix("step-")))
    return Start(config=config, folder=folder, checkpoint=path)


# What weights and sample stream depend on. Other fields may change on resume, with a warning.
_FIXED = ("seed", "batch_size", "model", "data", "strokes", "optim.optimizer")
# Where the same bytes come from; the fingerprint and the plan are compared besides.
_MOVABLE = tuple(
    f"data.{name}" for name in ("root", "resident", "source", "urls", "allow_pipe", "on_damage")
)
_FREE = ("name", "out", "resume", "preset", "log", "checkpoint", "device")


def check_resumable(saved: Config, config: Config, path: Path) -> None:
    """Compare configurations: a UserError for what cannot change, a warning for what can."""
    for key, before, now in _differences(saved, config):
        section = key.partition(".")[0]
        if section in _FREE or key in _MOVABLE:
            continue
        if section in _FIXED or key in _FIXED:
            raise UserError(
                f"resume: {key} is {now!r} but {path} was trained with {before!r}: drop the "
                "option, or start another run with --name"
            )
        print(f"warning: resume: {key} changes from {before!r} to {now!r}", file=sys.stderr)


def _differences(a: Any, b: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Dotted keys whose values differ between two dataclasses of one type."""
    found = []
    for item in fields(a):
        before, now = getattr(a, item.name), getattr(b, item.name)
        if before == now:
            continue
        key = f"{prefix}{item.name}"
        if hasattr(before, "__dataclass_fields__"):
            found += _differences(before, now, f"{key}.")
        else:
            found.append((key, before, now))
    return found
