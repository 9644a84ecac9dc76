"""Pixel likelihoods as negative log-likelihoods per row, in nats.

    Bernoulli on logits x with target t in [0, 1]:  nll = sum softplus(x) - x * t

A target strictly between 0 and 1 is read as the mean of a Bernoulli pixel (cross-entropy): the
number has no normaliser for continuous data, so it compares only with other grey-target results.
Plain PyTorch references: they follow the dtype of their inputs, float64 included.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bernoulli_nll(logits: Tensor, target: Tensor) -> Tensor:
    """Bernoulli negative log-likelihood, summed over all but the first axis.

    Shapes: logits (B, ...), target the same shape with values in [0, 1]; returns (B,).
    """
    element = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return element.flatten(1).sum(dim=1)
