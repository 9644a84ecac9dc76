"""Batch statistics over all processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastvae.config import Config
from fastvae.engine.distributed import World
from fastvae.errors import UserError


class _SumOverRanks(torch.autograd.Function):
    """The sum over ranks, whose gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


class CrossRankBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks, on any device.

    torch's SyncBatchNorm does this on GPUs and refuses CPUs, where gloo has what it takes: two
    reductions, one for the mean and one for the squared deviations from it.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 axes, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(input.dim())]
        x = input.float()
        count = torch.full((1,), x.numel() / x.shape[1], device=x.device)
        total = _SumOverRanks.apply(torch.cat((x.sum(axes), count)))
        n = total[-1]
        mean = total[:-1] / n
        off = x - mean.view(shape)
        var = _SumOverRanks.apply(off.square().sum(axes)) / n
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * n / (n - 1.0).clamp(min=1.0), momentum)
        y = off * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = torch.addcmul(self.bias.view(shape), y, self.weight.view(shape))
        return y.to(input.dtype)


def over_all_ranks(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with its batch norms exchanged for ones over all ranks; weights stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, child in list(model.named_children()):
        if not isinstance(child, _BatchNorm):
            over_all_ranks(child, device)
            continue
        norm = CrossRankBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
        norm.load_state_dict(child.state_dict())
        setattr(model, name, norm)
    return model


def check_batch(model: nn.Module, config: Config, world: World) -> None:
    """Refuse batch statistics of a single image: they leave nothing of it."""
    if not any(isinstance(m, _BatchNorm) for m in model.modules()):
        return
    images = config.batch_size // config.accumulate
    if config.batchnorm == "local":
        images //= world.size
    if images < 2:
        raise UserError(
            f"batch norm would see {images} image at a time (batch_size {config.batch_size}, "
            f"accumulate {config.accumulate}, {world.size} processes): give it 2 or more, or use "
            "--model.norm group"
        )
