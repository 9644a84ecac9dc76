"""How every command ends: errors become one line and an exit code (see ``fastvae/errors.py``)."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastvae.errors import (
    EXIT_BAD_INPUT,
    EXIT_DIVERGED,
    EXIT_STOPPED,
    Diverged,
    Stopped,
    UserError,
)

# What a user can mend: no space, quota, permission, read-only file system.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


def run_command(command: Callable[[list[str]], Any], argv: Sequence[str] | None) -> None:
    """Run a command and turn its errors into one line and an exit code.

    Under torchrun every rank fails alike; only the first one speaks.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        command(args)
    except UserError as error:
        _end(f"fastvae: error: {error}", EXIT_BAD_INPUT)
    except Diverged as error:
        _end(f"fastvae: training diverged: {error}", EXIT_DIVERGED)
    except Stopped as error:
        _end(f"fastvae: {error}", EXIT_STOPPED)
    except BrokenPipeError:
        mute_stdout()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = error.filename or "the run folder"
        _end(f"fastvae: error: cannot write {where}: {error.strerror}", EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        _end("fastvae: interrupted", 130)


def mute_stdout() -> None:
    """Send further output nowhere: its reader (head, less) has gone, or its disk is full.

    The file itself is exchanged: Python would complain once more when it flushes at exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end(line: str, code: int) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        print(" ".join(line.split()), file=sys.stderr, flush=True)
    sys.exit(code)
