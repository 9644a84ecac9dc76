"""``fastvae-data download``: fetch the original files of a data set, resumable and verified.

A file grows as ``NAME.part``, is checked against its SHA-256 as a whole and only then gets its
name, so a file that has its name is complete. A later call goes on where a ``.part`` ends.

``fetch`` knows nothing of any data set: it takes a ``RemoteFile`` and the mirrors to try in order.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen
from urllib.response import addinfourl

from tqdm import tqdm

from fastvae.errors import UserError, nearest

EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C
BLOCK_BYTES = 1 << 16
LONGEST_TIMEOUT = 86400.0  # seconds; sockets refuse numbers that are too large
SCHEMES = ("http", "https", "file")

Response = HTTPResponse | addinfourl  # the second is what urllib makes of file://


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file to fetch and what it must be."""

    name: str
    """File name, in the mirror's folder and on this disk."""
    size: int
    """Bytes."""
    sha256: str
    """Lower-case hexadecimal; this is what is verified."""
    md5: str = ""
    """As other projects publish it, to compare by eye; not verified."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The files of a data set and where they are kept, best mirror first."""

    files: tuple[RemoteFile, ...]
    mirrors: tuple[str, ...]


DATA_SETS = {
    "mnist": DataSet(
        files=(
            RemoteFile(
                name="train-images-idx3-ubyte.gz",
                size=9_912_422,
                sha256="440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                md5="f68b3c2dcbeaaa9fbdd348bbdeb94873",
            ),
            RemoteFile(
                name="train-labels-idx1-ubyte.gz",
                size=28_881,
                sha256="3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                md5="d53e105ee54ea40749a09fcbcd1e9432",
            ),
            RemoteFile(
                name="t10k-images-idx3-ubyte.gz",
                size=1_648_877,
                sha256="8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                md5="9fb629c4189551a2d022fa330f9573f3",
            ),
            RemoteFile(
                name="t10k-labels-idx1-ubyte.gz",
                size=4_542,
                sha256="f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                md5="ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
    ),
}


class AllMirrorsFailed(UserError):
    """No mirror gave the file. The message names the file and each mirror's reason."""


class _MirrorError(Exception):
    """One mirror did not give the file; the message is the reason in a few words."""


def fetch(remote: RemoteFile, mirrors: Sequence[str], root: Path, *, timeout: float) -> Path:
    """Make sure that ``root`` holds ``remote``, complete and verified, and return its path.

    What goes well is told on stdout; a mirror that is given up for the next, on stderr.

    Args:
        remote: the file and its checksum.
        mirrors: folder URLs (http, https, file), tried in order.
        root: the folder to put it in; made when missing.
        timeout: seconds without an answer after which a mirror is given up.

    Raises:
        AllMirrorsFailed: no mirror gave it; what arrived stays in ``NAME.part`` for a later call.
        UserError: the disk refused.
    """
    path = root / remote.name
    part = root / f"{remote.name}.part"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if _is_complete(path, remote):
                print(f"{remote.name}: ok, already here", flush=True)
                return path
            print(f"{remote.name}: {path} has a wrong checksum; fetching it again", file=sys.stderr)
        if _size(part) >= remote.size:
            if _is_complete(part, remote):  # stopped between the last byte and the new name
                part.replace(path)
                print(f"{remote.name}: ok, was complete in {part.name}", flush=True)
                return path
            print(f"{remote.name}: {part} is damaged; starting from zero", file=sys.stderr)
            part.unlink()
        _try_mirrors(remote, mirrors, part, timeout=timeout)
        part.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or part}: {error.strerror or error}; "
            "make room, or give another folder with --root"
        ) from None
    return path


