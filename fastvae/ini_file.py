"""The GenZoo system's ``config.ini``: its values put into a configuration of ours.

    fastvae train mnist-genzoo --ini config.ini

Every key of the original is known. The two that have no counterpart here are named in a warning
that says what holds instead; unknown keys and values of the wrong kind are errors.
"""

from __future__ import annotations

import configparser
import math
import sys
from collections.abc import Callable
from pathlib import Path

from fastvae.config import Config, replace
from fastvae.errors import UserError, nearest

Put = Callable[[Config, str], Config]
"""Puts the text of a value into a configuration; a ValueError says what was expected."""


def with_ini(config: Config, path: Path) -> Config:
    """Change ``config`` by a GenZoo ``config.ini``; keys that the file leaves out stay.

    Raises:
        UserError: the file cannot be read, or has an unknown section or key, or a bad value.
    """
    parser = _read(path)
    for section in parser.sections():
        if section not in _KEYS:
            raise UserError(f"{path}: unknown section [{section}]{nearest(section, _KEYS)}")
        for key in parser[section]:
            if key not in _KEYS[section]:
                raise UserError(f"{path}: [{section}] {key}: unknown key{_where(key, section)}")
    values = {k: v.strip() for section in parser.values() for k, v in section.items()}
    for section, keys in _KEYS.items():  # in this order: how many checkpoints depends on epochs
        for key, put in keys.items():
            if key in values:
                config = _put(config, put, values[key], f"{path}: [{section}] {key}")
    _warn(config, values, path)
    return config


def _read(path: Path) -> configparser.ConfigParser:
    """The file's sections, of which there is at least one."""
    # No section of defaults: [DEFAULT] is one more unknown name.
    parser = configparser.ConfigParser(interpolation=None, default_section="")
    try:
        parser.read_string(path.read_text(encoding="utf-8-sig"), source=str(path))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a text file: {error}") from None
    except configparser.Error as error:  # names the file and the line
        raise UserError(f"not a valid ini file: {' '.join(str(error).split())}") from None
    if not parser.sections():
        raise UserError(f"{path} is empty: expected sections {', '.join(_KEYS)}")
    return parser


def _where(key: str, section: str) -> str:
    """Where a key belongs, or the nearest ones."""
    for other, keys in _KEYS.items():
        if key in keys:
            return f" here; it belongs to [{other}]"
    return nearest(key, _KEYS[section]) or f"; known: {', '.join(_KEYS[section])}"


def _put(config: Config, put: Put, text: str, where: str) -> Config:
    try:
        return put(config, text)
    except UserError as error:  # what the configuration itself does not allow
        raise UserError(f"{where} = {text}: {error}") from None
    except ValueError as error:
        raise UserError(f"{where} = {text!r}: expected {error}") from None


def _warn(config: Config, values: dict[str, str], path: Path) -> None:
    """Say what the file asks for and does not get."""
    if "t_sne_points" in values:
        _say(
            f"{path}: t_sne_points = {values['t_sne_points']} has no effect: training draws no "
            "t-SNE; model.encode_mean(images) gives the latents to draw one from"
        )
    data = config.data
    if values.get("dataset", data.dataset).lower() != data.dataset:
        _say(
            f"{path}: dataset = {values['dataset']} has no effect (nor had it in the original): "
            f"data.dataset is {data.dataset}, in {data.root}; change it with --data.dataset"
        )


def _say(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------ values
def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError("an integer") from None
    if not 1 <= value <= 10**9:
        raise ValueError("1 to 1000000000")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if not 0.0 < value < math.inf:
        raise ValueError("more than 0")
    return value


def _gpu(config: Config, text: str) -> Config:
    if text not in ("0", "1"):
        raise ValueError("0 (train on the CPU) or 1 (on a GPU, where there is one)")
    return replace(config, device="auto" if text == "1" else "cpu")


def _save_every(config: Config, text: str) -> Config:
    """A checkpoint, with a validation, after every so many epochs; all of them are kept."""
    frequency = _whole(text)
    keep = max(2, -(-config.epochs // frequency))
    return replace(
        config, log__eval_every=float(frequency), checkpoint__every=0, checkpoint__keep=keep
    )


def _checked(config: Config, text: str) -> Config:
    """For values that are looked at and have no effect."""
    _whole(text)
    return config


_KEYS: dict[str, dict[str, Put]] = {
    "MODEL_PARAMETERS": {
        # The original reads the rate and then trains with 1e-3 whatever it is.
        "lr": lambda config, text: replace(config, optim__lr=_number(text)),
        "epochs": lambda config, text: replace(config, epochs=_whole(text)),
        "batch_size": lambda config, text: replace(config, batch_size=_whole(text)),
    },
    "MODEL_VARIABLES": {
        "exp_name": lambda config, text: replace(config, name=text),
        "dataset": lambda config, text: config,
        "gpu": _gpu,
        "z_dim": lambda config, text: replace(config, model__latent_dim=_whole(text)),
        "t_sne_points": _checked,
    },
    "SAVE_PARAMETERS": {
        "model_save_frequency": _save_every,
        "image_print_frequency": lambda config, text: replace(
            config, log__image_every=float(_whole(text))
        ),
    },
}
