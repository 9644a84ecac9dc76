"""sketch-rnn's .npz files: read right, and nothing in a hostile one runs."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastvae.data_tools import sketchrnn
from fastvae.data_tools.sketchrnn import read_deltas, read_npz, to_strokes
from fastvae.errors import UserError

REPO = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FASTVAE_SHARED_DATA") or REPO.parent / "shared" / "data")
OMNIGLOT = SHARED / "sketchrnn" / "omniglot.npz"
needs_omniglot = pytest.mark.skipif(
    not OMNIGLOT.is_file(), reason="no shared data here (FASTVAE_SHARED_DATA)"
)

# An "L" of one stroke with a dot beside it.
LETTER = [[7, 7, 0], [0, 20, 0], [10, 0, 1], [5, -20, 1]]


def objects(*items: Any) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def deltas(rows: list[list[int]], dtype: str = "i2") -> np.ndarray:
    return np.array(rows, dtype=dtype).reshape(-1, 3)


def save(path: Path, **splits: np.ndarray) -> Path:
    np.savez_compressed(path, **splits)  # type: ignore[arg-type]
    return path


def write_member(path: Path, payload: bytes, *, shape: str = "(1,)", descr: str = "|O") -> Path:
    """An .npz whose train.npy holds ``payload`` after a header of our choice."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train.npy", member)
    return path


def said(path: Path) -> str:
    """The one line of the error that reading ``path`` ends with."""
    with pytest.raises(UserError) as caught:
        read_deltas(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# --- what is read -------------------------------------------------------------------------------


def test_coordinates_strokes_and_scale() -> None:
    split = to_strokes([deltas(LETTER)])
    first, second = split.strokes.strokes_of(0)
    # Corners (0, 0), (0, 20), (10, 20) and the dot at (15, 0), times 255 / 20.
    assert first.tolist() == [[0, 0], [0, 255], [128, 255]]  # 127.5: halves to even
    assert second.tolist() == [[191, 0]]  # 191.25
    assert split.bad == ()


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "<i4", ">i8", "<f4", ">f8", "f2"])
def test_number_types_and_byte_orders(tmp_path: Path, dtype: str) -> None:
    rows = [[1, 2, 0], [3, 4, 0], [5, 0, 1]]
    path = save(tmp_path / "cat.npz", train=objects(deltas(rows, dtype), deltas(rows, "i2")))
    first, second = read_deltas(path)["train"]
    assert not isinstance(first, str)
    assert first.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(first, second)


def test_columns_in_fortran_order(tmp_path: Path) -> None:
    path = save(tmp_path / "cat.npz", train=objects(np.asfortranarray(deltas(LETTER)), None))
    np.testing.assert_array_equal(read_deltas(path)["train"][0], LETTER)


@pytest.mark.parametrize("protocol", range(5))
def test_protocols_of_pickle(tmp_path: Path, protocol: int) -> None:
    payload = pickle.dumps(objects(deltas(LETTER), deltas(LETTER)), protocol=protocol)
    path = write_member(tmp_path / "cat.npz", payload, shape="(2,)")
    for drawing in read_deltas(path)["train"]:
        np.testing.assert_array_equal(drawing, LETTER)


def test_pickle_of_python_2(tmp_path: Path) -> None:
    """Bytes as strings, the names of NumPy before 2.0: what Google's files are."""
    raw = deltas(LETTER).tobytes()
    assert max(raw) > 127  # not ASCII: -20
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
    object_type = b"cnumpy\ndtype\n(U\x02O8I0\nI1\ntR(I3\nU\x01|NNNI-1\nI-1\nI63\ntb"
    number_type = b"cnumpy\ndtype\n(U\x02i2I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
    inner = array + b"(I1\n(I4\nI3\nt" + number_type + b"I00\nU" + bytes([len(raw)]) + raw + b"tb"
    payload = array + b"(I1\n(I1\nt" + object_type + b"I00\n(l" + inner + b"atb."
    expected = pickle.loads(payload, encoding="latin1")
    np.testing.assert_array_equal(expected[0], LETTER)  # it is what we think it is
    np.testing.assert_array_equal(
        read_deltas(write_member(tmp_path / "cat.npz", payload))["train"][0], LETTER
    )


def test_splits_in_their_order_and_others_ignored(tmp_path: Path) -> None:
    one = objects(deltas(LETTER))
    path = save(tmp_path / "cat.npz", std=np.zeros(3), test=one, train=one)
    assert list(read_deltas(path)) == ["train", "test"]


