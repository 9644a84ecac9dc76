"""What can be wrong with a record: the codes of the parsers, and their texts.

A parser's function returns the place behind what it read, or a negative code.
"""

from __future__ import annotations

from fastvae.kernels.byte_blocks import Bytes, Int, inlined

NOT_OBJECT, SYNTAX, CUT, UTF8, DEEP, TRAILING = range(1, 7)
DUPLICATE, NO_WORD, WORD_TYPE, WORD_TEXT, NO_KEY_ID, KEY_ID, RECOGNIZED_TYPE = range(7, 14)
NO_DRAWING, DRAWING_TYPE, EMPTY_DRAWING, EMPTY_STROKE, STROKE_SHAPE, LENGTHS = range(14, 20)
NOT_NUMBER, NOT_INTEGER, RANGE = range(20, 23)
FAR, LATE, TIME_LENGTH = range(23, 26)
BIN_CUT, BIN_RECOGNIZED, BIN_ZEROS = range(26, 29)

REASONS = {
    NOT_OBJECT: "the line is not a JSON object",
    SYNTAX: "not valid JSON",
    CUT: "the line ends inside the record",
    UTF8: "not valid UTF-8",
    DEEP: "values nested more than 64 deep",
    TRAILING: "something follows the record on its line",
    DUPLICATE: "a key is there twice",
    NO_WORD: "no word",
    WORD_TYPE: "word is not a string",
    WORD_TEXT: "word has half of a surrogate pair, which is no text",
    NO_KEY_ID: "no key_id",
    KEY_ID: "key_id is neither a string of digits nor an integer, below 2^64",
    RECOGNIZED_TYPE: "recognized is neither true nor false",
    NO_DRAWING: "no drawing",
    DRAWING_TYPE: "drawing is not a list of strokes",
    EMPTY_DRAWING: "a drawing without strokes",
    EMPTY_STROKE: "a stroke without points",
    STROKE_SHAPE: "a stroke is not [[x, ...], [y, ...]], with a list of times or without",
    LENGTHS: "a stroke has not as many x as y",
    NOT_NUMBER: "a coordinate or time is not a number",
    NOT_INTEGER: "a coordinate is not an integer",
    RANGE: "a coordinate is not in 0..255",
    FAR: "a coordinate is beyond +-1e7 pixels",
    LATE: "a time is beyond +-1e15 ms",
    TIME_LENGTH: "some points have a time and some have none",
    BIN_CUT: "the file ends inside a drawing",
    BIN_RECOGNIZED: "recognized is neither 0 nor 1: not a drawing",
    BIN_ZEROS: "zeros where a drawing should begin",
}
"""What is wrong with a record, by the code."""


@inlined
def wrong(data: Bytes, p: Int, end: Int, reason: Int) -> Int:
    """The reason for what stands at ``p``: that the line is cut where there is nothing more."""
    return -CUT if p >= end else -reason
