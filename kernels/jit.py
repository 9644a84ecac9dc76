"""``njit`` for all Numba kernels: with a cache on the disk that belongs to exactly this code.

Numba's own cache looks at the file that a function stands in, not at the files of what it calls,
and would go on with machine code of a helper that has been edited. Here the folder of the cache is
named by a hash of all Numba kernels together: an edit in any of them compiles all of them anew.

The folder is ``__pycache__`` beside the kernels, or the user's cache folder where that cannot be
written, or a new temporary one where there is neither (then each process compiles). Cached code is
unpickled, so no folder is used that others can write. ``NUMBA_CACHE_DIR`` overrides all this.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numba

_config: Any = numba.config  # its settings are not known to type checkers
_KERNELS = Path(__file__).resolve().parent
_STALE = 86400.0  # seconds after which the folder of another version of the code is removed


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with these options; ``cache=True`` caches in the folder for this code."""

    def compiled(function: Callable[..., Any]) -> Any:
        with _cache_in(cache_folder()):
            return numba.njit(**options)(function)

    return compiled


@contextlib.contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Numba looks at its setting when a function is decorated; those of others keep theirs."""
    before = _config.CACHE_DIR
    _config.CACHE_DIR = before or folder
    try:
        yield
    finally:
        _config.CACHE_DIR = before


@lru_cache(maxsize=1)
def cache_folder() -> str:
    """The folder for compiled code, made if it was not there."""
    digest = hashlib.blake2b(numba.__version__.encode(), digest_size=8)
    for path in sorted(_KERNELS.glob("*.py")):
        text = path.read_bytes()
        if b"njit" in text:
            digest.update(path.name.encode() + b"\0" + text)
    name = f"numba-{digest.hexdigest()}"
    for parent in (_KERNELS / "__pycache__", _home_cache()):
        if parent is not None and _usable(parent / name):
            _remove_stale(parent, name)
            return str(parent / name)
    return tempfile.mkdtemp(prefix="fastvae-numba-")


def _home_cache() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "fastvae"
    except RuntimeError:  # nobody knows where home is
        return None


def _usable(folder: Path) -> bool:
    """Whether the folder is there, or can be made, and can be written by us alone."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        about = folder.stat()
        return os.access(folder, os.W_OK | os.X_OK) and not about.st_mode & 0o002
    except OSError:
        return False


def _remove_stale(parent: Path, name: str) -> None:
    """Remove the folders of other versions of the code that have not been used for a day."""
    for path in parent.glob("numba-*"):
        with contextlib.suppress(OSError):
            if path.name != name and time.time() - path.stat().st_mtime > _STALE:
                shutil.rmtree(path)