def _try_mirrors(remote: RemoteFile, mirrors: Sequence[str], part: Path, *, timeout: float) -> None:
    """Fill ``part`` from the first mirror that gives the right bytes; or AllMirrorsFailed."""
    reasons: list[str] = []
    for mirror in mirrors:
        if reasons:
            print(f"{remote.name}: {reasons[-1]}; trying {mirror}", file=sys.stderr)
        try:
            _fill(remote, mirror, part, timeout=timeout)
            return
        except _MirrorError as error:
            reasons.append(f"{mirror}: {error}")
    raise AllMirrorsFailed(f"no mirror gave {remote.name} ({'; '.join(reasons)})")


def _fill(remote: RemoteFile, mirror: str, part: Path, *, timeout: float) -> None:
    """Make ``part`` complete and verified from one mirror, or raise _MirrorError."""
    while True:
        resumed = _append(remote, mirror, part, timeout=timeout)
        if _is_complete(part, remote):
            return
        part.unlink()
        if not resumed:
            raise _MirrorError("wrong checksum")
        # The older bytes may be the bad ones: give this mirror one chance with all of them.
        print(f"{remote.name}: {part} was damaged; starting from zero", file=sys.stderr)


def _append(remote: RemoteFile, mirror: str, part: Path, *, timeout: float) -> bool:
    """Add the missing bytes to ``part`` and bring them to the disk.

    Returns:
        Whether older bytes of ``part`` were kept.

    Raises:
        _MirrorError: refused, cut off or of another length; good bytes stay in ``part``.
    """
    have = _size(part)
    with _open(f"{mirror.rstrip('/')}/{quote(remote.name)}", have, timeout=timeout) as response:
        done = start = _first_byte(response, have, remote.size)
        how = f", going on after {_human(start)}" if start else ""
        print(f"{remote.name}: {_human(remote.size)} from {mirror}{how}", flush=True)
        with (
            part.open("ab" if start else "wb") as out,
            tqdm(
                total=remote.size,
                initial=start,
                unit="B",
                unit_scale=True,
                leave=False,
                disable=None,  # no bar unless stderr is a terminal
            ) as bar,
        ):
            # One byte more than needed is asked for, to notice a body that is too long.
            while block := _read(response, min(BLOCK_BYTES, remote.size + 1 - done)):
                out.write(block)
                done += len(block)
                bar.update(len(block))
            out.flush()
            os.fsync(out.fileno())
    if done < remote.size:
        raise _MirrorError(f"cut off after {done:,} of {remote.size:,} bytes")
    if done > remote.size:
        part.unlink()
        raise _MirrorError(f"longer than the expected {remote.size:,} bytes")
    return start > 0


def _open(url: str, start: int, *, timeout: float) -> Response:
    """Ask for ``url`` from byte ``start`` on; raise _MirrorError when that is refused."""
    # Some servers turn away the default "Python-urllib".
    headers = {"User-Agent": "fastvae-data"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response: Response = urlopen(Request(url, headers=headers), timeout=timeout)
    except HTTPError as error:
        error.close()
        raise _MirrorError(f"HTTP {error.code} {_one_line(error.reason)}".rstrip()) from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a host that is no name
        raise _MirrorError(_reason(error)) from None
    return response


def _first_byte(response: Response, have: int, size: int) -> int:
    """Return where in the file the body begins: ``have``, or 0 when Range was ignored.

    Raises:
        _MirrorError: the headers already show that this is not the file.
    """
    if response.headers.get_content_type() == "text/html":
        raise _MirrorError("sent an HTML page")
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range.strip())
        if match is None or int(match[1]) != have:
            raise _MirrorError(f"sent another range than asked for ({_one_line(content_range)})")
        start, length = have, match[2]
    else:
        start, length = 0, response.headers.get("Content-Length", "*")
    if length.isdecimal() and int(length) != size:
        raise _MirrorError(f"its file has {int(length):,} bytes, expected {size:,}")
    return start


