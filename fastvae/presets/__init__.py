"""Presets: named, complete configurations, one file each.

A preset is a function that returns a ``Config``. Its docstring says the command, the time it takes
and the number to expect. To add one: write ``fastvae/presets/<name>.py`` with a function decorated
by ``@preset`` and import it below.
"""

from fastvae.presets import digits, mnist, quickdraw_vae  # noqa: F401  (importing registers them)
from fastvae.presets.registry import get_preset, list_presets, preset

__all__ = ["get_preset", "list_presets", "preset"]
