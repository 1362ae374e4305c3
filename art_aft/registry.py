"""Names for things that come in kinds: attacks, defences, models."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """
    A read-only mapping from names to what was registered under them.

    :param kind: What the names stand for, for error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """
        Return a decorator that registers its object under `name`.

        :param name: The name, as the command line spells it.
        :raises ValueError: If another object already has this name.
        """

        def decorate(entry: T) -> T:
            if name in self._entries and self._entries[name] is not entry:
                raise ValueError(f"name: {self.kind} {name!r} is registered already, expected a new name")
            self._entries[name] = entry
            return entry

        return decorate

    def discover(self, package: str, path: list[str]) -> None:
        """
        Import every module of a package, so that a new file is enough to register a new entry.

        :param package: The package's dotted name.
        :param path: The package's `__path__`.
        """
        for module in pkgutil.iter_modules(path):
            importlib.import_module(f"{package}.{module.name}")

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise ValueError(f"unknown {self.kind} {name!r}, expected one of: {', '.join(sorted(self._entries))}")
        return self._entries[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return the entry, or `default` for an unknown name."""
        return self._entries.get(name, default)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
