"""Reading and writing configurations: TOML files and the command line.

Precedence: preset or file < command line. Unknown keys and ill-typed values are a UserError that
names the key and the nearest valid ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from fastvae.errors import EXIT_BAD_INPUT, UserError, closest, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")


# ---------------------------------------------------------------------------------- dict and TOML
def to_dict(config: Any) -> dict[str, Any]:
    """Turn a configuration into plain nested dicts and lists (None left out: TOML has no null)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
            return {k: plain(v) for k, v in pairs if v is not None}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(config)


def from_dict(cls: type[T], data: dict[str, Any], where: str = "") -> T:
    """Build the dataclass ``cls`` from nested dicts, checking every key and type.

    Args:
        where: prefix of the dotted key in error messages, e.g. ``"model."``.
    """
    if not isinstance(data, dict):
        raise UserError(f"{where.rstrip('.')} = {data!r}: expected a section [{where[:-1]}]")
    hints = get_type_hints(cls)
    unknown = [key for key in data if key not in hints]
    if unknown:
        dotted = [n.replace("-", "_") for n in option_names(cls)]
        belongs = [n for n in dotted if n.rpartition(".")[2] == unknown[0]]
        hint = f"; it belongs to {' or '.join(belongs)}" if belongs else nearest(unknown[0], hints)
        raise UserError(f"unknown key {where}{unknown[0]}{hint}")
    values: dict[str, Any] = {}
    for key, value in data.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            values[key] = from_dict(hint, value, f"{where}{key}.")  # type: ignore[arg-type]
        else:
            values[key] = _convert(hint, value, f"{where}{key}")
    return cls(**values)


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Check one value against its type hint; lists become tuples, ints become floats."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        raise UserError(f"{key} = {value!r}: expected one of {', '.join(map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(next(a for a in args if a is not type(None)), value, key)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, f"{key}.")  # type: ignore[arg-type]
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{key} = {value!r}: expected a list")
        if args[-1] is Ellipsis:
            numbered = dataclasses.is_dataclass(args[0])  # stages.0.lr, as on the command line
            keys = (f"{key}.{i}" if numbered else key for i in range(len(value)))
            return tuple(_convert(args[0], v, k) for v, k in zip(value, keys, strict=True))
        if len(args) != len(value):
            raise UserError(f"{key} = {value!r}: expected {len(args)} values")
        return tuple(_convert(a, v, key) for a, v in zip(args, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise UserError(f"{key} = {value!r}: expected {_TYPE_NAMES.get(hint, hint)}")
    return value


_TYPE_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}


def to_toml(data: dict[str, Any]) -> str:
    """Write nested dicts of numbers, strings, booleans, lists and lists of dicts as TOML."""

    def literal(value: Any) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, str):
            # A JSON string is a TOML basic string as long as control characters are escaped.
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            escaped = re.sub(r"[\x00-\x1f\x7f]", lambda m: f"\\u{ord(m[0]):04x}", escaped)
            return f'"{escaped}"'
        if isinstance(value, list):
            return f"[{', '.join(map(literal, value))}]"
        return repr(value)

    def tables(value: Any) -> bool:
        return isinstance(value, list) and len(value) > 0 and isinstance(value[0], dict)

    lines: list[str] = []

    def write(table: dict[str, Any], name: str) -> None:
        inner = {k: v for k, v in table.items() if isinstance(v, dict) or tables(v)}
        lines.extend(f"{k} = {literal(v)}" for k, v in table.items() if k not in inner)
        for key, value in inner.items():
            for item in value if tables(value) else [value]:
                head = f"[[{name}{key}]]" if tables(value) else f"[{name}{key}]"
                lines.extend(("", head))
                write(item, f"{name}{key}.")

    write(data, "")
    return "\n".join(lines) + "\n"


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a UserError names the file and the line when it cannot be parsed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


# ---------------------------------------------------------------------------------- command line
def option_names(cls: type, prefix: str = "", value: Any = None) -> dict[str, Any]:
    """Dotted option names of a dataclass, with hyphens, in order: ``{"model.latent-dim": int}``.

    Args:
        value: an instance, whose lists of dataclasses are gone through (``stages.0.lr``).
    """
    names: dict[str, Any] = {}
    for key, hint in get_type_hints(cls).items():
        name = f"{prefix}{key.replace('_', '-')}"
        inside = getattr(value, key, None)
        if dataclasses.is_dataclass(hint):
            names |= option_names(hint, f"{name}.", inside)  # type: ignore[arg-type]
        elif inside and isinstance(inside, tuple) and dataclasses.is_dataclass(inside[0]):
            for number, item in enumerate(inside):
                names |= option_names(type(item), f"{name}.{number}.", item)
        else:
            names[name] = hint
    return names


# Words that people try, and the options they mean.
_ALIASES = {"learning-rate": "optim.lr", "z-dim": "model.latent-dim", "steps": "max-steps"}


def _full_name(word: str, names: dict[str, type]) -> str:
    """Resolve an option word: exact, or its last part alone when only one option ends in it."""
    name = word.replace("_", "-")
    if name in names:
        return name
    plain = re.sub(r"(^|\.)no-", r"\1", name)  # --no-log.tensorboard and --log.no-tensorboard
    # What is inside a list (stages.0.lr) has to be named in full.
    whole = [n for n in names if not re.search(r"\.\d+\.", n)]
    ends = [n for n in names if plain == n or (n in whole and plain == n.rpartition(".")[2])]
    if len(ends) > 1 and plain not in ends:
        raise UserError(f"option --{word} is ambiguous: --{', --'.join(ends)}")
    if ends:
        full = plain if plain in ends else ends[0]
        if plain == name:
            return full
        if names[full] is bool:
            section, dot, last = full.rpartition(".")
            return f"{section}{dot}no-{last}"
        raise UserError(f"unknown option --{word}: --{full} is not a switch, it takes a value")
    if plain in _ALIASES:
        raise UserError(f"unknown option --{word}; nearest: --{_ALIASES[plain]} (see --help)")
    # Compare with the whole names and with their last parts: --learning-rte, --optim.lrr.
    candidates = {n: n for n in names} | {n.rpartition(".")[2]: n for n in names}
    close = list(dict.fromkeys(candidates[c] for c in closest(plain, candidates, most=6)))[:3]
    hint = f"; nearest: --{', --'.join(close)}" if close else ""
    raise UserError(f"unknown option --{word}{hint} (see --help)")


def parse_options(cls: type[T], default: T, args: Sequence[str], *, prog: str, about: str) -> T:
    """Change fields of ``default`` by command-line words such as ``--optim.lr 1e-3``.

    ``--help`` prints every option with its unit and default, and exits 0. Mistakes are a UserError
    of one line. A short name (``--lr``) stands for the only option that ends in it.
    """
    import tyro

    names = option_names(cls, value=default)
    words: list[str] = []
    for word in args:
        if word in ("-h", "--help"):
            words = ["--help"]
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            words.append(f"--{_full_name(name, names)}{equals}{value}")
        elif word.startswith("-") and not re.match(r"-(\d|\.|inf|nan)", word):
            raise UserError(f"unknown option {word} (options start with two hyphens; see --help)")
        elif not words:
            raise UserError(f"unexpected word {word!r} before the options (see --help)")
        else:
            words.append(word)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(cls, default=default, args=words, prog=prog, description=about)
    except SystemExit as stop:
        if stop.code != EXIT_BAD_INPUT:
            raise
        raise UserError(f"{_first_sentence(said.getvalue())} (see --help)") from None


def _first_sentence(box: str) -> str:
    """The message inside the frame that tyro draws, up to its first rule, as one line."""
    text: list[str] = []
    for line in box.splitlines()[1:]:
        inner = line.strip(" \u2502|")
        if not inner or set(inner) <= set("\u2500-"):
            break
        text.append(inner)
    return " ".join(text) or box.strip()
