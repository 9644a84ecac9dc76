"""Compile every kernel for every target, without a GPU, and look at the machine code.

    python -m benchmarks.compile_gate --arch sm_90 gfx942        # exit status 1 where one fails
    python -m benchmarks.compile_gate --arch sm_80 sm_90 sm_100 gfx942 --jobs 2 --update

The cases (gate_cases.py) call the real launchers with example tensors on the CPU. Triton's driver
is replaced by one that names the target, and launching by compiling: Triton itself specializes
each kernel on exactly the types, constants, alignments and options of that call.

A kernel passes where

* it spills no register, has no stack and uses no atomic operation;
* it loads and stores tiles 16 bytes at a time (or as much as a thread's share of the tile fills:
  8 pixels of a byte are 8 bytes), where its case says that the data allow it;
* registers and instructions are within 10 % of compile_gate.json, and no access got narrower.

The figures are recorded per minor version of Triton; for a version that is not there the last rule
is skipped and the table says "not recorded". Triton's wheel brings the assembler and the
disassembler for CUDA; for ROCm the assembly text says it all.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.gate_widths import Widths

RECORD = Path(__file__).with_suffix(".json")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")
TOLERANCE = 0.10
FEW = 3  # narrow accesses that are nothing to worry about

# The mnemonic of a line of SASS: behind its address, and behind a predicate.
_SASS = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?PT?\d*\s+)?([A-Z][A-Z0-9_.]*)", re.M
)
_SASS_ATOMIC = re.compile(r"(ATOM|RED)[GS]?(\.|$)")  # not REDUX, a reduction within a warp
_SASS_NARROW = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
_GCN = re.compile(r"^\s+((?:[sv]|ds|global|buffer|flat|scratch)_\w+)", re.M)
_GCN_ATOMIC = re.compile(r"\w+_atomic_|ds_(add|sub|inc|dec|min|max|and|or|xor|cmpst|wrxchg)_")
_GCN_WIDTH = {
    "ubyte": 1,
    "sbyte": 1,
    "byte": 1,
    "ushort": 2,
    "sshort": 2,
    "short": 2,
    "dword": 4,
    "dwordx2": 8,
    "dwordx3": 12,
    "dwordx4": 16,
}


@dataclass(frozen=True)
class Figures:
    """What the machine code of one kernel says.

    Attributes:
        loads, stores: accesses to global memory, counted by their width in bytes.
        spills: loads and stores of spilled registers.
        stack: bytes of stack per thread.
    """

    registers: int
    instructions: int
    loads: dict[int, int]
    stores: dict[int, int]
    spills: int = 0
    stack: int = 0
    atomics: int = 0


def parse_sass(code: str, usage: str) -> Figures:
    """Figures from ``nvdisasm -c`` and ``cuobjdump --dump-resource-usage``."""
    names = [name for name in _SASS.findall(code) if not name.startswith("NOP")]
    if not names:
        raise ValueError("no instruction in the disassembly")
    resources = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    return Figures(
        registers=int(resources["REG"]),
        instructions=len(names),
        loads=_widths(_sass_width(name) for name in names if name.startswith("LDG")),
        stores=_widths(_sass_width(name) for name in names if name.startswith("STG")),
        spills=sum(name.startswith(("LDL", "STL")) for name in names),
        stack=int(resources["STACK"]) + int(resources["LOCAL"]),
        atomics=sum(bool(_SASS_ATOMIC.match(name)) for name in names),
    )


def parse_gcn(text: str) -> Figures:
    """Figures from the assembly text of an AMD kernel, metadata included."""
    names = _GCN.findall(text)
    if not names:
        raise ValueError("no instruction in the assembly")

    def metadata(key: str) -> int:
        return int(re.findall(rf"\.{key}:\s+(\d+)", text)[-1])

    return Figures(
        registers=metadata("vgpr_count"),
        instructions=len(names),
        loads=_widths(_gcn_width(name) for name in names if _gcn_access(name, "load")),
        stores=_widths(_gcn_width(name) for name in names if _gcn_access(name, "store")),
        spills=metadata("vgpr_spill_count") + metadata("sgpr_spill_count"),
        stack=metadata("private_segment_fixed_size"),
        atomics=sum(bool(_GCN_ATOMIC.match(name)) for name in names),
    )


def _widths(widths: Iterable[int]) -> dict[int, int]:
    return dict(sorted(Counter(widths).items()))


def _sass_width(name: str) -> int:
    return next((_SASS_NARROW[part] for part in name.split(".") if part in _SASS_NARROW), 4)


def _gcn_access(name: str, kind: str) -> bool:
    return re.match(rf"(global|buffer|flat)_{kind}_(?!lds)", name) is not None


def _gcn_width(name: str) -> int:
    return next(_GCN_WIDTH[part] for part in name.split("_") if part in _GCN_WIDTH)


def wide(accesses: dict[int, int], width: int) -> int:
    """Accesses of at least ``width`` bytes."""
    return sum(count for size, count in accesses.items() if size >= width)


def absolute_faults(figures: Figures, widths: Widths) -> list[str]:
    """What is wrong whatever was recorded."""
    faults = [
        f"{count} {what}"
        for what, count in (
            ("spills", figures.spills),
            ("bytes of stack", figures.stack),
            ("atomics", figures.atomics),
        )
        if count
    ]
    for what, accesses, width in (
        ("loads", figures.loads, widths.loads),
        ("stores", figures.stores, widths.stores),
    ):
        narrow = wide(accesses, 0) - wide(accesses, width)
        # Sums and indices of rows, seeds, scalars and tiles of bytes are a few narrow accesses; a
        # tile that has lost its width has one for each of a thread's elements.
        most = max(FEW, widths.elements - 1)
        if width and (narrow > most or wide(accesses, width) == 0):
            faults.append(f"{narrow} {what} narrower than {width} bytes")
    return faults


def relative_faults(figures: Figures, recorded: dict[str, int]) -> list[str]:
    """What moved against the record: more than a tenth up or down, or an access got narrower."""
    now = to_record(figures)
    faults = [
        f"{now[key]} {key}, recorded {recorded[key]}"
        for key in ("registers", "instructions")
        if abs(now[key] - recorded[key]) > TOLERANCE * recorded[key]
    ]
    for key in ("loads", "stores"):
        # A lost 16-byte access comes back as several narrow ones.
        if now[f"wide_{key}"] < recorded[f"wide_{key}"] or now[key] > recorded[key]:
            shown = [f"{x[f'wide_{key}']}/{x[key]}" for x in (now, recorded)]
            faults.append(f"{key} 16B/all {shown[0]}, recorded {shown[1]}")
    return faults


def to_record(figures: Figures) -> dict[str, int]:
    """The part of the figures that is checked in."""
    return {
        "registers": figures.registers,
        "instructions": figures.instructions,
        "wide_loads": wide(figures.loads, 16),
        "loads": wide(figures.loads, 0),
        "wide_stores": wide(figures.stores, 16),
        "stores": wide(figures.stores, 0),
    }


def _warp(arch: str) -> int:
    """Threads of a warp."""
    return 32 if arch.startswith("sm_") else 64


class _Target:
    """A stand-in for Triton's driver: knows the target, and has no device."""

    def __init__(self, arch: str) -> None:
        from triton.backends.compiler import GPUTarget

        self._name = arch
        number = arch.removeprefix("sm_")
        backend = ("hip", arch) if number == arch else ("cuda", int(number))
        self._target = GPUTarget(*backend, _warp(arch))

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> str:
        return self._name  # Triton keeps what it compiled by device

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def compiling(arch: str) -> Iterator[list[Any]]:
    """Within, launches compile for ``arch`` and are appended to the list."""
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    launch, compiled = JITFunction.run, []

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        compiled.append(kernel)
        return kernel

    driver.set_active(_Target(arch))
    JITFunction.run = compile_only
    try:
        yield compiled
    finally:
        JITFunction.run = launch


