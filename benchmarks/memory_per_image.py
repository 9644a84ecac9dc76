"""Memory that one more image of a micro-batch takes in training, with and without recomputation.

    python -m benchmarks.memory_per_image [PRESET]

Each case is a process of its own: two passes of the objective, forward and backward. On a CPU the
figure is peak resident memory, on a GPU what torch allocated at most; the difference between 4
images and 2 is divided by 2, so that weights, gradients and the program itself do not count.
"""

from __future__ import annotations

import itertools
import os
import resource
import subprocess
import sys

import torch

from fastvae import ops
from fastvae.models import Inputs, build_model
from fastvae.models.blocks import set_recompute
from fastvae.objective import Objective
from fastvae.presets import get_preset

DTYPES = {"fp32": None, "bf16": torch.bfloat16}
# Freed blocks go back to the system at once: what is resident is what is in use.
ENV = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak(name: str, precision: str, recompute: bool, images: int) -> float:
    """MiB at most in use while a preset's objective is computed for so many images."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    config = get_preset(name)
    model = build_model(config.model).to(device, memory_format=torch.channels_last)
    if recompute:
        set_recompute(model)
    objective = Objective(model, config.objective, autocast=DTYPES[precision])
    shape = (images, *config.model.image_shape)
    x = torch.rand(shape, device=device).to(memory_format=torch.channels_last)
    for step in range(2):
        rng = ops.rng_state(0, device, step * images)
        objective(Inputs(x), rng, 0, torch.ones((), device=device))[0].backward()
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Print a line for each case."""
    if len(sys.argv) == 5:
        name, precision, recompute, images = sys.argv[1:]
        print(peak(name, precision, recompute == "True", int(images)))
        return
    name = sys.argv[1] if len(sys.argv) == 2 else "faces512"
    print(f"{name}: MiB per image of a micro-batch, and the process with 2 images")
    for precision, recompute in itertools.product(DTYPES, (False, True)):
        found = []
        for images in ("2", "4"):
            command = [sys.executable, "-m", "benchmarks.memory_per_image"]
            words = [*command, name, precision, str(recompute), images]
            done = subprocess.run(words, check=True, capture_output=True, text=True, env=ENV)
            found.append(float(done.stdout))
        how = "recompute" if recompute else "keep all"
        print(f"{precision} {how:<10} {(found[1] - found[0]) / 2:7.0f} {found[0]:7.0f}", flush=True)


if __name__ == "__main__":
    main()
