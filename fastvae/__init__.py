"""fastvae: train variational autoencoders on images, fast and with numbers one can trust.

The Python API is small: ``fastvae.load(run_or_checkpoint)`` gives a trained model with ``encode``,
``decode``, ``reconstruct`` and ``sample``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

__version__ = "0.1.0"

# Checkouts without symbolic links (Windows, some archives) hold `fastvae/kernels` as a text file:
# look for kernels/ and data_tools/ one level up instead.
_here = Path(__file__).parent
if not (_here / "kernels").is_dir() and (_here.parent / "kernels").is_dir():
    __path__.append(str(_here.parent))

if TYPE_CHECKING:
    from fastvae.run import load as load


def __getattr__(name: str) -> object:
    """Import ``load`` on first use, so that ``import fastvae`` stays light."""
    if name == "load":
        from fastvae.run import load

        return load
    raise AttributeError(f"module 'fastvae' has no attribute {name!r}")
