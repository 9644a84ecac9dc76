"""Erosion and dilation, grey and packed, and the packing: against NumPy and OpenCV, bit for bit."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import multiprocessing
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fastvae.kernels import bitrows, morphology

Images = NDArray[np.uint8]
REACH = {2: (-1, 0), 3: (-1, 1), 5: (-2, 2)}
OPERATIONS = ("erode", "dilate")
SHAPES = [
    *itertools.product((1, 2, 3, 9, 28), (1, 2, 3, 5, 28, 31, 32, 33, 63, 64, 65, 130)),
    (64, 64),
    (100, 200),
    (70, 129),
    (2, 5000),
    (300, 70),
]


def expected(operation: str, images: Images, size: int, iterations: int) -> Images:
    """The definition: the least (most) over the pixels of the window that are in the image."""
    worst, choose = (255, np.minimum) if operation == "erode" else (0, np.maximum)
    low, high = REACH[size]
    _, height, width = images.shape
    for _ in range(iterations):
        framed = np.pad(images, ((0, 0), (2, 2), (2, 2)), constant_values=worst)
        windows = [
            framed[:, 2 + i : 2 + i + height, 2 + j : 2 + j + width]
            for i, j in itertools.product(range(low, high + 1), repeat=2)
        ]
        images = choose.reduce(windows)
    return images


def random_images(shape: tuple[int, ...], seed: int = 0) -> Images:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def packed(images: Images) -> NDArray[np.uint64]:
    """NumPy's packing of what is not 0, filled up to words of 64."""
    bits = np.packbits(images != 0, axis=-1, bitorder="little")
    words = np.zeros((*images.shape[:2], 8 * bitrows.words_per_row(images.shape[2])), np.uint8)
    words[..., : bits.shape[2]] = bits
    return words.view(np.uint64)


def guarded(shape: tuple[int, ...], dtype: type) -> tuple[NDArray[Any], NDArray[Any]]:
    """An array between margins, and the whole; the margins are 77."""
    size = int(np.prod(shape))
    whole = np.full(size + 256, 77, dtype=dtype)
    return whole[128 : 128 + size].reshape(shape), whole


def untouched(whole: NDArray[Any]) -> bool:
    return bool((whole[:128] == 77).all() and (whole[-128:] == 77).all())


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("size", morphology.SIZES)
def test_grey_is_the_definition(operation: str, size: int) -> None:
    for number, (height, width) in enumerate(SHAPES):
        images = random_images((1 + number % 4, height, width), seed=number)
        for iterations in (0, 1, 2, 3):
            out, whole = guarded(images.shape, np.uint8)
            given = images.copy()
            got = getattr(morphology, operation)(images, size, iterations, out)
            want = expected(operation, images, size, iterations)
            np.testing.assert_array_equal(got, want, f"{height}x{width}, {iterations} times")
            assert got is out
            assert untouched(whole), (height, width)
            np.testing.assert_array_equal(images, given)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("size", morphology.SIZES)
def test_packed_is_the_definition(operation: str, size: int) -> None:
    for number, (height, width) in enumerate(SHAPES):
        share = 0.9 if operation == "erode" else 0.1
        random = np.random.default_rng(number).random((1 + number % 4, height, width))
        images = (random < share).astype(np.uint8)
        words = packed(images)
        for iterations in (0, 1, 2, 3):
            out, whole = guarded(words.shape, np.uint64)
            given = words.copy()
            call = getattr(morphology, f"{operation}_packed")
            got = call(words, width, size, iterations, out)
            want = packed(expected(operation, images, size, iterations))
            np.testing.assert_array_equal(got, want, f"{height}x{width}, {iterations} times")
            assert got is out
            assert untouched(whole), (height, width)
            np.testing.assert_array_equal(words, given)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("size", morphology.SIZES)
