"""Write a trained model's networks for use without fastvae.

    fastvae export RUN --to onnx|torchscript|safetensors [--out DIR]

Networks are those of evaluation, in float32, for batches of any size. What was written is read
again and compared with the model on random inputs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from torch import Tensor, nn

import fastvae
from fastvae.command import run_command
from fastvae.config import Config, ModelConfig
from fastvae.configio import from_dict, parse_options, to_dict
from fastvae.errors import UserError
from fastvae.export_parts import Part, example, export_parts, prior_table
from fastvae.models import Model, build_model
from fastvae.optional import require
from fastvae.run import find_checkpoint, load, read_config

ABOUT = """Write the encoder, the decoder and a learned prior of a run folder or checkpoint.

onnx, torchscript: one file for each network. Images and conditions are (B, C, H, W) in [0, 1],
labels (B,) int64; export.json has the names and shapes of all inputs and outputs. safetensors: the
weights; export.json has the configuration they belong to. Every file is read again and compared
with the model on random inputs; the largest difference is printed.
"""
TOLERANCE = 1e-4
"""Largest difference that passes, as a share of the largest value (at least of 1)."""
SUFFIX = {"onnx": ".onnx", "torchscript": ".pt"}
Run = Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Options of fastvae export."""

    to: Literal["onnx", "torchscript", "safetensors"] = "onnx"
    """onnx (needs the extra `export`), torchscript, or safetensors (weights alone)."""
    out: str = ""
    """Folder for the files (empty = export in the run folder)."""
    checkpoint: str = "best"
    """For a run folder: best, last or a name such as step-00000100."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry of ``fastvae export``."""
    run_command(_export, argv)


def _export(args: list[str]) -> None:
    prog = "fastvae export RUN"
    if not args or args[0] in ("-h", "--help"):
        parse_options(ExportConfig, ExportConfig(), ["--help"], prog=prog, about=ABOUT)
    if args[0].startswith("-"):
        raise UserError("the run folder or checkpoint comes first: fastvae export RUN [options]")
    options = parse_options(ExportConfig, ExportConfig(), args[1:], prog=prog, about=ABOUT)
    folder = find_checkpoint(Path(args[0]), options.checkpoint)
    in_run = folder.parent.name == "checkpoints"
    out = Path(options.out) if options.out else (folder.parents[1] if in_run else folder) / "export"
    rows = export_model(load(folder), read_config(folder / "config.toml"), out, options.to)
    print(f"{folder} as {options.to}, largest difference from the model on random inputs:")
    for path, what, difference in rows:
        shown = "" if difference is None else f"{difference:.1e}"
        print(f"  {path}  {path.stat().st_size / 1e3:,.0f} kB  {what}  {shown}".rstrip())


def export_model(
    model: Model, config: Config, out: Path, to: str
) -> list[tuple[Path, str, float | None]]:
    """Write a model's files, all or none.

    Args:
        model: in evaluation mode, on the CPU.
        config: what it was trained with.
        out: folder, made if need be.
        to: onnx, torchscript or safetensors.

    Returns:
        Of each file its path, what it is, and by how much it differs (None: nothing to compare).
    """
    out.mkdir(parents=True, exist_ok=True)
    parts = export_parts(model)
    with tempfile.TemporaryDirectory(dir=out, prefix=".export-") as name:
        place = Path(name)
        _write_description(place / "export.json", config, parts)
        rows: list[tuple[str, str, float | None]]
        if to == "safetensors":
            rows = [_write_weights(model, parts, place)]
        else:
            rows = [_write_network(part, place, to) for part in parts]
            table = prior_table(model)
            if table:
                _write_tensors(table, place / "prior.safetensors")
                rows.append(("prior.safetensors", f"the prior: {', '.join(table)}", None))
        rows.append(("export.json", "configuration, names and shapes", None))
        for path in place.iterdir():
            path.replace(out / path.name)
    return [(out / file, what, difference) for file, what, difference in rows]