def _read(response: Response, most: int) -> bytes:
    """Read up to ``most`` bytes of the body (none at its end), or raise _MirrorError."""
    try:
        return response.read(most)
    except (OSError, HTTPException) as error:
        raise _MirrorError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Say in a few words, on one line, why a mirror could not be read."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return "timed out"
    if isinstance(cause, OSError) and cause.strerror:
        return _one_line(cause.strerror)
    return _one_line(cause) or type(cause).__name__


def _one_line(text: object) -> str:
    """Return ``text`` on one line: servers may put anything in what they say."""
    return " ".join(str(text).split())


def _size(path: Path) -> int:
    """Return the size of ``path`` in bytes, 0 when it is not there."""
    return path.stat().st_size if path.exists() else 0


def _is_complete(path: Path, remote: RemoteFile) -> bool:
    """Whether ``path`` is ``remote``, byte for byte."""
    if path.stat().st_size != remote.size:
        return False
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest() == remote.sha256


def _human(size: int) -> str:
    """Return ``size`` (bytes) for people, e.g. ``"9.91MB"``."""
    return str(tqdm.format_sizeof(size, suffix="B"))


def download(name: str, root: Path, *, mirrors: Sequence[str], timeout: float) -> list[Path]:
    """Fetch all files of the data set ``name`` into ``root`` and return their paths.

    Args:
        name: a key of ``DATA_SETS``.
        root: the folder to put them in; made when missing.
        mirrors: folder URLs tried before the data set's own.
        timeout: seconds without an answer after which a mirror is given up.

    Raises:
        UserError: a file could not be had or written; the message says what to do.
    """
    data_set = DATA_SETS[name]
    tried = (*mirrors, *data_set.mirrors)
    try:
        return [fetch(remote, tried, root, timeout=timeout) for remote in data_set.files]
    except AllMirrorsFailed as error:
        names = ", ".join(remote.name for remote in data_set.files)
        raise AllMirrorsFailed(
            f"{error}; check the network and run this again, or download {names} by hand from "
            f"{data_set.mirrors[0]} and put them into {root}, or give another source with --mirror"
        ) from None


def _mirror(text: str) -> str:
    """Return ``text`` when it is a URL that can be opened: the type of ``--mirror``."""
    if urlsplit(text).scheme not in SCHEMES:
        known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL that begins with one of {known}")
    return text


def _seconds(text: str) -> float:
    """Return ``text`` as a time in seconds: the type of ``--timeout``."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of seconds above 0 and up to {LONGEST_TIMEOUT:.0f}"
        )
    return seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``fastvae-data download`` to ``parser``."""
    parser.add_argument(
        "name",
        metavar="DATA_SET",
        nargs="?",
        help=f"which data set: {', '.join(DATA_SETS)}",
    )
    parser.add_argument(
        "--root",
        type=Path,
        metavar="FOLDER",
        help="where to put the files (default: data/DATA_SET)",
    )
    parser.add_argument(
        "--mirror",
        type=_mirror,
        action="extend",
        nargs="+",
        default=[],
        metavar="URL",
        help="folder URLs to try before the built-in ones; file:///some/folder works too",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        default=30.0,
        metavar="SECONDS",
        help="give a mirror up after so many seconds without an answer (default: %(default)g)",
    )
    parser.epilog = "Files that are there and right are kept; a broken download is resumed."


def run(args: argparse.Namespace) -> int:
    """Do ``fastvae-data download`` and return its exit code."""
    if args.name is None:
        raise UserError(f"which data set?{nearest('', DATA_SETS)}")
    if args.name not in DATA_SETS:
        raise UserError(f"no data set {args.name!r}{nearest(args.name, DATA_SETS)}")
    root: Path = (args.root or Path("data", args.name)).expanduser()
    try:
        paths = download(args.name, root, mirrors=args.mirror, timeout=args.timeout)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    for path in paths:
        print(path)
    total = sum(path.stat().st_size for path in paths)
    print(f"{len(paths)} files, {_human(total)}, checksums right")
    print(f"next: fastvae train {args.name} --data.root {shlex.quote(str(root))}")
    return 0
