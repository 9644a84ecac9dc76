"""Sets of drawings: selecting, joining, storing, and what is said about damaged ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastvae.data import drawings as stored
from fastvae.data.drawings import Drawings, DrawingsWriter, fingerprint, load
from fastvae.errors import UserError
from fastvae.kernels.strokes import Strokes, from_lists
from tests.drawing_cases import random_drawings, same


@pytest.mark.parametrize("timed", [False, True])
def test_select_takes_drawings_with_all_that_belongs_to_them(timed: bool) -> None:
    whole = random_drawings(50, timed=timed)
    index = np.array([7, 3, 3, 49, 0])
    part = whole.select(index)
    for place, i in enumerate(index):
        ours, theirs = part.strokes.strokes_of(place), whole.strokes.strokes_of(int(i))
        assert [s.tolist() for s in ours] == [s.tolist() for s in theirs]
        if timed:
            assert part.time is not None
            ends = part.strokes.stroke_offset[part.strokes.drawing_offset]
            np.testing.assert_array_equal(
                part.time[ends[place] : ends[place + 1]],
                np.arange(sum(map(len, theirs))) * 10,
            )
    np.testing.assert_array_equal(part.key_id, whole.key_id[index])
    assert len(whole.select(np.empty(0, dtype=np.int64))) == 0
    with pytest.raises(ValueError, match="index -1"):
        whole.select(np.array([-1]))


def test_join_is_the_reverse_of_taking_apart() -> None:
    whole = random_drawings(40, timed=True)
    parts = [whole.select(np.arange(a, a + 10)) for a in range(0, 40, 10)]
    assert same(Drawings.join(parts), whole)
    other = random_drawings(5, seed=1, words=("fish", "cat"))
    joined = Drawings.join([whole, other])
    assert joined.words == ("cat", "hot dog", "fish")
    assert joined.time is None
    assert [joined.words[i] for i in joined.word[40:]] == [other.words[i] for i in other.word]


@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_save_and_load(tmp_path: Path, count: int, timed: bool) -> None:
    timed = timed and count > 0
    drawings = random_drawings(count, timed=timed, words=("zebra", "ant"))
    drawings.save(tmp_path / "set")
    again = load(tmp_path / "set", verify=True)
    assert same(again, drawings)
    assert list(again.words) == sorted(again.words)
    # Plain files that anything can read, aligned, and the same bytes each time.
    points = np.load(tmp_path / "set" / "points.npy", allow_pickle=False)
    np.testing.assert_array_equal(points, drawings.strokes.points)
    drawings.save(tmp_path / "twin")
    for path in (tmp_path / "set").iterdir():
        assert path.read_bytes() == (tmp_path / "twin" / path.name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"set", "twin"}


def test_pieces_make_the_same_folder_as_the_whole(tmp_path: Path) -> None:
    whole = random_drawings(30)
    whole.save(tmp_path / "whole")
    with DrawingsWriter(tmp_path / "pieces") as writer:
        for a in range(0, 30, 7):
            writer.append(whole.select(np.arange(a, min(a + 7, 30))))
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "pieces" / path.name).read_bytes()


def test_sets_that_belong_together_number_categories_alike(tmp_path: Path) -> None:
    words: dict[str, int] = {}
    with (
        DrawingsWriter(tmp_path / "a", words=words) as a,
        DrawingsWriter(tmp_path / "b", words=words) as b,
    ):
        a.append(random_drawings(9, words=("pear", "fig")))
        b.append(random_drawings(9, words=("apple", "pear")))
    one, two = load(tmp_path / "a"), load(tmp_path / "b")
    assert one.words == two.words == ("apple", "fig", "pear")


def test_nothing_is_left_of_a_folder_that_was_not_finished(tmp_path: Path) -> None:
    def stop() -> None:
        with DrawingsWriter(tmp_path / "set") as writer:
            writer.append(random_drawings(3))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert list(tmp_path.iterdir()) == []
    random_drawings(3).save(tmp_path / "set")
    with pytest.raises(UserError, match="is there already"):
        random_drawings(3).save(tmp_path / "set")


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    drawings = random_drawings(20)
    # Stored sets number categories in alphabetical order: these do so already.
    drawings.save(tmp_path / "set")
    assert fingerprint(load(tmp_path / "set")) == fingerprint(drawings)
    changed = drawings.select(np.arange(20))
    changed.strokes.points[3, 1] ^= 1
    others = [changed, random_drawings(20, seed=1), drawings.select(np.arange(19))]
    assert len({fingerprint(d) for d in [drawings, *others]}) == 4


def damage_offset(folder: Path) -> None:
    path = folder / "stroke_offset.npy"
    array = np.load(path)
    array[2] = array[1] - 1
    np.save(path, array)


def cut(folder: Path) -> None:
    path = folder / "points.npy"
    path.write_bytes(path.read_bytes()[:-3])


def pickled(folder: Path) -> None:
    np.save(folder / "key_id.npy", np.array([{}] * 20, dtype=object), allow_pickle=True)


def other_shape(folder: Path) -> None:
    np.save(folder / "word.npy", np.zeros(7, dtype=np.int32))


def wrong_word(folder: Path) -> None:
    np.save(folder / "word.npy", np.full(20, 9, dtype=np.int32))


def index_with(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / stored.INDEX
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_offset, "set is damaged .*stroke_offset.*is less than"),
        (cut, r"points\.npy is damaged"),
        (pickled, r"key_id\.npy is damaged"),
        (other_shape, r"word\.npy holds \(7,\)"),
        (wrong_word, r"word\.npy is damaged"),
        (lambda f: (f / "points.npy").unlink(), r"points\.npy is missing"),
        (lambda f: (f / stored.INDEX).unlink(), "not a set of drawings"),
        (lambda f: (f / stored.INDEX).write_text("{"), "cannot read"),
        (index_with(format="x"), "does not describe"),
        (index_with(version=9), "version 9"),
        (index_with(words=[1]), "is damaged"),
        (index_with(files=[]), "is damaged"),
        (index_with(points="many"), "is damaged"),
    ],
)
def test_damaged_sets_are_named(
    tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    random_drawings(20).save(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "set")


def test_verify_finds_what_looks_right(tmp_path: Path) -> None:
    random_drawings(20).save(tmp_path / "set")
    path = tmp_path / "set" / "points.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    load(tmp_path / "set")
    with pytest.raises(UserError, match=r"points\.npy does not have its checksum"):
        load(tmp_path / "set", verify=True)


def test_strokes_say_what_is_wrong_with_them() -> None:
    good = from_lists([[[[1, 2], [3, 4]]]])
    cases = [
        ((good.points.astype(np.int16), good.stroke_offset, good.drawing_offset), "points must be"),
        ((good.points.T, good.stroke_offset, good.drawing_offset), "points must be"),
        ((good.points, good.stroke_offset.astype(np.int32), good.drawing_offset), "stroke_offset"),
        ((good.points, np.array([0, 1]), good.drawing_offset), "must run from 0 to 2"),
        ((good.points, good.stroke_offset, np.array([1, 1])), "must run from 0 to 1"),
        ((good.points, np.empty(0, dtype=np.int64), good.drawing_offset), "must run from 0"),
    ]
    for arrays, message in cases:
        with pytest.raises(ValueError, match=message):
            Strokes(*arrays)


def test_arrays_that_do_not_fit_together() -> None:
    d = random_drawings(4)
    with pytest.raises(ValueError, match="key_id must be"):
        Drawings(
            strokes=d.strokes,
            key_id=d.key_id[:3],
            word=d.word,
            recognized=d.recognized,
            words=d.words,
        )
    with pytest.raises(ValueError, match="time must be"):
        Drawings(
            strokes=d.strokes,
            key_id=d.key_id,
            word=d.word,
            recognized=d.recognized,
            words=d.words,
            time=np.zeros(3, dtype=np.int32),
        )
