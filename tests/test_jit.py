"""The cache of compiled code: it belongs to one state of the kernels, and always finds a place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastvae.kernels import jit
from fastvae.kernels.strokes import Strokes, from_lists

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of kernels of our own."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "a.py").write_text("njit = 1")
    (folder / "plain.py").write_text("x = 1")
    monkeypatch.setattr(jit, "_KERNELS", folder)
    return folder


def folder_now() -> Path:
    jit.cache_folder.cache_clear()
    return Path(jit.cache_folder())


@pytest.fixture(autouse=True)
def _forget() -> None:
    jit.cache_folder.cache_clear()


def test_an_edit_in_any_kernel_takes_another_folder(kernels: Path) -> None:
    first = folder_now()
    assert first.parent == kernels / "__pycache__"
    assert folder_now() == first
    (kernels / "plain.py").write_text("x = 2")
    assert folder_now() == first
    (kernels / "a.py").write_text("njit = 2")
    second = folder_now()
    assert second != first
    assert first.exists()  # somebody may still be running that code
    os.utime(first, (0, 0))
    (kernels / "a.py").write_text("njit = 3")
    folder_now()
    assert not first.exists()
    assert second.exists()


def test_where_nothing_can_be_written(
    kernels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kernels / "__pycache__").write_text("a file stands in the way, for root too")
    home = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    assert folder_now().parent == home / "fastvae"
    monkeypatch.setenv("XDG_CACHE_HOME", str(kernels / "a.py"))
    last = folder_now()
    assert last.is_dir()
    assert last.stat().st_mode & 0o077 == 0


def test_no_folder_that_others_can_write(kernels: Path, tmp_path: Path) -> None:
    folder = folder_now()
    folder.chmod(0o777)
    assert folder_now() != folder


def test_setting_of_the_user_wins(tmp_path: Path) -> None:
    code = (
        "import numpy as np\n"
        "from fastvae.kernels.strokes import first_descent\n"
        "import numba\n"
        "first_descent(np.arange(3))\n"
        f"assert numba.config.CACHE_DIR == {str(tmp_path)!r}\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert any(tmp_path.rglob("*first_descent*"))


def test_damaged_offsets_of_a_set_made_by_hand() -> None:
    good = from_lists([[[[1, 2], [3, 4]], [[5, 6], [7, 8]]]])
    for offset in (2**40, -5):
        bad = Strokes(good.points, np.array([0, offset, 4]), good.drawing_offset)
        with pytest.raises(ValueError, match="drawing 0: its offsets do not ascend"):
            bad.select(np.array([0]))
    many = Strokes(good.points, good.stroke_offset, np.array([0, 2**40, 2]))
    with pytest.raises(ValueError, match="do not ascend"):
        many.select(np.array([0]))


def test_lists_are_held_to_bytes() -> None:
    for value in (-1, 256, 1.5):
        with pytest.raises(ValueError, match=r"integers in 0\.\.255"):
            from_lists([[[[value], [0]]]])
