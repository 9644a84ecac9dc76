"""Sets of drawings: strokes with their identity, and the folder they are stored in.

A stored set is a folder of plain ``.npy`` arrays, memory-mapped when read, and ``drawings.json``
with counts, category names and checksums. Some 155 bytes per drawing of Quick, Draw!: all 50
million are 7.8 GB on the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fastvae.data import npy
from fastvae.errors import UserError
from fastvae.kernels.strokes import Strokes, offsets

FORMAT, VERSION = "fastvae drawings", 1
INDEX = "drawings.json"

# Name, dtype, whether an array of offsets, and the extent: points, strokes or drawings.
_ARRAYS = {
    "points": ("|u1", "points"),
    "stroke_offset": ("<i8", "strokes"),
    "drawing_offset": ("<i8", "drawings"),
    "key_id": ("<u8", "drawings"),
    "word": ("<i4", "drawings"),
    "recognized": ("|u1", "drawings"),
    "time": ("<i4", "points"),
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Drawings:
    """Drawings with their identity, D in all.

    Attributes:
        strokes: the points.
        key_id: (D,) uint64, identity as given by the source of the data.
        word: (D,) int32, number of the category in ``words``.
        recognized: (D,) uint8, 1 where Quick, Draw!'s classifier recognised the drawing.
        words: names of the categories.
        time: (P,) int32, milliseconds since the first point of the drawing; None where unknown.
        checksums: SHA-256 of each array as a file, where the set was read from files.
    """

    strokes: Strokes
    key_id: NDArray[np.uint64]
    word: NDArray[np.int32]
    recognized: NDArray[np.uint8]
    words: tuple[str, ...]
    time: NDArray[np.int32] | None = None
    checksums: dict[str, str] | None = None

    def __post_init__(self) -> None:
        for name, dtype in (("key_id", "<u8"), ("word", "<i4"), ("recognized", "|u1")):
            array = getattr(self, name)
            if array.shape != (len(self),) or array.dtype != np.dtype(dtype):
                raise ValueError(
                    f"{name} must be ({len(self)},) {np.dtype(dtype)}, "
                    f"got {array.shape} {array.dtype}"
                )
        points = len(self.strokes.points)
        if self.time is not None and (self.time.shape != (points,) or self.time.dtype != np.int32):
            raise ValueError(
                f"time must be ({points},) int32, got {self.time.shape} {self.time.dtype}"
            )

    def __len__(self) -> int:
        return self.strokes.drawings

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The arrays by name, in the order in which they are stored and hashed."""
        every: dict[str, NDArray[Any]] = {f.name: getattr(self.strokes, f.name) for f in _STROKES}
        every |= {"key_id": self.key_id, "word": self.word, "recognized": self.recognized}
        return every if self.time is None else every | {"time": self.time}

    def select(self, index: NDArray[np.int64]) -> Drawings:
        """Copy the drawings ``index`` (B,) into a set of their own, in that order."""
        strokes = self.strokes.select(index)
        time = None
        if self.time is not None:
            ends = self.strokes.stroke_offset[self.strokes.drawing_offset]
            first, counts = ends[index], ends[index + 1] - ends[index]
            within = np.arange(counts.sum()) - np.repeat(offsets(counts)[:-1], counts)
            time = self.time[np.repeat(first, counts) + within]
        return Drawings(
            strokes=strokes,
            key_id=self.key_id[index],
            word=self.word[index],
            recognized=self.recognized[index],
            words=self.words,
            time=time,
        )

    def with_sorted_words(self) -> Drawings:
        """The same drawings with categories numbered in alphabetical order, as stored sets have."""
        order = {word: number for number, word in enumerate(sorted(self.words))}
        table = np.array([order[word] for word in self.words], dtype=np.int32)
        return replace(self, words=tuple(order), word=table[self.word], checksums=None)

    @staticmethod
    def join(parts: Sequence[Drawings]) -> Drawings:
        """One set of all drawings of ``parts``, in order; categories get numbers as they are met.

        Times are kept where all parts have them.
        """
        words: dict[str, int] = {}
        tables = [
            np.array([words.setdefault(w, len(words)) for w in part.words], dtype=np.int32)
            for part in parts
        ]
        sets = [part.strokes for part in parts]
        times = [part.time for part in parts]
        return Drawings(
            strokes=Strokes(
                np.concatenate([s.points for s in sets]),
                offsets(np.concatenate([np.diff(s.stroke_offset) for s in sets])),
                offsets(np.concatenate([np.diff(s.drawing_offset) for s in sets])),
            ),
            key_id=np.concatenate([part.key_id for part in parts]),
            word=np.concatenate([t[p.word] for t, p in zip(tables, parts, strict=True)]),
            recognized=np.concatenate([part.recognized for part in parts]),
            words=tuple(words),
            time=np.concatenate([t for t in times if t is not None])
            if all(t is not None for t in times)
            else None,
        )

    def save(self, folder: Path) -> None:
        """Write the set into a new folder, whole or not at all."""
        with DrawingsWriter(folder, timed=self.time is not None) as writer:
            writer.append(self)


