"""Optional packages: who misses one is told the extra that it comes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def extra(name: str) -> Iterator[None]:
    """
    Say of a package that cannot be imported in this block which extra it comes with.

    :param name: The extra, such as "plots".
    :raises ModuleNotFoundError: If the package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        message = f"{package} is missing, and comes with: pip install 'art-aft[{name}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
