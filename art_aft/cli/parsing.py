"""The parser of the command line: help with examples, and the nearest name where one is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from art_aft.check_types import did_you_mean


class Help(argparse.HelpFormatter):
    """Texts of one line are wrapped; those of several, such as examples, are shown as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" in text:
            return "\n".join(indent + line for line in text.splitlines())
        return super()._fill_text(text, width, indent)


class Parser(argparse.ArgumentParser):
    """A parser that names the nearest of the allowed words where one is wrong."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Help, **settings})

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            if isinstance(value, str) and action.choices is not None:
                error.message += did_you_mean(value, [str(choice) for choice in action.choices])
            raise


def add_command(
    commands: Any,
    name: str,
    *,
    run: Callable[[argparse.Namespace], int],
    help: str,
    examples: Sequence[str],
    kept: Callable[[argparse.Namespace], str],
    description: str | None = None,
    json: bool = False,
) -> argparse.ArgumentParser:
    """
    Add a command, and return its parser.

    :param commands: What `add_subparsers` returned.
    :param name: The command.
    :param run: Runs it and returns its exit code. With --json it leaves what is to be printed in `options.report`.
    :param help: What the list of commands says.
    :param examples: Whole command lines.
    :param kept: Says, by the options, what is left when the command is interrupted.
    :param description: What its own help says; None is `help`.
    :param json: Whether it has the option --json.
    """
    epilog = "examples:\n" + "\n".join(f"  {each}" for each in examples)
    text = description or f"{help[0].upper()}{help[1:]}."
    command = commands.add_parser(name, help=help, description=text, epilog=epilog)
    command.set_defaults(run=run, kept=kept, report=None, examples=tuple(examples))
    if json:
        command.add_argument(
            "--json", action="store_true", help="print the report as JSON, and everything else to the standard error"
        )
    return command