def _disassemble(kernel: Any) -> Figures:
    if "amdgcn" in kernel.asm:
        return parse_gcn(kernel.asm["amdgcn"])
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

    def run(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        code = run(str(tools / "nvdisasm"), "-c", str(cubin))
        usage = run(str(tools / "cuobjdump"), "--dump-resource-usage", str(cubin))
    return parse_sass(code, usage)


@dataclass(frozen=True)
class Measured:
    """One kernel of one case on one target."""

    arch: str
    case: str
    kernel: str
    figures: Figures

    def line(self, verdict: str) -> str:
        now = to_record(self.figures)
        return (
            f"{self.case:40} {self.arch:7} {self.figures.registers:4} {self.figures.stack:5} "
            f"{self.figures.spills:6} {now['wide_loads']:>6}/{now['loads']:<6} "
            f"{now['wide_stores']:>7}/{now['stores']:<6} {now['instructions']:6}  {verdict}"
        )


_HEAD = (
    f"{'case':40} {'arch':7} {'regs':>4} {'stack':>5} {'spills':>6} {'loads 16B/all':>13} "
    f"{'stores 16B/all':>14} {'instr':>6}  verdict"
)


def measure(job: tuple[str, str]) -> Measured:
    """Compile what a case launches. job: target and case."""
    from benchmarks.gate_cases import CASES

    arch, case = job
    with compiling(arch) as compiled:
        CASES[case].launch()
    if len(compiled) != 1:
        raise RuntimeError(f"case {case} launched {len(compiled)} kernels; a case is one kernel")
    return Measured(arch, case, compiled[0].metadata.name, _disassemble(compiled[0]))


def _all(jobs: list[tuple[str, str]], processes: int) -> Iterator[Measured]:
    if processes == 1:
        yield from map(measure, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(measure, jobs)


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _save(path: Path, record: dict[str, Any]) -> None:
    """One line per kernel, so that a change of one shows as a change of one."""
    versions = []
    for version, targets in sorted(record.items()):
        parts = []
        for arch, kernels in sorted(targets.items()):
            lines = [
                f"      {json.dumps(name)}: {json.dumps(figures)}"
                for name, figures in sorted(kernels.items())
            ]
            parts.append(f"    {json.dumps(arch)}: {{\n" + ",\n".join(lines) + "\n    }")
        versions.append(f"  {json.dumps(version)}: {{\n" + ",\n".join(parts) + "\n  }")
    path.write_text("{\n" + ",\n".join(versions) + "\n}\n")


def _version() -> str:
    import triton

    return ".".join(triton.__version__.split(".")[:2])


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile_gate")
    parser.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="these; default: all that count")
    parser.add_argument("--quick", action="store_true", help="one case of each kernel and dtype")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes")
    parser.add_argument("--update", action="store_true", help="write the record instead")
    parser.add_argument("--record", type=Path, default=RECORD, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    return parser.parse_args(argv)


def _chosen(arguments: argparse.Namespace) -> list[str]:
    from benchmarks.gate_cases import CASES

    if unknown := sorted(set(arguments.cases or ()) - set(CASES)):
        sys.exit(f"compile_gate: no such case: {', '.join(unknown)}; known: {', '.join(CASES)}")
    if arguments.cases:
        return list(arguments.cases)
    return [
        name
        for name, case in CASES.items()
        if not case.broken and (case.quick or not arguments.quick)
    ]


def main(argv: list[str] | None = None) -> int:
    arguments = _arguments(argv)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        sys.exit("compile_gate: TRITON_INTERPRET is set: the interpreter compiles nothing")
    from benchmarks.gate_cases import CASES

    jobs = [(arch, name) for arch in arguments.arch for name in _chosen(arguments)]
    record = _load(arguments.record)
    version = record.setdefault(_version(), {})
    everything = []
    failed = 0
    print(_HEAD)
    for measured in _all(jobs, arguments.jobs):
        arch, case, figures = measured.arch, measured.case, measured.figures
        faults = absolute_faults(figures, CASES[case].widths(_warp(arch)))
        recorded = version.get(arch, {}).get(case)
        if arguments.update:
            version.setdefault(arch, {})[case] = to_record(figures)
        elif recorded is not None:
            faults += relative_faults(figures, recorded)
        verdict = "FAIL: " + "; ".join(faults) if faults else "ok"
        if recorded is None and not arguments.update:
            verdict += " (not recorded)"
        failed += bool(faults)
        everything.append(asdict(measured))
        print(measured.line(verdict), flush=True)
    if arguments.update:
        if not arguments.cases and not arguments.quick:  # what is no longer a case goes
            for arch in arguments.arch:
                version[arch] = {name: version[arch][name] for name in _chosen(arguments)}
        _save(arguments.record, record)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1) + "\n")
    print(f"{len(jobs)} cases, {failed} failed; Triton {_version()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