def test_empty_and_bad_drawings_are_left_out_and_told(tmp_path: Path) -> None:
    nan = deltas([[0, 0, 0], [1, 1, 1]], "f4")
    nan[1, 0] = np.nan
    items = (
        deltas(LETTER),
        np.empty((0, 3), dtype=np.int16),
        np.zeros((4, 2), dtype=np.int16),
        "a cat",
        np.empty(0),
        objects(1, 2, 3),
        deltas([[1, 1, 2]]),
        nan,
        deltas([[9, 9, 0], [3, 0, 0]]),
        None,
    )
    split = read_npz(save(tmp_path / "cat.npz", train=objects(*items)))["train"]
    assert split.empty == 2
    assert dict(split.bad) == {
        1: "no points",
        2: "shape (4, 2), expected (points, 3)",
        3: "str instead of an array",
        4: "no points",
        5: "an array of something other than numbers",
        6: "a pen state other than 0 and 1",
        7: "coordinates that are not finite",
        9: "NoneType instead of an array",
    }
    split.strokes.check()
    assert split.strokes.drawings == 2
    assert [len(s) for s in split.strokes.strokes_of(0)] == [3, 1]
    # The last stroke ends with the drawing though the pen was not lifted.
    assert [s.tolist() for s in split.strokes.strokes_of(1)] == [[[0, 0], [255, 0]]]


def test_points_on_one_spot_stay_there() -> None:
    split = to_strokes([deltas([[5, 5, 0], [0, 0, 1]]), deltas([[-3, 8, 1]])])
    assert split.strokes.points.tolist() == [[0, 0]] * 3
    assert split.bad == ()


def test_sums_beyond_numbers_are_bad() -> None:
    huge = np.array([[1e308, 0, 0], [1e308, 0, 1]])
    wide = np.array([[-1e308, 0, 0], [1.7e308, 0, 0], [1.2e308, 0, 1]])
    split = to_strokes([huge, wide])
    assert [reason for _, reason in split.bad] == ["coordinates that are not finite"] * 2
    assert split.strokes.drawings == 0


def test_no_drawings(tmp_path: Path) -> None:
    split = read_npz(save(tmp_path / "cat.npz", valid=objects()))["valid"]
    assert (split.strokes.drawings, split.bad) == (0, ())


def test_plain_python_gives_the_same_strokes() -> None:
    rng = np.random.default_rng(0)
    drawings = []
    for length in rng.integers(1, 40, size=200):
        rows = rng.integers(-90, 90, size=(length, 3))
        rows[:, 2] = rng.random(length) < 0.2
        drawings.append(rows.astype(np.int16))
    strokes = to_strokes(drawings).strokes
    strokes.check()
    for d, rows in enumerate(drawings):
        xy = np.cumsum(rows[:, :2].astype(np.float64), axis=0)
        xy -= xy.min(axis=0)
        xy = np.rint(xy * (255.0 / xy.max())) if xy.max() > 0 else xy
        parts = np.split(xy, np.flatnonzero(rows[:-1, 2]) + 1)
        assert [s.tolist() for s in strokes.strokes_of(d)] == [part.tolist() for part in parts]


@needs_omniglot
def test_omniglot() -> None:
    splits = read_npz(OMNIGLOT)
    counts = {name: split.strokes.drawings for name, split in splits.items()}
    assert counts == {"train": 30_000, "valid": 1_000, "test": 1_000}
    for split in splits.values():
        split.strokes.check()
        assert split.bad == ()
        first = split.strokes.stroke_offset[split.strokes.drawing_offset]
        largest = np.maximum.reduceat(split.strokes.points.max(axis=1), first[:-1])
        smallest = np.minimum.reduceat(split.strokes.points, first[:-1], axis=0)
        assert (largest[largest > 0] == 255).all()
        assert not smallest.any()


