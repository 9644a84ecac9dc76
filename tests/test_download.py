"""``fastvae-data download`` against a web server on this machine that misbehaves on request."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tqdm import tqdm

from fastvae.data_tools import cli, download
from fastvae.data_tools import fetch as fetching
from fastvae.data_tools.download import DataSet
from fastvae.data_tools.fetch import AllMirrorsFailed, RemoteFile, fetch

REPO = Path(__file__).resolve().parents[1]
BODY = bytes(range(256)) * 40
OTHER = bytes(reversed(BODY))


def remote_file(name: str, body: bytes) -> RemoteFile:
    return RemoteFile(name=name, size=len(body), sha256=hashlib.sha256(body).hexdigest())


REMOTE = remote_file("one.gz", BODY)
PART = f"{REMOTE.name}.part"


@dataclass
class Web:
    """The server: the first folder of a path says how it behaves."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: {REMOTE.name: BODY})
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """(path, Range header) of each request."""
    sent: int = 0
    """Bytes of all bodies."""

    def mirror(self, behaviour: str) -> str:
        return f"{self.url}/{behaviour}/"


class Handler(BaseHTTPRequestHandler):
    """good, norange, wrong, size, short, long, other-range, html, missing, broken, slow."""

    def __init__(self, web: Web, *args: object) -> None:
        self.web = web
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.web.asked.append((self.path, asked))
        _, behaviour, name = self.path.split("/")
        if behaviour == "missing":
            self.send_error(404)
        elif behaviour == "broken":
            self.wfile.write(b"what?\r\n\r\n")
        elif behaviour == "slow":
            threading.Event().wait(0.5)
        elif behaviour == "html":
            self.answer(200, b"<html>sign in first</html>", {"Content-Type": "text/html"})
        else:
            self.send_file(behaviour, self.web.files[name], asked)

    def send_file(self, behaviour: str, body: bytes, asked: str | None) -> None:
        if behaviour == "wrong":
            body = body[::-1]
        if behaviour == "size":
            body = body[:-1]
        if behaviour == "long":
            self.answer(200, body + body, {})
        elif asked is None or behaviour == "norange":
            headers = {"Content-Length": str(len(body))}
            self.answer(200, body[: len(body) // 2] if behaviour == "short" else body, headers)
        else:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            start -= behaviour == "other-range"
            headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
            self.answer(206, body[start:], headers)

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.web.sent += len(body)
        self.wfile.write(body)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    web = Web()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, web))
    web.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield web
    server.shutdown()
    thread.join()
    server.server_close()


def get(root: Path, *mirrors: str) -> Path:
    return fetch(REMOTE, mirrors, root, timeout=10)


def assert_only_the_file(root: Path) -> None:
    assert [path.name for path in root.iterdir()] == [REMOTE.name]
    assert (root / REMOTE.name).read_bytes() == BODY


def test_fresh_download_into_a_new_folder(web: Web, tmp_path: Path) -> None:
    root = tmp_path / "a" / "b"
    assert get(root, web.mirror("good")) == root / REMOTE.name
    assert_only_the_file(root)
    assert web.asked == [("/good/one.gz", None)]


def test_mirror_without_final_slash(web: Web, tmp_path: Path) -> None:
    get(tmp_path, web.mirror("good").rstrip("/"))
    assert_only_the_file(tmp_path)