def _write_description(path: Path, config: Config, parts: list[Part]) -> None:
    """Configuration, and each network's inputs and outputs in order."""
    data = {"fastvae": fastvae.__version__, "config": to_dict(config)}
    data["networks"] = {
        part.name: {
            "inputs": {k: ["batch", *v.shape[1:]] for k, v in part.inputs.items()},
            "outputs": list(part.outputs),
        }
        for part in parts
    }
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------- networks
def _write_network(part: Part, place: Path, to: str) -> tuple[str, str, float]:
    """Write one network, and compare what was written."""
    path = place / f"{part.name}{SUFFIX[to]}"
    with torch.no_grad(), _quiet():
        run = _write_onnx(part, path) if to == "onnx" else _write_script(part, path)
        difference = _compare(part.name, part.network, run, part.inputs, path.name)
    return path.name, f"{', '.join(part.inputs)} -> {', '.join(part.outputs)}", difference


def _write_onnx(part: Part, path: Path) -> Run:
    purpose, other = "ONNX files", "--to torchscript"
    for module in ("onnx", "onnxscript"):
        require(module, extra="export", purpose=purpose, alternative=other)
    runtime = require("onnxruntime", extra="export", purpose=purpose, alternative=other)
    batch = torch.export.Dim("batch", min=1)
    values = sum(p.numel() for p in part.network.parameters())
    torch.onnx.export(
        part.network,
        tuple(part.inputs.values()),
        str(path),
        input_names=list(part.inputs),
        output_names=list(part.outputs),
        dynamic_shapes=(tuple({0: batch} for _ in part.inputs),),
        dynamo=True,
        external_data=values > 400_000_000,  # one file holds 2 GB at most
        verbose=False,
    )
    settings = runtime.SessionOptions()
    settings.log_severity_level = 3
    session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def run(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        feed = {k: v.numpy() for k, v in zip(part.inputs, inputs, strict=True)}
        return tuple(torch.from_numpy(v) for v in session.run(list(part.outputs), feed))

    return run


def _write_script(part: Part, path: Path) -> Run:
    script = torch.jit.trace(part.network, tuple(part.inputs.values()), check_trace=False)
    torch.jit.save(script, str(path))
    return functools.partial(_call, torch.jit.load(str(path)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own messages: what counts is the comparison."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def _compare(
    name: str, network: nn.Module, run: Run, inputs: dict[str, Tensor], file: str
) -> float:
    """Largest absolute difference on random inputs, for batches of 1 and of 5."""
    largest = 0.0
    for rows in (1, 5):
        drawn = tuple(example(v, rows, seed=i) for i, v in enumerate(inputs.values(), start=rows))
        for mine, other in zip(network(*drawn), run(drawn), strict=True):
            difference = (mine - other).abs().max().item()
            allowed = TOLERANCE * max(1.0, mine.abs().max().item())
            if mine.shape != other.shape or not difference <= allowed:
                raise UserError(
                    f"{file} is not what the model computes: {name} differs by {difference:.2g} "
                    f"(at most {allowed:.2g} passes); nothing was kept, try another --to"
                )
            largest = max(largest, difference)
    return largest


# ---------------------------------------------------------------------------------- weights
def _write_weights(model: Model, parts: list[Part], place: Path) -> tuple[str, str, float]:
    """Write all weights, and compare a model built from the files."""
    path = place / "model.safetensors"
    weights = {k: v.contiguous().clone() for k, v in model.state_dict().items()}
    _write_tensors(weights, path)
    described = json.loads((place / "export.json").read_text(encoding="utf-8"))
    again = build_model(from_dict(ModelConfig, described["config"]["model"]))
    again.load_state_dict(safetensors.torch.load_file(path))
    largest = 0.0
    with torch.no_grad():
        for mine, other in zip(parts, export_parts(again.eval()), strict=True):
            run = functools.partial(_call, other.network)
            difference = _compare(mine.name, mine.network, run, mine.inputs, path.name)
            largest = max(largest, difference)
    return path.name, f"{len(weights)} tensors", largest


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    # As bytes: a file that the library itself makes is for its owner's eyes only.
    path.write_bytes(safetensors.torch.save(tensors))


def _call(network: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return network(*inputs)


if __name__ == "__main__":
    main()
