"""``fastvae COMMAND ...``: the commands, and how each one ends (see ``fastvae/errors.py``)."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastvae.errors import (
    EXIT_BAD_INPUT,
    EXIT_DIVERGED,
    EXIT_STOPPED,
    Diverged,
    Stopped,
    UserError,
    nearest,
)

# Command -> (module whose main(argv) runs it, one line for the help).
COMMANDS = {
    "train": ("fastvae.train", "train a preset, a TOML file, or go on with a run folder"),
    "evaluate": ("fastvae.evaluate", "ELBO, importance-weighted bound, active units of a run"),
    "presets": ("fastvae.presets.__main__", "list the presets"),
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


def run_command(command: Callable[[list[str]], Any], argv: Sequence[str] | None) -> None:
    """Run a command and turn its errors into one line and an exit code.

    Under torchrun every rank fails alike; only the first one speaks.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        command(args)
    except UserError as error:
        _end(f"fastvae: error: {error}", EXIT_BAD_INPUT)
    except Diverged as error:
        _end(f"fastvae: training diverged: {error}", EXIT_DIVERGED)
    except Stopped as error:
        _end(f"fastvae: {error}", EXIT_STOPPED)
    except KeyboardInterrupt:
        _end("fastvae: interrupted", 130)


def _end(line: str, code: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        print(" ".join(line.split()), file=sys.stderr, flush=True)
    sys.exit(code)
