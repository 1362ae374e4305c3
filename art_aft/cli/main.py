"""The command line: `art-aft demo | scan | purify | compare | reproduce | train | doctor`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from art_aft import __version__
from art_aft.cli import compare, demo, doctor, purify, reproduce, scan, train
from art_aft.cli.exits import EXIT_CODES, ended_by
from art_aft.cli.parsing import Parser
from art_aft.runtime.text import printable


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: The words after the name of the program. None takes those of the process.
    :return: The exit code of the command, or one of an error; `EXIT_CODES` has them all.
    """
    parser = _parser()
    _complete(parser)
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser.parse_args(words)
    options.words = ["art-aft", *words]
    try:
        with _warnings_shown():
            return _run(options)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # SystemExit: a factory must not choose the exit code
        return ended_by(error, show=options.traceback, options=options)


def _run(options: argparse.Namespace) -> int:
    """Run the command. With --json only its report goes to the standard output, whatever prints besides."""
    if not getattr(options, "json", False):
        return options.run(options)
    with redirect_stdout(sys.stderr):
        code = options.run(options)
        text = json.dumps(options.report, indent=2, allow_nan=False)
    print(text)
    return code


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer a shell that asks how a word may go on, where the extra "completion" is installed."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(parser)


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
    parser = Parser(
        prog="art-aft",
        description="Find and remove backdoors in image classifiers.",
        epilog="exit codes:\n"
        + "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
        + "\n\n`art-aft COMMAND --help` has examples. Start with `art-aft demo`, or with `art-aft scan` on a model of "
        "your own.",
    )
    parser.add_argument("--version", action="version", version=f"art-aft {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (demo, scan, purify, compare, reproduce, train, doctor):
        command.add(commands)
    for each in commands.choices.values():
        each.add_argument(
            "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error came from"
        )
    return parser
