"""The strict tar reader: what others write is read, and nothing damaged passes for whole."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile
import time
from pathlib import Path

import pytest

from fastvae.data.tar import BLOCK, Member, TarDamage, TarReader
from tests.tar_cases import tar_bytes

FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
MEMBERS = [("a.png", b"x" * 700), ("a.cls", b"7"), ("d/b.png", b""), ("d/b.cls", b"y" * 512)]
LONG = "long/" * 30 + "name.png"
TAR = tar_bytes(MEMBERS)


class Unseekable(io.RawIOBase):
    """What comes from a pipe or a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._data.read(min(len(buffer), 100))
        buffer[: len(data)] = data
        return len(data)


def reader(data: bytes, how: str) -> TarReader:
    if how == "stream":
        return TarReader(io.BufferedReader(Unseekable(data)))
    if how == "sized":
        return TarReader(io.BufferedReader(Unseekable(data)), size=len(data))
    return TarReader(io.BytesIO(data), seekable=True)


def contents(data: bytes, how: str = "seek") -> list[tuple[str, bytes]]:
    tar = reader(data, how)
    return [(member.name, tar.read()) for member in tar]


def names(data: bytes, how: str = "seek") -> list[str]:
    """Names alone: the data are passed over."""
    return [member.name for member in reader(data, how)]


def by_tarfile(data: bytes) -> list[str]:
    """What Python's own reader sees, in the way in which webdataset uses it."""
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        return [info.name for info in tar]


HOW = pytest.mark.parametrize("how", ["seek", "stream", "sized"])


@HOW
@pytest.mark.parametrize("form", FORMS)
def test_members_as_tarfile_writes_them(form: str, how: str) -> None:
    members = [*MEMBERS, (LONG, b"long"), ("käse.png", b"k"), ("x" * 100, b"hundred")]
    data = tar_bytes(members, FORMS[form])
    assert contents(data, how) == members
    assert names(data, how) == [name for name, _ in members]
    for member in reader(data, how):
        assert data[member.offset :][: member.size] == dict(members)[member.name]


