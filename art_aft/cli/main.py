"""The command line: `art-aft demo | scan | purify | compare | reproduce | train`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from art_aft import __version__
from art_aft.cli import compare, demo, purify, reproduce, scan, train
from art_aft.cli.exits import EXIT_CODES, ended_by


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: The words after the name of the program. None takes those of the process.
    :return: The exit code of the command, or one of an error; `EXIT_CODES` has them all.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # SystemExit: a factory must not choose the exit code
        return ended_by(error, show=options.traceback, options=options)


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