def test_grey_is_opencv(operation: str, size: int) -> None:
    cv2 = pytest.importorskip("cv2")
    kernel = np.ones((size, size), np.uint8)
    for number, (height, width) in enumerate(SHAPES):
        images = random_images((2, height, width), seed=number)
        for iterations in (0, 1, 2, 3, 4, 7):
            theirs = [getattr(cv2, operation)(i, kernel, iterations=iterations) for i in images]
            got = getattr(morphology, operation)(images, size, iterations)
            want = np.array(theirs).reshape(images.shape)
            np.testing.assert_array_equal(got, want, f"{height}x{width}, {iterations} times")


@pytest.mark.parametrize("size", morphology.SIZES)
def test_many_iterations_end(size: int) -> None:
    images = random_images((2, 20, 30))
    for operation in OPERATIONS:
        want = expected(operation, images, size, 30)
        np.testing.assert_array_equal(getattr(morphology, operation)(images, size, 10**12), want)
        bits = (images > 30).astype(np.uint8)
        want = packed(expected(operation, bits, size, 30))
        call = getattr(morphology, f"{operation}_packed")
        np.testing.assert_array_equal(call(packed(bits), 30, size, 10**12), want)


def test_bits_beyond_the_width_do_not_matter() -> None:
    for width in (1, 28, 63, 65, 100):
        images = (random_images((3, 9, width)) > 60).astype(np.uint8)
        clean = packed(images)
        dirty = clean.copy()
        dirty[:, :, -1] |= ~np.uint64(bitrows.last_mask(width))
        for operation, size, iterations in itertools.product(
            OPERATIONS, morphology.SIZES, (0, 1, 2)
        ):
            call = getattr(morphology, f"{operation}_packed")
            np.testing.assert_array_equal(
                call(dirty, width, size, iterations), call(clean, width, size, iterations)
            )


@pytest.mark.parametrize("shape", [(0, 28, 28), (1, 1, 1), (7, 1, 1), (500, 28, 28), (67, 64, 64)])
def test_any_number_of_threads(shape: tuple[int, int, int]) -> None:
    images = random_images(shape)
    words = bitrows.pack(images, 128, threads=1)
    for iterations in (1, 3):
        grey = morphology.erode(images, 3, iterations, threads=1)
        bits = morphology.dilate_packed(words, shape[2], 3, iterations, threads=1)
        for threads in (0, 2, 3, 16):
            again = morphology.erode(images, 3, iterations, threads=threads)
            np.testing.assert_array_equal(again, grey)
            again = morphology.dilate_packed(words, shape[2], 3, iterations, threads=threads)
            np.testing.assert_array_equal(again, bits)
            np.testing.assert_array_equal(bitrows.pack(images, 128, threads=threads), words)
            pixels = bitrows.unpack(words, shape[2], threads=threads)
            np.testing.assert_array_equal(pixels, 255 * (images > 128))


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 28, 63, 64, 65, 100, 127, 128, 129, 300])
def test_packing_is_numpys(width: int) -> None:
    for count, height in ((0, 3), (1, 1), (2, 5), (3, 64)):
        images = random_images((count, height, width), seed=count)
        for threshold in (0, 1, 127, 254, 255):
            words = bitrows.pack(images, threshold)
            np.testing.assert_array_equal(words, packed(images > threshold))
        words = bitrows.pack(images, 127)
        for ink, paper in ((255, 0), (0, 1), (3, 3)):
            pixels = bitrows.unpack(words, width, ink, paper)
            np.testing.assert_array_equal(pixels, np.where(images > 127, ink, paper))
            assert pixels.dtype == np.uint8


def test_any_layout_and_read_only_arrays() -> None:
    images = random_images((4, 30, 40))
    turned = images.transpose(0, 2, 1)[:, ::2]
    plain = np.ascontiguousarray(turned)
    plain.flags.writeable = False
    want = expected("erode", turned, 3, 1)
    for same in (turned, plain):
        np.testing.assert_array_equal(morphology.erode(same), want)
        np.testing.assert_array_equal(bitrows.pack(same, 9), packed(turned > 9))
    words = packed(images > 99)
    words.flags.writeable = False
    np.testing.assert_array_equal(bitrows.unpack(words[::2], 40), 255 * (images[::2] > 99))
    want = packed(expected("dilate", (images > 99).astype(np.uint8), 5, 1))
    np.testing.assert_array_equal(morphology.dilate_packed(words, 40, 5), want)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mprotect as on Linux")
