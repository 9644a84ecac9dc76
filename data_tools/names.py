"""Names as they may be printed: those of files need not be text."""

from __future__ import annotations

import os

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


def shown(name: str | os.PathLike[str]) -> str:
    """A name on one line: bytes that are not UTF-8 as ``\\xff``, control characters (line ends,
    escape sequences of terminals) as ``\\n``, ``\\x1b``."""
    try:
        text = os.fsencode(name).decode(errors="backslashreplace")
    except UnicodeEncodeError:  # not from the file system
        text = str(name).encode(errors="backslashreplace").decode()
    return text.translate(_CONTROLS)
