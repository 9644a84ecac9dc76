"""What a model is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """One batch of what a model sees. The names are those of ``fastvae.data.batch.Batch``."""

    x: Tensor
    """(B, C, H, W) in [0, 1], the images to model."""
    y: Tensor | None = None
    """(B, C, H, W) in [0, 1], the condition (a partial drawing), or None."""
    label: Tensor | None = None
    """(B,) int64, class labels, or None."""

    def repeat(self, samples: int) -> Inputs:
        """Condition and label ``samples`` times each, for as many latents per image. The images
        stay as they are: nothing that takes latents looks at them."""
        if samples == 1:
            return self
        given = (None if t is None else t.repeat_interleave(samples, dim=0) for t in self[1:])
        return Inputs(self.x, *given)
