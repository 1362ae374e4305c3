"""Image files in class folders or zips, from anywhere: what is broken or hostile is refused by name."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm.auto import tqdm

from art_aft.runtime.extras import extra
from art_aft.runtime.text import shown

#: The endings of files that are read.
ENDINGS = (
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
# What Pillow may take a file for, whatever its ending. Others, such as EPS, run further programs.
_KINDS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# What systems and editors leave in folders, beside hidden files.
_LEFTOVERS = frozenset({"__macosx", "thumbs.db", "desktop.ini"})
# Bytes: of all images together, and of one file in a zip, by what the zip declares.
_MOST_MEMORY = 2**36
_MOST_IN_A_FILE = 2**28
# How many files of a folder are read for its digest.
_SAMPLED = 64


def read_images(
    path: Path, *, size: tuple[int, int] | None = None, verbose: bool = False
) -> tuple[np.ndarray, list[str]]:
    """
    Return the images of a folder or zip of `<class>/<file>`, and the class name of each.

    Hidden files and folders are skipped, and what systems leave behind (`__MACOSX`, `Thumbs.db`). One warning counts
    other files that are not read. Images become RGB as Pillow converts them, but grey ones of 16 bits keep their
    range: 65535 becomes 255. Of an animated image the first picture is read.

    :param path: The folder or the zip.
    :param size: (H, W), to which images of another size are resized (bilinear); None expects all of one size.
    :param verbose: Whether to show a progress bar.
    :return: uint8 images of shape (N, 3, H, W), sorted by class and file name as text, and N class names.
    :raises ValueError: If there is no image, one cannot be read, images differ in size, or all together would take
        more than 64 GiB.
    :raises ImportError: If Pillow is missing.
    """
    with extra("images"):
        from PIL import Image

    with contextlib.ExitStack() as stack:
        files, others = stack.enter_context(_listed(path))
        _check_listing(path, files, others)
        # Below the size that is an error, Pillow only warns. A palette's transparency is dropped as alpha is.
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", "Palette images with Transparency")
        bar = tqdm(files, desc=f"Read {path.parent.name} {path.stem}", disable=None if verbose else True, leave=False)
        for row, file in enumerate(bar):
            with contextlib.ExitStack() as opened:
                with _naming(file.name, path):
                    image = opened.enter_context(Image.open(opened.enter_context(file.open()), formats=_KINDS))
                # The header tells the size: a picture of another one is not decoded.
                shape = (3, *(size or (image.height, image.width)))
                if row == 0:
                    images = _room(len(files), shape, path)
                if shape != images.shape[1:]:
                    raise ValueError(
                        f"path: got {shape} for {shown(file.name)} in {path}, expected all as {images.shape[1:]} "
                        "(scan and purify: --resize H W)"
                    )
                with _naming(file.name, path):
                    images[row] = _rgb(image, shape)
    return images, [file.name.split("/")[0] for file in files]


def contents(path: str | Path) -> str:
    """
    Return a digest of the images in a data folder, without reading them all: "" where there is no such folder.

    It covers names and sizes of all image files, their checksums in zips, and the bytes of up to 64 files of a folder.
    It does not depend on where the folder is.

    :param path: The folder of `train` and `test`, as for `image_folders`.
    :raises ValueError: If a zip cannot be read.
    """
    path = Path(path).resolve()
    places = [place for part in ("train", "test") if (place := part_of(path, part))]
    return _digest(tuple((place, _changed(place)) for place in places)) if path.is_dir() else ""


def part_of(path: Path, part: str) -> Path | None:
    """Return the folder `part` of a data folder, or else its `part`.zip. None if there is neither."""
    return next((place for place in (path / part, path / f"{part}.zip") if place.exists()), None)


@dataclass(frozen=True)
class _File:
    """An image file: `<class>/<file>`, its size in bytes, its checksum where it is known, and how to open it."""

    name: str
    size: int
    crc: int | None
    open: Callable[[], IO[bytes]]


@contextlib.contextmanager
def _listed(path: Path) -> Iterator[tuple[list[_File], list[str]]]:
    """Give the image files of a folder or zip, sorted by name, and the names of what is not read."""
    if not path.exists():
        raise ValueError(f"path: got {path}, expected a folder or a zip of images")
    with contextlib.ExitStack() as stack:
        files = list(_in_folder(path) if path.is_dir() else _in_zip(path, stack))
        kept = {file.name: file for file in files if not _left_over(file.name)}
        read = {name for name in kept if _is_image(name)}
        yield [kept[name] for name in sorted(read)], sorted(set(kept) - read)


def _in_folder(path: Path) -> Iterator[_File]:
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        if not entry.is_dir():
            yield _File(entry.name, 0, None, partial(_opened, entry.path))
        elif not _left_over(entry.name):
            for file in os.scandir(entry.path):
                # A folder in a class folder is not looked into, and reported.
                name, size = (f"{entry.name}/{file.name}", file.stat().st_size) if file.is_file() else ("", 0)
                yield _File(name or f"{entry.name}/{file.name}/", size, None, partial(_opened, file.path))


def _opened(path: str) -> IO[bytes]:
    return open(path, "rb")


def _in_zip(path: Path, stack: contextlib.ExitStack) -> Iterator[_File]:
    archive = stack.enter_context(_opened_zip(path))
    for member in archive.infolist():
        if not member.is_dir():
            yield _File(member.filename, member.file_size, member.CRC, partial(_unzipped, archive, member))


def _opened_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except Exception as error:  # a broken directory gives any of them
        raise ValueError(f"path: got {path}, expected a folder or a zip that is whole: {error}") from error


def _unzipped(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    """Return a member's bytes, whole, so that its checksum is compared. No more are read than the zip declares."""
    if member.file_size > _MOST_IN_A_FILE:
        raise ValueError(f"it would be {member.file_size / 2**30:.3g} GiB unpacked")
    return io.BytesIO(archive.read(member))


