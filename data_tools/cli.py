"""``fastvae-data``: the command line of the data tools.

Each sub-command is one line in ``COMMANDS`` and one module with two functions:
``add_arguments(parser)`` and ``run(args)``, which returns the exit code (see ``fastvae.errors``).
Only the module of the command that was asked for is imported, so that start-up stays quick.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from fastvae.data_tools.names import shown
from fastvae.errors import EXIT_BAD_INPUT, UserError, nearest

PROGRAM = "fastvae-data"
EXIT_INTERRUPTED = 130  # 128 + SIGINT, what a shell reports for Ctrl-C
EXIT_CLOSED = 141  # 128 + SIGPIPE: nobody reads the output, and the work was not finished
# What a user can mend where no file is named.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENOMEM)


class Command(NamedTuple):
    """A sub-command: the module that does it and its line in the help text."""

    module: str
    summary: str


COMMANDS = {
    "download": Command("fastvae.data_tools.download", "fetch the original files of a data set"),
    "doodles": Command(
        "fastvae.data_tools.doodles", "generate sketches as ndjson, to try things on"
    ),
    "quickdraw": Command(
        "fastvae.data_tools.quickdraw", "pack drawings as strokes, or as images in shards"
    ),
    "images": Command("fastvae.data_tools.images", "decode photos into shards, once"),
    "strips": Command("fastvae.data_tools.strips", "cut comic strips into panels, as shards"),
    "idx": Command("fastvae.data_tools.idx", "pack MNIST and its relatives as shards"),
    "convert": Command(
        "fastvae.data_tools.convert", "between shards, stock WebDataset tars and FFCV .beton"
    ),
    "verify": Command("fastvae.data_tools.verify", "compare every byte with its checksum"),
    "inspect": Command("fastvae.data_tools.inspect", "count what a data set holds"),
    "preview": Command("fastvae.data_tools.preview", "draw a contact sheet"),
}


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, like those of every other command."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError where argparse would print the usage and exit."""
        raise UserError(f"{message}; see {self.prog} --help")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of the sub-command ``argv[0]``; raise UserError for unknown words."""
    parser = _Parser(
        prog=PROGRAM,
        description="Prepare data sets for fastvae.",
        epilog=f"Help on one command: {PROGRAM} COMMAND --help",
    )
    choices = parser.add_subparsers(title="commands", metavar="COMMAND")
    parsers = {
        name: choices.add_parser(
            name, help=command.summary, description=command.summary, allow_abbrev=False
        )
        for name, command in COMMANDS.items()
    }
    name = argv[0] if argv else "--help"
    if name in ("-h", "--help"):
        parser.print_help()
        parser.exit()
    if name not in COMMANDS:
        raise UserError(f"no command {name!r}{nearest(name, COMMANDS)}; see {PROGRAM} --help")
    module = importlib.import_module(COMMANDS[name].module)
    module.add_arguments(parsers[name])
    parsers[name].set_defaults(run=module.run)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise _unknown_word(parsers[name], unknown[0])
    return args


def _unknown_word(parser: argparse.ArgumentParser, word: str) -> UserError:
    """Return the error for a ``word`` that ``parser`` has no place for."""
    if not word.startswith("-"):
        return UserError(f"unexpected argument {word!r}; see {parser.prog} --help")
    option = word.partition("=")[0]
    # The usage text is the one public place where argparse lists the options it knows.
    known = re.findall(r"--[\w-]+", parser.format_usage())
    return UserError(f"no option {option!r}{nearest(option, known)}; see {parser.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``fastvae-data`` and return its exit code.

    Args:
        argv: the words after the program's name; those of this process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text
    code: int | None = None
    try:
        args = _parse(sys.argv[1:] if argv is None else argv)
        code = args.run(args)
        sys.stdout.flush()
    except UserError as error:
        return _bad_input(str(error))
    except MemoryError:
        return _bad_input("not enough memory: give fewer --workers, or less at once")
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who read the output (head, less) has gone. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED if code is None else code
    except OSError as error:
        if error.filename is None and error.errno not in _DISK_ERRORS:
            raise
        where = "the disk" if error.filename is None else error.filename
        return _bad_input(f"cannot use {where}: {error.strerror or error}")
    assert code is not None
    return code


def _bad_input(message: str) -> int:
    print(f"{PROGRAM}: error: {shown(message)}", file=sys.stderr)
    return EXIT_BAD_INPUT
