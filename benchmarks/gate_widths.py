"""How wide the memory accesses of a kernel have to be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Widths:
    """What a case demands: bytes of an access of a tile (0: anything), elements of a thread."""

    loads: int
    stores: int
    elements: int