_STROKES = fields(Strokes)


class DrawingsWriter:
    """Writes a set piece by piece: memory for one piece, whatever the size of the whole.

    Used as a context manager. The folder gets its name when the block ends well; otherwise nothing
    is left behind. In the end categories are numbered in alphabetical order.

    Args:
        folder: must not exist.
        timed: whether pieces have the time of each point.
        words: table of categories met so far; writers of sets that belong together share one, so
            that a category has one number in all of them.
    """

    def __init__(
        self, folder: Path, *, timed: bool = False, words: dict[str, int] | None = None
    ) -> None:
        self.folder = folder
        self.timed = timed
        self.count = {"points": 0, "strokes": 0, "drawings": 0}
        self._words: dict[str, int] = {} if words is None else words
        self._building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> DrawingsWriter:
        if self.folder.exists():
            raise UserError(f"{self.folder} is there already: give another folder, or remove it")
        shutil.rmtree(self._building, ignore_errors=True)
        self._building.mkdir(parents=True)
        for name in _ARRAYS:
            if name != "time" or self.timed:
                self._files[name] = (self._building / f"{name}.npy").open("wb")
                self._files[name].write(b"\0" * npy.HEADER_BYTES)
        for name in ("stroke_offset", "drawing_offset"):
            self._files[name].write(np.zeros(1, dtype="<i8").tobytes())
        return self

    def append(self, piece: Drawings) -> None:
        """Add the drawings of ``piece`` behind those that are there."""
        if (piece.time is not None) != self.timed:
            raise ValueError("either all pieces have times or none")
        table = np.zeros(len(piece.words), dtype=np.int32)
        for number in np.unique(piece.word):
            table[number] = self._words.setdefault(piece.words[number], len(self._words))
        arrays = piece.arrays()
        arrays["stroke_offset"] = piece.strokes.stroke_offset[1:] + self.count["points"]
        arrays["drawing_offset"] = piece.strokes.drawing_offset[1:] + self.count["strokes"]
        arrays["word"] = table[piece.word]
        for name, array in arrays.items():
            self._files[name].write(np.ascontiguousarray(array, _ARRAYS[name][0]).data)
        self.count["points"] += len(piece.strokes.points)
        self.count["strokes"] += len(piece.strokes.stroke_offset) - 1
        self.count["drawings"] += len(piece)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for file in self._files.values():
                file.close()
            shutil.rmtree(self._building, ignore_errors=True)

    def _finish(self) -> None:
        files: dict[str, dict[str, Any]] = {}
        words = sorted(self._words)
        for name, file in self._files.items():
            file.seek(0)
            file.write(_npy_header(name, self.count))
            file.flush()
            path = self._building / f"{name}.npy"
            if name == "word" and self.count["drawings"]:
                order = {word: number for number, word in enumerate(words)}
                final = np.array([order[word] for word in self._words], dtype=np.int32)
                stored = np.load(path, mmap_mode="r+", allow_pickle=False)
                stored[:] = final[stored]
                stored.flush()
            os.fsync(file.fileno())
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        index = {
            "format": FORMAT,
            "version": VERSION,
            **self.count,
            "words": words,
            "files": files,
        }
        text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
        (self._building / INDEX).write_text(text, encoding="utf-8")
        self._building.rename(self.folder)


