"""sketch-rnn's ``.npz`` files: drawings as pen movements, read without running what is in them.

Such a file holds ``train``, ``valid`` and ``test``, each an object array of (T, 3) arrays: dx, dy,
and 1 where the pen is lifted after the point. Object arrays are pickles, and a pickle is a program.
``np.load(allow_pickle=True)`` would run anything, so it is never called here, and even NumPy's own
way of restoring an array is not used: a dtype that lies about itself makes NumPy take bytes for
pointers. ``find_class`` knows the four names such files need and hands out stand-ins that only note
down shape, type and bytes; every other name is refused. The arrays are then made from the notes.

As in Quick, Draw!, y points downwards.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fastvae.data.npy import read_header
from fastvae.errors import UserError
from fastvae.kernels.strokes import Strokes, offsets

SPLITS = ("train", "valid", "test")
LARGEST_BYTES = 1 << 29  # of one split, unpacked: several times the largest of Google's
MOST_DRAWINGS = 1_000_000  # in one split
MOST_STEPS = 64  # of the pickle per drawing, where 13 are usual: each may take 64 bytes of memory

_FETCH = "fetch it again: fastvae-data download sketchrnn"
_NUMBER = re.compile(r"[iu][1248]|f[248]")
_OBJECT = re.compile(r"O[48]?")
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
}

EMPTY = "no points"
_REASONS = {1: "a pen state other than 0 and 1", 2: "coordinates that are not finite", 3: EMPTY}

Deltas = NDArray[Any]  # (T, 3) of any number type


class Split(NamedTuple):
    """The drawings of one split, in the order of the file, less those that are no drawings."""

    strokes: Strokes
    """Moved to 0 and scaled so that the longer side is 255."""
    bad: tuple[tuple[int, str], ...]
    """(number in the file, reason) of each drawing left out, among them the empty ones."""

    @property
    def empty(self) -> int:
        """Number of drawings left out because they have no points."""
        return sum(reason == EMPTY for _, reason in self.bad)


def read_npz(path: Path) -> dict[str, Split]:
    """Read the splits of a sketch-rnn file as strokes, train first.

    The category of the drawings is the stem of the file's name.

    Raises:
        UserError: the file is damaged, too large, or holds more than arrays of numbers. A single
            drawing that is none is not an error but listed in ``Split.bad``.
    """
    return {name: to_strokes(drawings) for name, drawings in read_deltas(path).items()}


def read_deltas(path: Path) -> dict[str, list[Deltas | str]]:
    """Read the splits of a sketch-rnn file as they are.

    Returns:
        For each split that the file has, its drawings: (T, 3) dx, dy, pen lifted; or in words why
        an element is no drawing.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = {info.filename: info for info in archive.infolist()}
            names = [name for name in SPLITS if f"{name}.npy" in held]
            if not names:
                raise UserError(
                    f"{path} has none of {', '.join(SPLITS)}: not a file of sketch-rnn's "
                    f"(it holds {', '.join(sorted(held)[:5]) or 'nothing'})"
                )
            return {name: _read_split(archive, held[f"{name}.npy"], path) for name in names}
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # RuntimeError: an encrypted member; NotImplementedError: an unknown compression.
        raise UserError(f"{path} is no .npz file, or damaged ({error}): {_FETCH}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _read_split(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> list[Deltas | str]:
    where = f"{path} ({info.filename})"
    if info.file_size > LARGEST_BYTES:
        raise UserError(
            f"{where} would unpack to {info.file_size:,} bytes: more than the {LARGEST_BYTES:,} "
            "that a file of sketch-rnn's may have"
        )
    with archive.open(info) as file:  # gives no more bytes than the size just looked at
        shape, _, dtype = read_header(file, where, _FETCH)
        if dtype.kind != "O" or len(shape) != 1:
            raise UserError(
                f"{where} is an array of {dtype} with shape {shape}: expected a list of drawings, "
                "object (n,)"
            )
        if not 0 <= shape[0] <= MOST_DRAWINGS:
            raise UserError(f"{where} claims {shape[0]:,} drawings; {MOST_DRAWINGS:,} may be read")
        data = file.read()
    items = _unpickle(data, where, most_steps=10_000 + MOST_STEPS * shape[0])
    if len(items) != shape[0]:
        raise UserError(
            f"{where} holds {len(items)} drawings, its header says {shape[0]}: {_FETCH}"
        )
    drawings = [_deltas(item) for item in items]
    total = sum(item.nbytes for item in drawings if not isinstance(item, str))
    if total > LARGEST_BYTES:  # the same bytes, again and again
        raise UserError(
            f"{where} holds drawings of {total:,} bytes: more than the {LARGEST_BYTES:,} that a "
            "file of sketch-rnn's may have"
        )
    return drawings


class _Refused(pickle.UnpicklingError):
    """The pickle asks for something that an array of numbers does not need."""


class _Note:
    """What the pickle says of an array, instead of the array."""

    __slots__ = ("dtype", "fortran", "raw", "shape")

    def __init__(self) -> None:
        self.shape: Any = None
        self.dtype: Any = None
        self.fortran: Any = None
        self.raw: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.raw = state


class _TypeNote:
    """What the pickle says of a dtype, instead of the dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise _Refused(f"byte order {state[1]!r}")
        self.order = state[1]


class _StandIn:
    """Stands in for one of the allowed names; it has no attribute that a pickle could set."""

    __slots__ = ("_does",)

    def __init__(self, does: str) -> None:
        self._does = does

    def __setstate__(self, state: Any) -> None:
        raise _Refused("an attempt to change a function")

    def __call__(self, *args: Any) -> Any:
        if self._does == "array":  # (ndarray, shape, type), all overwritten by the state
            return _Note()
        if self._does == "dtype":
            code = args[0]
            if not isinstance(code, str) or not (_NUMBER.fullmatch(code) or _is_object(code)):
                raise _Refused(f"dtype {code!r}")
            return _TypeNote(code)
        if self._does == "encode" and args[1:] == ("latin1",) and isinstance(args[0], str):
            return args[0].encode("latin1")
        raise _Refused(f"a call of {self._does}")


class _Unpickler(pickle.Unpickler):
    """Knows the names in ``_ALLOWED`` and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in for a name, or raise _Refused."""
        try:
            return _StandIn(_ALLOWED[module, name])
        except KeyError:
            raise _Refused(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        """Refuse: arrays have no objects elsewhere."""
        raise _Refused("an object outside the file")


def _unpickle(data: bytes, where: str, *, most_steps: int) -> list[Any]:
    """The elements of the pickled object array, its arrays as ``_Note``."""
    try:
        _check_memory(data, most_steps)
        # Python 2 wrote bytes as what Python 3 takes for text: latin1 brings every byte back.
        outer = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(outer, _Note) or not isinstance(outer.dtype, _TypeNote):
            raise _Refused("something that is not an array")
        if not _is_object(outer.dtype.code) or not isinstance(outer.raw, list):
            raise _Refused("an array of another type than its header says")
    except _Refused as error:
        raise UserError(
            f"{where} holds {_short(error)}, which a file of drawings does not need: refused, "
            "nothing in it was run; get the file from a source you trust"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = _short(error) or type(error).__name__
        raise UserError(f"{where} is damaged ({reason}): {_FETCH}") from None
    return outer.raw


def _check_memory(data: bytes, most_steps: int) -> None:
    """Refuse pickles that are small but fill the memory: with objects, or with memo places."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count > most_steps:
            raise _Refused(f"more than {most_steps:,} steps")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
            raise _Refused(f"a place {argument} in its memo")


def _is_object(code: str) -> bool:
    return _OBJECT.fullmatch(code) is not None


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _deltas(item: Any) -> Deltas | str:
    """One drawing (T, 3), or why it is none."""
    if not isinstance(item, _Note):
        return f"{type(item).__name__} instead of an array"
    shape, raw = item.shape, item.raw
    if not isinstance(item.dtype, _TypeNote) or _is_object(item.dtype.code):
        return "an array of something other than numbers"
    if (
        not isinstance(shape, tuple)
        or len(shape) > 8
        or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
    ):
        return "an array without a proper shape"
    try:
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
    except UnicodeEncodeError:
        return "text instead of numbers"
    if not isinstance(raw, bytes):
        return f"{type(raw).__name__} instead of numbers"
    dtype = np.dtype(item.dtype.order.replace("|", "=") + item.dtype.code)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        return f"{len(raw)} bytes for shape {shape} of {dtype}"
    if 0 in shape:
        return np.empty((0, 3), dtype=dtype)
    if len(shape) != 2 or shape[1] != 3:
        return f"shape {shape}, expected (points, 3)"
    return np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if item.fortran else "C")