def test_resume_asks_for_the_missing_bytes_only(web: Web, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(BODY[:1000])
    get(tmp_path, web.mirror("good"))
    assert_only_the_file(tmp_path)
    assert web.asked == [("/good/one.gz", "bytes=1000-")]
    assert web.sent == len(BODY) - 1000


def test_server_without_range_restarts_from_zero(web: Web, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(BODY[:1000])
    get(tmp_path, web.mirror("norange"))
    assert_only_the_file(tmp_path)
    assert web.sent == len(BODY)


def test_corrupted_part_restarts_from_zero(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / PART).write_bytes(OTHER[:1000])
    get(tmp_path, web.mirror("good"))
    assert_only_the_file(tmp_path)
    assert [asked for _, asked in web.asked] == ["bytes=1000-", None]
    assert "was damaged; starting from zero" in capsys.readouterr().err


@pytest.mark.parametrize("part", [OTHER, BODY + b"x"], ids=["wrong", "too long"])
def test_full_but_bad_part_restarts_from_zero(web: Web, tmp_path: Path, part: bytes) -> None:
    (tmp_path / PART).write_bytes(part)
    get(tmp_path, web.mirror("good"))
    assert_only_the_file(tmp_path)
    assert web.asked == [("/good/one.gz", None)]


def test_complete_part_needs_no_request(web: Web, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(BODY)
    get(tmp_path, web.mirror("good"))
    assert_only_the_file(tmp_path)
    assert web.asked == []


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("wrong", "wrong checksum"),
        ("size", "its file has 10,239 bytes, expected 10,240"),
        ("long", "longer than the expected 10,240 bytes"),
        ("html", "sent an HTML page"),
        ("missing", "HTTP 404 Not Found"),
        ("broken", "what?"),
        ("slow", "Remote end closed connection without response"),
    ],
)
def test_bad_mirror_is_named_and_the_next_tried(
    web: Web,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    behaviour: str,
    reason: str,
) -> None:
    get(tmp_path, web.mirror(behaviour), web.mirror("good"))
    assert_only_the_file(tmp_path)
    assert web.asked[-1] == ("/good/one.gz", None)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{web.mirror(behaviour)}: {reason}" in line
    assert line.endswith(f"; trying {web.mirror('good')}")


def test_truncated_body_is_continued_from_the_next_mirror(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    get(tmp_path, web.mirror("short"), web.mirror("good"))
    assert_only_the_file(tmp_path)
    assert web.asked == [("/short/one.gz", None), ("/good/one.gz", f"bytes={len(BODY) // 2}-")]
    assert "cut off after 5,120 of 10,240 bytes" in capsys.readouterr().err


def test_wrong_range_leaves_the_part_alone(web: Web, tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(BODY[:1000])
    with pytest.raises(AllMirrorsFailed, match="another range than asked for"):
        get(tmp_path, web.mirror("other-range"))
    assert (tmp_path / PART).read_bytes() == BODY[:1000]


def test_silent_server_times_out(tmp_path: Path, web: Web) -> None:
    with pytest.raises(AllMirrorsFailed, match="timed out"):
        fetch(REMOTE, [web.mirror("slow")], tmp_path, timeout=0.05)


def test_file_already_there_is_kept(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / REMOTE.name).write_bytes(BODY)
    get(tmp_path, web.mirror("good"))
    assert web.asked == []
    assert "ok, already here" in capsys.readouterr().out


@pytest.mark.parametrize("content", [OTHER, b""], ids=["wrong bytes", "empty"])
def test_wrong_file_is_named_and_fetched_again(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / REMOTE.name
    path.write_bytes(content)
    with pytest.raises(AllMirrorsFailed):
        get(tmp_path, web.mirror("missing"))
    assert path.read_bytes() == content  # replaced by something better or not at all
    get(tmp_path, web.mirror("good"))
    assert_only_the_file(tmp_path)
    assert f"{path} has a wrong checksum" in capsys.readouterr().err


def use_data_set(monkeypatch: pytest.MonkeyPatch, web: Web, *mirrors: str) -> None:
    """Let "mnist" be two small files on ``web``."""
    web.files["two.gz"] = OTHER
    files = (REMOTE, remote_file("two.gz", OTHER))
    monkeypatch.setattr(download, "DATA_SETS", {"mnist": DataSet(files=files, mirrors=mirrors)})


def test_command_prints_paths_total_and_next_step(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_data_set(monkeypatch, web, web.mirror("good"))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["download", "mnist"]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no progress bar either: this is no terminal
    assert out.splitlines()[-4:] == [
        str(Path("data/mnist/one.gz")),
        str(Path("data/mnist/two.gz")),
        "2 files, 20.5kB, checksums right",
        "next: fastvae train mnist --data.root data/mnist",
    ]


def test_mirrors_of_the_user_come_first(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_data_set(monkeypatch, web, web.mirror("missing"))
    kept = tmp_path / "kept here"
    kept.mkdir()
    (kept / "one.gz").write_bytes(BODY)
    root = tmp_path / "root"
    words = ["download", "mnist", "--root", str(root), "--mirror", kept.as_uri(), "--mirror"]
    assert cli.main([*words, web.mirror("good")]) == 0
    assert web.asked == [("/good/two.gz", None)]
    assert (root / "one.gz").read_bytes() == BODY


def test_all_mirrors_fail(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_data_set(monkeypatch, web, web.mirror("missing"))
    assert cli.main(["download", "mnist", "--root", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fastvae-data: error: no mirror gave one.gz ({web.mirror('missing')}")
    for part in ("HTTP 404", "one.gz, two.gz by hand", str(tmp_path), "--mirror", "network"):
        assert part in line


def test_each_failed_mirror_is_in_the_error(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_data_set(monkeypatch, web, web.mirror("html"))
    mirrors = [web.mirror("wrong"), "http://127.0.0.1:1/", (tmp_path / "no").as_uri()]
    assert cli.main(["download", "mnist", "--root", str(tmp_path), "--mirror", *mirrors]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    for reason in ("wrong checksum", "Connection refused", "No such file", "HTML page"):
        assert reason in last


def test_unwritable_root_is_one_line(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_data_set(monkeypatch, web, web.mirror("good"))
    (tmp_path / "file").touch()
    assert cli.main(["download", "mnist", "--root", str(tmp_path / "file" / "sub")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write" in line
    assert "--root" in line


def test_ctrl_c_keeps_the_part(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_data_set(monkeypatch, web, web.mirror("good"))

    class PressesCtrlC(tqdm):  # type: ignore[misc]
        def update(self, n: float | None = 1) -> bool | None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetching, "BLOCK_BYTES", 1000)
        patch.setattr(fetching, "tqdm", PressesCtrlC)
        assert cli.main(["download", "mnist", "--root", str(tmp_path)]) == 130
    (line,) = capsys.readouterr().err.splitlines()
    assert "run the same command again to resume" in line
    assert (tmp_path / PART).read_bytes() == BODY[:1000]
    assert cli.main(["download", "mnist", "--root", str(tmp_path)]) == 0
    assert ("/good/one.gz", "bytes=1000-") in web.asked


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["downlod", "mnist"], "no command 'downlod'; nearest: download"),
        (["--hepl"], "no command '--hepl'"),
        (["download"], "which data set?; known: mnist"),
        (["download", "mnits"], "no data set 'mnits'; nearest: mnist"),
        (["download", "mnist", "--rot", "x"], "no option '--rot'; nearest: --root"),
        (["download", "--tiemout=5", "mnist"], "no option '--tiemout'; nearest: --timeout"),
        (["download", "mnist", "again"], "unexpected argument 'again'"),
        (["download", "mnist", "--timeout", "0"], "'0' is not a number of seconds"),
        (["download", "mnist", "--timeout", "nan"], "'nan' is not a number of seconds"),
        (["download", "mnist", "--timeout"], "--timeout: expected one argument"),
        (["download", "mnist", "--mirror", "/mnt"], "'/mnt' is not a URL"),
    ],
)
def test_bad_words_are_one_line(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("fastvae-data: error: ")
    assert expected in line
    assert out == ""


@pytest.mark.parametrize("words", [[], ["--help"], ["download", "--help"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: fastvae-data")


def test_module_runs_without_importing_torch() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['download', 'mnits']\n"
        "try:\n"
        "    runpy.run_module('fastvae.data_tools', run_name='__main__')\n"
        "except SystemExit as stopped:\n"
        "    sys.exit(10 * stopped.code + ('torch' in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 20, done.stderr
    assert done.stderr.count("\n") == 1


def test_table_matches_the_original_files() -> None:
    folder = os.environ.get("FASTVAE_SHARED_DATA")
    mnist = (Path(folder) if folder else REPO.parent / "shared" / "data") / "mnist"
    if not mnist.is_dir():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    assert {path.name for path in mnist.glob("*.gz")} == {
        remote.name for remote in download.DATA_SETS["mnist"].files
    }
    for remote in download.DATA_SETS["mnist"].files:
        content = (mnist / remote.name).read_bytes()
        assert len(content) == remote.size
        assert hashlib.sha256(content).hexdigest() == remote.sha256
        assert hashlib.md5(content, usedforsecurity=False).hexdigest() == remote.md5
