"""SIGTERM and SIGINT: finish the step, save, stop, all ranks at the same step.

A signal may reach ranks at different steps, or only one of them. Each step therefore starts a tiny
asynchronous sum of the flags over a gloo side group, and reads the one started the step before:
every rank sees the same total for the same step, and nobody waits for the GPU.
"""

from __future__ import annotations

import signal
from types import FrameType

import torch
import torch.distributed as dist

from fastvae.engine.distributed import World


class StopSignal:
    """Catches the first SIGTERM or SIGINT; a second SIGINT interrupts at once."""

    def __init__(self, world: World) -> None:
        self.name = ""
        self._world = world
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._before = {s: signal.signal(s, self._catch) for s in (signal.SIGTERM, signal.SIGINT)}

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self) -> bool:
        """Called once per step by every rank: has any rank caught a signal by the last call?"""
        if self._world.size == 1:
            return bool(self.name)
        stop = self._collect()
        flag = torch.tensor([int(bool(self.name))])
        work = dist.all_reduce(flag, group=self._group, async_op=True)
        self._pending = (work, flag)
        return stop

    def _collect(self) -> bool:
        """Wait for the sum started at the call before."""
        if self._pending is None:
            return False
        work, flag = self._pending
        work.wait()
        self._pending = None
        return int(flag) > 0

    def close(self) -> None:
        """Finish what is under way and give the handlers back."""
        self._collect()
        for number, handler in self._before.items():
            signal.signal(number, handler)
