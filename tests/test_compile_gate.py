"""The compile gate: that kernels pass on sm_90, that it fails where it must, how it reads code.

All four targets and all cases are ``python -m benchmarks.compile_gate``; here, a short selection.
Kernels are compiled in processes of their own: Triton's driver is replaced there.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compile_gate
from benchmarks.compile_gate import Figures
from benchmarks.gate_widths import Widths

ROOT = Path(__file__).resolve().parent.parent
GOOD = Figures(registers=40, instructions=500, loads={4: 1, 16: 8}, stores={4: 1, 16: 4})
WIDTHS = Widths(loads=16, stores=16, elements=16)

SASS = """
\t.section\t.text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/               @P1 LDG.E.EF.U8 R8, desc[UR4][R2.64] ;
        /*0030*/             @!UP0 LDG.E.64.CONSTANT R10, desc[UR4][R6.64] ;
        /*0040*/                   LDG.E R12, desc[UR4][R6.64] ;
        /*0050*/                   LDG.E.ENL2.256 R16, R20, desc[UR4][R6.64] ;
        /*0060*/                   STL.64 [R1+0x8], R2 ;
        /*0070*/                   LDL R2, [R1+0x8] ;
        /*0080*/                   REDUX.SUM UR7, R3 ;
        /*0090*/              @!PT REDG.E.ADD.F32.FTZ.RN.STRONG.GPU desc[UR4][R2.64], R5 ;
        /*00a0*/                   ATOMS.ADD RZ, [R5], R6 ;
        /*00b0*/               @P0 STG.E.U16 desc[UR4][R2.64], R4 ;
        /*00c0*/                   STG.E.128 desc[UR4][R2.64], R4 ;
        /*00d0*/                   EXIT ;