def _shape(name: str, count: dict[str, int]) -> tuple[int, ...]:
    extent = count[_ARRAYS[name][1]]
    if name == "points":
        return extent, 2
    return (extent + 1,) if name.endswith("offset") else (extent,)


def _npy_header(name: str, count: dict[str, int]) -> bytes:
    return npy.header(np.dtype(_ARRAYS[name][0]), _shape(name, count))


def sha256(path: Path) -> str:
    """Checksum of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_index(folder: Path) -> dict[str, Any]:
    """The ``drawings.json`` of a set, checked; a UserError names what is wrong with it."""
    path = folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} is not a set of drawings (no {INDEX} in it): make one with "
            "`fastvae-data quickdraw FILES... --out DIR`"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a set of drawings")
    if index.get("version") != VERSION:
        raise UserError(
            f"{path} is of version {index.get('version')!r}, this program reads {VERSION}: pack "
            "the drawings again"
        )
    numbers = all(type(index.get(key)) is int for key in ("points", "strokes", "drawings"))
    words = index.get("words")
    files = index.get("files")
    if (
        not numbers
        or not isinstance(words, list)
        or not all(isinstance(word, str) for word in words)
        or not isinstance(files, dict)
        or not all(isinstance(f, dict) and {"bytes", "sha256"} <= f.keys() for f in files.values())
    ):
        raise UserError(f"{path} is damaged: pack the drawings again")
    return index


def load(folder: Path, *, verify: bool = False) -> Drawings:
    """Map a stored set into memory.

    Args:
        verify: also compare every file with its checksum (reads all bytes).

    Raises:
        UserError: names the file that is missing, damaged or of another size.
    """
    index = read_index(folder)
    arrays: dict[str, NDArray[Any]] = {}
    for name, (dtype, _) in _ARRAYS.items():
        path = folder / f"{name}.npy"
        stored = index["files"].get(path.name)
        if stored is None and name == "time":
            continue
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(f"{path} is missing: pack the drawings again") from None
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path} is damaged ({error}): pack the drawings again") from None
        wanted = _shape(name, index)
        if array.dtype != np.dtype(dtype) or array.shape != wanted:
            raise UserError(
                f"{path} holds {array.shape} {array.dtype}, {INDEX} says {wanted} "
                f"{np.dtype(dtype)}: pack the drawings again"
            )
        if verify and (stored is None or sha256(path) != stored["sha256"]):
            raise UserError(f"{path} does not have its checksum: pack the drawings again")
        arrays[name] = array
    try:
        strokes = Strokes(*(arrays.pop(f.name) for f in _STROKES))
        strokes.check()
        checksums = {k.removesuffix(".npy"): str(f["sha256"]) for k, f in index["files"].items()}
        drawings = Drawings(
            strokes=strokes, words=tuple(index["words"]), checksums=checksums, **arrays
        )
    except ValueError as error:
        raise UserError(f"{folder} is damaged ({error}): pack the drawings again") from None
    word = drawings.word
    if len(word) and not (word.min() >= 0 and word.max() < len(drawings.words)):
        raise UserError(f"{folder / 'word.npy'} is damaged: pack the drawings again")
    return drawings


def fingerprint(drawings: Drawings) -> str:
    """Hash of the contents: equal for equal drawings in equal order, stored or not."""
    hasher = hashlib.blake2b("\0".join(drawings.words).encode(), digest_size=16)
    strokes = drawings.strokes
    count = {
        "points": len(strokes.points),
        "strokes": len(strokes.stroke_offset) - 1,
        "drawings": len(drawings),
    }
    for name, array in drawings.arrays().items():
        digest = (drawings.checksums or {}).get(name)
        if digest is None:
            own = hashlib.sha256(_npy_header(name, count))
            own.update(np.ascontiguousarray(array).data)
            digest = own.hexdigest()
        hasher.update(f"/{name}/{digest}".encode())
    return hasher.hexdigest()
