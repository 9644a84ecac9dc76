"""Errors that are the user's to mend, and the exit codes of every command.

| code | meaning |
|---|---|
| 0 | done |
| 1 | a bug: a traceback follows |
| 2 | bad input: one line names the thing and the fix |
| 3 | training diverged: too many non-finite steps in a row; the last good checkpoint is kept |
| 75 | stopped by a signal with a checkpoint saved; go on with ``--resume`` |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_BAD_INPUT = 2
EXIT_DIVERGED = 3
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later


class UserError(ValueError):
    """Bad input. The message is one line: the thing, what is wrong with it, and the fix."""


class LocalError(UserError):
    """Bad input that one process of several has met: it speaks, whatever its rank."""


class Diverged(RuntimeError):
    """Training met too many non-finite steps in a row."""


class Stopped(RuntimeError):
    """Training was stopped by a signal after saving a checkpoint."""


def closest(word: str, known: Iterable[str], *, most: int = 3) -> list[str]:
    """The known words most like ``word``, best first; none when nothing resembles it."""
    known = list(known)
    for cutoff in (0.6, 0.3):
        close = difflib.get_close_matches(word, known, n=most, cutoff=cutoff)
        if close:
            return close
    return []


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; nearest: a, b"``, or all known words when none is alike and they are few."""
    known = list(known)
    close = closest(word, known)
    if close:
        return f"; nearest: {', '.join(close)}"
    return f"; known: {', '.join(known)}" if len(known) <= 12 else ""
