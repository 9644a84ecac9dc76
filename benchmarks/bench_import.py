"""Making data sets, end to end, against scripts that people write.

    make bench BENCH=benchmarks/bench_import.py

CPU time of the process and of its children, by turns, files in the page cache. Ours is the command
itself with one worker: it parses or decodes, splits, packs, computes checksums and flushes to the
disk; a script does none of the last three. Each benchmark's extra_info has how many times faster,
ratio_p50 with its 20th and 80th percentile, and the samples per second of both.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import resource
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, JpegImagePlugin
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import ON_GPU, Run, Spread, ratios
from benchmarks.stroke_peers import cairo
from fastvae.data_tools.cli import main
from fastvae.kernels.raster import Frame

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
DRAWINGS = SHARED / "quickdraw" / "simplified_300x25.tar.xz"
PHOTOS = {
    "353 photos, shorter side 400 px and more": SHARED / "photos" / "clothing_cc0",
    "22 photos of COCO, 15 times": SHARED / "photos" / "coco_free",
}
REPEAT = 20  # times that the drawings are taken by us, and not by the slower peer
ROUNDS = 7
SIDE = 64
CROP = 375  # px

pytestmark = pytest.mark.skipif(ON_GPU, reason="of the CPU")


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def by_turns(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each run in each round; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for count in range(rounds + 1):
        for name, run in runs.items():
            begin = cpu_seconds()
            run()
            if count:
                seconds[name].append(cpu_seconds() - begin)
    return seconds


def compare(
    benchmark: BenchmarkFixture, ours: Run, peer: Run, samples: tuple[int, int], unit: str
) -> None:
    """Write down rates and their ratio; samples: that each run makes."""
    seconds = by_turns({"ours": ours, "peer": peer}, ROUNDS)
    mine, theirs = (
        [s / n for s in seconds[name]] for name, n in zip(("ours", "peer"), samples, strict=True)
    )
    faster = ratios(theirs, mine)
    benchmark.extra_info.update(
        ratio_p50=faster.p50,
        ratio_p20=faster.p20,
        ratio_p80=faster.p80,
        ours_per_s=1 / Spread.of(mine).p50,
        peer_per_s=1 / Spread.of(theirs).p50,
        unit=unit,
    )
    benchmark.pedantic(ours, rounds=2)


def command(*words: str) -> None:
    """Run ``fastvae-data`` in this process, without what it prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(words)
    assert code == 0, said.getvalue()


# -------------------------------------------------------------------------------- drawings
@pytest.fixture(scope="session")
def lines() -> list[bytes]:
    """Real drawings, as Google's simplified ndjson."""
    if not DRAWINGS.is_file():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    found: list[bytes] = []
    with tarfile.open(DRAWINGS) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".ndjson") else None
            found += file.read().splitlines() if file is not None else []
    return found


def write_repeated(path: Path, lines: list[bytes], times: int) -> None:
    """The drawings ``times`` times over, each with a key of its own."""
    number = itertools.count(10**15)
    with path.open("wb") as file:
        for line in lines * times:
            file.write(re.sub(rb'"key_id":"\d+"', b'"key_id":"%d"' % next(number), line) + b"\n")


