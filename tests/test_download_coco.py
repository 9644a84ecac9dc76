"""``fastvae-data download coco`` from a server on this machine that misbehaves by a script."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fastvae.data_tools import cli, coco_files
from fastvae.data_tools import fetch as fetching
from fastvae.data_tools.coco_files import PARTS

BODIES = {
    "train2017.zip": bytes(range(256)) * 60,
    "val2017.zip": b"val" * 100,
    "test2017.zip": b"test" * 1000,
}


@dataclass
class Server:
    """Each request takes the next word of ``script``: "" (good), cut, wrong, or a status."""

    url: str = ""
    script: list[str] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(name, Range) of each request."""


class Handler(BaseHTTPRequestHandler):
    def __init__(self, server: Server, *args: Any) -> None:
        self.about = server
        super().__init__(*args)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def do_GET(self) -> None:
        name, wanted = self.path.rsplit("/", 1)[1], self.headers.get("Range")
        self.about.asked.append((name, wanted))
        behaviour = self.about.script.pop(0) if self.about.script else ""
        if behaviour.isdecimal():
            self.send_error(int(behaviour))
            return
        body = BODIES[name]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        body = body[start:]
        if behaviour == "cut":
            body = body[: len(body) // 2]
        self.wfile.write(bytes(reversed(body)) if behaviour == "wrong" else body)
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """COCO's server, with small files."""
    about = Server()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, about)) as http:
        about.url = f"http://127.0.0.1:{http.server_address[1]}/zips/"
        small = {
            part: replace(
                remote,
                size=len(BODIES[remote.name]),
                sha256=hashlib.sha256(BODIES[remote.name]).hexdigest(),
            )
            for part, remote in PARTS.items()
        }
        for part, remote in small.items():
            monkeypatch.setitem(PARTS, part, remote)
        monkeypatch.setattr(coco_files, "MIRRORS", (about.url,))
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield about
        http.shutdown()
        thread.join()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waited: list[float] = []
    monkeypatch.setattr(fetching, "sleep", waited.append)
    return waited


def run(root: Path, *words: str, code: int = 0) -> None:
    assert cli.main(["download", "coco", "--root", str(root), *words]) == code


def test_constants_are_those_that_are_published() -> None:
    """Sizes of the original files, in bytes; 26.8 GB in all."""
    assert {part: remote.size for part, remote in PARTS.items()} == {
        "train": 19_336_861_798,
        "val": 815_585_330,
        "test": 6_646_970_404,
    }
    for part, remote in PARTS.items():
        assert remote.name == f"{part}2017.zip"
        assert (len(remote.sha256), len(remote.md5)) == (64, 32)
        bytes.fromhex(remote.sha256 + remote.md5)
    assert all(mirror.endswith("/zips/") for mirror in coco_files.MIRRORS)


def test_all_parts_smallest_first(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "coco")
    assert [name for name, _ in server.asked] == ["val2017.zip", "test2017.zip", "train2017.zip"]
    for name, body in BODIES.items():
        assert (tmp_path / "coco" / name).read_bytes() == body
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("val2017.zip 300B, test2017.zip 4.00kB, train2017.zip 15.4kB: ")
    assert lines[0].endswith(f"19.7kB in all, into {tmp_path / 'coco'}")
    assert lines[-1] == f"next: fastvae-data images {tmp_path / 'coco'}"
    server.asked.clear()
    run(tmp_path / "coco")
    assert server.asked == [], "files that are here were asked for again"


def test_some_parts(server: Server, tmp_path: Path) -> None:
    run(tmp_path, "--parts", "test", "val", "val")
    assert {path.name for path in tmp_path.iterdir()} == {"test2017.zip", "val2017.zip"}


def test_a_broken_download_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, pauses: list[float]
) -> None:
    server.script = ["cut", "503", "503", "cut", ""]
    run(tmp_path, "--parts", "train")
    size = len(BODIES["train2017.zip"])
    assert [wanted for _, wanted in server.asked] == [
        None,
        *[f"bytes={size // 2}-"] * 3,
        f"bytes={size * 3 // 4}-",
    ]
    assert pauses == [1, 2, 4, 1]
    assert (tmp_path / "train2017.zip").read_bytes() == BODIES["train2017.zip"]


def test_patience_ends(
    server: Server, tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = ["cut", *["503"] * 9]
    run(tmp_path, "--parts", "train", code=2)
    assert pauses == [1, 2, 4, 8]
    error = capsys.readouterr().err.splitlines()[-1]
    assert "train2017.zip" in error
    assert "run this again" in error
    assert (tmp_path / "train2017.zip.part").stat().st_size == len(BODIES["train2017.zip"]) // 2
    server.script = []
    run(tmp_path, "--parts", "train")
    assert server.asked[-1][1] is not None


def test_a_server_that_never_gives_a_byte_is_not_asked_again(
    server: Server, tmp_path: Path, pauses: list[float]
) -> None:
    server.script = ["404"]
    run(tmp_path, "--parts", "val", code=2)
    assert len(server.asked) == 1
    assert pauses == []


def test_wrong_bytes_are_not_fetched_over_and_over(
    server: Server, tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    server.script = ["wrong"] * 9
    run(tmp_path, "--parts", "train", code=2)
    assert len(server.asked) == 1
    assert pauses == []
    assert "wrong checksum" in capsys.readouterr().err
    assert not (tmp_path / "train2017.zip").exists()


def test_other_mirrors_come_first(server: Server, tmp_path: Path) -> None:
    other = tmp_path / "mirror"
    other.mkdir()
    for name, body in BODIES.items():
        (other / name).write_bytes(body)
    run(tmp_path / "coco", "--mirror", other.as_uri())
    assert server.asked == []


def test_the_disk_is_looked_at_first(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(tmp_path, "--parts", "val")
    (tmp_path / "train2017.zip.part").write_bytes(BODIES["train2017.zip"][:5000])
    server.asked.clear()
    needed = len(BODIES["train2017.zip"]) - 5000 + len(BODIES["test2017.zip"])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    run(tmp_path, code=2)
    assert server.asked == []
    assert "needs 14.4kB more, the disk has 14.4kB left" in capsys.readouterr().err
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    run(tmp_path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["coco", "--parts", "train2017"], "invalid choice: 'train2017'"),
        (["coco", "--categories", "cat"], "--categories is for quickdraw and sketchrnn, not for"),
        (["mnist", "--parts", "val"], "--parts is for coco, not for mnist"),
        (["quickdraw", "--parts", "val"], "--parts is for coco, not for quickdraw"),
        (["cocoa"], "no data set 'cocoa'; nearest: coco"),
    ],
)
def test_bad_words_are_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["download", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
