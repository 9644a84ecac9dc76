"""``fastvae COMMAND ...``: the commands."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from fastvae.command import run_command
from fastvae.errors import UserError, nearest

# Command -> (module whose main(argv) runs it, one line for the help).
COMMANDS = {
    "train": ("fastvae.train", "train a preset, a TOML file, or go on with a run folder"),
    "evaluate": ("fastvae.evaluate", "ELBO, importance-weighted bound, active units of a run"),
    "export": ("fastvae.export", "write encoder and decoder as ONNX, TorchScript or safetensors"),
    "presets": ("fastvae.presets.__main__", "list the presets"),
    "models": ("fastvae.models.__main__", "list the parts of models: networks, priors, objectives"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of the console script ``fastvae``."""
    run_command(_dispatch, argv)


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        rows = (f"  {name:<10} {line}" for name, (_, line) in COMMANDS.items())
        print("usage: fastvae COMMAND [options]\n\ncommands:\n" + "\n".join(rows))
        print("\n`fastvae COMMAND --help` explains each; fastvae-data prepares data sets.")
        return
    if args[0] == "--version":
        from fastvae import __version__

        print(__version__)
        return
    if args[0] not in COMMANDS:
        raise UserError(f"unknown command {args[0]!r}{nearest(args[0], COMMANDS)}")
    importlib.import_module(COMMANDS[args[0]][0]).main(args[1:])
