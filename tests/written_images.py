"""Image files for tests, in folders and zips."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

RNG = np.random.default_rng(0)

both = pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])


def encoded(pixels=None, kind="PNG", **more):
    """Return the bytes of an image file."""
    pixels = RNG.integers(0, 256, (6, 5, 3)).astype(np.uint8) if pixels is None else pixels
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def place(where, files, packed):
    """Write files by name into a folder, or into a zip; return its path."""
    if packed:
        with zipfile.ZipFile(where.with_suffix(".zip"), "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return where.with_suffix(".zip")
    for name, data in files.items():
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_bytes(data)
    return where


def few_files():
    """Return three files of random pixels in each of two classes, the same ones in every call."""
    rng = np.random.default_rng(1)
    names = [f"{name}/{number}.png" for name in "ab" for number in range(3)]
    return {name: encoded(rng.integers(0, 256, (6, 5, 3)).astype(np.uint8)) for name in names}
