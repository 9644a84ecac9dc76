"""The table of presets."""

from __future__ import annotations

from collections.abc import Callable

from fastvae.config import Config
from fastvae.errors import UserError, nearest

_PRESETS: dict[str, Callable[[], Config]] = {}


def preset(function: Callable[[], Config]) -> Callable[[], Config]:
    """Register a preset under its function name, underscores written as hyphens."""
    name = function.__name__.replace("_", "-")
    if name in _PRESETS:
        raise ValueError(f"preset {name!r} is registered twice")
    if not function.__doc__:
        raise ValueError(f"preset {name!r} has no docstring (command, time, expected number)")
    _PRESETS[name] = function
    return function


def get_preset(name: str) -> Config:
    """Return the configuration of a preset; a UserError lists the nearest names."""
    try:
        return _PRESETS[name]()
    except KeyError:
        hint = nearest(name, _PRESETS) or "; `fastvae presets` lists them"
        raise UserError(f"unknown preset {name!r}{hint}") from None


def list_presets() -> dict[str, str]:
    """Preset names with the first line of each docstring."""
    return {name: (f.__doc__ or "").strip().splitlines()[0] for name, f in _PRESETS.items()}


def preset_table(indent: str = "") -> str:
    """The presets for people, a line each."""
    width = max(map(len, _PRESETS))
    return "\n".join(f"{indent}{name:<{width}}  {line}" for name, line in list_presets().items())


def describe_preset(name: str) -> str:
    """The docstring of a preset: command, time, expected number."""
    get_preset(name)
    return _PRESETS[name].__doc__ or ""
