"""Files of drawings as a stream of pieces, parsed by several threads and delivered in order."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastvae.data import quickdraw
from fastvae.data.drawings import Drawings
from fastvae.data.quickdraw import BadRecord
from fastvae.data_tools.sketchrnn import read_npz
from fastvae.errors import UserError

KINDS = ("auto", "simplified", "raw")
SUFFIXES = (".ndjson", ".bin", ".npz")
PIECE_BYTES = 16 << 20  # of a file, per call of the parser
_SPLIT_OF_NPZ = {"train": "train", "valid": "val", "test": "test"}


@dataclass(frozen=True)
class Piece:
    """Some drawings of one file."""

    path: Path
    drawings: Drawings
    bytes: int
    """Of the file, that were read for this piece."""
    bad: list[BadRecord] = field(default_factory=list)
    split: str | None = None
    """Where the file itself says what its drawings are for (sketch-rnn)."""
    kind: str = ""
    """Of ndjson: simplified or raw."""


def expand(paths: list[Path]) -> list[Path]:
    """Files, with folders replaced by the files of drawings in them; UserError names what is not
    there or of another type."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
            if not found:
                raise UserError(f"{path} holds no {', '.join(SUFFIXES)} files")
            files += found
        elif not path.exists():
            raise UserError(f"no such file: {path}")
        elif not path.is_file():
            raise UserError(f"{path} is no regular file")
        elif path.suffix == ".npy":
            raise UserError(
                f"{path} holds images, not strokes: train on a folder of such files with "
                "--data.dataset bitmaps --data.root FOLDER"
            )
        elif path.suffix not in SUFFIXES:
            raise UserError(f"{path}: expected {', '.join(SUFFIXES)}, or a folder of these")
        else:
            files.append(path)
    met: dict[Path, Path] = {}
    for path in files:
        if path.resolve() in met:
            raise UserError(f"{path} is given twice (as {met[path.resolve()]})")
        met[path.resolve()] = path
    return files


def pieces(files: list[Path], kind: str = "auto", workers: int = 1) -> Iterator[Piece]:
    """All drawings of the files, in order.

    Args:
        kind: what ndjson files hold: simplified or raw drawings, or auto.
        workers: threads that parse (the parsers are compiled and release Python's lock). At most
            two pieces per thread are in memory.
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[list[Piece]]] = deque()
        try:
            for task in _tasks(files, kind):
                waiting.append(pool.submit(task))
                if len(waiting) >= 2 * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _tasks(files: list[Path], kind: str) -> Iterator[Callable[[], list[Piece]]]:
    for path in files:
        if path.suffix == ".npz":
            yield partial(_npz, path)
            continue
        buffer = _map(path)
        if path.suffix == ".bin":
            yield partial(_bin, path, buffer)
            continue
        raw = quickdraw.looks_raw(buffer) if kind == "auto" else kind == "raw"
        line = start = 0
        for part in _at_newlines(buffer):
            yield partial(_ndjson, path, part, raw, line, start)
            line += int(np.count_nonzero(part == ord("\n")))
            start += len(part)


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return np.empty(0, dtype=np.uint8)  # nothing can be mapped
            return np.frombuffer(
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8
            )
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _at_newlines(buffer: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Consecutive parts of about PIECE_BYTES that end behind a newline."""
    start = 0
    while start < len(buffer):
        stop = min(start + PIECE_BYTES, len(buffer))
        while stop < len(buffer) and buffer[stop - 1] != ord("\n"):
            window = buffer[stop : stop + 65536]
            found = np.flatnonzero(window == ord("\n"))
            stop += int(found[0]) + 1 if len(found) else len(window)
        yield buffer[start:stop]
        start = stop


def _ndjson(path: Path, part: NDArray[np.uint8], raw: bool, line: int, start: int) -> list[Piece]:
    """A part that begins at a line and byte of its file."""
    drawings, bad = quickdraw.from_ndjson(part, raw=raw)
    moved = [b._replace(line=b.line + line, offset=b.offset + start) for b in bad]
    return [Piece(path, drawings, len(part), moved, kind="raw" if raw else "simplified")]


def _bin(path: Path, buffer: NDArray[np.uint8]) -> list[Piece]:
    drawings, bad = quickdraw.from_bin(buffer, word=path.stem)
    return [Piece(path, drawings, len(buffer), bad)]


def _npz(path: Path) -> list[Piece]:
    """The splits of a sketch-rnn file; keys are made up from category, split and number."""
    found = []
    sets = read_npz(path)
    word = path.stem.removesuffix(".full")  # Google's larger files
    for place, (name, (strokes, bad)) in enumerate(sets.items()):
        left_out = {number for number, _ in bad}
        numbers = (n for n in range(strokes.drawings + len(bad)) if n not in left_out)
        drawings = quickdraw.with_made_up_keys(strokes, word, name, numbers)
        size = path.stat().st_size if place == 0 else 0
        records = [BadRecord(number + 1, 0, f"{name}: {reason}") for number, reason in bad]
        found.append(Piece(path, drawings, size, records, _SPLIT_OF_NPZ.get(name)))
    return found
