"""The command line: `art-aft demo | scan | purify | compare | reproduce | train`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from art_aft import __version__
from art_aft.cli import compare, demo, purify, reproduce, scan, train


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: The words after the name of the program. None takes those of the process.
    :return: The exit status of the command, or 2 if an argument is wrong or a file is missing.
    """
    parser = argparse.ArgumentParser(prog="art-aft", description="Remove backdoors from image classifiers.")
    parser.add_argument("--version", action="version", version=f"art-aft {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (demo, scan, purify, compare, reproduce, train):
        command.add(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (ImportError, OSError, TypeError, ValueError) as error:
        print(f"art-aft: error: {error}", file=sys.stderr)
        return 2
