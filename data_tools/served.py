"""Files of which nothing is known beforehand: fetched by what the server says of them.

That is the size, MD5 or CRC-32C (``X-Goog-Hash``, from Google's storage), and the ETag, which tells
on resuming whether it is still the same file. It is kept beside ``NAME.part`` as
``NAME.part.json`` until the file is complete, verified and has its name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from fastvae.data_tools import fetch
from fastvae.data_tools.fetch import (
    CONTENT_RANGE,
    CutOff,
    MirrorError,
    Refused,
    Response,
    copy_body,
    digest_of,
    disk_error,
    first_byte,
    human,
    open_url,
    refuse_html,
    size_of,
    try_mirrors,
)
from fastvae.errors import UserError

TRIES = 5  # at one mirror without a byte in between, each after a longer pause
LONGEST_WAIT = 300.0  # seconds; a server that asks for more is given up

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a server says of a file. Kept beside a ``.part`` as ``NAME.part.json``."""

    size: int | None
    """Bytes, if it says so."""
    etag: str
    """Strong entity tag with its quotes, or "". Answers with the same tag have the same body."""
    md5: str
    """Base64, or ""."""
    crc32c: str
    """Base64 of the big-endian sum, or ""."""

    @property
    def check(self) -> str:
        """The best check that is possible, in words."""
        return "md5" if self.md5 else "crc32c" if self.crc32c else "size"


def fetch_served(
    name: str,
    mirrors: Sequence[str],
    root: Path,
    *,
    timeout: float,
    rate: float = math.inf,
    check: bool = False,
) -> tuple[Path, str]:
    """Make sure that ``root`` holds the file ``name``, verified by what the server says of it.

    One connection at a time. A server that is busy (429, 503) or breaks off is asked again after a
    pause, the one it names (Retry-After) or 1, 2, 4, 8 seconds.

    Args:
        name: of the file, in the mirror's folder and on this disk.
        mirrors: folder URLs (http, https, file), tried in order.
        root: the folder to put it in; made when missing.
        timeout: seconds without an answer after which a mirror is given up.
        rate: bytes per second at most.
        check: hold a file that is already here against the server, too, and replace it where it
            differs; otherwise it is taken as it is, without asking.

    Returns:
        The path, and what was verified: "md5", "crc32c" or "size"; "" for a file that was already
        here and not looked at.

    Raises:
        AllMirrorsFailed: no mirror gave it, or (``missing``) has it; what arrived stays in
            ``NAME.part`` for a later call.
        UserError: the disk refused, or is too small.
    """
    path = root / name
    if path.exists() and not check:
        print(f"{name}: already here, not checked", flush=True)
        return path, ""
    part = root / f"{name}.part"
    try:
        root.mkdir(parents=True, exist_ok=True)

        def attempt(mirror: str) -> str:
            url = f"{mirror.rstrip('/')}/{quote(name)}"
            download = _ServedDownload(url=url, name=name, part=part, timeout=timeout, rate=rate)
            if path.exists():
                found = download.compare(path)
                if found:
                    return found
                print(f"{name}: {path} is not what {url} has; fetching it again", file=sys.stderr)
            found = download.run()
            part.replace(path)
            download.forget()
            return found

        return path, try_mirrors(name, mirrors, attempt)
    except OSError as error:
        raise disk_error(error, part) from None


