"""The command line: `art-aft demo | scan | purify | compare | reproduce | train`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from art_aft import __version__
from art_aft.cli import compare, demo, purify, reproduce, scan, train
from art_aft.cli.exits import EXIT_CODES, ended_by
from art_aft.runtime.text import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: The words after the name of the program. None takes those of the process.
    :return: The exit code of the command, or one of an error; `EXIT_CODES` has them all.
    """
    options = _parser().parse_args(arguments)
    try:
        with _warnings_shown():
            return options.run(options)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # SystemExit: a factory must not choose the exit code
        return ended_by(error, show=options.traceback, options=options)


class _Printable(logging.Formatter):
    """Text of strangers is for the terminal here, too."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _warnings_shown() -> Iterator[None]:
    """Print what the package warns of on the standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Printable("warning: %(message)s"))
    package = logging.getLogger("art_aft")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)


def _parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. Each has --traceback, so that it may stand behind the command as well."""
    parser = argparse.ArgumentParser(
        prog="art-aft",
        description="Remove backdoors from image classifiers.",
        epilog="exit codes:\n" + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"art-aft {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (demo, scan, purify, compare, reproduce, train):
        command.add(commands)
    for each in commands.choices.values():
        each.add_argument(
            "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error came from"
        )
    return parser