def script(source: Path, target: Path, form: str) -> None:
    """orjson, pycairo with Google's recipe, webdataset.TarWriter."""
    import orjson
    import webdataset

    draw = cairo(Frame(28))
    names: dict[str, int] = {}
    with webdataset.TarWriter(str(target)) as tar, source.open("rb") as file:
        for line in file:
            record = orjson.loads(line)
            image = draw(record["drawing"])
            label = names.setdefault(record["word"], len(names))
            if form == "png":
                packed = io.BytesIO()
                Image.fromarray(np.ascontiguousarray(image)).save(packed, "PNG")
                tar.write({"__key__": record["key_id"], "png": packed.getvalue(), "cls": label})
            else:
                tar.write({"__key__": record["key_id"], "npy": image, "cls": label})


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("form", ["png", "npy"])
def test_quickdraw(
    benchmark: BenchmarkFixture, lines: list[bytes], tmp_path: Path, mode: str, form: str
) -> None:
    """ndjson to shards of 28x28 images; exact draws cairo's pixels."""
    pytest.importorskip("cairo", reason="pycairo is not installed")
    pytest.importorskip("orjson", reason="orjson is not installed")
    many, few = tmp_path / "many.ndjson", tmp_path / "few.ndjson"
    write_repeated(many, lines, REPEAT)
    write_repeated(few, lines, 1)
    words = ["--as", "images", "--raster", mode, "--workers", "1", "--overwrite"]

    def ours() -> None:
        command("quickdraw", str(many), "--out", str(tmp_path / "shards"), *words)

    benchmark.group = f"ndjson to 28x28 shards, {mode}"
    benchmark.name = f"against orjson, pycairo, TarWriter ({form})"
    samples = REPEAT * len(lines), len(lines)
    compare(benchmark, ours, lambda: script(few, tmp_path / "few.tar", form), samples, "drawings/s")


# -------------------------------------------------------------------------------- photos
def centre(high: int, wide: int) -> tuple[int, int, int]:
    """Top, left and side of the centred square of at most CROP pixels."""
    side = min(high, wide, CROP)
    return (high - side) // 2, (wide - side) // 2, side


def with_pillow(path: Path) -> object:
    """Decoded in full, as most do it."""
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    top, left, side = centre(image.size[1], image.size[0])
    part = image.crop((left, top, left + side, top + side))
    return np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def with_opencv(path: Path) -> object:
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    top, left, side = centre(*image.shape[:2])
    part = image[top : top + side, left : left + side]
    small = cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(small, cv2.COLOR_BGR2RGB)


PEERS: dict[str, Callable[[Path], object]] = {"Pillow": with_pillow, "OpenCV": with_opencv}


def share_of_decoding(run: Run, monkeypatch: pytest.MonkeyPatch) -> float:
    """Of the CPU time of a run: what goes into reading JPEGs, at whatever scale."""
    load, spent = JpegImagePlugin.JpegImageFile.load, [0.0]

    def timed(image: JpegImagePlugin.JpegImageFile) -> object:
        begin = time.process_time()
        try:
            return load(image)
        finally:
            spent[0] += time.process_time() - begin

    with monkeypatch.context() as patched:
        patched.setattr(JpegImagePlugin.JpegImageFile, "load", timed)
        begin = cpu_seconds()
        run()
        return spent[0] / (cpu_seconds() - begin)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("photos", PHOTOS)
def test_photos(
    benchmark: BenchmarkFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    photos: str,
    peer: str,
) -> None:
    """Photos to shards of 64x64 RGB, the centre of 375 pixels, one core; few photos are taken many
    times. extra_info's decode_share is that of reading JPEGs. A peer makes one array per file and
    keeps it."""
    if not PHOTOS[photos].is_dir():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    folder = tmp_path / "photos"
    folder.mkdir()
    found = sorted(PHOTOS[photos].glob("*.jpg"))
    for copy in range(max(1, 350 // len(found))):
        for path in found:
            shutil.copyfile(path, folder / f"{copy:02d}-{path.name}")
    if peer == "OpenCV":
        cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
        cv2.setNumThreads(1)
    files, one = sorted(folder.glob("*.jpg")), PEERS[peer]
    words = ["--crop", str(CROP), "--size", str(SIDE), "--workers", "1", "--overwrite"]
    words.append("--keep-duplicates")

    def ours() -> None:
        command("images", str(folder), "--out", str(tmp_path / "shards"), *words)

    ours()
    share = share_of_decoding(ours, monkeypatch)
    benchmark.group = f"{photos} to {SIDE}x{SIDE} shards"
    benchmark.name = f"against {peer} per file (decoding is {share:.0%} of ours)"
    compare(benchmark, ours, lambda: [one(path) for path in files], (len(files),) * 2, "photos/s")
    benchmark.extra_info["decode_share"] = share
