"""An architecture as one value, arch_def, from a TOML or JSON file or a Python dict.

    {"input": [64, 64, 3], "latent": 128, "name": "small", "decode": null,
     "encode": [[32, 3, 2], [64, 3, [2, 2]], [128, [3, 3], 2]]}

``input`` is height, width, channels; a layer is filters, kernel (a number, or a pair of equal
ones), stride (a number, or down and across); without ``decode`` the decoder mirrors the encoder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvae.config import Config
from fastvae.configio import read_toml
from fastvae.errors import UserError, nearest
from fastvae.models.arch import Layer, first_side

KEYS = ("input", "latent", "encode", "decode", "name")


def with_arch(config: Config, definition: Mapping[str, Any] | Path) -> Config:
    """Put an architecture into a configuration: sizes, layers, and the run's name if it has one.

    A UserError names the file, the key and the layer that is wrong.
    """
    where = ""
    if isinstance(definition, Path):
        where = f"{definition}: "
        definition = _read(definition)
    unknown = [key for key in definition if key not in KEYS]
    if unknown:
        raise UserError(f"{where}unknown key {unknown[0]}{nearest(str(unknown[0]), KEYS)}")
    for key in KEYS[:3]:
        if key not in definition:
            raise UserError(f"{where}key {key} is missing: an architecture has {', '.join(KEYS)}")
    expected = "three positive integers [height, width, channels]"
    height, width, channels = _integers(definition["input"], 3, f"{where}input", expected)
    latent = _integers([definition["latent"]], 1, f"{where}latent", "a positive integer")[0]
    name = definition.get("name") or config.name
    if not isinstance(name, str):
        raise UserError(f"{where}name = {name!r}: expected a string")
    try:
        model = dataclasses.replace(
            config.model,
            encoder="arch",
            decoder="arch",
            image_shape=(channels, height, width),
            latent_dim=latent,
            arch_encode=_layers(definition["encode"], f"{where}encode"),
            arch_decode=_layers(
                definition.get("decode") or [], f"{where}decode", may_be_empty=True
            ),
        )
        first_side(model)
        return dataclasses.replace(config, model=model, name=name)
    except UserError as error:
        text = str(error).removeprefix(where)
        for field, key in (("model.arch_", ""), ("model.image_shape", "input")):
            text = text.replace(field, key)
        raise UserError(f"{where}{text}") from None


def _read(path: Path) -> dict[str, Any]:
    """The table in a .toml or .json file."""
    if path.suffix == ".toml":
        return read_toml(path)
    if path.suffix != ".json":
        raise UserError(f"{path}: an architecture is a .toml or .json file")
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not JSON: with line and column
        raise UserError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object with {', '.join(KEYS)}")
    return data


def _integers(value: Any, count: int, where: str, expected: str) -> tuple[int, ...]:
    """A list of ``count`` positive integers."""
    whole = isinstance(value, (list, tuple)) and all(type(v) is int and v > 0 for v in value)
    if not whole or len(value) != count:
        shown = value[0] if count == 1 else value
        raise UserError(f"{where} = {shown!r}: expected {expected}")
    return tuple(value)


def _layers(value: Any, where: str, *, may_be_empty: bool = False) -> tuple[Layer, ...]:
    """A list of layers [filters, kernel, stride]."""
    if not isinstance(value, (list, tuple)) or not (value or may_be_empty):
        raise UserError(f"{where} = {value!r}: expected a list of [filters, kernel, stride]")
    return tuple(_layer(v, f"{where}, layer {number}") for number, v in enumerate(value, start=1))


def _layer(value: Any, where: str) -> Layer:
    """One layer, with kernel and stride as numbers or pairs."""
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise UserError(f"{where} = {value!r}: expected [filters, kernel, stride]")
    filters = _integers([value[0]], 1, f"{where}, filters", "a positive integer")[0]
    kernel = _pair(value[1], f"{where}, kernel")
    if kernel[0] != kernel[1]:
        raise UserError(f"{where}, kernel = {value[1]!r}: kernels are square, give one number")
    down, across = _pair(value[2], f"{where}, stride")
    return filters, kernel[0], down, across


def _pair(value: Any, where: str) -> tuple[int, int]:
    """A number, for both axes, or two."""
    pair = value if isinstance(value, (list, tuple)) else [value, value]
    if len(pair) != 2 or not all(type(v) is int and v > 0 for v in pair):
        raise UserError(f"{where} = {value!r}: expected a positive integer, or two of them")
    return pair[0], pair[1]
