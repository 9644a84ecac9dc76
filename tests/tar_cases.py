"""Small tars for tests, and a web server on this machine that gives them, well or badly."""

from __future__ import annotations

import contextlib
import io
import tarfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastvae.data.sample_tar import OutSample, write_sizes, write_tars

CUT = 3000  # bytes after which the server cuts a connection


def tar_bytes(members: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar as Python's tarfile writes it."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return file.getvalue()


def encoded(pixels: NDArray[np.uint8], form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def random_images(count: int, shape: tuple[int, int, int] = (6, 5, 1)) -> NDArray[np.uint8]:
    """(N, H, W, C), all of them different."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_set(
    folder: Path,
    images: NDArray[np.uint8],
    *,
    per_tar: int,
    conditions: NDArray[np.uint8] | None = None,
) -> list[Path]:
    """Per-sample tars of images whose labels are their numbers; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    samples = (
        OutSample(f"{i:06d}", image, i, None if conditions is None else conditions[i], i)
        for i, image in enumerate(images)
    )
    sizes = write_tars(folder, "train", samples, per_tar=per_tar)
    write_sizes(folder, sizes)
    return [folder / name for name in sizes]


@dataclass
class Web:
    """The server: the first folder of a path says how it behaves."""

    files: dict[str, bytes]
    url: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of each request."""
    stalling: bool = False
    """Whether no answer comes to its end any more."""
    stalled: threading.Event = field(default_factory=threading.Event)
    """Set to let go of those who wait for an answer that never comes."""

    def requests(self, name: str) -> list[str | None]:
        """Range headers of the requests for a file."""
        return [asked for path, asked in self.asked if path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    """good, cut, norange (and cut), changed (and cut), dead (after one cut), short (no length and
    cut), busy (at first), html, ftp, forbidden, stall."""

    def __init__(self, web: Web, *args: object) -> None:
        self.web = web
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def do_GET(self) -> None:
        web, range_ = self.web, self.headers.get("Range")
        first = not any(path == self.path for path, _ in web.asked)
        web.asked.append((self.path, range_))
        how, name = self.path.split("?")[0].lstrip("/").rsplit("/", 1)
        body = web.files.get(name)
        if body is None:
            self.send_error(404)
        elif how == "html":
            self.answer(200, b"<html>sign in first</html>", {"Content-Type": "text/html"})
        elif how == "ftp":
            self.answer(302, b"", {"Location": "ftp://127.0.0.1/x.tar"})
        elif how == "forbidden" or (how == "dead" and not first):
            self.send_error(403 if how == "forbidden" else 500)
        elif how == "busy" and first:
            self.answer(503, b"", {"Retry-After": "0"})
        else:
            self.give(how, body, range_, first)

    def give(self, how: str, body: bytes, range_: str | None, first: bool) -> None:
        start = 0
        headers = {"ETag": '"one"' if how != "changed" or first else '"two"'}
        if range_ is not None and how != "norange":
            start = int(range_.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        headers["Content-Length"] = str(len(body) - start)
        if how == "short":
            del headers["Content-Length"]
        sent = body[start:]
        how = "stall" if self.web.stalling else how
        if how in ("cut", "changed", "dead", "short", "stall") or (how == "norange" and first):
            sent = sent[:CUT]
        self.answer(206 if start else 200, sent, headers)
        if how == "stall":
            self.web.stalled.wait(60)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # nobody listens any more
            self.wfile.write(body)
            self.wfile.flush()


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Web]:
    """A web server with these files in every folder."""
    web = Web(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, web))
    server.daemon_threads = True
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield web
    finally:
        web.stalled.set()
        server.shutdown()
        thread.join()
        server.server_close()