def _left_over(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in _LEFTOVERS for part in name.split("/"))


def _is_image(name: str) -> bool:
    folder, _, file = name.partition("/")
    return bool(folder) and "/" not in file and file.lower().endswith(ENDINGS)


def _check_listing(path: Path, files: Sequence[_File], others: Sequence[str]) -> None:
    """Refuse a listing without images, and warn of files that are not read."""
    found = f"{len(others)} other file(s), such as {shown(others[0])}" if others else "no other file"
    if not files:
        raise ValueError(f"path: got no image in {path} and {found}, expected <class>/<file> of {', '.join(ENDINGS)}")
    if others:
        warnings.warn(f"{path}: {found}, not read: they are not <class>/<file> of {', '.join(ENDINGS)}", stacklevel=4)


def _room(count: int, shape: tuple[int, int, int], path: Path) -> np.ndarray:
    """Return memory for all images, if as much is plausible."""
    size = count * int(np.prod(shape, dtype=object))
    if size > _MOST_MEMORY:
        raise ValueError(
            f"path: got {count} images of {shape} in {path}, together {size / 2**30:.0f} GiB, "
            f"expected at most {_MOST_MEMORY / 2**30:.0f} GiB"
        )
    return np.empty((count, *shape), dtype=np.uint8)


def _rgb(image: Any, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a picture of Pillow as uint8 of shape (3, H, W), resized where it has another one."""
    pixels = _as_it_is(image)
    if pixels.shape == shape:
        return pixels
    from PIL import Image

    # 2 is bilinear, in every release of Pillow.
    picture = Image.fromarray(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))
    return np.moveaxis(np.asarray(picture.resize(shape[:0:-1], 2)), -1, 0)


def _as_it_is(image: Any) -> np.ndarray:
    """Return a picture of Pillow as uint8 of shape (3, H, W)."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow would cut grey levels of 16 bits off at 255.
        grey = (np.asarray(image).astype(np.int64) + 128) // 257
        return np.broadcast_to(grey.astype(np.uint8), (3, *grey.shape))
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, whose range is unknown; expected 8 or 16 bits")
    return np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)


@contextlib.contextmanager
def _naming(name: str, path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with a file into an error that names it."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except Exception as error:  # decoders raise anything on broken files
        why = str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            why = f"it is none of {', '.join(_KINDS)}, or broken"
        elif isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
            why = f"it has more than {Image.MAX_IMAGE_PIXELS} pixels"
        raise ValueError(f"path: got {shown(name)} in {path}, expected an image that can be read: {why}") from error


def _changed(place: Path) -> tuple[int, ...]:
    """Return what changes with the listing: for a folder, times of it and of its class folders."""
    if place.is_dir():
        folders = sorted(entry.path for entry in os.scandir(place) if entry.is_dir())
        return tuple(os.stat(folder).st_mtime_ns for folder in (str(place), *folders))
    return place.stat().st_mtime_ns, place.stat().st_size


@lru_cache(maxsize=64)
def _digest(places: tuple[tuple[Path, tuple[int, ...]], ...]) -> str:
    """Return the digest of listings. A grid asks for it again with every cell."""
    digest = hashlib.sha256()
    for place, _ in places:
        with _listed(place) as (files, _others):
            step = -(-len(files) // _SAMPLED)
            for number, file in enumerate(files):
                crc = file.crc
                if crc is None and number % step == 0:
                    with file.open() as stream:
                        crc = zlib.crc32(stream.read())
                line = f"{place.stem}/{file.name}\0{file.size}\0{crc}\n"
                digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
