"""Tars by path or URL: names expanded, and opened as streams that outlive cut connections.

    data/train-{000..009}.tar    braces, as in the shell
    data/train-*.tar             local files, sorted; a folder stands for its *.tar
    file:///data/train.tar
    https://host/train.tar       and http; read on with Range where a connection is cut
    pipe:command                 what a shell command prints; only where that is allowed

There are no other schemes, and nothing but ``pipe:`` runs a program.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import select
import signal
import ssl
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, NamedTuple, cast
from urllib import request
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit, urlunsplit

from braceexpand import braceexpand

from fastvae.errors import UserError

TIMEOUT = 20.0  # seconds without a byte, after which a connection counts as cut
TRIES = 5  # without a byte in between
PAUSE = 1.0  # seconds before the second try; twice as long before each further one
LONGEST_WAIT = 120.0  # seconds; a server that asks for more is given up
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_BUFFER = 1 << 18  # bytes
_SCAN_BUFFER = 1 << 13  # bytes, where most of a file is passed over
_SCHEME = re.compile("([A-Za-z][A-Za-z0-9+.-]+)://")
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Missing(UserError):
    """There is no such file, or none at this URL."""


class Closed(Exception):
    """Reading was called off by another thread."""


class Stream(NamedTuple):
    """Something opened."""

    file: IO[bytes]
    """``read(n)`` gives n bytes unless it ends before."""
    seekable: bool
    size: int | None
    """Bytes, where that is known."""


# ---------------------------------------------------------------------------------- names
def expand(urls: str | Iterable[str], *, allow_pipe: bool = False) -> list[str]:
    """Local paths and URLs of single files, in order.

    Raises:
        UserError: a scheme that is not read, ``pipe:`` that is not allowed, unbalanced braces, a
            pattern or folder without files, a file that is named twice.
    """
    found: list[str] = []
    for url in [urls] if isinstance(urls, str) else urls:
        _check_pipe(url, allow_pipe)
        try:
            parts = [url] if _is_there(url) else list(braceexpand(url))
        except ValueError:
            raise UserError(f"unbalanced braces in {url}") from None
        for part in parts:
            found += _files(part)
    if not found:
        raise UserError("no tars are named")
    name, times = Counter(found).most_common(1)[0]
    if times > 1:
        raise UserError(f"{name} is named {times} times")
    return found


def _check_pipe(url: str, allow_pipe: bool) -> None:
    if url.startswith("pipe:") and not allow_pipe:
        raise UserError(f"{url} runs a command: if that is wanted, add --data.allow-pipe")


def _is_there(url: str) -> bool:
    return not url.startswith("pipe:") and not _SCHEME.match(url) and os.path.exists(url)


def _files(url: str) -> list[str]:
    scheme = _SCHEME.match(url)
    if url.startswith("pipe:") or (scheme and scheme[1].lower() in ("http", "https")):
        return [url]
    if scheme:
        return [str(local_path(url))]  # or an error
    if os.path.isdir(url):
        tars = sorted(str(path) for path in Path(url).glob("*.tar"))
        if not tars:
            raise Missing(f"{url} has no *.tar in it")
        return tars
    if not os.path.exists(url) and glob.has_magic(url):
        tars = sorted(glob.glob(url))
        if not tars:
            raise Missing(f"no file is like {url}")
        return tars
    return [url]


def local_path(url: str) -> Path | None:
    """Where a local file is; None for http, https and pipe."""
    scheme = _SCHEME.match(url)
    if url.startswith("pipe:") or (scheme and scheme[1].lower() in ("http", "https")):
        return None
    if scheme is None:
        return Path(url)
    parts = urlsplit(url)
    if parts.scheme.lower() != "file":
        raise UserError(
            f"{url}: no {parts.scheme} here, but http, https, file and paths (or pipe:COMMAND with "
            "--data.allow-pipe)"
        )
    if parts.netloc not in ("", "localhost"):
        raise UserError(f"{url}: file URLs are file:///PATH, without a host")
    return Path(unquote(parts.path))


def name_of(url: str) -> str:
    """The file name in a path or URL; a command is its own name."""
    if url.startswith("pipe:"):
        return url
    path = local_path(url)
    return unquote(urlsplit(url).path).rpartition("/")[2] if path is None else path.name


def beside(url: str, name: str) -> str | None:
    """Path or URL of another file in the same folder; None for a command."""
    if url.startswith("pipe:"):
        return None
    path = local_path(url)
    if path is not None:
        return str(path.with_name(name))
    parts = urlsplit(url)
    folder = parts.path.rpartition("/")[0]
    return urlunsplit((parts.scheme, parts.netloc, f"{folder}/{name}", "", ""))


# ---------------------------------------------------------------------------------- opening
def open_url(
    url: str,
    *,
    allow_pipe: bool = False,
    stop: threading.Event | None = None,
    scan: bool = False,
) -> Stream:
    """Open one file that ``expand`` gave.

    Args:
        stop: when set, reading from the web or a command raises ``Closed``: at once while it waits
            for another try, else when the next byte comes, or after ``TIMEOUT``.
        scan: most of the file will be passed over by seeking.

    Raises:
        Missing: there is none.
        UserError: it cannot be read, for the reason given.
    """
    _check_pipe(url, allow_pipe)
    stop = stop or threading.Event()
    if url.startswith("pipe:"):
        return Stream(io.BufferedReader(_Pipe(url, stop), _BUFFER), False, None)
    path = local_path(url)
    if path is None:
        body = _Http(url, stop)
        return Stream(io.BufferedReader(body, _BUFFER), False, body.size)
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would wait for a writer
    except FileNotFoundError:
        raise Missing(f"no such file: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    about = os.fstat(handle)
    if not stat.S_ISREG(about.st_mode):
        os.close(handle)
        raise UserError(f"{path} is no regular file: tars are read more than once, from files")
    return Stream(open(handle, "rb", _SCAN_BUFFER if scan else _BUFFER), True, about.st_size)


def read_small(url: str, most: int = 64 << 20) -> bytes | None:
    """The contents of a file that need not be there; None where it is not, may not be read, or is
    no file but a web page."""
    try:
        with open_url(url).file as file:
            data = file.read(most + 1)
    except _Refused:
        return None
    except Missing:
        return None
    if len(data) > most:
        raise UserError(f"{url} is larger than {most:,} bytes")
    return data


class _Refused(UserError):
    """A server answered, and does not give the file."""


class _Again(Exception):
    """Not now; perhaps after ``wait`` seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def _opener() -> request.OpenerDirector:
    """urllib for http and https alone: a redirection cannot lead to local files or to ftp."""
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPRedirectHandler(),
        request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class _Http(io.RawIOBase):
    """The body of a URL as one stream, whatever happens to connections.

    Attributes:
        size: bytes, where the server says it.
    """

    def __init__(self, url: str, stop: threading.Event) -> None:
        self.url = url
        self.size: int | None = None
        self._stop = stop
        self._opener = _opener()
        self._at = 0
        self._tag: str | None = None
        self._failures = 0
        self._response = self._connected()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while True:
            if self._stop.is_set():
                raise Closed
            try:
                data = self._response.read1(len(buffer))
            except (OSError, HTTPException) as error:
                data, reason = b"", _reason(error)
            else:
                reason = "cut off"
                if not data and (self.size is None or self._at >= self.size):
                    return 0
            if data:
                buffer[: len(data)] = data
                self._at += len(data)
                self._failures = 0
                return len(data)
            self._response.close()
            self._pause(_Again(f"{reason} at byte {self._at:,}"))
            self._response = self._connected()

    def close(self) -> None:
        if not self.closed and hasattr(self, "_response"):
            self._response.close()
        super().close()

    def _connected(self) -> HTTPResponse:
        """A response whose body begins at the byte that is wanted next."""
        while True:
            try:
                return self._ask()
            except _Again as again:
                self._pause(again)

    def _pause(self, again: _Again) -> None:
        self._failures += 1
        wait = max(again.wait, PAUSE * 2 ** (self._failures - 1))
        if self._failures >= TRIES:
            raise UserError(f"{self.url}: {again} (tried {self._failures} times)")
        if again.wait > LONGEST_WAIT:
            raise UserError(f"{self.url}: {again}; it asks to wait for {again.wait:,.0f} s")
        if self._stop.wait(wait):
            raise Closed

    def _ask(self) -> HTTPResponse:
        headers = {"User-Agent": "fastvae", "Accept-Encoding": "identity"}
        if self._at:
            headers["Range"] = f"bytes={self._at}-"
            if self._tag and self._tag.startswith('"'):
                headers["If-Range"] = self._tag
        try:
            response = self._opener.open(request.Request(self.url, headers=headers), None, TIMEOUT)
        except HTTPError as error:
            error.close()
            raise self._refused(error) from None
        except (OSError, HTTPException, ValueError) as error:  # ValueError: a host that is no name
            cause = error.reason if isinstance(error, URLError) else error
            if isinstance(cause, (ssl.SSLCertVerificationError, ValueError)):
                raise UserError(f"{self.url}: {_reason(error)}") from None
            raise _Again(_reason(error)) from None
        if response is None:  # no handler: only a redirection can lead there
            raise UserError(f"{self.url} leads to a scheme that is not read")
        try:
            self._check(cast(HTTPResponse, response))
        except BaseException:
            response.close()
            raise
        return cast(HTTPResponse, response)

    def _refused(self, error: HTTPError) -> Exception:
        what = f"HTTP {error.code} {' '.join(str(error.reason).split())}".rstrip()
        if error.code in _BUSY:
            return _Again(what, _seconds(error.headers.get("Retry-After", "")))
        if error.code in (404, 410):
            return Missing(f"{self.url}: {what}")
        if error.code == 416:
            return UserError(f"{self.url} has become shorter while it was read")
        return _Refused(f"{self.url}: {what}")

    def _check(self, response: HTTPResponse) -> None:
        """Hold an answer against the ones before, and bring its body to the byte that is wanted."""
        if response.headers.get_content_type() == "text/html":
            raise _Refused(f"{self.url} gave a web page, not a file: does it ask to sign in?")
        start, total = 0, response.headers.get("Content-Length", "")
        if response.status == 206:
            said = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
            if said is None or int(said[1]) != self._at:
                raise UserError(f"{self.url}: the server sent another range than it was asked for")
            start, total = int(said[1]), said[2]
        size = int(total) if total.isascii() and total.isdigit() else None
        tag = response.headers.get("ETag", "")
        if self._at and (size != self.size or tag != self._tag):
            raise UserError(f"{self.url} has changed while it was read")
        self.size, self._tag = size, tag
        while start < self._at:  # the server knows no ranges
            try:
                skipped = response.read1(min(_BUFFER, self._at - start))
            except (OSError, HTTPException) as error:
                raise _Again(_reason(error)) from None
            if not skipped:
                raise _Again(f"cut off at byte {start:,}")
            if self._stop.is_set():
                raise Closed
            start += len(skipped)


