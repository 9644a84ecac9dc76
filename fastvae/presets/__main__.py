"""``fastvae presets [NAME]``: list the presets, or show one with its docstring and values."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from fastvae.command import run_command
from fastvae.configio import to_dict, to_toml
from fastvae.errors import UserError
from fastvae.presets.registry import describe_preset, get_preset, preset_table


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of ``fastvae presets``."""
    run_command(_presets, argv)


def _presets(args: list[str]) -> None:
    if not args:
        print(preset_table())
        print("\nfastvae presets NAME shows one; fastvae train NAME --help explains every option")
    elif {"-h", "--help"} & set(args):
        print("usage: fastvae presets [NAME]\n\nList the presets, or show one as TOML.")
    elif len(args) > 1:
        raise UserError(f"fastvae presets takes one name, got {' '.join(args)}")
    else:
        config = get_preset(args[0])
        text = inspect.cleandoc(describe_preset(args[0]))
        print("\n".join(f"# {line}".rstrip() for line in text.splitlines()))
        print(to_toml(to_dict(config)))


if __name__ == "__main__":
    main()