@needs_omniglot
def test_omniglot_equals_numpy() -> None:
    """A trusted file: NumPy, in a process of its own, reads the same numbers."""
    code = (
        "import sys, numpy as np\n"
        "with np.load(sys.argv[1], allow_pickle=True, encoding='latin1') as file:\n"
        "    sys.stdout.buffer.write(np.concatenate(file['test']).astype('<i2').tobytes())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, OMNIGLOT], capture_output=True, check=True)
    ours = np.concatenate(read_deltas(OMNIGLOT)["test"])
    assert ours.astype("<i2").tobytes() == done.stdout


# --- what is refused ----------------------------------------------------------------------------


class Calls:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def test_a_payload_is_named_and_never_run(tmp_path: Path) -> None:
    victim = tmp_path / "was run"
    attack = Calls(os.system, f"touch '{victim}'")
    for name, items in {"alone": [attack], "beside": [deltas(LETTER), attack]}.items():
        path = save(tmp_path / f"{name}.npz", train=objects(*items))
        message = said(path)
        assert f"{os.system.__module__}.system" in message
        assert "nothing in it was run" in message
        assert not victim.exists()
    np.load(path, allow_pickle=True)["train"]  # the test is sharp: NumPy does run it
    assert victim.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins getattr",
        "__builtin__ eval",
        "os system",
        "subprocess Popen",
        "numpy load",
        "numpy fromfile",
        "numpy memmap",
        "numpy.core.multiarray scalar",
        "numpy._core.multiarray scalar",
        "numpy._core.multiarray fromfile",
        "numpy._core.numeric _frombuffer",
        "numpy._core._internal _reconstruct",
        "numpy.testing._private.utils runstring",
        "numpy.f2py.capi_maps getinit",
        "numpy.lib.npyio load",
        "numpy.ctypeslib load_library",
        "numpy _core.multiarray._reconstruct",
        "_codecs decode",
        "_codecs lookup",
        "copyreg _reconstructor",
        "pickle loads",
        "fastvae.data_tools.sketchrnn read_deltas",
    ],
)
@pytest.mark.parametrize("opcode", ["GLOBAL", "STACK_GLOBAL", "INST"])
def test_every_other_name_is_refused(tmp_path: Path, name: str, opcode: str) -> None:
    module, attribute = name.split()
    if opcode == "GLOBAL":
        payload = f"c{module}\n{attribute}\n(V1\ntR.".encode()
    elif opcode == "INST":
        payload = f"(V1\ni{module}\n{attribute}\n.".encode()
    else:
        payload = b"\x80\x04" + b"".join(
            b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, attribute)
        )
        payload += b"\x93(V1\ntR."
    assert f"{module}.{attribute}" in said(write_member(tmp_path / "x.npz", payload))


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
DTYPE = b"cnumpy\ndtype\n(U\x02%bI0\nI1\ntR(I3\nU\x01%bNNNI-1\nI-1\nI%b\ntb"


def array_of(payload: bytes) -> bytes:
    """The pickle of an object array whose one element is what ``payload`` leaves."""
    return ARRAY + b"(I1\n(I1\nt" + DTYPE % (b"O8", b"|", b"63") + b"I00\n(l" + payload + b"atb."


def test_pointers_cannot_be_forged(tmp_path: Path) -> None:
    """A dtype of objects that denies holding any: NumPy itself takes its bytes for pointers."""
    lie = ARRAY + b"(I1\n(I1\nt" + DTYPE % (b"O8", b"|", b"0") + b"I00\nU\x08AAAAAAAAtb"
    path = write_member(tmp_path / "inner.npz", array_of(lie))
    assert read_deltas(path)["train"] == ["an array of something other than numbers"]
    assert "another type than its header" in said(write_member(tmp_path / "x.npz", lie + b"."))


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        # calls and changes of what is allowed
        (b"cnumpy\nndarray\n(I9\ntR", "a call of ndarray"),
        (b"cnumpy\ndtype\n(U\x03V99tR", "dtype 'V99'"),
        (b"cnumpy\ndtype\n(U\x08i2,O,i2xtR", "dtype 'i2,O,i2x'"),
        (b"cnumpy\ndtype\n(U\x02i2tR(I3\nU\x01?tb", "byte order '?'"),
        (b"c_codecs\nencode\n(V1\nVzip\ntR", "a call of encode"),
        (b"c_codecs\nencode\n(V1\nVunicode_escape\ntR", "a call of encode"),
        (b"cnumpy\nndarray\n}U\x01aI1\nsb", "an attempt to change a function"),
        (b"cnumpy.core.multiarray\n_reconstruct\nN}U\x08__call__I1\ns\x86b", "change a function"),
        (b"V1\nP2\n", "outside the file"),
        (b"V1\nQ", "outside the file"),
        # memory
        (b"Nr\xff\xff\xff\x7f", "a place 2147483647 in its memo"),
        (b"Np4000000000\n", "a place 4000000000 in its memo"),
        (b"N0" * 20_000, "more than 10,064 steps"),
    ],
)
def test_gadgets_within_the_allowed_names(tmp_path: Path, payload: bytes, reason: str) -> None:
    assert reason in said(write_member(tmp_path / "x.npz", array_of(payload)))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not a pickle",
        b"N.",  # no array
        b"(l.",
        ARRAY + b".",  # without its state
        ARRAY + b"Nb.",
        array_of(b"N")[:-1],
        array_of(b"cnumpy\nndarray\n)\x81"),  # NEWOBJ of a stand-in
        array_of(b"]}U\x01aI1\nsb"),  # BUILD on a list
        array_of(b"\x82\x01"),  # extension registry
        array_of(b"T\xff\xff\xff\x7fabc"),  # 2 GB announced
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x80\x09N.",
    ],
)
def test_damaged_pickles_are_one_line(tmp_path: Path, payload: bytes) -> None:
    said(write_member(tmp_path / "x.npz", payload))


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (b"(I1\n(I2\nI3\nt%bI00\nU\x04abcdtb", "4 bytes for shape (2, 3) of int16"),
        (b"(I1\n(I-2\nI-3\nt%bI00\nU\x0cabcdefghijkltb", "without a proper shape"),
        (b"(I1\n(" + b"I1\n" * 9 + b"t%bI00\nU\x02abtb", "without a proper shape"),
        (b"(I1\nI6\n%bI00\nU\x0cabcdefghijkltb", "without a proper shape"),
        (b"(I1\n(\x8b\x88\x13\x00\x00" + b"\x7f" * 5000 + b"t%bI00\nU\x00tb", "proper shape"),
        (b"(I1\n(I1\nI3\nt%bI00\nV\\u20ac\ntb", "text instead of numbers"),
        (b"(I1\n(I1\nI3\nt%bI00\nNtb", "NoneType instead of numbers"),
        (b"(I1\n(I1\nI3\ntN%b0I00\nU\x00tb", "something other than numbers"),
    ],
)
def test_arrays_that_lie_are_bad_drawings(tmp_path: Path, state: bytes, reason: str) -> None:
    inner = ARRAY + state % (DTYPE % (b"i2", b"<", b"0"))
    (item,) = read_deltas(write_member(tmp_path / "x.npz", array_of(inner)))["train"]
    assert isinstance(item, str)
    assert reason in item