def to_strokes(drawings: Sequence[Deltas | str]) -> Split:
    """Turn pen movements into strokes with Quick, Draw!'s coordinates.

    Points are running sums; a stroke ends where the pen is lifted. Each drawing is moved to 0,
    scaled uniformly by 255 / (longer side) and rounded, halves to even. A drawing whose points all
    coincide stays a point at 0.

    Args:
        drawings: (T, 3) dx, dy, pen lifted; or the reason why it is no drawing.
    """
    bad = {i: item for i, item in enumerate(drawings) if isinstance(item, str)}
    whole = [(i, item) for i, item in enumerate(drawings) if not isinstance(item, str)]
    length = np.array([len(item) for _, item in whole], dtype=np.int64)
    values = np.concatenate([item for _, item in whole]) if whole else np.empty((0, 3))
    values = np.ascontiguousarray(values, dtype=np.float64)
    start = offsets(length)
    points = np.empty((len(values), 2), dtype=np.uint8)
    last = np.empty(len(values), dtype=np.uint8)
    verdict = np.empty(len(whole), dtype=np.uint8)
    _convert(values, start, points, last, verdict)
    for (i, _), code in zip(whole, verdict.tolist(), strict=True):
        if code:
            bad[i] = _REASONS[code]
    kept = verdict == 0
    keep_point = np.repeat(kept, length)
    points, last = points[keep_point], last[keep_point]
    ends = np.flatnonzero(last).astype(np.int64) + 1
    strokes = Strokes(
        points,
        np.concatenate([np.zeros(1, dtype=np.int64), ends]),
        np.searchsorted(ends, offsets(length[kept]), side="right").astype(np.int64),
    )
    return Split(strokes, tuple(sorted(bad.items())))


