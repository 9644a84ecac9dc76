"""How kernels are launched: a static table, no autotuning.

Autotuning at run time would time candidates in the middle of training, choose differently from run
to run, and cannot be captured in a CUDA graph. The table is part of the source, so two runs launch
the same programs and sum in the same order. Tiles depend on the width of a row and never on the
batch size or the number of multiprocessors: a row's sum is the same in any batch, on any GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastvae.kernels.launch_table import TABLE

MAX_TILES = 65535
"""Programs along the second axis of a CUDA grid."""


@dataclass(frozen=True)
class Launch:
    """Launch parameters of one kernel.

    Attributes:
        elements: elements of one program's tile, a power of two.
        block: most columns of a tile, a power of two.
        warps: warps per program.
    """

    elements: int
    block: int
    warps: int

    def tile(self, columns: int) -> tuple[int, int]:
        """Columns and rows of a tile for rows of ``columns`` elements; both powers of two.

        Raises:
            ValueError: more tiles per row than a GPU's grid has room for.
        """
        if columns > MAX_TILES * self.block:
            raise ValueError(
                f"rows of {columns} elements are too wide for this operation: expected at most "
                f"{MAX_TILES * self.block}"
            )
        width = min(self.block, max(16, power_of_two(columns)))
        return width, max(1, self.elements // width)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()


LAUNCH = {
    name: Launch(int(row["elements"]), int(row["block"]), int(row["warps"]))
    for name, row in TABLE.items()
}
