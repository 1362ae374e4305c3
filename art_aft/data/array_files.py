"""Images and labels from NumPy's archives."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from art_aft.checks import check_path

# Bytes of one array, by what the archive declares.
_MOST_MEMORY = 2**36


def read_npz(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the arrays x and y of an `.npz` file.

    Nothing in the file is executed. No array is read whose shape does not match the bytes that it has.

    :param path: The file.
    :return: x and y as they are stored. Nothing is checked about pixels and labels.
    :raises ValueError: If the file is no such archive, is broken, lacks an array, or holds one of objects or of more
        than 64 GiB.
    """
    path = check_path("path", path)
    if not path.is_file():
        raise ValueError(f"path: got {path}, expected a .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("x", "y"):
                _check_array(archive, name)
        with np.load(path, allow_pickle=False) as arrays:
            # By their whole names: "x" would also be a member of that very name, which was not checked.
            return arrays["x.npy"], arrays["y.npy"]
    except Exception as error:  # a broken archive gives any of them
        why = str(error) or type(error).__name__
        raise ValueError(f"path: got {path}, expected a .npz file, whole, with arrays x and y: {why}") from error


def _check_array(archive: zipfile.ZipFile, name: str) -> None:
    """Check an array of an archive by its header."""
    names = archive.namelist()
    if names.count(f"{name}.npy") != 1:
        raise ValueError(f"it has {', '.join(map(ascii, sorted(names)[:5]))}")
    size = archive.getinfo(f"{name}.npy").file_size
    with archive.open(f"{name}.npy") as file:
        # Files of version 3 are of arrays with named fields.
        reader = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(np.lib.format.read_magic(file))
        if reader is None:
            raise ValueError(f"array {name} is of another version")
        shape, _, dtype = reader(file)
        declared = int(np.prod(shape, dtype=object)) * dtype.itemsize
        if dtype.hasobject:
            raise ValueError(f"array {name} holds objects")
        if declared > _MOST_MEMORY:
            raise ValueError(f"array {name} of shape {shape} would take {declared / 2**30:.0f} GiB")
        if declared != size - file.tell():
            raise ValueError(f"array {name} has {size - file.tell()} bytes, and its shape {shape} {declared}")