@pytest.mark.parametrize("options", [[], ["--format=ustar"], ["--format=pax"], ["--format=v7"]])
def test_members_as_gnu_tar_writes_them(tmp_path: Path, options: list[str]) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar program here")
    (tmp_path / "d").mkdir()
    for name, data in MEMBERS:
        (tmp_path / name).write_bytes(data)
    command = ["tar", "-cf", "t.tar", *options, "a.png", "a.cls", "d"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert sorted(contents((tmp_path / "t.tar").read_bytes())) == sorted(MEMBERS)


def test_data_can_be_read_in_parts() -> None:
    tar = reader(TAR, "stream")
    first = next(iter(tar))
    assert first == Member("a.png", BLOCK, 700)
    assert [tar.read(100), tar.read(0), tar.read(600), tar.read()] == [
        b"x" * 100,
        b"",
        b"x" * 600,
        b"",
    ]


def test_a_size_in_a_pax_record_counts() -> None:
    data = bytearray(tar_bytes([("p", b"10 size=3\n"), ("a", b"abc")]))
    data[156] = ord("x")
    _sign(data, 0)
    data[2 * BLOCK + 124 : 2 * BLOCK + 135] = b"0" * 11
    _sign(data, 2 * BLOCK)
    assert contents(bytes(data)) == [("a", b"abc")]


def test_sizes_of_more_than_8_gib() -> None:
    """GNU's base-256 sizes: understood, and not within the file."""
    about = tarfile.TarInfo("big")
    about.size = 9 << 30
    data = about.tobuf(tarfile.GNU_FORMAT)
    with pytest.raises(TarDamage, match=r"cut off at byte 512, within 'big'.* byte 9,663,676,928"):
        contents(data)
    with pytest.raises(TarDamage, match="cut off"):
        contents(data + b"abc", "stream")


def test_what_is_no_file_is_passed_over_and_counted() -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            about = tarfile.TarInfo("other")
            about.type = kind
            tar.addfile(about)
        about = tarfile.TarInfo("a")
        about.size = 3
        tar.addfile(about, io.BytesIO(b"abc"))
    tar_reader = reader(file.getvalue(), "seek")
    assert [member.name for member in tar_reader] == ["a"]
    assert tar_reader.left_out == {"symbolic link": 1, "hard link": 1, "fifo": 1}


def test_sparse_files_are_refused(tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no tar program here")
    with (tmp_path / "hole").open("wb") as file:
        file.truncate(1 << 20)
    for options in (["--format=gnu"], ["--format=posix"]):
        command = ["tar", "-cf", "t.tar", "--sparse", *options, "hole"]
        subprocess.run(command, cwd=tmp_path, check=True)
        with pytest.raises(TarDamage, match=r"sparse file: not supported"):
            contents((tmp_path / "t.tar").read_bytes())


# ------------------------------------------------------------------------------------------ damage
@HOW
def test_every_cut_is_noticed(how: str) -> None:
    """Wherever a tar ends early, short of its last zeros, that is an error: with tarfile many of
    these cuts pass for whole."""
    end = TAR.index(bytes(2 * BLOCK), 6 * BLOCK)
    assert contents(TAR[: end + BLOCK], how) == MEMBERS  # one block of zeros is enough
    silent = 0
    for length in range(0, end + BLOCK, 64):
        with pytest.raises(TarDamage, match=r"cut off|empty"):
            names(TAR[:length], how)
        with pytest.raises(TarDamage, match=r"cut off|empty"):
            contents(TAR[:length], how)
        with contextlib.suppress(tarfile.TarError):
            by_tarfile(TAR[:length])
            silent += 1
    assert silent > 10


@HOW
@pytest.mark.parametrize("member", range(4))
def test_garbage_in_a_header_is_noticed(how: str, member: int) -> None:
    at = [m.offset - BLOCK for m in reader(TAR, "seek")][member]
    for place in (0, 50, 124, 130, 148, 156, 200, 257, 400):
        data = bytearray(TAR)
        data[at + place] ^= 0x15
        with pytest.raises(TarDamage, match=f"bad header at byte {at:,} "):
            names(bytes(data), how)


@HOW
def test_a_hole_is_no_end(how: str) -> None:
    at = [m.offset - BLOCK for m in reader(TAR, "seek")][2]
    data = TAR[:at] + bytes(BLOCK) + TAR[at + BLOCK :]
    with pytest.raises(TarDamage, match=f"a block of zeros at byte {at:,} ends the tar, but more"):
        names(data, how)
    with pytest.raises(TarDamage, match="several tars in one"):
        names(TAR + TAR, how)
    assert by_tarfile(data) == ["a.png", "a.cls"]  # without a word


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"\x1f\x8b\x08", "compressed with gzip: unpack it with gunzip"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"\x93NUMPY", "bad header at byte 0"),
    ],
)
def test_what_is_no_tar_is_named(start: bytes, says: str) -> None:
    with pytest.raises(TarDamage, match=says):
        names(start.ljust(2048, b"x"))


@pytest.mark.parametrize(
    "record",
    [
        b"junk",
        b"8 path=x\n",
        b"99 path=x\n",
        b"10 path=xx",
        b"-9 path=\n",
        b"12 size=0x1\n",
        b"4510 size=" + b"1" * 4499 + b"\n",
        b"30 size=" + b"1" * 21 + b"\n",
    ],
)
def test_bad_pax_headers_are_damage(record: bytes) -> None:
    data = bytearray(tar_bytes([("p", record), ("a", b"abc")]))
    data[156] = ord("x")
    _sign(data, 0)
    with pytest.raises(TarDamage, match="bad pax header at byte 0"):
        contents(bytes(data))


def test_an_extended_header_cannot_claim_all_memory() -> None:
    data = bytearray(TAR)
    data[156] = ord("L")
    data[124:135] = b"77777777777"
    _sign(data, 0)
    with pytest.raises(TarDamage, match=r"claims 8,589,934,591 bytes"):
        contents(bytes(data), "stream")


def test_an_extended_header_needs_a_member() -> None:
    data = bytearray(tar_bytes([("p", b"10 path=x\n")]))
    data[156] = ord("x")
    _sign(data, 0)
    with pytest.raises(TarDamage, match="ends after the extended header"):
        contents(bytes(data))


def test_headers_are_passed_over_quickly(tmp_path: Path) -> None:
    """A tenth of what an idle core does."""
    path = tmp_path / "t.tar"
    path.write_bytes(tar_bytes((f"{i:06d}.png", b"x" * 300) for i in range(4000)))
    start = time.process_time()
    with path.open("rb") as file:
        assert sum(1 for _ in TarReader(file, seekable=True)) == 4000
    assert 4000 / (time.process_time() - start) > 18_000


def _sign(data: bytearray, at: int) -> None:
    """Write the checksum of a header."""
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + BLOCK])
