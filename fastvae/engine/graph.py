"""A whole training step as one CUDA graph: forward, backward and optimizer in a single launch.

A step of a small network is some hundred kernels of a few microseconds each; launching them from
Python takes longer than running them. A captured step is replayed with one call. What varies from
step to step lies in device memory that keeps its place: images are copied into static buffers,
the learning rate, beta and the noise counter are tensors that are filled beforehand.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

import torch

from fastvae.config import Config
from fastvae.engine.distributed import World
from fastvae.models import Inputs

WARMUP = 3
"""Steps run before the capture: optimizer state, cuDNN's choices and Triton's kernels get made."""


def why_not(config: Config, world: World) -> str:
    """Why the step of this run cannot be captured, or an empty string when it can."""
    if world.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, this run is on {world.device.type}"
    if world.size > 1:
        return "gradients are averaged over several processes, which is not captured yet"
    if config.precision == "fp16":
        return "fp16's loss scaling is not captured; use --precision bf16"
    if config.optim.optimizer.startswith("apex"):
        return f"{config.optim.optimizer} keeps its step count on the host; use adamw"
    return ""


class StepGraph:
    """Runs a step: as it is for ``WARMUP`` steps, then captured once, then replayed.

    The captured step does the same work in the same order as the plain one; nothing is run twice
    and no step is lost. When the capture fails, a warning says so and the run goes on without.

    Args:
        step: one optimizer step over the given micro-batches of images, which reads nothing back
            from the device.
        forget: clears what a broken capture has left behind, which is gradients without values.
    """

    def __init__(
        self, step: Callable[[Sequence[Inputs]], None], forget: Callable[[], None]
    ) -> None:
        self._step = step
        self._forget = forget
        self._side = torch.cuda.Stream()
        self._done = 0
        self._static: list[Inputs] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self.failed = False
        """The capture failed: steps run as they are."""

    @property
    def captured(self) -> bool:
        return self._graph is not None

    def __call__(self, images: Iterable[Inputs]) -> None:
        """Run one step over images of the same shapes as in every other call."""
        if self._graph is not None:
            for mine, given in zip(self._static, images, strict=True):
                for place, tensor in zip(mine, given, strict=True):
                    if place is not None and tensor is not None:
                        place.copy_(tensor)
            self._graph.replay()
            return
        loaded = list(images)
        if self._done >= WARMUP and not self.failed and self._capture(loaded):
            return
        self._run_aside(loaded)
        self._done += 1

    def _run_aside(self, images: Sequence[Inputs]) -> None:
        """Run on a side stream: torch wants autograd's work before a capture to be there."""
        main = torch.cuda.current_stream()
        self._side.wait_stream(main)
        with torch.cuda.stream(self._side):
            self._step(images)
        main.wait_stream(self._side)

    def _capture(self, images: Sequence[Inputs]) -> bool:
        """Capture, then run, the step. Returns whether that worked."""
        self._static = [Inputs._make(None if t is None else t.clone() for t in i) for i in images]
        graph, main = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # thread_local: a thread that prepares batches goes on allocating meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step(self._static)
        except RuntimeError as error:
            self.failed, self._static = True, []
            torch.cuda.set_stream(main)  # torch.cuda.graph stays on its own when it fails
            self._forget()
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(
                f"warning: --cuda-graph: the step could not be captured ({reason}); going on "
                "without, at the speed of single launches",
                file=sys.stderr,
            )
            return False
        self._graph = graph
        graph.replay()  # capturing only records
        return True
