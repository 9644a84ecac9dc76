"""What a model is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from fastvae.config import ModelConfig
from fastvae.errors import UserError


class Inputs(NamedTuple):
    """One batch of what a model sees. The names are those of ``fastvae.data.batch.Batch``."""

    x: Tensor
    """(B, C, H, W) in [0, 1], the images to model."""
    y: Tensor | None = None
    """(B, C, H, W) in [0, 1], the condition (a partial drawing), or None."""
    label: Tensor | None = None
    """(B,) int64, class labels, or None."""

    @classmethod
    def for_model(
        cls, config: ModelConfig, x: Tensor, y: Tensor | None, label: Tensor | None
    ) -> Inputs:
        """What the model looks at of a batch; a UserError where something is missing."""
        if config.condition == "none":
            y = None
        elif y is None:
            raise UserError("model.condition = 'image', but these images have no partial images")
        if not config.classes:
            label = None
        elif label is None:
            raise UserError(f"model.classes = {config.classes}, but these images have no labels")
        return cls(x, y, label)

    def repeat(self, samples: int) -> Inputs:
        """Condition and label ``samples`` times each, for as many latents per image. The images
        stay as they are: nothing that takes latents looks at them."""
        if samples == 1:
            return self
        given = (None if t is None else t.repeat_interleave(samples, dim=0) for t in self[1:])
        return Inputs(self.x, *given)
