"""Files that appear whole or not at all, and a lock between processes."""

from __future__ import annotations

import glob
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def replacing(path: Path, write: Callable[[Path], Any]) -> None:
    """
    Write a file beside its place and move it there, so that a killed process leaves no half file.

    :param path: Where the file goes; its folder is made.
    :param write: Called with the temporary path.
    """
    replacing_all({path: write})


def replacing_all(writes: Mapping[Path, Callable[[Path], Any]]) -> None:
    """
    Write several files beside their places, and move them there when all of them are whole.

    A process that is killed between two moves leaves the first files without the last one, which should therefore be
    able to tell whether the others belong to it. Temporary files of a killed process are removed by the next one that
    writes the same file, where the system has `flock`.

    :param writes: For each path what writes it, called with a temporary path. Folders are made.
    """
    temporary: dict[Path, Path] = {}
    handles: list[int | None] = []
    try:
        for path, write in writes.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_remains(path)
            temporary[path], handle = _new_part(path)
            handles.append(handle)
            write(temporary[path])
        for path, part in temporary.items():
            os.replace(part, path)
    finally:
        for part in temporary.values():
            part.unlink(missing_ok=True)
        for handle in handles:
            if handle is not None:
                os.close(handle)


def _new_part(path: Path) -> tuple[Path, int | None]:
    """Return a temporary path beside a file's, and the handle of its lock, if there is one."""
    for _ in range(10):
        # A process may write the same file in two threads, and two machines may have processes of the same number.
        part = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        handle = _hold(part)
        if handle is not None:
            break
        # Another writer may have taken it for a remain, before it was locked here, and may be about to remove it.
    return part, handle


def _hold(part: Path) -> int | None:
    """Return the handle of a file's lock; None if it is held by another, or where there are no such locks."""
    if fcntl:
        with suppress(OSError):  # some network file systems have no locks
            return _take(part)
    return None


def _remove_remains(path: Path) -> None:
    """Remove the temporary files beside a path that nobody is writing: who wrote them was killed."""
    for part in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        handle = _hold(part)
        if handle is not None:
            part.unlink(missing_ok=True)
            os.close(handle)


@contextmanager
def locked(path: Path, *, timeout: float = 60.0, wait: float = 0.02) -> Iterator[None]:
    """
    Run a block while no other process runs one for the same file.

    Where the system has `flock`, a killed process leaves no lock. Elsewhere it leaves the file `path`.lock.

    :param path: The file that the block reads and changes. Its folder is made.
    :param timeout: Seconds after which to give up.
    :param wait: Seconds between two tries.
    :raises TimeoutError: If another process holds the lock for longer than `timeout`.
    """
    lock = path.with_name(path.name + ".lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + timeout
    while (handle := _take(lock)) is None:
        if time.monotonic() > end:
            raise TimeoutError(f"{lock}: got no lock in {timeout:g} seconds; delete it if no other process runs")
        time.sleep(wait)
    try:
        yield
    finally:
        if fcntl:
            lock.unlink(missing_ok=True)
            os.close(handle)
        else:
            os.close(handle)
            lock.unlink(missing_ok=True)


def _take(lock: Path) -> int | None:
    """Return the handle of the lock file if the lock is free, else None."""
    if fcntl is None:
        try:
            return os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        except FileExistsError:
            return None
    handle = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The one who held the lock may have deleted the file since it was opened here.
        if os.path.samestat(os.fstat(handle), os.stat(lock)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8; the file appears whole or not at all."""
    replacing(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any, *, indent: int = 2) -> None:
    """
    Write a value as JSON; the file appears whole or not at all.

    :param path: Where the file goes.
    :param value: Values that JSON knows.
    :param indent: Spaces an inner level.
    :raises ValueError: If a number is NaN or infinite, which JSON does not know.
    """
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")
