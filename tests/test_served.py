"""Files by what the server says of them, against a server on this machine that acts like Google's
storage and misbehaves by a script."""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from fastvae.data_tools import cli, download, served
from fastvae.data_tools import fetch as fetching
from fastvae.data_tools.crc32c import crc32c
from fastvae.data_tools.fetch import AllMirrorsFailed
from fastvae.data_tools.quickdraw_files import CATEGORIES, KINDS, SKETCHRNN, Kind
from fastvae.data_tools.served import fetch_served
from fastvae.errors import UserError

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
BODY = bytes(range(256)) * 40
OTHER = bytes(reversed(BODY))
NAME = "ice cream.ndjson"
PART = f"{NAME}.part"
MEMORY = f"{NAME}.part.json"


def md5(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def crc(body: bytes, folder: Path) -> str:
    path = folder / "crc"
    path.write_bytes(body)
    value = base64.b64encode(crc32c(path).to_bytes(4, "big")).decode()
    path.unlink()
    return value


@dataclass
class Bucket:
    """The server. Each request takes the next word of ``script``, "" being good behaviour."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: {NAME: BODY})
    script: list[str] = field(default_factory=list)
    headers: dict[str, str | None] = field(default_factory=dict)
    """Added to each answer, or left out of it (None)."""
    asked: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """(method, name, Range, If-Match) of each request."""


class Handler(BaseHTTPRequestHandler):
    """ "" (good), cut, 404, 503 and so on, html, chunked, chunked-cut, ignore-match, no-range."""

    protocol_version = "HTTP/1.1"

    def __init__(self, bucket: Bucket, *args: Any) -> None:
        self.bucket = bucket
        super().__init__(*args)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        bucket, name = self.bucket, unquote(self.path.rsplit("/", 1)[1])
        wanted, match = self.headers.get("Range"), self.headers.get("If-Match")
        bucket.asked.append((self.command, name, wanted, match))
        behaviour = bucket.script.pop(0) if bucket.script else ""
        body = bucket.files.get(name)
        if body is None:
            behaviour = "404"
        if behaviour.isdecimal():
            self.answer(int(behaviour), b"no", {})
            return
        assert body is not None
        headers = {"ETag": f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'}
        if match not in (None, headers["ETag"]) and behaviour != "ignore-match":
            self.answer(412, b"changed", {})
            return
        headers["X-Goog-Hash"] = f"crc32c=AAAAAA==,md5={md5(body)}"
        if behaviour == "html":
            headers["Content-Type"] = "text/html"
        status, start = 200, 0
        if wanted is not None and behaviour != "no-range":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.answer(status, body[start:], headers, behaviour)

    def answer(
        self, status: int, body: bytes, headers: dict[str, str], behaviour: str = ""
    ) -> None:
        self.send_response(status)
        length = {"Content-Length": str(len(body)), "Connection": "close"}
        if behaviour.startswith("chunked"):
            length = {"Transfer-Encoding": "chunked"}
        for key, value in {**length, **headers, **self.bucket.headers}.items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        self.close_connection = True
        if self.command == "HEAD":
            return
        if behaviour.endswith("cut"):
            body = body[: len(body) // 2]
        if behaviour.startswith("chunked"):
            body = b"%x\r\n%b\r\n" % (len(body), body)
            body += b"" if behaviour.endswith("cut") else b"0\r\n\r\n"
        self.wfile.write(body)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("no_proxy", "*")
    bucket = Bucket()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, bucket))
    bucket.url = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield bucket
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept."""
    slept: list[float] = []
    monkeypatch.setattr(fetching, "sleep", slept.append)
    return slept


def get(root: Path, bucket: Bucket, **options: Any) -> str:
    path, verified = fetch_served(NAME, [bucket.url], root, timeout=10, **options)
    assert path == root / NAME
    return verified


def fails(root: Path, bucket: Bucket) -> str:
    with pytest.raises(AllMirrorsFailed) as caught:
        get(root, bucket)
    assert not (root / NAME).exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_only_the_file(root: Path, body: bytes = BODY) -> None:
    assert [path.name for path in root.iterdir()] == [NAME]
    assert (root / NAME).read_bytes() == body


def break_off(root: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave half a file behind."""
    bucket.script = ["cut"]
    with monkeypatch.context() as patch:
        patch.setattr(served, "TRIES", 1)
        assert "cut off after 5,120 of 10,240 bytes" in fails(root, bucket)
    assert sorted(path.name for path in root.iterdir()) == [PART, MEMORY]
    bucket.asked.clear()


ETAG = f'"{hashlib.md5(BODY, usedforsecurity=False).hexdigest()}"'


def test_fresh_download(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str], pauses: list[float]
) -> None:
    assert get(tmp_path, bucket) == "md5"
    assert_only_the_file(tmp_path)
    assert bucket.asked == [("GET", NAME, None, None)]
    assert pauses == []
    out, err = capsys.readouterr()
    assert f"{NAME}: 10.2kB from {bucket.url}ice%20cream.ndjson" in out
    assert "md5 verified" in out
    assert err == ""


def test_a_file_that_is_here_is_not_asked_about(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"mine")
    assert get(tmp_path, bucket) == ""
    assert bucket.asked == []
    assert_only_the_file(tmp_path, b"mine")


def test_check_compares_by_head_and_replaces_what_differs(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / NAME).write_bytes(BODY)
    assert get(tmp_path, bucket, check=True) == "md5"
    assert bucket.asked == [("HEAD", NAME, None, None)]
    (tmp_path / NAME).write_bytes(OTHER)
    assert get(tmp_path, bucket, check=True) == "md5"
    assert "is not what" in capsys.readouterr().err
    assert [method for method, *_ in bucket.asked] == ["HEAD", "HEAD", "GET"]
    assert_only_the_file(tmp_path)


def test_check_keeps_the_file_where_the_server_cannot_be_asked(
    bucket: Bucket, tmp_path: Path
) -> None:
    (tmp_path / NAME).write_bytes(OTHER)
    bucket.files.clear()
    with pytest.raises(AllMirrorsFailed):
        get(tmp_path, bucket, check=True)
    assert_only_the_file(tmp_path, OTHER)


def test_resume_asks_for_the_rest_of_the_same_file(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(tmp_path, bucket, monkeypatch)
    assert get(tmp_path, bucket) == "md5"
    assert_only_the_file(tmp_path)
    assert bucket.asked == [("GET", NAME, "bytes=5120-", ETAG)]


@pytest.mark.parametrize("behaviour", ["", "ignore-match"])
def test_a_changed_file_is_begun_anew(
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    behaviour: str,
) -> None:
    break_off(tmp_path, bucket, monkeypatch)
    bucket.files[NAME] = OTHER
    bucket.script = [behaviour]
    assert get(tmp_path, bucket) == "md5"
    assert_only_the_file(tmp_path, OTHER)
    assert [wanted for _, _, wanted, _ in bucket.asked] == ["bytes=5120-", None]
    assert "changed on the server; starting from zero" in capsys.readouterr().err


def test_a_shorter_file_now(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(tmp_path, bucket, monkeypatch)
    bucket.files[NAME] = BODY[:100]
    bucket.script = ["416"]
    assert get(tmp_path, bucket) == "md5"
    assert_only_the_file(tmp_path, BODY[:100])


def test_a_part_of_unknown_origin_is_begun_anew(bucket: Bucket, tmp_path: Path) -> None:
    for memory in (None, b"", b"[1]", b'{"size": 1}', b"\xff"):
        (tmp_path / PART).write_bytes(OTHER[:1000])
        if memory is not None:
            (tmp_path / MEMORY).write_bytes(memory)
        assert get(tmp_path, bucket) == "md5"
        assert_only_the_file(tmp_path)
        (tmp_path / NAME).unlink()
    assert {wanted for _, _, wanted, _ in bucket.asked} == {None}


def test_a_server_without_range_or_strong_etag_sends_it_all(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_off(tmp_path, bucket, monkeypatch)
    bucket.script = ["no-range"]
    assert get(tmp_path, bucket) == "md5"
    assert_only_the_file(tmp_path)
    (tmp_path / NAME).unlink()
    bucket.headers["ETag"] = 'W/"weak"'
    break_off(tmp_path, bucket, monkeypatch)
    assert get(tmp_path, bucket) == "md5"
    assert bucket.asked == [("GET", NAME, None, None)]
    assert_only_the_file(tmp_path)


def test_a_damaged_part_is_begun_anew_once(
    bucket: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    break_off(tmp_path, bucket, monkeypatch)
    (tmp_path / PART).write_bytes(OTHER[:5120])
    assert get(tmp_path, bucket) == "md5"
    assert_only_the_file(tmp_path)
    assert "was damaged; starting from zero" in capsys.readouterr().err


@pytest.mark.parametrize("body", [BODY, OTHER, BODY + b"x"], ids=["right", "wrong", "long"])
def test_a_full_part(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    break_off(tmp_path, bucket, monkeypatch)
    (tmp_path / PART).write_bytes(body)
    assert get(tmp_path, bucket) == "md5"
    assert_only_the_file(tmp_path)
    assert len(bucket.asked) == (body != BODY)


def test_wrong_md5(bucket: Bucket, tmp_path: Path) -> None:
    bucket.headers["X-Goog-Hash"] = f"md5={md5(OTHER)}"
    assert "wrong md5" in fails(tmp_path, bucket)
    assert list(tmp_path.iterdir()) == []


def test_what_can_be_verified_is_said(bucket: Bucket, tmp_path: Path) -> None:
    cases: dict[str, dict[str, str | None]] = {
        "crc32c": {"X-Goog-Hash": f"crc32c={crc(BODY, tmp_path)}"},
        "size": {"X-Goog-Hash": None},
        "md5": {"ETag": None},
    }
    for expected, bucket.headers in cases.items():
        assert get(tmp_path, bucket) == expected
        assert_only_the_file(tmp_path)
        (tmp_path / NAME).unlink()
    bucket.headers = {"X-Goog-Hash": "crc32c=AAAAAA=="}
    assert "wrong crc32c" in fails(tmp_path, bucket)


def test_hashes_of_what_is_stored_compressed_do_not_count(bucket: Bucket, tmp_path: Path) -> None:
    bucket.headers = {"X-Goog-Hash": "md5=AAAA", "X-Goog-Stored-Content-Encoding": "gzip"}
    assert get(tmp_path, bucket) == "size"
    assert_only_the_file(tmp_path)


def test_a_body_without_length(bucket: Bucket, tmp_path: Path, pauses: list[float]) -> None:
    bucket.script = ["chunked-cut", "chunked"]
    assert get(tmp_path, bucket) == "md5"
    assert_only_the_file(tmp_path)
    (tmp_path / NAME).unlink()
    bucket.script = ["chunked"]
    bucket.headers["X-Goog-Hash"] = None
    assert "neither the size of the file nor a checksum" in fails(tmp_path, bucket)


@pytest.mark.parametrize(
    ("script", "headers", "reason"),
    [
        (["html"], {}, "sent an HTML page"),
        ([""], {"Content-Encoding": "gzip"}, "sent it compressed"),
        (["404"], {}, "HTTP 404 Not Found"),
        (["403"], {}, "HTTP 403 Forbidden"),
    ],
)
def test_refusals_are_not_repeated(
    bucket: Bucket,
    tmp_path: Path,
    pauses: list[float],
    script: list[str],
    headers: dict[str, str | None],
    reason: str,
) -> None:
    bucket.script, bucket.headers = script, headers
    assert reason in fails(tmp_path, bucket)
    assert len(bucket.asked) == 1
    assert pauses == []


def test_a_busy_server_is_given_time(
    bucket: Bucket, tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.script = ["503", "429", "500", "503"]
    assert get(tmp_path, bucket) == "md5"
    assert pauses == [1, 2, 4, 8]
    assert "HTTP 503 Service Unavailable; trying again in 1 s" in capsys.readouterr().err
    (tmp_path / NAME).unlink()
    bucket.script = ["503"] * 9
    assert "HTTP 503" in fails(tmp_path, bucket)
    assert len(bucket.script) == 4  # five tries


@pytest.mark.parametrize(
    ("after", "least", "most"),
    [
        ("7", 7, 7),
        ("0", 1, 1),
        (formatdate(4102444800, usegmt=True), 0, 0),  # 2100: not waited for
        (formatdate(0, usegmt=True), 1, 1),
        ("soon", 1, 1),
        ("301", 0, 0),
    ],
)
def test_retry_after(
    bucket: Bucket, tmp_path: Path, pauses: list[float], after: str, least: float, most: float
) -> None:
    bucket.script = ["429"]
    bucket.headers["Retry-After"] = after
    if most == 0:
        assert "not to be asked again for" in fails(tmp_path, bucket)
        assert pauses == []
    else:
        assert get(tmp_path, bucket) == "md5"
        assert least <= pauses[0] <= most


def test_cuts_are_resumed_as_long_as_bytes_arrive(
    bucket: Bucket, tmp_path: Path, pauses: list[float]
) -> None:
    bucket.script = ["cut"] * 8
    assert get(tmp_path, bucket) == "md5"
    assert_only_the_file(tmp_path)
    assert pauses == [1] * 8
    assert [wanted for _, _, wanted, _ in bucket.asked][:3] == [None, "bytes=5120-", "bytes=7680-"]


def test_rate(
    bucket: Bucket, tmp_path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "BLOCK_BYTES", 1024)
    get(tmp_path, bucket, rate=1024.0)  # nothing really sleeps here: each pause is the whole lag
    assert len(pauses) == 10
    assert 8 < pauses[-1] <= 10


def test_a_small_disk_is_told_beforehand(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr(served.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"needs 10\.2kB, the disk has 5\.00kB left"):
        get(tmp_path, bucket)


def test_the_next_mirror_goes_on(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirrors = ["http://127.0.0.1:1/", (tmp_path / "none").as_uri(), bucket.url]
    _, verified = fetch_served(NAME, mirrors, tmp_path / "root", timeout=10)
    assert verified == "md5"
    assert_only_the_file(tmp_path / "root")
    err = capsys.readouterr().err
    assert "Connection refused; trying file://" in err
    assert "No such file or directory; trying http://" in err


def test_folder_as_a_mirror(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / NAME).write_bytes(BODY)
    mirrors = [(tmp_path / "kept").as_uri()]
    assert fetch_served(NAME, mirrors, tmp_path / "root", timeout=10)[1] == "size"
    assert_only_the_file(tmp_path / "root")
    assert fetch_served(NAME, mirrors, tmp_path / "root", timeout=10, check=True)[1] == "size"


def test_crc32c(tmp_path: Path) -> None:
    path = tmp_path / "file"
    # RFC 3720, B.4, and the usual check value.
    for content, expected in {
        b"": 0x00000000,
        b"123456789": 0xE3069283,
        bytes(32): 0x8A9136AA,
        b"\xff" * 32: 0x62A8AB43,
        bytes(range(32)): 0x46DD794E,
    }.items():
        path.write_bytes(content)
        assert crc32c(path) == expected


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def google(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, pauses: list[float]) -> Bucket:
    """The bucket instead of Google's."""
    monkeypatch.setattr(download, "BUCKET", bucket.url)
    bucket.files = {"cat.ndjson": BODY, NAME: OTHER, "cat.npz": OTHER, "cat.npy": BODY}
    return bucket


def run(*words: str | Path) -> int:
    return cli.main(["download", *map(str, words)])


def test_command_fetches_categories_once(
    google: Bucket, tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("quickdraw", "--root", tmp_path, "--categories", "cat", "ice cream", "cat")
    assert run(*words) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.splitlines()[-4:] == [
        str(tmp_path / "cat.ndjson"),
        str(tmp_path / NAME),
        "2 files, 20.5kB, verified by what the server says: 2 by md5",
        f"next: fastvae-data quickdraw {tmp_path} --out data/quickdraw-strokes",
    ]
    assert pauses == [download.PAUSE]
    assert run(*words) == 0
    last = capsys.readouterr().out.splitlines()[-2]
    assert last == "2 files, 20.5kB, 2 already here, not checked (--check does)"
    assert len(google.asked) == 2
    assert run(*words, "--check") == 0
    assert [method for method, *_ in google.asked[2:]] == ["HEAD", "HEAD"]


def test_default_folders_keep_kinds_apart(
    google: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("quickdraw", "--categories", "cat") == 0
    assert run("quickdraw", "--categories", "cat", "--kind", "raw") == 0
    assert run("quickdraw", "--categories", "cat", "--kind", "bitmap", "--rate", "5") == 0
    assert run("sketchrnn", "--categories", "cat") == 0
    assert sorted(str(path) for path in Path("data").rglob("*.n*")) == [
        "data/quickdraw/bitmap/cat.npy",
        "data/quickdraw/cat.ndjson",
        "data/quickdraw/raw/cat.ndjson",
        "data/sketchrnn/cat.npz",
    ]


def test_files_that_are_not_there_stop_no_others(
    google: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("quickdraw", "--root", tmp_path, "--categories")
    assert run(*words, "cat", "dog", "ice cream", "bird") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("fastvae-data: error: 2 of 4 files could not be had")
    assert "HTTP 404" in line
    assert "bird.ndjson" in line
    assert (tmp_path / NAME).exists()


def test_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(download, "BUCKET", "http://127.0.0.1:1/")
    assert run("quickdraw", "--root", tmp_path, "--all") == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert "Connection refused" in line
    assert "check the network" in line
    assert out == ""


def test_ctrl_c_keeps_the_part(
    google: Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    words = ("quickdraw", "--root", tmp_path, "--categories", "cat")
    with monkeypatch.context() as patch:
        patch.setattr(fetching, "BLOCK_BYTES", 1000)
        patch.setattr(fetching, "sleep", press)
        assert run(*words, "--rate", "0.000001") == 130
    assert "run the same command again to resume" in capsys.readouterr().err
    assert run(*words) == 0
    assert google.asked[-1] == ("GET", "cat.ndjson", "bytes=1000-", ETAG)
    assert (tmp_path / "cat.ndjson").read_bytes() == BODY


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["quickdraw"], "which categories? fastvae-data download quickdraw --categories cat"),
        (["sketchrnn"], "which categories? fastvae-data download sketchrnn"),
        (["quickdraw", "--categories", "elefant"], "no category 'elefant'; nearest: elephant"),
        (["quickdraw", "--categories", "ice_cream"], "nearest: ice cream"),
        (["quickdraw", "--categories", "cat", "Mona Lisa"], "nearest: The Mona Lisa"),
        (["quickdraw", "--categories"], "--categories: expected at least one argument"),
        (["quickdraw", "--all", "--list"], "--list: not allowed with argument --all"),
        (["quickdraw", "--all", "--kind", "npz"], "--kind: invalid choice: 'npz'"),
        (["quickdraw", "--all", "--rate", "0"], "'0' is not a number of MB/s above 0"),
        (["quickdraw", "--all", "--rate", "inf"], "'inf' is not a number of MB/s above 0"),
        (["sketchrnn", "--all", "--kind", "raw"], "--kind is for quickdraw"),
        (["mnist", "--all"], "--all is for quickdraw and sketchrnn, not for mnist"),
        (["mnist", "--categories", "cat"], "--categories is for quickdraw"),
        (["quikdraw"], "no data set 'quikdraw'; nearest: quickdraw"),
    ],
)
def test_bad_words_are_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("fastvae-data: error: ")
    assert expected in line
    assert out == ""


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("quickdraw", "--list") == 0
    assert capsys.readouterr().out.splitlines() == list(CATEGORIES)


def test_addresses() -> None:
    def url(kind: Kind, name: str) -> str:
        return f"{download.BUCKET}{kind.folder}{name}{kind.suffix}"

    base = "https://storage.googleapis.com/quickdraw_dataset/"
    assert {name: url(kind, "cat") for name, kind in KINDS.items()} == {
        "simplified": f"{base}full/simplified/cat.ndjson",
        "raw": f"{base}full/raw/cat.ndjson",
        "binary": f"{base}full/binary/cat.bin",
        "bitmap": f"{base}full/numpy_bitmap/cat.npy",
    }
    assert url(SKETCHRNN, "cat") == f"{base}sketchrnn/cat.npz"


def test_categories() -> None:
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 345
    assert list(CATEGORIES) == sorted(CATEGORIES, key=str.lower)
    archive = SHARED / "quickdraw" / "simplified_300x25.tar.xz"
    if not archive.is_file():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    with tarfile.open(archive) as files:
        real = {Path(name).stem for name in files.getnames() if name.endswith(".ndjson")}
    assert len(real) == 300
    assert real <= set(CATEGORIES)
