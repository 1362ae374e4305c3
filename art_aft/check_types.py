"""Checks of what kind an argument is of. `art_aft.checks` has them all."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

T = TypeVar("T")


def check_instance(name: str, value: Any, kind: type[T], expected: str) -> T:
    """Return `value` if it is of a class, whose name or description is `expected`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {value!r:.80} ({type(value).__name__}), expected {expected}")
    return value


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """
    Return a question about the known word that is nearest to a wrong one, to be put behind it; empty if none is near.

    >>> did_you_mean("Neural-Cleanse", ["nad", "neural_cleanse"]), did_you_mean("x", ["nad"])
    (" (did you mean 'neural_cleanse'?)", '')

    :param word: The wrong word.
    :param known: The known ones.
    """
    simple = {each.lower().replace("-", "_"): each for each in known}
    near = difflib.get_close_matches(word.lower().replace("-", "_"), simple, n=1)
    return f" (did you mean {simple[near[0]]!r}?)" if near else ""


def check_text(name: str, value: Any) -> str:
    """Return `value` if it is text."""
    return check_instance(name, value, str, "text")


def check_callable(name: str, value: T) -> T:
    """Return `value` if it can be called."""
    if not callable(value):
        raise TypeError(f"{name}: got {value!r:.80} ({type(value).__name__}), expected a callable")
    return value


def check_mapping(name: str, value: Any) -> Mapping[str, Any]:
    """Return `value` if it is a mapping from names."""
    for key in check_instance(name, value, Mapping, "a mapping from names to values"):  # type: ignore[type-abstract]
        check_instance(name, key, str, "names as keys")
    return value


def check_sequence(name: str, value: Any) -> tuple[Any, ...]:
    """Return the entries of a list, a tuple or an array."""
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, (str, bytes)) or np.ndim(value) == 0:
        raise TypeError(f"{name}: got {value!r:.80} ({type(value).__name__}), expected a list or tuple")
    return tuple(value)


def check_path(name: str, value: Any) -> Path:
    """Return `value` as a path."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name}: got {value!r:.80} ({type(value).__name__}), expected a path")
    return Path(value)


@contextmanager
def within(name: str) -> Iterator[None]:
    """
    Have errors of a block begin with the argument whose parts the block checks.

    >>> with within("candidates"):
    ...     check_text("precision", 1)
    Traceback (most recent call last):
    TypeError: candidates: precision: got 1 (int), expected text

    :param name: The argument's name.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: {str(error).removeprefix(f'{name}: ')}") from None


@contextmanager
def naming(**names: str) -> Iterator[None]:
    """
    Have errors of a block about one argument name another, from which that one comes.

    >>> with naming(x="x_test"):
    ...     check_text("x", 1)
    Traceback (most recent call last):
    TypeError: x_test: got 1 (int), expected text

    :param names: The name in the block, and for it the one that the user knows.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        name, _, rest = str(error).partition(": ")
        if name not in names:
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{names[name]}: {rest}") from None
