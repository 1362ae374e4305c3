"""Names for things that come in kinds: attacks, defences, detectors, models."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from art_aft.check_types import did_you_mean

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Registry(Mapping[str, T], Generic[T]):
    """
    A read-only mapping from names to what was registered under them.

    Entries come from `register`, from the modules that `discover` imports, and from the entry points of installed
    packages, which are loaded when the registry is first looked into.

    >>> shapes = Registry("shape")
    >>> @shapes.register("square")
    ... class Square: ...
    >>> list(shapes)
    ['square']

    :param kind: What the names stand for, for error messages.
    :param group: The group of entry points by which other packages add entries, such as "art_aft.defences"; None is
        none.
    """

    def __init__(self, kind: str, group: str | None = None) -> None:
        self.kind, self.group = kind, group
        self._own: dict[str, T] = {}
        self._loaded = group is None

    def register(self, name: str) -> Callable[[T], T]:
        """
        Return a decorator that registers its object under `name`.

        :param name: The name, as the command line spells it.
        :raises ValueError: If another object already has this name.
        """

        def decorate(entry: T) -> T:
            if name in self._own and self._own[name] is not entry:
                raise ValueError(f"name: {self.kind} {name!r} is registered already, expected a new name")
            self._own[name] = entry
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

    @property
    def _entries(self) -> dict[str, T]:
        """All entries, those of other packages included. A package that cannot be loaded is logged and left out."""
        if not self._loaded:
            self._loaded = True  # first, for a package may look into the registry while it is being imported
            for point in entry_points(group=self.group or ""):
                try:
                    self.register(point.name)(point.load())
                except Exception as error:  # whatever a foreign package raises must not take the others with it
                    logger.warning("%s %r of %s cannot be loaded: %s", self.kind, point.name, point.value, error)
        return self._own

    def __getitem__(self, name: str) -> T:
        if not isinstance(name, str) or name not in self._entries:
            near = did_you_mean(name, self._entries) if isinstance(name, str) else ""
            raise ValueError(f"unknown {self.kind} {name!r}{near}, expected one of: {', '.join(sorted(self._entries))}")
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