.L_x_0:
        /*00e0*/                   BRA `(.L_x_0);
        /*00f0*/                   NOP;
"""
USAGE = "Function kernel:\n  REG:42 STACK:8 SHARED:16 LOCAL:0 CONSTANT[0]:600 TEXTURE:0 SURFACE:0"

GCN = """
kernel:
\ts_load_dwordx4 s[0:3], s[0:1], 0x0
\tv_lshlrev_b32_e32 v0, 2, v0
\tglobal_load_dwordx4 v[2:5], v0, s[0:1]
\tbuffer_load_dwordx2 v[6:7], v1, s[4:7], 0 offen
\tglobal_load_ubyte v8, v0, s[0:1]
\tbuffer_load_dword v9, v1, s[4:7], 0 offen
\tds_add_u32 v1, v2
\tglobal_atomic_add_f32 v0, v2, s[0:1]
\tds_bpermute_b32 v1, v2, v3
.LBB0_1:
\tglobal_store_dwordx4 v0, v[2:5], s[0:1]
\tbuffer_store_short v9, v1, s[4:7], 0 offen
\ts_endpgm
\t.amdhsa_next_free_vgpr 12
amdhsa.kernels:
  - .agpr_count:     0
    .private_segment_fixed_size: 24
    .sgpr_spill_count: 1
    .vgpr_count:     12
    .vgpr_spill_count: 2
"""


def gate(*arguments: str) -> tuple[int, dict[str, str], str]:
    """Run it: exit status, verdict of each case, and all output."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compile_gate", "--arch", "sm_90", *arguments],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        stdin=subprocess.DEVNULL,
    )
    rows = re.findall(
        r"^(\w+) +sm_90 .*?  (ok|FAIL: .*?)(?: \(not recorded\))?$", done.stdout, re.M
    )
    return done.returncode, dict(rows), done.stdout + done.stderr


@pytest.fixture
def triton_there() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.usefixtures("triton_there")
def test_every_kernel_passes_on_sm_90(tmp_path: Path) -> None:
    """And every kernel is among them: one added without a case fails here."""
    status, verdicts, output = gate("--quick", "--json", str(tmp_path / "figures.json"))
    assert status == 0, output
    assert len(verdicts) > 10
    measured = json.loads((tmp_path / "figures.json").read_text())
    compiled = {item["kernel"] for item in measured}
    kernels = [
        name
        for path in (ROOT / "kernels").glob("*_triton.py")
        for name in re.findall(r"@triton\.jit.*\ndef (\w*kernel)\(", path.read_text())
    ]
    assert len(kernels) >= 6
    assert set(kernels) == compiled


@pytest.mark.usefixtures("triton_there")
def test_broken_kernels_fail(tmp_path: Path) -> None:
    """Tensors that start one element past an aligned address, and too few registers."""
    wide, bits = "16 loads narrower than 16 bytes", "8 loads narrower than 8 bytes"
    status, verdicts, output = gate(
        "--cases", "bernoulli_misaligned", "gather_misaligned", "normal_spilling"
    )
    assert status == 1, output
    assert wide in verdicts["bernoulli_misaligned"]
    assert bits in verdicts["gather_misaligned"]
    assert re.search(r"[1-9]\d* spills; [1-9]\d* bytes of stack", verdicts["normal_spilling"])


@pytest.mark.usefixtures("triton_there")
def test_a_kernel_that_moved_from_the_record_fails(tmp_path: Path) -> None:
    path, case = tmp_path / "record.json", "gather_mnist_threshold"
    chosen = ("--cases", case, "--record", str(path))
    status, _, output = gate(*chosen, "--update")
    assert status == 0, output
    record = json.loads(path.read_text())
    ((version, targets),) = record.items()
    assert re.fullmatch(r"\d+\.\d+", version)
    targets["sm_90"][case]["instructions"] //= 2
    path.write_text(json.dumps(record))
    status, verdicts, output = gate(*chosen)
    assert status == 1, output
    assert re.search(r"FAIL: \d+ instructions, recorded \d+", verdicts[case])


@pytest.mark.usefixtures("triton_there")
def test_an_unknown_case_is_named() -> None:
    status, verdicts, output = gate("--cases", "gather_mnist_fp32", "no_such_case")
    assert status != 0
    assert not verdicts
    assert "no such case: no_such_case" in output


def test_it_refuses_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit, match="TRITON_INTERPRET is set"):
        compile_gate.main(["--arch", "sm_90"])


def test_reading_sass() -> None:
    figures = compile_gate.parse_sass(SASS, USAGE)
    assert figures == Figures(
        registers=42,
        instructions=15,  # without the filling NOP
        loads={1: 1, 4: 1, 8: 1, 16: 1, 32: 1},
        stores={2: 1, 16: 1},
        spills=2,
        stack=8,
        atomics=2,  # and not REDUX
    )
    with pytest.raises(ValueError, match="no instruction"):
        compile_gate.parse_sass("nvdisasm fatal: cannot read\n", USAGE)


def test_reading_the_assembly_of_amd() -> None:
    figures = compile_gate.parse_gcn(GCN)
    assert figures == Figures(
        registers=12,
        instructions=12,
        loads={1: 1, 4: 1, 8: 1, 16: 1},
        stores={2: 1, 16: 1},
        spills=3,
        stack=24,
        atomics=2,
    )
    with pytest.raises(ValueError, match="no instruction"):
        compile_gate.parse_gcn("")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spills": 2}, "2 spills"),
        ({"stack": 16}, "16 bytes of stack"),
        ({"atomics": 1}, "1 atomics"),
        ({"loads": {4: 17, 16: 4}}, "17 loads narrower than 16 bytes"),
        ({"loads": {8: 8}}, "8 loads narrower than 16 bytes"),
        ({"stores": {4: 16}}, "16 stores narrower than 16 bytes"),
    ],
)
def test_absolute_rules(change: dict[str, Any], fault: str) -> None:
    assert compile_gate.absolute_faults(GOOD, WIDTHS) == []
    assert compile_gate.absolute_faults(replace(GOOD, **change), WIDTHS) == [fault]


def test_a_case_may_make_no_demand() -> None:
    narrow = replace(GOOD, loads={1: 64}, stores={4: 64})
    assert compile_gate.absolute_faults(narrow, Widths(0, 0, 16)) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"registers": 45}, "45 registers, recorded 40"),
        ({"registers": 35}, "35 registers, recorded 40"),
        ({"instructions": 551}, "551 instructions, recorded 500"),
        ({"instructions": 449}, "449 instructions, recorded 500"),
        ({"loads": {4: 5, 16: 7}}, "loads 16B/all 7/12, recorded 8/9"),
        ({"loads": {4: 2, 16: 8}}, "loads 16B/all 8/10, recorded 8/9"),
        ({"stores": {8: 8, 4: 1}}, "stores 16B/all 0/9, recorded 4/5"),
    ],
)
def test_relative_rules(change: dict[str, Any], fault: str) -> None:
    recorded = compile_gate.to_record(GOOD)
    within = replace(GOOD, registers=44, instructions=450, loads={16: 8})
    assert compile_gate.relative_faults(within, recorded) == []
    assert compile_gate.relative_faults(replace(GOOD, **change), recorded) == [fault]


def test_the_record_covers_every_case_on_every_target(tmp_path: Path) -> None:
    """Cases added or taken away without --update; and that the file is as --update writes it."""
    pytest.importorskip("triton", reason="Triton is not installed")
    from benchmarks.gate_cases import CASES

    names = {name for name, case in CASES.items() if not case.broken}
    record = json.loads(compile_gate.RECORD.read_text())
    assert record
    for targets in record.values():
        assert set(targets) == set(compile_gate.ARCHITECTURES)
        assert all(set(cases) == names for cases in targets.values())
    compile_gate._save(tmp_path / "again.json", record)
    assert (tmp_path / "again.json").read_text() == compile_gate.RECORD.read_text()