@njit(cache=True, nogil=True)
def _convert(
    values: NDArray[np.float64],
    start: NDArray[np.int64],
    points: NDArray[np.uint8],
    last: NDArray[np.uint8],
    verdict: NDArray[np.uint8],
) -> None:
    """Fill ``points`` and whether each is the ``last`` of its stroke; ``verdict`` as in _REASONS.

    Shapes: values (P, 3), start (D + 1,); points (P, 2), last (P,), verdict (D,).
    """
    for d in range(len(verdict)):
        x = y = 0.0
        left = top = np.inf
        right = bottom = -np.inf
        code = 0 if start[d] < start[d + 1] else 3
        for p in range(start[d], start[d + 1]):
            x += values[p, 0]
            y += values[p, 1]
            left, right = min(left, x), max(right, x)
            top, bottom = min(top, y), max(bottom, y)
            if not (values[p, 2] == 0 or values[p, 2] == 1):
                code = 1
            elif code == 0 and not (np.isfinite(x) and np.isfinite(y)):
                code = 2
            last[p] = values[p, 2] == 1 or p + 1 == start[d + 1]
        side = max(right - left, bottom - top)
        if code == 0 and not np.isfinite(side):
            code = 2
        verdict[d] = code
        if code:
            continue
        scale = 255.0 / side if side > 0 else 0.0
        x = y = 0.0
        for p in range(start[d], start[d + 1]):
            x += values[p, 0]
            y += values[p, 1]
            points[p, 0] = np.uint8(np.rint((x - left) * scale))
            points[p, 1] = np.uint8(np.rint((y - top) * scale))
