"""What `art-aft` ends with. Nothing here imports ART or PyTorch, so that it works where they do not."""

from __future__ import annotations

import argparse
import sys
import traceback

from art_aft.runtime.text import printable

#: Exit codes, and what they mean.
WRONG, UNFORESEEN, INTERRUPTED = 2, 3, 130
EXIT_CODES = {
    0: "done; scan: no backdoor found",
    1: "scan: backdoor reported; purify: too much accuracy lost, or images that cannot tell, no model written",
    WRONG: "an argument, a file or the data are wrong; scan: cannot tell",
    UNFORESEEN: "any other error, such as too little memory (--traceback shows where)",
    INTERRUPTED: "interrupted by Ctrl-C",
}

#: Errors that say what is wrong by themselves.
FORESEEN = (ImportError, OSError, TypeError, ValueError)


def ended_by(
    error: BaseException, *, show: bool, loading: bool = False, options: argparse.Namespace | None = None
) -> int:
    """
    Print an error, and return the exit code for it.

    :param error: The error.
    :param show: Whether to show where it came from.
    :param loading: Whether it came while the program was loaded, where no error is foreseen.
    :param options: The options of the command, by whose names the message tells of them.
    """
    if isinstance(error, KeyboardInterrupt):
        kept = f"; {options.kept(options)}" if options else ""
        print(f"art-aft: interrupted{kept}", file=sys.stderr)
        return INTERRUPTED
    if show:
        traceback.print_exception(error)
    if isinstance(error, FORESEEN) and not loading:
        print(f"art-aft: error: {printable(_by_option(str(error), options))}", file=sys.stderr)
        return WRONG
    what = " ".join(printable(str(error)).split())[:500]
    kind = "art-aft cannot be loaded: " * loading + type(error).__name__
    hint = "" if show else " (--traceback shows where)"
    print(f"art-aft: unforeseen error: {kind}{': ' * bool(what)}{what}{hint}", file=sys.stderr)
    return UNFORESEEN


def _by_option(message: str, options: argparse.Namespace | None) -> str:
    """Return a message about an argument as one about the option that it comes from."""
    name, colon, rest = "\n".join(" ".join(line.split()) for line in message.splitlines()).partition(": ")
    others = {"path": "MODEL" if hasattr(options, "path") else "--data", "name_or_path": "--data", "settings": "--set"}
    if hasattr(options, "settings"):
        del others["settings"]  # a file
    known = {name: f"--{name.replace('_', '-')}" for name in vars(options)} | others if options else {}
    return f"{known.get(name, name)}{colon}{rest}"