def _reason(error: Exception) -> str:
    """In a few words, on one line."""
    cause = error.reason if isinstance(error, URLError) else error
    if isinstance(cause, TimeoutError):
        return "timed out"
    text = (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    return " ".join(text.split()) or type(cause).__name__


def _seconds(text: str) -> float:
    """What Retry-After says: seconds, or a date; 0 where it says nothing."""
    if text.strip().isdigit():
        return float(text)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


class _Pipe(io.RawIOBase):
    """What a shell command prints.

    The command and all that it starts end when this is closed. Where the process itself is killed
    (SIGKILL) nobody can end them: a command then ends by itself when it next prints something,
    since nobody reads that; one that waits for something else goes on. (Linux could tie a command
    to the thread that starts it, but here that thread may end while another reads on.)
    """

    def __init__(self, url: str, stop: threading.Event) -> None:
        self.url = url
        self._stop = stop
        self._process = subprocess.Popen(
            url.removeprefix("pipe:"),
            shell=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # so that all that the command starts can be ended
        )
        assert self._process.stdout is not None
        self._out = self._process.stdout
        self._poll = select.poll()
        self._poll.register(self._out, select.POLLIN)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._poll.poll(200):  # milliseconds
            if self._stop.is_set():
                raise Closed
        count = os.readv(self._out.fileno(), [buffer])
        if not count and self._process.wait():
            raise UserError(f"{self.url}: the command failed (exit {self._process.returncode})")
        return count

    def close(self) -> None:
        if not self.closed and hasattr(self, "_process"):
            self._out.close()
            for sent in (signal.SIGTERM, signal.SIGKILL):
                if self._process.poll() is None:
                    os.killpg(self._process.pid, sent)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(timeout=2)
                    break
        super().close()
