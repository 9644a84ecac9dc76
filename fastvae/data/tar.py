"""Tars, read strictly: a damaged one is an error, never a short one.

``tarfile`` (and ``webdataset``, which uses it) stops without a word at the first header that it
cannot read, and at the first block of zeros, wherever that comes from. Here a tar is whole or it is
``TarDamage``: every header has its checksum, every member its bytes, and the block of zeros that
ends a tar is there, with nothing but zeros behind it.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512  # bytes, of which tars are made
_PIECE = 1 << 18  # bytes read at once of what is not kept
_LONGEST = 1 << 20  # bytes of an extended header; real ones have some hundred
_ZEROS = bytes(BLOCK)
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LEFT_OUT = {
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "fifo",
    b"V": "volume label",
}
_NO_TAR = {
    b"\x1f\x8b": "compressed with gzip: unpack it with gunzip",
    b"BZh": "compressed with bzip2: unpack it with bunzip2",
    b"\xfd7zXZ": "compressed with xz: unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it with unzstd",
    b"PK\x03\x04": "a zip archive",
    b"<!DOCTYPE": "a web page",
    b"<html": "a web page",
    b"version https://git-lfs": "a pointer of Git LFS: fetch the file itself with `git lfs pull`",
}


class TarDamage(ValueError):
    """A tar is damaged, or uses what is not read here. The message says what, and at which byte."""


class Member(NamedTuple):
    """A regular file in a tar."""

    name: str
    offset: int
    """Of its first byte in the tar."""
    size: int


class TarReader:
    """The members of a tar (ustar, GNU or pax) in order.

    Iterating gives each ``Member``; until the next one is asked for, ``read`` gives its bytes.
    Directories are passed over; links, devices and the like too, and counted.

    Args:
        file: at the first byte of the tar; ``read(n)`` gives n bytes unless the file ends before.
        seekable: pass over what is not read by seeking.
        size: bytes of the whole tar, where that is known: sizes in headers are then held against
            it. Found out where ``seekable``.

    Attributes:
        left_out: how many members of which kind were passed over.
    """

    def __init__(self, file: IO[bytes], *, seekable: bool = False, size: int | None = None) -> None:
        self.left_out: Counter[str] = Counter()
        self._file = file
        self._seekable = seekable
        self._size = size
        if seekable:
            start = file.tell()
            self._size = file.seek(0, os.SEEK_END) - start
            file.seek(start)
        self._at = 0  # bytes from the first one of the tar
        self._end = 0  # of the data of the current member

    def __iter__(self) -> Iterator[Member]:
        name: str | None = None  # from an extended header, for the member that follows
        size: int | None = None
        while True:
            at = self._next_header()
            block = self._read(BLOCK)
            if block == _ZEROS:
                if name is not None or size is not None:
                    raise TarDamage(f"the tar ends after the extended header before byte {at:,}")
                self._check_end(at)
                return
            if len(block) < BLOCK:
                raise TarDamage(_cut(at, len(block)))
            kind, own_name, own_size = _parse(block, at)
            if kind in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                text = self._extension(own_size, at).split(b"\0", 1)[0]
                if kind == tarfile.GNUTYPE_LONGNAME:
                    name = text.decode("utf-8", "surrogateescape")
                continue
            if kind in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
                records = _records(self._extension(own_size, at), at)
                if kind != tarfile.XGLTYPE:
                    name = records.get("path", name)
                    size = _decimal(records["size"], at) if "size" in records else size
                continue
            member = Member(
                own_name if name is None else name, self._at, own_size if size is None else size
            )
            name = size = None
            if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE):  # some writers note the size of a target
                member = member._replace(size=0)
            self._end = member.offset + member.size
            self._check_inside(member.name, at)
            if kind in _REGULAR:
                yield member
            elif kind in _LEFT_OUT:
                self.left_out[_LEFT_OUT[kind]] += 1
            elif kind != tarfile.DIRTYPE:
                what = "a sparse file" if kind == tarfile.GNUTYPE_SPARSE else f"of kind {kind!r}"
                raise TarDamage(f"member {member.name!r} at byte {at:,} is {what}: not supported")

    def read(self, size: int | None = None) -> bytes:
        """The next ``size`` bytes of the current member (fewer at its end), or all that is left."""
        left = self._end - self._at
        wanted = left if size is None else min(size, left)
        data = self._read(wanted)
        if len(data) < wanted:
            raise TarDamage(_cut(self._at - len(data), len(data)))
        return data

    def _next_header(self) -> int:
        """Go to the block after the current member, and return where that is."""
        start = -(-self._end // BLOCK) * BLOCK
        self._end = start
        if self._seekable and start - self._at > 0:
            self._file.seek(start - self._at, os.SEEK_CUR)
            self._at = start
        while self._at < start:
            if not self._read(min(_PIECE, start - self._at)):
                raise TarDamage(_cut(self._at, 0))
        return start

    def _read(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end of the file. Memory grows with what is there,
        not with what a header claims."""
        if size <= _PIECE:
            data = self._file.read(size)
        else:
            pieces, left = [], size
            while left and (piece := self._file.read(min(left, 64 * _PIECE))):
                pieces.append(piece)
                left -= len(piece)
            data = b"".join(pieces)
        self._at += len(data)
        return data

    def _extension(self, size: int, at: int) -> bytes:
        """The data of an extended header."""
        if size > _LONGEST:
            raise TarDamage(f"the extended header at byte {at:,} claims {size:,} bytes")
        self._end = self._at + size
        self._check_inside("extended header", at)
        return self.read()

    def _check_inside(self, name: str, at: int) -> None:
        """TarDamage where a member, with its padding, goes beyond the end of the file."""
        end = -(-self._end // BLOCK) * BLOCK
        if self._size is not None and end > self._size:
            raise TarDamage(
                f"cut off at byte {self._size:,}, within {name!r} at byte {at:,}, which goes up to "
                f"byte {end:,}"
            )

    def _check_end(self, at: int) -> None:
        """TarDamage where anything but zeros follows the block of zeros at ``at``."""
        while piece := self._file.read(_PIECE):
            self._at += len(piece)
            if piece.count(0) != len(piece):
                raise TarDamage(
                    f"a block of zeros at byte {at:,} ends the tar, but more data follows: a hole "
                    "in the file, or several tars in one"
                )


def _cut(at: int, more: int) -> str:
    """What to say of a file that ends ``more`` bytes after byte ``at``, where it goes on."""
    if not at + more:
        return "empty: a tar has 1,024 bytes at least"
    return f"cut off at byte {at + more:,}: the block of zeros that ends a tar is missing"


def _parse(block: bytes, at: int) -> tuple[bytes, str, int]:
    """Kind, name and size of the header in ``block`` (512 bytes), its checksum compared."""
    kind = block[156:157]
    # Nearly all headers: a regular file with a short name. The rest is tarfile's to understand.
    if kind == tarfile.REGTYPE and block[257:262] == b"ustar" and not block[345]:
        try:
            size, stated = int(block[124:135], 8), int(block[148:154], 8)
        except ValueError:
            size = stated = -1
        name = block[:100]
        end = name.find(0)
        if (
            size >= 0
            and end > 0
            and not block[135] & 0xDF  # NUL or space
            and stated == sum(block) - sum(block[148:156]) + 256
        ):
            return kind, name[:end].decode("utf-8", "surrogateescape"), size
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if at == 0:
            for magic, what in _NO_TAR.items():
                if block.startswith(magic):
                    raise TarDamage(f"no tar but {what}") from None
        raise TarDamage(f"bad header at byte {at:,} ({error})") from None
    if info.size < 0:
        raise TarDamage(f"bad header at byte {at:,} (size {info.size})")
    return info.type, info.name, info.size


def _records(data: bytes, at: int) -> dict[str, str]:
    """The records of a pax header: lines "LENGTH KEY=VALUE", the length that of the whole line."""
    records: dict[str, str] = {}
    start = 0
    while start < len(data):
        digits, space, _ = data[start : start + 20].partition(b" ")
        stop = start + int(digits) if space and digits.isdigit() else 0
        key, equals, value = data[start + len(digits) + 1 : stop].partition(b"=")
        if not start < stop <= len(data) or not equals or not value.endswith(b"\n"):
            raise TarDamage(f"bad pax header at byte {at:,}")
        records[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        start = stop
    if any(key.startswith("GNU.sparse.") for key in records):
        raise TarDamage(f"the member at byte {at:,} is a sparse file: not supported")
    return records


def _decimal(text: str, at: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise TarDamage(f"bad pax header at byte {at:,} (size {text[:20]!r})")
    return int(text)
