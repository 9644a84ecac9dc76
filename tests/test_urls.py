"""Names of tars, and reading them from servers that misbehave."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastvae.data import urls
from fastvae.data.urls import Closed, Missing, beside, expand, local_path, name_of, open_url
from fastvae.errors import UserError
from tests.tar_cases import CUT, Web, serve

BODY = bytes(range(256)) * 40
assert len(BODY) > 3 * CUT


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(urls, "PAUSE", 0.001)
    with serve({"a.tar": BODY}) as web:
        yield web


def read(url: str, **options: bool) -> bytes:
    with open_url(url, **options).file as file:
        return file.read()


# ------------------------------------------------------------------------------------------- names
def test_braces_globs_and_folders(tmp_path: Path) -> None:
    for name in ("b-0.tar", "b-1.tar", "a[1].tar", "notes.txt"):
        (tmp_path / name).touch()
    root = str(tmp_path)
    two = [f"{root}/b-0.tar", f"{root}/b-1.tar"]
    assert expand(f"{root}/b-{{0..1}}.tar") == two
    assert expand(f"{root}/b-*.tar") == two
    assert expand(root) == [f"{root}/a[1].tar", *two]
    assert expand([f"{root}/a[1].tar"]) == [f"{root}/a[1].tar"]  # there is a file of that name
    assert expand(f"file://{root}/b-{{1..0}}.tar") == two[::-1]
    assert expand(f"{root}/c-{{000..002}}.tar") == [f"{root}/c-00{i}.tar" for i in range(3)]
    assert expand("https://h/x-{a,b}.tar?s={1,2}") == [
        f"https://h/x-{x}.tar?s={s}" for x in "ab" for s in (1, 2)
    ]
    assert expand("pipe:cat {a,b}.tar", allow_pipe=True) == ["pipe:cat a.tar", "pipe:cat b.tar"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("{root}/x-*.tar", r"no file is like .*/x-\*\.tar"),
        ("{root}/empty", r"/empty has no \*\.tar in it"),
        ("{root}/x-{{0..1.tar", r"unbalanced braces in .*/x-\{0\.\.1\.tar"),
        ("{root}/x-{{0,0}}.tar", r"x-0\.tar is named 2 times"),
        ("s3://bucket/x.tar", r"s3://bucket/x\.tar: no s3 here, but http, https, file and paths"),
        ("ftp://h/x.tar", "no ftp here"),
        ("gopen://x", "no gopen here"),
        ("file://host/x.tar", "without a host"),
        ("pipe:cat x.tar", r"pipe:cat x\.tar runs a command.* add --data\.allow-pipe"),
    ],
)
def test_names_that_are_not_read(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=says):
        expand(name.format(root=tmp_path))
    with pytest.raises(UserError, match="no tars are named"):
        expand([])


def test_parts_of_names() -> None:
    assert name_of("https://h/d/a%20b.tar?sig=1") == "a b.tar"
    assert name_of("/d/a.tar") == name_of("file:///d/a.tar") == "a.tar"
    assert beside("https://h/d/a.tar?sig=1", "sizes.json") == "https://h/d/sizes.json"
    assert beside("d/a.tar", "sizes.json") == "d/sizes.json"
    assert beside("pipe:cat d/a.tar", "sizes.json") is None
    assert local_path("file:///a%20b.tar") == Path("/a b.tar")
    assert local_path("HTTPS://h/a.tar") is local_path("pipe:x") is None


# ------------------------------------------------------------------------------------- local files
def test_local_files(tmp_path: Path) -> None:
    path = tmp_path / "a b.tar"
    path.write_bytes(BODY)
    assert read(str(path)) == read(f"file://{tmp_path}/a%20b.tar") == read(str(path), scan=True)
    stream = open_url(str(path))
    assert (stream.seekable, stream.size) == (True, len(BODY))
    stream.file.close()
    with pytest.raises(Missing, match=r"no such file: .*/b\.tar"):
        open_url(str(tmp_path / "b.tar"))
    with pytest.raises(UserError, match=r" is no regular file: "):
        open_url(str(tmp_path))


# ------------------------------------------------------------------------------------------ http
def test_a_plain_answer(web: Web) -> None:
    url = f"{web.url}/good/a.tar"
    stream = open_url(url)
    assert (stream.seekable, stream.size) == (False, len(BODY))
    assert stream.file.read(10) == BODY[:10]
    assert stream.file.read() == BODY[10:]
    stream.file.close()
    assert web.requests("a.tar") == [None]


def test_cut_connections_are_read_on(web: Web) -> None:
    assert read(f"{web.url}/cut/a.tar") == BODY
    assert web.requests("a.tar") == [None, *(f"bytes={i * CUT}-" for i in (1, 2, 3))]


def test_servers_without_ranges_are_read_from_the_start(web: Web) -> None:
    assert read(f"{web.url}/norange/a.tar") == BODY
    assert web.requests("a.tar") == [None, f"bytes={CUT}-"]


def test_busy_servers_are_asked_again(web: Web) -> None:
    assert read(f"{web.url}/busy/a.tar") == BODY
    assert web.requests("a.tar") == [None, None]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("changed", "has changed while it was read"),
        ("dead", r"HTTP 500 Internal Server Error \(tried 5 times\)"),
        ("html", "gave a web page, not a file"),
        ("forbidden", "HTTP 403 Forbidden"),
        ("ftp", "HTTP 302|leads to a scheme that is not read"),
    ],
)
def test_what_cannot_be_read_is_named(web: Web, how: str, says: str) -> None:
    url = f"{web.url}/{how}/a.tar"
    with pytest.raises(UserError, match=f"^{url}.*({says})"):
        read(url)


def test_what_is_not_there_is_named(web: Web) -> None:
    url = f"{web.url}/good/b.tar"
    with pytest.raises(Missing, match=f"^{url}: HTTP 404 Not Found$"):
        read(url)


def test_nobody_answers(web: Web) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.tar"
        with pytest.raises(UserError, match=rf"^{url}: Connection refused \(tried 5 times\)"):
            read(url)


def test_hosts_that_are_none() -> None:
    with pytest.raises(UserError, match=r"^http://\[/a\.tar: "):
        read("http://[/a.tar")


def test_a_stalled_connection_is_cut_and_read_on(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "TIMEOUT", 0.2)
    assert read(f"{web.url}/stall/a.tar") == BODY
    assert web.requests("a.tar")[1] == f"bytes={CUT}-"


def test_waiting_for_another_try_can_be_called_off(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(urls, "PAUSE", 30.0)
    stop = threading.Event()
    file = open_url(f"{web.url}/cut/a.tar", stop=stop).file
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    with pytest.raises(Closed):
        file.read()
    assert time.monotonic() - start < 10
    file.close()


def test_servers_may_say_when_to_ask_again() -> None:
    assert urls._seconds("7") == 7
    assert urls._seconds("") == urls._seconds("soon") == 0
    assert urls._seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert urls._seconds("Wed, 21 Oct 2999 07:28:00 GMT") > 1e9


def test_a_server_that_asks_for_too_much_patience(web: Web) -> None:
    body = urls._Http(f"{web.url}/good/a.tar", threading.Event())
    with pytest.raises(UserError, match=r"busy; it asks to wait for 1,000 s"):
        body._pause(urls._Again("busy", 1000.0))
    body.close()


def test_small_files_need_not_be_there(web: Web) -> None:
    web.files["s.json"] = b"{}"
    assert urls.read_small(f"{web.url}/good/s.json") == b"{}"
    for how in ("good/t.json", "html/s.json", "forbidden/s.json"):
        assert urls.read_small(f"{web.url}/{how}") is None
    with pytest.raises(UserError, match="is larger than 1 bytes"):
        urls.read_small(f"{web.url}/good/s.json", most=1)


@pytest.mark.parametrize("scan", [True, False])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, scan: bool) -> None:
    """A named pipe without a writer, for which opening would wait, among others."""
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "zero.tar").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.tar")
    before = len(os.listdir("/proc/self/fd"))
    for name in ("folder.tar", "zero.tar", "pipe.tar"):
        with pytest.raises(UserError, match=rf"^{tmp_path}/{name} is no regular file: "):
            read(str(tmp_path / name), scan=scan)
    assert len(os.listdir("/proc/self/fd")) == before


# -------------------------------------------------------------------------------------------- pipe
def test_pipes_run_only_where_that_is_allowed(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    with pytest.raises(UserError, match="allow-pipe"):
        expand(f"pipe:touch {trap}")
    for name in (f"pipe:touch {trap}", f"{tmp_path}/x.tar; touch {trap}", f"|touch {trap}"):
        with pytest.raises(UserError, match=r"allow-pipe|no such file"):
            open_url(name)
    assert not trap.exists()
    assert read(f"pipe:printf hello; touch {trap}", allow_pipe=True) == b"hello"
    assert trap.exists()


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(
        UserError, match=r"^pipe:printf half; exit 3: the command failed \(exit 3\)"
    ):
        read("pipe:printf half; exit 3", allow_pipe=True)


def test_a_command_ends_when_its_stream_is_closed(tmp_path: Path) -> None:
    stream = open_url("pipe:echo $$; exec sleep 600", allow_pipe=True)
    pid = int(stream.file.readline())
    assert Path(f"/proc/{pid}").exists()
    stream.file.close()
    assert not Path(f"/proc/{pid}").exists()


def test_waiting_for_a_command_can_be_called_off() -> None:
    stop = threading.Event()
    stream = open_url("pipe:exec sleep 600", allow_pipe=True, stop=stop)
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Closed):
        stream.file.read(1)
    stream.file.close()
