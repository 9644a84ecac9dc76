"""How every command ends: errors become one line and an exit code (see ``fastvae/errors.py``)."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fastvae.errors import (
    EXIT_BAD_INPUT,
    EXIT_DIVERGED,
    EXIT_STOPPED,
    Diverged,
    LocalError,
    Stopped,
    UserError,
)

# What a user can mend: no space, quota, permission, read-only file system.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def run_command(command: Callable[[list[str]], Any], argv: Sequence[str] | None) -> None:
    """Run a command and turn its errors into one line and an exit code.

    Under torchrun every rank fails alike and only the first one speaks, but for a LocalError.
    """
    with contextlib.suppress(OSError, ValueError):  # an stderr that is no file
        faulthandler.enable()  # a mapped file that is cut short ends the process: it says where
    ending = _run(command, list(sys.argv[1:] if argv is None else argv))
    # Out here the exception is gone, and with it the frames that kept models and process groups
    # alive: gloo's threads must end before the interpreter does, or the process aborts.
    if ending is not None:
        line, code, alone = ending
        if line and (alone or os.environ.get("RANK", "0") == "0"):
            print(" ".join(line.split()), file=sys.stderr, flush=True)
        sys.exit(code)


def _run(command: Callable[[list[str]], Any], args: list[str]) -> tuple[str, int, bool] | None:
    """Run a command; what to say, the exit code, and whether this process is alone with it, if it
    did not end well."""
    try:
        command(args)
    except UserError as error:
        return f"fastvae: error: {error}", EXIT_BAD_INPUT, isinstance(error, LocalError)
    except Diverged as error:
        return f"fastvae: training diverged: {error}", EXIT_DIVERGED, False
    except Stopped as error:
        return f"fastvae: {error}", EXIT_STOPPED, False
    except BrokenPipeError:
        mute_stdout()
        return "", 1, False
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = error.filename or "the run folder"
        return f"fastvae: error: cannot write {where}: {error.strerror}", EXIT_BAD_INPUT, False
    except KeyboardInterrupt:
        return "fastvae: interrupted", 130, False
    return None


def mute_stdout() -> None:
    """Send further output nowhere: its reader (head, less) has gone, or its disk is full.

    The file itself is exchanged: Python would complain once more when it flushes at exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
