"""Files from the web onto this disk: resumable, verified, with their name only when complete.

A file grows as ``NAME.part``, is verified as a whole and only then gets its name, so a file that
has its name is complete. A later call goes on where a ``.part`` ends.

``fetch`` takes a ``RemoteFile``, whose size and SHA-256 are known beforehand, and the mirrors to
try in order. It knows nothing of any data set. What it shares with ``served.py``, for files of
which nothing is known beforehand, stands below it.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen
from urllib.response import addinfourl

from tqdm import tqdm

from fastvae.errors import UserError

BLOCK_BYTES = 1 << 16

Response = HTTPResponse | addinfourl  # the second is what urllib makes of file://
sleep = time.sleep  # by a name of its own, for the tests

CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


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


class AllMirrorsFailed(UserError):
    """No mirror gave the file. The message names the file and each mirror's reason."""

    def __init__(self, message: str, *, missing: bool = False) -> None:
        super().__init__(message)
        self.missing = missing
        """Whether every mirror answered, and said that it has no such file."""


class MirrorError(Exception):
    """One mirror did not give the file; the message is the reason in a few words."""


class Refused(MirrorError):
    """The mirror answered with an HTTP error."""

    def __init__(self, error: HTTPError) -> None:
        super().__init__(f"HTTP {error.code} {_one_line(error.reason)}".rstrip())
        self.code = error.code
        self.retry_after = error.headers.get("Retry-After", "") if error.headers else ""


class CutOff(MirrorError):
    """The body ended early; what arrived stays in ``NAME.part``."""


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
        if size_of(part) >= remote.size:
            if _is_complete(part, remote):  # stopped between the last byte and the new name
                part.replace(path)
                print(f"{remote.name}: ok, was complete in {part.name}", flush=True)
                return path
            print(f"{remote.name}: {part} is damaged; starting from zero", file=sys.stderr)
            part.unlink()
        try_mirrors(
            remote.name, mirrors, lambda mirror: _fill(remote, mirror, part, timeout=timeout)
        )
        part.replace(path)
    except OSError as error:
        raise disk_error(error, part) from None
    return path


def try_mirrors(name: str, mirrors: Sequence[str], attempt: Callable[[str], str]) -> str:
    """The result of the first ``attempt(mirror)`` that succeeds; AllMirrorsFailed if none does."""
    reasons: list[str] = []
    missing = True
    for mirror in mirrors:
        if reasons:
            print(f"{name}: {reasons[-1]}; trying {mirror}", file=sys.stderr)
        try:
            return attempt(mirror)
        except MirrorError as error:
            missing &= isinstance(error, Refused) and error.code in (403, 404, 410)
            reasons.append(f"{mirror}: {error}")
    raise AllMirrorsFailed(f"no mirror gave {name} ({'; '.join(reasons)})", missing=missing)


def _fill(remote: RemoteFile, mirror: str, part: Path, *, timeout: float) -> str:
    """Make ``part`` complete and verified from one mirror, or raise MirrorError."""
    while True:
        resumed = _append(remote, mirror, part, timeout=timeout)
        if _is_complete(part, remote):
            return "sha256"
        part.unlink()
        if not resumed:
            raise MirrorError("wrong checksum")
        # The older bytes may be the bad ones: give this mirror one chance with all of them.
        print(f"{remote.name}: {part} was damaged; starting from zero", file=sys.stderr)


def _append(remote: RemoteFile, mirror: str, part: Path, *, timeout: float) -> bool:
    """Add the missing bytes to ``part`` and bring them to the disk.

    Returns:
        Whether older bytes of ``part`` were kept.

    Raises:
        MirrorError: refused, cut off or of another length; good bytes stay in ``part``.
    """
    have = size_of(part)
    headers = {"Range": f"bytes={have}-"} if have else {}
    with open_url(
        f"{mirror.rstrip('/')}/{quote(remote.name)}", headers, timeout=timeout
    ) as response:
        start = first_byte(response, have, remote.size)
        how = f", going on after {human(start)}" if start else ""
        print(f"{remote.name}: {human(remote.size)} from {mirror}{how}", flush=True)
        copy_body(response, part, start, remote.size)
    return start > 0


