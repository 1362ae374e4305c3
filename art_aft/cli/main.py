"""The command line: `art-aft demo | scan | purify | compare | reproduce | train`."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence

from art_aft import __version__
from art_aft.cli import compare, demo, purify, reproduce, scan, train
from art_aft.cli.options import printable

#: Exit codes, and what they mean.
WRONG, UNFORESEEN, INTERRUPTED = 2, 3, 130
EXIT_CODES = {
    0: "done; scan: no backdoor found",
    1: "scan: backdoor reported; purify: too much accuracy lost, no model written",
    WRONG: "an argument, a file or the data are wrong; scan: cannot tell",
    UNFORESEEN: "any other error, such as too little memory (--traceback shows where)",
    INTERRUPTED: "interrupted by Ctrl-C",
}

#: The optional packages, and the extra that each comes with.
EXTRAS = {"PIL": "images", "matplotlib": "plots"}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run a command.

    :param arguments: The words after the name of the program. None takes those of the process.
    :return: The exit code of the command, or one of an error; `EXIT_CODES` has them all.
    """
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        print("art-aft: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (Exception, SystemExit) as error:  # SystemExit: a model's factory must not choose the exit code
        if options.traceback:
            traceback.print_exc()
        if isinstance(error, ImportError | OSError | TypeError | ValueError):
            print(f"art-aft: error: {printable(str(error))}{_extra(error)}", file=sys.stderr)
            return WRONG
        what = " ".join(printable(str(error)).split())[:500]
        hint = "" if options.traceback else " (--traceback shows where)"
        print(f"art-aft: unforeseen error: {type(error).__name__}{': ' * bool(what)}{what}{hint}", file=sys.stderr)
        return UNFORESEEN


def _extra(error: BaseException) -> str:
    """Return how to install what an error misses, where that is an optional package."""
    extra = EXTRAS.get((getattr(error, "name", None) or "").partition(".")[0]) if isinstance(error, ImportError) else ""
    return f" (comes with: pip install 'art-aft[{extra}]')" if extra else ""


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
