"""The stream source: exact rows in the plan's order, from local tars and from the web."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastvae.data import tar_index, urls
from fastvae.data.format import Field, write_shard
from fastvae.data.plan import Plan, evaluation_slices
from fastvae.data.sample_tar import CLASSES, OutSample, write_tars
from fastvae.data.sources import stream
from fastvae.data.sources.stream import StreamSource
from fastvae.data.windows import Cursor, Windows
from fastvae.errors import UserError
from tests.tar_cases import Web, encoded, random_images, serve, tar_bytes, write_set

N = 103
IMAGES = random_images(N, (6, 5, 3))
LABELS = torch.arange(N)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tars")
    write_set(folder, IMAGES, per_tar=20, conditions=255 - IMAGES)
    return folder


@pytest.fixture
def web(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(urls, "PAUSE", 0.001)
    monkeypatch.setattr(tar_index, "_COUNTED", {})
    with serve({path.name: path.read_bytes() for path in folder.glob("*.tar")}) as web:
        yield web


@pytest.fixture
def opened() -> Iterator[list[StreamSource]]:
    """Sources that are closed in the end."""
    sources: list[StreamSource] = []
    yield sources
    for source in sources:
        source.close()


def readers() -> int:
    """Threads that read ahead."""
    return sum(thread.name == "fastvae-stream" for thread in threading.enumerate())


def check(source: StreamSource, index: torch.Tensor, epoch: int | None) -> None:
    """A batch has exactly the rows that were asked for."""
    images, condition, label = source.gather(index, epoch)
    expected = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)[index]
    assert images.dtype == torch.uint8
    assert torch.equal(images, expected)
    assert label is not None
    assert torch.equal(label, index)
    if source.has_condition:
        assert condition is not None
        assert torch.equal(condition, 255 - expected)


def plan(source: StreamSource, batch: int = 8, **options: int) -> Plan:
    return Plan(n=len(source), batch_size=batch, seed=0, order=source.order, **options)  # type: ignore[arg-type]


def epoch(source: StreamSource, p: Plan, number: int = 0, first: int = 0) -> list[int]:
    """Go through an epoch from a step on, looking at every row; returns the samples."""
    seen: list[int] = []
    for step in range(number * p.steps_per_epoch + first, (number + 1) * p.steps_per_epoch):
        for micro in range(p.accumulate):
            index, _ = p.micro(step, micro)
            check(source, torch.from_numpy(index), number)
            seen += index.tolist()
    return seen


# -------------------------------------------------------------------------------------- exact rows
@pytest.mark.parametrize("window", [1, 7, 8, 20, 33, 102, 103, 16384])
def test_rows_in_the_order_of_the_plan(
    folder: Path, opened: list[StreamSource], window: int
) -> None:
    source = StreamSource(str(folder), seed=3, window=window)
    opened.append(source)
    assert (len(source), source.image_shape, source.has_condition) == (N, (3, 6, 5), True)
    for number in range(2):
        seen = epoch(source, plan(source), number)
        assert len(set(seen)) == len(seen) == N - N % 8
    assert source.order.n == N


def test_epochs_that_wrap(folder: Path, opened: list[StreamSource]) -> None:
    source = StreamSource(str(folder), seed=3, window=20)
    opened.append(source)
    p = Plan(n=N, batch_size=10, seed=0, tail="wrap", order=source.order)
    for number in range(3):
        assert set(epoch(source, p, number)) == set(range(N))


@pytest.mark.parametrize("world", range(1, 6))
def test_evaluation_over_ranks(folder: Path, opened: list[StreamSource], world: int) -> None:
    source = StreamSource(str(folder), seed=3, window=30)
    opened.append(source)
    counted = np.zeros(N)
    for rank in range(world):
        for index, weight in evaluation_slices(N, 8, world, rank):
            check(source, torch.from_numpy(index), None)
            np.add.at(counted, index, weight)
    assert (counted == 1).all()


def test_any_rows_of_any_epoch(folder: Path, opened: list[StreamSource]) -> None:
    source = StreamSource(str(folder), seed=3, window=16)
    opened.append(source)
    random = np.random.default_rng(0)
    for _ in range(40):
        index = torch.from_numpy(random.integers(0, N, random.integers(0, 30)))
        check(source, index, [None, 0, 5][random.integers(3)])
    for bad in (-1, N):
        with pytest.raises(IndexError, match=r"samples must be in \[0, 103\)"):
            source.gather(torch.tensor([bad]))


def test_a_place_is_one_of_an_epoch(folder: Path, opened: list[StreamSource]) -> None:
    """The window that would be next, but of another epoch."""
    source = StreamSource(str(folder), seed=3, window=30)
    opened.append(source)
    for window, number in ((0, 0), (1, 1), (2, 0), (2, 7), (3, 8)):
        positions = np.arange(30 * window, min(30 * window + 30, N))
        check(source, torch.from_numpy(source.order.indices(positions, number)), number)


def test_every_step_can_be_the_first(folder: Path, opened: list[StreamSource]) -> None:
    whole = StreamSource(str(folder), seed=3, window=25)
    opened.append(whole)
    p = plan(whole)
    expected = epoch(whole, p, 1)
    for first in range(p.steps_per_epoch):
        source = StreamSource(str(folder), seed=3, window=25)
        opened.append(source)
        assert epoch(source, plan(source), 1, first) == expected[8 * first :]


def test_the_global_stream_does_not_depend_on_ranks(
    folder: Path, opened: list[StreamSource]
) -> None:
    streams = []
    for world in (1, 2, 3):
        ranks = []
        for rank in range(world):
            source = StreamSource(str(folder), seed=3, window=25)
            opened.append(source)
            ranks.append((source, plan(source, 6, world_size=world, rank=rank)))
        samples: list[int] = []
        for step in range(ranks[0][1].steps_per_epoch):
            for source, p in ranks:
                index, _ = p.micro(step, 0)
                check(source, torch.from_numpy(index), 0)
                samples += index.tolist()
        streams.append(samples)
    assert streams[0] == streams[1] == streams[2]


def test_evaluation_in_between_disturbs_nothing(folder: Path, opened: list[StreamSource]) -> None:
    """Validation keeps its own place: the windows of training are not decoded again."""
    source = StreamSource(str(folder), seed=3, window=30)
    opened.append(source)
    loads: list[int] = []
    decoded = Cursor.read

    def counting(self: Cursor, rows: dict[str, np.ndarray], count: int) -> None:
        loads.append(count)
        decoded(self, rows, count)

    p = plan(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cursor, "read", counting)
        for step in range(p.steps_per_epoch):
            check(source, torch.from_numpy(p.micro(step, 0)[0]), 0)
            check(source, torch.arange(step, step + 4), None)
    # 4 windows of training, and the first of the next epoch; 4 of evaluation.
    assert sum(loads) <= N + 30 + N


def test_each_window_is_decoded_once_and_tars_are_opened_once(
    folder: Path, opened: list[StreamSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = StreamSource(str(folder), seed=3, window=30)
    opened.append(source)
    names: list[str] = []
    really = urls.open_url
    monkeypatch.setattr(
        tar_index, "open_url", lambda url, **options: (names.append(url), really(url, **options))[1]
    )
    epoch(source, plan(source), 0)
    source.close()
    assert len(names) <= 6 + 1 + 2  # tars of this epoch, and of the next one's first window
    assert len(set(names[:6])) == 6


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int | None, int]]:
    """Windows in the order in which they are decoded."""
    found: list[tuple[int | None, int]] = []
    really = Windows._load

    def load(self: Windows, window: tuple[int | None, int]) -> dict[str, np.ndarray]:
        found.append(window)
        return really(self, window)

    monkeypatch.setattr(Windows, "_load", load)
    return found


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_an_epoch_that_wraps_decodes_its_first_window_again_and_no_other(
    folder: Path,
    opened: list[StreamSource],
    loads: list[tuple[int | None, int]],
    accumulate: int,
) -> None:
    source = StreamSource(str(folder), seed=3, window=30)
    opened.append(source)
    p = Plan(n=N, batch_size=10, seed=0, tail="wrap", order=source.order, accumulate=accumulate)
    for number in range(3):
        epoch(source, p, number)
        ahead = {window for window in loads if window[0] == number + 1}
        assert ahead == {(number + 1, 0)}
        assert len(source._training._spare) <= 1
    expected = [(e, w) for e in range(3) for w in (0, 0, 1, 2, 3)]
    assert sorted(window for window in loads if window != (3, 0)) == expected
    assert loads.count((3, 0)) == 1


def test_a_step_back_that_goes_on_is_followed(
    folder: Path, opened: list[StreamSource], loads: list[tuple[int | None, int]]
) -> None:
    """What had been read ahead before it is given up, and reading ahead begins anew."""
    source = StreamSource(str(folder), seed=3, window=20)
    opened.append(source)
    for window in (0, 1, 2, 3, 0, 1, 2, 3, 4):
        for _ in range(2):
            positions = np.arange(20 * window, 20 * window + 9)
            check(source, torch.from_numpy(source.order.indices(positions, 0)), 0)
    coming = source._training._coming
    assert coming is not None
    coming[1].result(10)
    assert loads == [(0, w) for w in (0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5)]


def test_classes_of_local_folders(
    folder: Path, tmp_path: Path, web: Web, opened: list[StreamSource]
) -> None:
    def classes(*urls: str) -> tuple[str, ...]:
        opened.append(StreamSource(list(urls), seed=0))
        return opened[-1].classes

    one, other = tmp_path / "one", tmp_path / "other"
    for at, place in enumerate((one, other)):
        place.mkdir()
        write_tars(place, f"part{at}", [OutSample("a", IMAGES[0], 0)])
    assert classes(str(one)) == ()
    (one / CLASSES).write_text('["cat", "dog"]')
    assert classes(str(one)) == classes(f"file://{one}/part0-000000.tar") == ("cat", "dog")
    assert classes(str(one), str(other)) == ()
    (other / CLASSES).write_text('["cat", "dog"]')
    assert classes(str(one), str(other)) == ("cat", "dog")
    (other / CLASSES).write_text('["dog", "cat"]')
    assert classes(str(one), str(other)) == ()
    assert classes(tars(web, "good")) == ()
    (other / CLASSES).write_text("{}")
    with pytest.raises(UserError, match=r"other/classes\.json is no list of names"):
        classes(str(other))


def test_a_small_set_is_decoded_once(folder: Path, opened: list[StreamSource]) -> None:
    source = StreamSource(str(folder), seed=3, window=200)
    opened.append(source)
    assert source.about == "6 tars, decoded once"
    p = plan(source)
    orders = [epoch(source, p, number) for number in (0, 1)]
    assert orders[0] != orders[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cursor, "read", None)  # not used any more
        epoch(source, p, 2)
        check(source, torch.arange(N), None)


# -------------------------------------------------------------------------------------- other forms
def test_packed_tars_without_their_manifest(tmp_path: Path, opened: list[StreamSource]) -> None:
    fields = {
        "image": Field(dtype="uint8", shape=IMAGES.shape[1:]),
        "condition": Field(dtype="uint8", shape=IMAGES.shape[1:]),
        "label": Field(dtype="int64", shape=()),
    }
    for number, rows in enumerate(np.split(np.arange(N), [40, 80])):
        packs = (
            {"image": IMAGES[part], "condition": 255 - IMAGES[part], "label": part}
            for part in np.array_split(rows, 3)
        )
        write_shard(tmp_path / f"train-{number:06d}.tar", fields, packs, 3 * number)
    source = StreamSource(str(tmp_path), seed=3, window=30)
    opened.append(source)
    for number in range(2):
        assert len(set(epoch(source, plan(source), number))) == N - N % 8
    for first in (3, 9):
        again = StreamSource(str(tmp_path), seed=3, window=30)
        opened.append(again)
        epoch(again, plan(again), 0, first)


def test_channels_are_converted_when_asked(folder: Path, opened: list[StreamSource]) -> None:
    source = StreamSource(str(folder), seed=3, channels=1)
    opened.append(source)
    assert source.image_shape == (1, 6, 5)
    grey = source.gather(torch.arange(N)).images.float()
    red, green, blue = torch.from_numpy(IMAGES).permute(0, 3, 1, 2).float().unbind(1)
    expected = 0.299 * red + 0.587 * green + 0.114 * blue
    assert (grey[:, 0] - expected).abs().max() < 1


def test_a_window_is_bounded_in_bytes(
    folder: Path, opened: list[StreamSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "WINDOW_BYTES", 20 * 2 * 90 + 5)
    source = StreamSource(str(folder), seed=3)
    opened.append(source)
    assert source.order.window == 20
    assert source.nbytes == 2 * 20 * 2 * 90
    epoch(source, plan(source))


# ----------------------------------------------------------------------------------------- the web
def tars(web: Web, how: str) -> str:
    return f"{web.url}/{how}/train-{{000000..000005}}.tar"


@pytest.mark.parametrize("how", ["good", "cut", "norange", "short"])
def test_tars_from_a_server(web: Web, how: str, opened: list[StreamSource]) -> None:
    """Counted by reading each once; then read once per epoch, over any number of connections."""
    if how == "short":  # no length: that it was cut shows in the tar alone
        with pytest.raises(
            UserError, match=rf"{web.url}/short/train-00000\d\.tar: cut off at byte"
        ):
            StreamSource(tars(web, how), seed=3)
        return
    source = StreamSource(tars(web, how), seed=3, window=30)
    opened.append(source)
    epoch(source, plan(source), 0)
    epoch(source, plan(source), 1, first=7)
    again = StreamSource(tars(web, how), seed=3, window=30)
    opened.append(again)
    assert again.fingerprint == source.fingerprint
    if how == "good":
        counted = sum(1 for path, _ in web.asked if path.endswith("000003.tar"))
        assert counted <= 1 + 1 + 2 + 1  # counting, the two epochs, and the beginning of a third


@pytest.mark.parametrize("index", ["sizes.json", "manifest.json"])
def test_an_index_beside_spares_counting(web: Web, index: str, opened: list[StreamSource]) -> None:
    names = sorted(web.files)
    counts = [20, 20, 20, 20, 20, 3]
    shards = ", ".join(
        f'{{"name": "{name}", "count": {count}, "bytes": {len(web.files[name])}}}'
        for name, count in zip(names, counts, strict=True)
    )
    text = {
        "sizes.json": str(dict(zip(names, counts, strict=True))).replace("'", '"'),
        "manifest.json": f'{{"format": "fastvae shards", "splits": {{"train": [{shards}]}}}}',
    }
    web.files[index] = text[index].encode()
    source = StreamSource(tars(web, "good"), seed=3, window=30)
    opened.append(source)
    assert web.requests(names[3]) == []
    epoch(source, plan(source), 0)


@pytest.mark.parametrize(("count", "says"), [(19, "more"), (21, "fewer")])
def test_a_wrong_index_is_noticed(
    web: Web, count: int, says: str, opened: list[StreamSource]
) -> None:
    web.files["sizes.json"] = f'{{"train-000000.tar": {count}}}'.encode()
    source = StreamSource(tars(web, "good"), seed=3, window=30)
    opened.append(source)
    message = rf"train-000000\.tar has {says} samples than the {count} that were counted"
    with pytest.raises(UserError, match=message):
        source.gather(torch.arange(30))


@pytest.mark.parametrize("text", [b"{", b"[1]", b'{"a.tar": "x"}', b'{"a.tar": -1}'])
def test_an_index_that_is_none_is_named(web: Web, text: bytes) -> None:
    web.files["sizes.json"] = text
    with pytest.raises(UserError, match=rf"{web.url}/good/sizes\.json is no index of tars"):
        StreamSource(tars(web, "good"), seed=3)


def test_what_is_not_there_or_no_tar_is_named(web: Web) -> None:
    for url in (f"{web.url}/good/none.tar", f"{web.url}/html/train-000000.tar"):
        with pytest.raises(UserError, match=f"^{url}"):
            StreamSource(url, seed=3)


def test_tars_from_a_command(folder: Path, opened: list[StreamSource]) -> None:
    command = f"pipe:cat {folder}/train-{{000000..000005}}.tar"
    with pytest.raises(UserError, match="allow-pipe"):
        StreamSource(command, seed=3)
    source = StreamSource(command, seed=3, window=30, allow_pipe=True)
    opened.append(source)
    epoch(source, plan(source), 0)
    epoch(source, plan(source), 1, first=7)


# -------------------------------------------------------------------------------------- fingerprint
def test_the_fingerprint_is_of_names_and_sizes(folder: Path, tmp_path: Path) -> None:
    def fingerprint(directory: Path) -> str:
        source = StreamSource(str(directory), seed=3)
        source.close()
        return source.fingerprint

    def copy(name: str, images: np.ndarray, **options: int) -> Path:
        write_set(tmp_path / name, images, **{"per_tar": 20, **options}, conditions=255 - images)
        return tmp_path / name

    first = fingerprint(folder)
    assert fingerprint(copy("same", IMAGES)) == first
    assert fingerprint(copy("cut otherwise", IMAGES, per_tar=21)) != first
    assert fingerprint(copy("fewer", IMAGES[:-1])) != first
    changed = IMAGES.copy()
    changed[50] = 0  # compresses better
    assert fingerprint(copy("another image", changed)) != first
    renamed = copy("renamed", IMAGES)
    (renamed / "train-000005.tar").rename(renamed / "train-000006.tar")
    assert fingerprint(renamed) != first


# ------------------------------------------------------------------------------------------- damage
def damaged(folder: Path, target: Path, how: str) -> Path:
    """A copy of the tars, the third of them damaged."""
    target.mkdir()
    for path in sorted(folder.glob("*.tar")):
        (target / path.name).write_bytes(path.read_bytes())
    third = target / "train-000002.tar"
    data = bytearray(third.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    elif how == "header":
        data[512 * (len(data) // 1024) : 512 * (len(data) // 1024) + 40] = b"\xaa" * 40
        for at in range(len(data) // 2 // 512 * 512, len(data), 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at : at + 20] = b"\xaa" * 20
                break
    elif how == "payload":
        at = data.index(b"IDAT", len(data) // 2)
        data[at + 8] ^= 0xFF
    elif how == "reordered":
        data = bytearray(
            tar_bytes([("a.cls", b"1"), ("b.cls", b"2"), ("a.png", encoded(IMAGES[0]))])
        )
    elif how == "html":
        data = bytearray(b"<!DOCTYPE html>" + bytes(2000))
    third.write_bytes(data)
    if how == "missing":
        third.unlink()
    return target


DAMAGES = ["truncated", "header", "payload", "reordered", "html", "missing"]


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_named(folder: Path, tmp_path: Path, how: str) -> None:
    target = damaged(folder, tmp_path / "d", how)
    name = f"{target}/train-{{000000..000005}}.tar"
    before = readers()
    start = time.monotonic()
    with pytest.raises(UserError, match=r"train-000002\.tar") as error:  # noqa: PT012
        source = StreamSource(name, seed=3, window=30)
        try:
            epoch(source, plan(source))
        finally:
            source.close()
    assert time.monotonic() - start < 5
    assert "\n" not in str(error.value)
    assert readers() == before


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_left_out_alike_on_all_ranks(
    folder: Path, tmp_path: Path, how: str, opened: list[StreamSource]
) -> None:
    target = damaged(folder, tmp_path / "d", how)
    name = f"{target}/train-{{000000..000005}}.tar"
    ranks = [StreamSource(name, seed=3, window=30, on_damage="skip") for _ in range(2)]
    opened += ranks
    for source in ranks:
        assert len(source) == N - 20
        assert len(source.quarantined) == 1
        assert "train-000002.tar" in source.quarantined[0]
        assert source.lost <= 20
    assert ranks[0].fingerprint == ranks[1].fingerprint
    p = plan(ranks[0])
    seen = []
    for step in range(p.steps_per_epoch):
        index = torch.from_numpy(p.micro(step, 0)[0])
        samples = ranks[0].gather(index, 0)
        assert samples.label is not None
        labels = torch.where(index < 40, index, index + 20)
        assert torch.equal(samples.label, labels)
        assert torch.equal(samples.images, torch.from_numpy(IMAGES).permute(0, 3, 1, 2)[labels])
        seen += index.tolist()
    assert len(set(seen)) == len(seen)


def test_lost_samples_are_counted_by_the_index(web: Web) -> None:
    web.files["sizes.json"] = b'{"train-000001.tar": 20}'
    web.files["train-000001.tar"] = web.files["train-000001.tar"][:5000]
    source = StreamSource(tars(web, "good"), seed=3, on_damage="skip")
    assert (len(source), source.lost) == (N - 20, 20)
    source.close()


def test_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"junk" * 500)
    with pytest.raises(UserError, match=r"no samples in .*/a\.tar: .*bad header at byte 0"):
        StreamSource(str(tmp_path), seed=3, on_damage="skip")
    (tmp_path / "a.tar").write_bytes(tar_bytes([("readme.txt", b"x")]))
    with pytest.raises(UserError, match=r"no samples in .*: members .* not used: \.txt \(1\)"):
        StreamSource(str(tmp_path), seed=3)


def test_samples_that_differ_are_an_error_whatever_is_asked(folder: Path, tmp_path: Path) -> None:
    target = damaged(folder, tmp_path / "d", "none")
    write_tars(target, "trainx", [OutSample("a", np.zeros((7, 7, 3), np.uint8), 1)])
    with pytest.raises(UserError, match=r"trainx-000000\.tar: a\.png is 7x7x3, .*fastvae-data"):
        StreamSource(str(target), seed=3, on_damage="skip")


def test_errors_of_the_thread_come_with_the_next_batch(
    folder: Path, opened: list[StreamSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever happens in it; also while the window at hand would last for long."""
    source = StreamSource(str(folder), seed=3, window=60)
    opened.append(source)
    p = plan(source, 2)
    check(source, torch.from_numpy(p.micro(0, 0)[0]), 0)
    broken = threading.Event()

    def bug(*_: object) -> int:
        broken.set()
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("fastvae.data.sample_rows.SampleRows.take", bug)
    check(source, torch.from_numpy(p.micro(1, 0)[0]), 0)  # begins to read ahead
    assert broken.wait(5)
    time.sleep(0.2)
    message = r"reading .*/train-00000\d\.tar.*: ZeroDivisionError\('a bug'\)"
    with pytest.raises(RuntimeError, match=message):
        source.gather(torch.from_numpy(p.micro(2, 0)[0]), 0)
    monkeypatch.undo()
    for step in range(2, p.steps_per_epoch):  # it can go on when that is mended
        check(source, torch.from_numpy(p.micro(step, 0)[0]), 0)


