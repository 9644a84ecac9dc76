"""Processes: who am I, and what do all of us agree on.

``torchrun`` sets RANK, WORLD_SIZE and LOCAL_RANK; without it a run is one process. NCCL on GPUs,
gloo on CPUs.
"""

from __future__ import annotations

import gc
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastvae.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over ranks (returned; the input is left alone)."""
        if self.size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def broadcast(self, value: T) -> T:
        """The main process's value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """Do ``work`` on the main rank only; its result, or its UserError, reaches every rank.

        Without this a rank that fails alone leaves the others waiting for it.
        """
        if self.size == 1:
            return work()
        answer: tuple[T | None, str | None] = (None, None)
        if self.is_main:
            try:
                answer = (work(), None)
            except UserError as error:
                answer = (None, str(error))
        result, message = self.broadcast(answer)
        if message is not None:
            raise UserError(message)
        return result  # type: ignore[return-value]

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Equal-shaped tensors of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [tensor]
        place = tensor.to(self.device)
        boxes = [torch.empty_like(place) for _ in range(self.size)]
        dist.all_gather(boxes, place)
        return [box.to(tensor.device) for box in boxes]

    def together(self, work: Callable[[], T]) -> T:
        """Do ``work`` on every rank; where one fails with a UserError, all of them do.

        Without this the others would wait for it, or end with an error of the network's.
        """
        if self.size == 1:
            return work()
        result, message = None, None
        try:
            result = work()
        except UserError as error:
            message = str(error)
        every: list[str | None] = [None] * self.size
        dist.all_gather_object(every, message)
        failed = [rank for rank, said in enumerate(every) if said is not None]
        if failed:
            where = "" if len(failed) == self.size else f"rank {failed[0]}: "
            raise UserError(f"{where}{every[failed[0]]}")
        return result  # type: ignore[return-value]

    def require_equal(self, text: str, what: str) -> None:
        """Raise UserError on all ranks unless all give the same ``text``."""
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        every = self.gather(torch.tensor(list(digest), dtype=torch.int64))
        others = [rank for rank, theirs in enumerate(every) if not torch.equal(theirs, every[0])]
        if others:
            raise UserError(
                f"rank {others[0]} sees other {what} than rank 0: give all of them the same files "
                "(with --data.on-damage skip, also the same damage)"
            )


def join(device: str) -> World:
    """Start or join the process group and choose this rank's device.

    Args:
        device: auto, cpu or cuda.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': torch sees no GPU here; use --device cpu or auto")
    use_cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if use_cuda:
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"{local_rank + 1} or more processes on this machine but only "
                f"{torch.cuda.device_count()} GPUs: lower --nproc_per_node, or use --device cpu"
            )
        place = torch.device("cuda", local_rank)
        torch.cuda.set_device(place)
    else:
        place = torch.device("cpu")
    if world_size > 1 and not dist.is_initialized():
        if use_cuda:
            dist.init_process_group("nccl", device_id=place)
        else:
            dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    return World(rank=rank, size=world_size, device=place)


def leave() -> None:
    """Leave the process group if there is one."""
    if dist.is_initialized():
        # DDP sits in reference cycles and holds the group. If gloo's threads are left to the end
        # of the interpreter, they may abort it (seen in 1 of 10 runs on a busy machine).
        gc.collect()
        dist.destroy_process_group()
