"""Presets: named, complete configurations, one file each.

A preset is a function that returns a ``Config``. Its docstring says the command, the time it takes
and the number to expect. To add one: write ``fastvae/presets/<name>.py`` with a function decorated
by ``@preset`` and import it below.
"""

from fastvae.presets import (  # noqa: F401  (importing registers them)
    arch,
    coco64,
    digits,
    faces128,
    faces512,
    iwae_mlp,
    mnist,
    mnist_genzoo,
    mnist_hvae,
    mnist_vq,
    quickdraw_cvae,
    quickdraw_cvae_large,
    quickdraw_cvae_z,
    quickdraw_vae,
    strips,
    strips_small,
)
from fastvae.presets.registry import get_preset, list_presets, preset

__all__ = ["get_preset", "list_presets", "preset"]