def test_a_server_that_dies_while_reading_ahead(
    web: Web, folder: Path, opened: list[StreamSource]
) -> None:
    source = StreamSource(tars(web, "good"), seed=3, window=30)
    opened.append(source)
    web.files.clear()
    with pytest.raises(UserError, match=rf"{web.url}/good/train-00000\d\.tar: HTTP 404"):
        epoch(source, plan(source))


# ------------------------------------------------------------------------------------------ ending
def test_closing_ends_the_thread_and_the_files(folder: Path) -> None:
    before = readers()
    source = StreamSource(str(folder), seed=3, window=30)
    p = plan(source)
    for step in range(3):
        check(source, torch.from_numpy(p.micro(step, 0)[0]), 0)
    assert readers() == before + 1
    source.close()
    source.close()
    assert readers() == before
    open_files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not [name for name in open_files if name.startswith(str(folder))]
    with pytest.raises(ValueError, match="closed"):
        source.gather(torch.arange(3))


def test_closing_does_not_wait_for_a_server(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_LAST_WAIT", 0.3)
    source = StreamSource(tars(web, "good"), seed=3, window=20)
    p = plan(source)
    check(source, torch.from_numpy(p.micro(0, 0)[0]), 0)
    web.stalling = True
    asked = len(web.asked)
    check(source, torch.from_numpy(p.micro(1, 0)[0]), 0)
    while len(web.asked) == asked:
        time.sleep(0.01)
    start = time.monotonic()
    source.close()
    assert time.monotonic() - start < 3
    thread = next(t for t in threading.enumerate() if t.name == "fastvae-stream")
    assert thread.daemon
    web.stalled.set()
    thread.join(5)
    assert not thread.is_alive()


def test_a_source_that_is_dropped_leaves_no_thread(folder: Path) -> None:
    before = readers()
    source = StreamSource(str(folder), seed=3, window=30)
    p = plan(source)
    for step in range(3):
        check(source, torch.from_numpy(p.micro(step, 0)[0]), 0)
    del source, p
    for _ in range(50):
        gc.collect()
        if readers() == before:
            break
        time.sleep(0.1)
    assert readers() == before


def test_thread_counts_are_left_alone(folder: Path, opened: list[StreamSource]) -> None:
    import numba

    before = torch.get_num_threads(), numba.get_num_threads()
    source = StreamSource(str(folder), seed=3, window=30)
    opened.append(source)
    epoch(source, plan(source))
    assert (torch.get_num_threads(), numba.get_num_threads()) == before


def test_pickles_are_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [("0.png", encoded(IMAGES[0])), ("0.pkl", b"x"), ("1.png", encoded(IMAGES[1]))]
    (tmp_path / "a.tar").write_bytes(tar_bytes(members))
    StreamSource(str(tmp_path), seed=3).close()
    assert capsys.readouterr().err == (
        f"warning: 1 pickled members of tars (.pkl; the first: 0.pkl in {tmp_path}/a.tar) are left "
        "alone, since loading them can run any program\n"
    )
    monkeypatch.setenv("RANK", "1")
    StreamSource(str(tmp_path), seed=3).close()
    assert capsys.readouterr().err == ""