def open_url(url: str, headers: dict[str, str], *, timeout: float, method: str = "GET") -> Response:
    """Ask for ``url``; raise MirrorError when that is refused."""
    # Some servers turn away the default "Python-urllib".
    request = Request(url, headers={"User-Agent": "fastvae-data", **headers}, method=method)
    try:
        response: Response = urlopen(request, timeout=timeout)
    except HTTPError as error:
        error.close()
        raise Refused(error) from None
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a host that is no name
        raise MirrorError(_reason(error)) from None
    return response


def first_byte(response: Response, have: int, size: int | None) -> int:
    """Return where in the file the body begins: ``have``, or 0 when Range was ignored.

    Raises:
        MirrorError: the headers already show that this is not the file.
    """
    refuse_html(response)
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        match = CONTENT_RANGE.fullmatch(content_range.strip())
        if match is None or int(match[1]) != have:
            raise MirrorError(f"sent another range than asked for ({_one_line(content_range)})")
        start, length = have, match[2]
    else:
        start, length = 0, response.headers.get("Content-Length", "*")
    if length.isdecimal() and size is not None and int(length) != size:
        raise MirrorError(f"its file has {int(length):,} bytes, expected {size:,}")
    return start


def refuse_html(response: Response) -> None:
    """Raise MirrorError for what hotels and proxies send instead of a file."""
    if response.headers.get_content_type() == "text/html":
        raise MirrorError("sent an HTML page")


def copy_body(
    response: Response, part: Path, start: int, size: int | None, *, rate: float = math.inf
) -> None:
    """Write the body to ``part`` from byte ``start`` on and bring it to the disk.

    Raises:
        CutOff: it ended early; what arrived is in ``part``.
        MirrorError: it is too long; ``part`` is gone.
    """
    begin, done = time.monotonic(), start
    with (
        part.open("ab" if start else "wb") as out,
        tqdm(
            total=size,
            initial=start,
            unit="B",
            unit_scale=True,
            leave=False,
            disable=None,  # no bar unless stderr is a terminal
        ) as bar,
    ):
        # One byte more than needed is asked for, to notice a body that is too long.
        limit = math.inf if size is None else size + 1
        while block := _read(response, int(min(BLOCK_BYTES, limit - done))):
            out.write(block)
            done += len(block)
            bar.update(len(block))
            ahead = (done - start) / rate - (time.monotonic() - begin)
            if ahead > 0:
                sleep(ahead)
        out.flush()
        os.fsync(out.fileno())
    if size is not None and done < size:
        raise CutOff(f"cut off after {done:,} of {size:,} bytes")
    if size is not None and done > size:
        part.unlink()
        raise MirrorError(f"longer than the expected {size:,} bytes")


def _read(response: Response, most: int) -> bytes:
    """Read up to ``most`` bytes of the body (none at its end), or raise CutOff."""
    try:
        return response.read(most)
    except (OSError, HTTPException) as error:
        raise CutOff(_reason(error)) from None


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


def size_of(path: Path) -> int:
    """Return the size of ``path`` in bytes, 0 when it is not there."""
    return path.stat().st_size if path.exists() else 0


def _is_complete(path: Path, remote: RemoteFile) -> bool:
    """Whether ``path`` is ``remote``, byte for byte."""
    return (
        path.stat().st_size == remote.size
        and digest_of(path, hashlib.sha256()).hex() == remote.sha256
    )


def digest_of(path: Path, digest: hashlib._Hash) -> bytes:
    """What the empty ``digest`` makes of the whole file."""
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.digest()


def disk_error(error: OSError, part: Path) -> UserError:
    """What to tell the user of an ``error`` of the disk."""
    return UserError(
        f"cannot write {error.filename or part}: {error.strerror or error}; "
        "make room, or give another folder with --root"
    )


def human(size: int) -> str:
    """Return ``size`` (bytes) for people, e.g. ``"9.91MB"``."""
    return str(tqdm.format_sizeof(size, suffix="B"))