@dataclass(frozen=True, kw_only=True)
class _ServedDownload:
    """One file at one URL, verified by what the server says of it."""

    url: str
    name: str
    part: Path
    timeout: float
    rate: float

    def compare(self, path: Path) -> str:
        """What shows that ``path`` is the server's file ("md5", ...), or "" where it is not."""

        def ask() -> Served:
            with open_url(self.url, {}, timeout=self.timeout, method="HEAD") as response:
                return _served(response)

        served = self._patiently(ask)
        if not _is_served(path, served):
            return ""
        print(f"{self.name}: ok, already here, {served.check} compared", flush=True)
        return served.check

    def run(self) -> str:
        """Make ``part`` complete and verified; return what was verified ("md5", ...)."""
        served, resumed = self._patiently(self._append)
        if not _is_served(self.part, served) and resumed:
            # The older bytes may be the bad ones.
            print(f"{self.name}: {self.part} was damaged; starting from zero", file=sys.stderr)
            self.forget()
            served, _ = self._patiently(self._append)
        if not _is_served(self.part, served):
            self.forget()
            raise MirrorError(f"wrong {served.check}")
        print(f"{self.name}: ok, {served.check} verified", flush=True)
        return served.check

    def forget(self) -> None:
        """Remove the part and what is known of it."""
        self.part.unlink(missing_ok=True)
        _memory(self.part).unlink(missing_ok=True)

    def _patiently(self, action: Callable[[], T]) -> T:
        """``action()``, again after a pause where the server is busy or breaks off."""
        failures, have = 0, size_of(self.part)
        while True:
            try:
                return action()
            except (Refused, CutOff) as error:
                arrived = size_of(self.part)
                failures, have = 1 if arrived > have else failures + 1, arrived
                pause = _pause(error, failures)
                if failures >= TRIES:
                    raise
                print(f"{self.name}: {error}; trying again in {pause:.0f} s", file=sys.stderr)
            fetch.sleep(pause)

    def _append(self) -> tuple[Served, bool]:
        """Add the missing bytes to ``part`` and bring them to the disk.

        Returns:
            What the server says of the file, and whether older bytes of ``part`` were kept.
        """
        before, have = _remembered(self.part), size_of(self.part)
        if before is not None and before.size and have >= before.size:
            return before, True  # stopped between the last byte and the new name
        headers = {}
        if before is not None and before.etag and have:
            headers = {"Range": f"bytes={have}-", "If-Match": before.etag}
        try:
            response = open_url(self.url, headers, timeout=self.timeout)
        except Refused as error:
            if not headers or error.code not in (412, 416):
                raise
            return self._start_again()
        with response:
            served = _served(response)
            start = first_byte(response, have, served.size)
            if start and before is not None:
                if before.etag != served.etag:
                    response.close()
                    return self._start_again()
                served = before  # the same file; a part may be sent without its checksum
            else:
                self.forget()
                _memory(self.part).write_text(json.dumps(asdict(served)), encoding="utf-8")
            _check_room(self.part, served, start)
            size = human(served.size) if served.size is not None else "unknown size"
            how = f", going on after {human(start)}" if start else ""
            print(f"{self.name}: {size} from {self.url}{how}", flush=True)
            copy_body(response, self.part, start, served.size, rate=self.rate)
        return served, start > 0

    def _start_again(self) -> tuple[Served, bool]:
        print(f"{self.name}: changed on the server; starting from zero", file=sys.stderr)
        self.forget()
        return self._append()


def _served(response: Response) -> Served:
    """What the headers say of the whole file; MirrorError where that is too little."""
    refuse_html(response)
    headers = response.headers
    if headers.get("Content-Encoding", "identity") != "identity":
        raise MirrorError("sent it compressed, which was not asked for")
    length = headers.get("Content-Length", "")
    if response.status == 206:
        match = CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        length = match[2] if match else ""
    hashes = ",".join(headers.get_all("X-Goog-Hash", []))
    if headers.get("X-Goog-Stored-Content-Encoding", "identity") != "identity":
        hashes = ""  # of the compressed bytes that are stored, not of those that are sent
    known = dict(pair.strip().split("=", 1) for pair in hashes.split(",") if "=" in pair)
    etag = headers.get("ETag", "").strip()
    served = Served(
        size=int(length) if length.isdecimal() else None,
        etag="" if etag.startswith("W/") else etag,
        md5=known.get("md5", ""),
        crc32c=known.get("crc32c", ""),
    )
    if served.size is None and served.check == "size":
        raise MirrorError("says neither the size of the file nor a checksum")
    return served


def _pause(error: MirrorError, failures: int) -> float:
    """Seconds to wait before asking again; raises ``error`` where that is no use."""
    pause = 2.0 ** (failures - 1)
    if isinstance(error, Refused):
        if error.code not in (429, 500, 502, 503, 504):
            raise error
        pause = max(pause, _retry_after(error.retry_after))
    if pause > LONGEST_WAIT:
        raise MirrorError(f"{error}, not to be asked again for {pause:,.0f} s")
    return pause


def _retry_after(text: str) -> float:
    """The Retry-After header in seconds from now: a number, or a date."""
    try:
        if text.strip().isdecimal():
            return float(text)
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, OverflowError):
        return 0.0


def _is_served(path: Path, served: Served) -> bool:
    """Whether ``path`` is what the server says, as far as it says anything."""
    if served.size is not None and path.stat().st_size != served.size:
        return False
    if served.md5:
        digest = digest_of(path, hashlib.md5(usedforsecurity=False))
        return base64.b64encode(digest).decode() == served.md5
    if served.crc32c:
        from fastvae.data_tools.crc32c import crc32c  # compiled: rarely needed, slow to import

        return base64.b64encode(crc32c(path).to_bytes(4, "big")).decode() == served.crc32c
    return True


def _memory(part: Path) -> Path:
    """Where is noted which file ``part`` is a part of."""
    return part.with_name(f"{part.name}.json")


def _remembered(part: Path) -> Served | None:
    """What the server said when ``part`` was begun; None where that is not known."""
    try:
        return Served(**json.loads(_memory(part).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _check_room(part: Path, served: Served, start: int) -> None:
    """Raise UserError where the disk has less room than the file needs."""
    needed, free = (served.size or 0) - start, shutil.disk_usage(part.parent).free
    if needed > free:
        raise UserError(
            f"{part} needs {human(needed)}, the disk has {human(free)} left; make room, or give "
            "another folder with --root"
        )
