"""In which form a data set lies on the disk."""

from __future__ import annotations

import enum
from pathlib import Path

from fastvae.data.drawings import INDEX
from fastvae.data.format import MANIFEST, SPLITS, is_shards
from fastvae.errors import UserError


class Form(enum.Enum):
    """The forms that data tools read."""

    SHARDS = "shards"
    STROKES = "packed strokes"
    BETON = ".beton"
    TARS = "WebDataset tars"


def form_of(path: Path) -> Form:
    """The form of a folder or file; UserError where it is none of them."""
    if not path.exists():
        raise UserError(f"no such file or folder: {path}")
    if path.is_file():
        if path.suffix == ".beton":
            return Form.BETON
        if path.suffix == ".tar":
            return Form.TARS
        raise UserError(f"{path}: expected a folder, a .beton file or a .tar file")
    if is_shards(path):
        return Form.SHARDS
    if any((path / part / INDEX).is_file() for part in (*SPLITS, "")):
        return Form.STROKES
    if (path / MANIFEST).exists():
        raise UserError(
            f"{path / MANIFEST} is damaged: it describes neither shards nor strokes; copy it again "
            "from where it came from, or move it away"
        )
    if any(path.glob("*.beton")):
        return Form.BETON
    if any(path.glob("*.tar")):
        return Form.TARS
    raise UserError(
        f"{path} holds no packed data (manifest.json, .beton or .tar files): make some with "
        "fastvae-data images, strips, idx or quickdraw"
    )


def split_files(path: Path, suffix: str) -> list[Path]:
    """The file itself, or the files of a folder that end in ``suffix``, sorted."""
    return [path] if path.is_file() else sorted(path.glob(f"*{suffix}"))


def split_of(path: Path) -> str:
    """The split that a file's name begins with: train unless it says val, valid or test."""
    for start, split in (("val", "val"), ("test", "test")):
        if path.name.startswith(start):
            return split
    return "train"
