"""Finding the panels of drawn strips whose panels are known."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fastvae.data_tools.panels import Panel, equal_parts, find_panels

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
HIGH = 240


def strip(
    widths: tuple[int, ...],
    *,
    gutter: int = 8,
    margin: int = 4,
    line: int = 2,
    paper: int = 255,
    ink: int = 0,
    title: bool = False,
    footer: bool = False,
    seed: int = 0,
) -> tuple[NDArray[np.uint8], tuple[Panel, ...]]:
    """A strip and the insides of its panels: a person, a table, some writing in each."""
    top = 34 if title else margin
    bottom = HIGH - (14 if footer else margin)
    total = sum(widths) + gutter * (len(widths) - 1) + 2 * margin
    image = Image.new("L", (total, HIGH), paper)
    draw = ImageDraw.Draw(image)
    rng = np.random.default_rng(seed)
    left, panels = margin, []
    for number, wide in enumerate(widths):
        right = left + wide
        draw.rectangle((left, top, right - 1, bottom - 1), fill=paper)
        draw.line((left, bottom - 60, right - 1, bottom - 60), fill=ink, width=2)
        x = left + int(wide * rng.uniform(0.3, 0.6))
        draw.ellipse((x, top + 70, x + 40, top + 120), outline=ink, width=3)
        draw.line((x + 20, top + 120, x + 20, bottom), fill=ink, width=3)
        for row in range(3):
            draw.line((left + 15, top + 15 + 12 * row, right - 40, top + 15 + 12 * row), fill=ink)
        if number == len(widths) - 1:
            draw.rectangle((right - 30, top, right - 1, bottom - 80), fill=ink)
        if line:
            draw.rectangle((left, top, right - 1, bottom - 1), outline=ink, width=line)
        panels.append(Panel(left + line, top + line, right - line, bottom - line))
        if footer:
            draw.text((left + wide // 4, bottom + 2), "(c) somebody", fill=ink)
        left = right + gutter
    if title:
        draw.rectangle((0, 0, total - 1, 29), fill=ink)
        draw.text((9, 9), "12. A title", fill=paper)
    return np.asarray(image), tuple(panels)


def close(found: tuple[Panel, ...] | None, expected: tuple[Panel, ...], within: int = 1) -> bool:
    return found is not None and bool(np.abs(np.array(found) - np.array(expected)).max() <= within)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("gutter", [3, 8, 25])
def test_framed_panels_are_found_to_the_pixel(count: int, gutter: int) -> None:
    image, panels = strip((220,) * count, gutter=gutter)
    assert find_panels(image, count) == panels


@pytest.mark.parametrize("widths", [(220, 220, 220), (260, 200, 200), (180, 240, 240)])
@pytest.mark.parametrize("margin", [0, 4, 30])
def test_unequal_panels_and_margins(widths: tuple[int, ...], margin: int) -> None:
    image, panels = strip(widths, margin=margin)
    assert close(find_panels(image, 3), panels)


def test_titles_and_footers_are_left_out() -> None:
    image, panels = strip((220, 220, 220), title=True, footer=True)
    assert close(find_panels(image, 3), panels)


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (232, 40), (200, 20), (0, 255), (128, 0)])
def test_paper_of_any_colour(paper: int, ink: int) -> None:
    image, panels = strip((220, 220, 220), paper=paper, ink=ink)
    assert close(find_panels(image, 3), panels)


@pytest.mark.parametrize("line", [0, 1, 3])
def test_coloured_panels(line: int) -> None:
    image, panels = strip((220, 220, 220), line=line, footer=True)
    filled = image.copy()
    for panel, level in zip(panels, (70, 120, 190), strict=True):
        inside = filled[panel.top : panel.bottom, panel.left : panel.right]
        inside[inside == 255] = level
    assert close(find_panels(filled, 3), panels, within=0)


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_noise(quality: int, tmp_path: Path) -> None:
    image, panels = strip((220, 220, 220), footer=True)
    Image.fromarray(image).save(tmp_path / "a.jpg", quality=quality)
    found = find_panels(np.asarray(Image.open(tmp_path / "a.jpg")), 3)
    assert close(found, panels, within=4)


def test_without_frames_the_empty_columns_count() -> None:
    image, _ = strip((220, 220, 220), line=0, gutter=30)
    found = find_panels(image, 3)
    assert found is not None
    for number, panel in enumerate(found):
        middle = 4 + number * 250 + 110
        assert abs((panel.left + panel.right) / 2 - middle) < 30


def test_a_dark_panel_keeps_its_edges() -> None:
    image, panels = strip((220, 220, 220))
    dark = image.copy()
    middle = panels[1]
    dark[middle.top : middle.bottom, middle.left : middle.right] //= 4
    found = find_panels(dark, 3)
    assert found is not None
    assert (found[0], found[2]) == (panels[0], panels[2])
    assert abs(found[1].left - middle.left) <= 2
    assert abs(found[1].right - middle.right) <= 2


def test_lines_within_a_panel_are_no_gutters() -> None:
    image, panels = strip((220, 220, 220))
    door = image.copy()
    left = panels[1].left + 12
    door[panels[1].top : panels[1].bottom, left : left + 30] = 255
    door[:, left : left + 2] = door[:, left + 28 : left + 30] = 0
    assert close(find_panels(door, 3), panels)


@pytest.mark.parametrize(("drawn", "asked"), [(2, 3), (4, 3), (3, 2), (6, 3), (1, 3), (3, 4)])
def test_another_number_of_panels_is_not_credible(drawn: int, asked: int) -> None:
    image, _ = strip((660 // drawn,) * drawn)
    assert find_panels(image, asked) is None


@pytest.mark.parametrize(
    "image",
    [
        np.full((240, 700), 255, np.uint8),
        np.zeros((240, 700), np.uint8),
        np.random.default_rng(0).integers(0, 256, (240, 700), dtype=np.uint8),
        np.full((240, 20), 255, np.uint8),
        np.full((1, 700), 255, np.uint8),
        (127 + 120 * np.sin(np.add.outer(np.arange(240), np.arange(700)) / 40)).astype(np.uint8),
    ],
)
def test_what_is_no_strip_has_no_panels(image: NDArray[np.uint8]) -> None:
    assert find_panels(image, 3) is None


def test_equal_parts_cover_the_width() -> None:
    for wide in (3, 7, 100, 701):
        parts = equal_parts(wide, 50, 3)
        assert (parts[0].left, parts[-1].right) == (0, wide)
        assert all(a.right == b.left for a, b in itertools.pairwise(parts))
        sizes = [part.right - part.left for part in parts]
        assert max(sizes) - min(sizes) <= 1
    assert equal_parts(700, 240, 1) == (Panel(0, 0, 700, 240),)


def test_real_strips() -> None:
    """71 of 72 (by eye); the other one has wavy frames that touch."""
    folder = SHARED / "strips"
    if not folder.is_dir():
        pytest.skip("no shared data here (FASTVAE_SHARED_DATA)")
    found = {
        path.name: find_panels(np.asarray(Image.open(path).convert("L")), 3)
        for path in sorted(folder.glob("*.png"))
    }
    assert [name for name, panels in found.items() if panels is None] == ["issue89_ecol-101-e.png"]
    for name, panels in found.items():
        for panel in panels or ():
            assert 218 <= panel.right - panel.left <= 228, name
            assert 220 <= panel.bottom - panel.top <= 243, name