def test_counts_must_agree(tmp_path: Path) -> None:
    path = write_member(tmp_path / "x.npz", array_of(b"N"), shape="(2,)")
    assert "holds 1 drawings, its header says 2" in said(path)
    path = write_member(tmp_path / "y.npz", array_of(b"N"), shape="(99999999999,)")
    assert "claims 99,999,999,999 drawings; 1,000,000 may be read" in said(path)
    path = write_member(tmp_path / "z.npz", array_of(b"N"), shape="(-1,)")
    assert "claims -1 drawings" in said(path)


@pytest.mark.parametrize(
    "array", [np.zeros((2, 5, 3), dtype=np.int16), np.array([[None, 1]]), np.array(["text"])]
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    message = said(save(tmp_path / "x.npz", train=array))
    assert f"{array.dtype} with shape {array.shape}: expected a list of drawings" in message


def test_bombs_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sketchrnn, "LARGEST_BYTES", 1 << 20)
    path = write_member(tmp_path / "bomb.npz", bytes(2 << 20))
    assert path.stat().st_size < 4096
    assert "would unpack to 2,097,2" in said(path)
    # One that lies about its size gives no more bytes than it announced.
    content = bytearray(path.read_bytes())
    size = struct.pack("<I", zipfile.ZipFile(path).infolist()[0].file_size)
    assert content.count(size) == 2
    path.write_bytes(bytes(content).replace(size, struct.pack("<I", 5000)))
    said(path)


def test_bytes_used_many_times_are_counted_many_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "cat.npz", train=objects(*[deltas(LETTER * 1000)] * 50))
    assert len(read_deltas(path)["train"]) == 50
    monkeypatch.setattr(sketchrnn, "LARGEST_BYTES", 1 << 20)
    assert "drawings of 1,200,000 bytes" in said(path)


def test_damaged_and_other_files(tmp_path: Path) -> None:
    path = save(tmp_path / "cat.npz", train=objects(deltas(LETTER)))
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    assert "no .npz file, or damaged" in said(path)
    middle = len(content) // 2
    path.write_bytes(content[: middle - 40] + bytes(80) + content[middle + 40 :])
    said(path)
    path.write_text("<html>sign in first</html>")
    assert "fastvae-data download sketchrnn" in said(path)
    assert "has none of train, valid, test" in said(save(tmp_path / "b.npz", images=np.zeros(3)))
    assert "no such file" in said(tmp_path / "none.npz")
    assert "cannot read" in said(tmp_path)


def test_numpys_unpickling_is_never_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError

    path = save(tmp_path / "cat.npz", train=objects(deltas(LETTER)))
    for module, name in ((np, "load"), (np.lib.format, "read_array"), (pickle, "loads")):
        monkeypatch.setattr(module, name, refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    assert len(read_deltas(path)["train"]) == 1
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print"):
        sketchrnn._Unpickler(io.BytesIO(b"cbuiltins\nprint\n.")).load()
