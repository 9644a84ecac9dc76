"""``fastvae models [NAME]``: list the parts that models are made of, or explain one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastvae.command import run_command
from fastvae.config import Config
from fastvae.errors import UserError, nearest
from fastvae.models.likelihoods import LIKELIHOODS
from fastvae.models.priors import PRIORS
from fastvae.models.registry import DECODERS, ENCODERS, KINDS
from fastvae.objectives import OBJECTIVES
from fastvae.presets import get_preset, list_presets

# Option of `fastvae train` -> the table of what it may be.
TABLES: dict[str, Mapping[str, Callable[..., Any]]] = {
    "model.kind": KINDS,
    "model.encoder": ENCODERS,
    "model.decoder": DECODERS,
    "model.prior": PRIORS,
    "model.likelihood": LIKELIHOODS,
    "objective.kind": OBJECTIVES,
}
FOR_VAE = ("model.encoder", "model.decoder", "model.prior")
"""Options that other kinds of models do not look at."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of ``fastvae models``."""
    run_command(_models, argv)


def _models(args: list[str]) -> None:
    if {"-h", "--help"} & set(args):
        print(
            "usage: fastvae models [NAME]\n\nList the parts of models, or explain those of a name."
        )
    elif len(args) > 1:
        raise UserError(f"fastvae models takes one name, got {' '.join(args)}")
    elif args:
        _explain(args[0])
    else:
        _list()


def _list() -> None:
    """A line for each part, under the option that chooses it."""
    for option, table in TABLES.items():
        print(f"--{option}")
        for name in table:
            print(f"  {name:<20} {_docstring(option, name).splitlines()[0]}")
            used = users(option, name)
            if used:
                print(f"  {'':<20} used by {', '.join(used)}")
        print()
    print("fastvae models NAME explains one; fastvae train PRESET --help explains every option")


def _explain(name: str) -> None:
    """The whole docstring of every part of that name."""
    found = [option for option, table in TABLES.items() if name in table]
    if not found:
        every = sorted({known for table in TABLES.values() for known in table})
        raise UserError(f"no part of a model is called {name!r}{nearest(name, every)}")
    blocks = []
    for option in found:
        used = ", ".join(users(option, name)) or "none yet"
        text = _docstring(option, name)
        blocks.append(f"--{option} {name}\n\n{text}\n\nPresets that use it: {used}")
    print("\n\n\n".join(blocks))


def _docstring(option: str, name: str) -> str:
    return inspect.getdoc(TABLES[option][name]) or "(no docstring)"


def users(option: str, name: str) -> list[str]:
    """Presets that use a part."""
    return [preset for preset in list_presets() if _uses(get_preset(preset), option, name)]


def _uses(config: Config, option: str, name: str) -> bool:
    if option in FOR_VAE and config.model.kind != "vae":
        return False
    section, field = option.split(".")
    return bool(getattr(getattr(config, section), field) == name)


if __name__ == "__main__":
    main()