def test_nothing_beyond_the_arrays_is_read() -> None:
    """The arrays end where memory that cannot be read begins."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 9 * page)
    view = np.frombuffer(memory, dtype=np.uint8)
    barrier = view[8 * page :].ctypes.data
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    assert protect(barrier, page, 0) == 0  # PROT_NONE
    try:
        for height, width in ((1, 1), (3, 5), (28, 28), (1, 70), (64, 64), (40, 129)):
            images = view[8 * page - 2 * height * width : 8 * page].reshape(2, height, width)
            images[:] = random_images(images.shape)
            for size in morphology.SIZES:
                np.testing.assert_array_equal(
                    morphology.erode(images, size), expected("erode", images, size, 1)
                )
            words = packed(images > 100)
            np.testing.assert_array_equal(bitrows.pack(images, 100), words)
            at_end = view[8 * page - words.nbytes : 8 * page].view(np.uint64).reshape(words.shape)
            at_end[:] = words
            np.testing.assert_array_equal(
                morphology.erode_packed(at_end, width), morphology.erode_packed(words, width)
            )
            np.testing.assert_array_equal(
                bitrows.unpack(at_end, width), bitrows.unpack(words, width)
            )
    finally:
        assert protect(barrier, page, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def _in_a_fork(sender: Any) -> None:
    images = random_images((500, 28, 28))
    sender.send(morphology.erode(images, threads=2).sum())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_works_in_a_forked_process() -> None:
    want = morphology.erode(random_images((500, 28, 28)), threads=2).sum()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_in_a_fork, args=(sender,))
    child.start()
    assert receiver.poll(60)
    assert receiver.recv() == want
    child.join(60)
    assert child.exitcode == 0


IMAGES = np.zeros((2, 4, 70), np.uint8)
WORDS = np.zeros((2, 4, 2), np.uint64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: morphology.erode(IMAGES, 4), "size must be one of 2, 3, 5, got 4"),
        (lambda: morphology.dilate(IMAGES, 0), "size must be one of"),
        (lambda: morphology.erode_packed(WORDS, 70, 7), "size must be one of"),
        (lambda: morphology.erode(IMAGES, 3, -1), "iterations must be an integer >= 0, got -1"),
        (lambda: morphology.erode(IMAGES, 3, 1.5), "iterations must be an integer"),
        (lambda: morphology.erode(IMAGES[0]), r"\(B, H, W\) uint8"),
        (lambda: morphology.erode(IMAGES.astype(np.int16)), r"\(B, H, W\) uint8"),
        (lambda: morphology.erode(IMAGES[:, :0]), "H, W >= 1"),
        (lambda: morphology.erode(IMAGES, threads=-1), "threads must be an integer >= 0"),
        (lambda: morphology.erode(IMAGES, out=IMAGES), "must not share memory"),
        (lambda: morphology.erode(IMAGES, out=IMAGES[:1].copy()), "out must be"),
        (
            lambda: morphology.erode(IMAGES, out=np.zeros((2, 4, 140), np.uint8)[..., ::2]),
            "C order",
        ),
        (lambda: morphology.erode_packed(WORDS, 64), r"\(B, H, 1\) uint64"),
        (lambda: morphology.erode_packed(WORDS, 0), "width must be an integer >= 1"),
        (lambda: morphology.erode_packed(WORDS.astype(np.int64), 70), "uint64"),
        (lambda: bitrows.pack(IMAGES, 256), r"threshold must be an integer in 0\.\.255"),
        (lambda: bitrows.pack(IMAGES, 0.5), "threshold must be an integer"),
        (lambda: bitrows.unpack(WORDS, 70, ink=-1), "ink must be an integer"),
        (lambda: bitrows.unpack(WORDS, 129), r"\(B, H, 3\) uint64"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
