"""Archives of arrays from strangers: read whole, or refused by name."""

import io
import random
import zipfile

import numpy as np
import pytest

from art_aft.data.array_files import read_npz

RNG = np.random.default_rng(0)


def attempt(path):
    """Return the arrays and no error, or None and the text of the ValueError."""
    try:
        return read_npz(path), ""
    except ValueError as error:
        return None, str(error)


@pytest.fixture
def path(tmp_path):
    np.savez_compressed(tmp_path / "d.npz", x=RNG.integers(0, 256, (20, 3, 8, 8)).astype(np.uint8), y=np.arange(20))
    return tmp_path / "d.npz"


def refused(path, why=""):
    with pytest.raises(ValueError, match=rf"path: got .*{path.name}, expected a \.npz file.*{why}"):
        read_npz(path)


def test_arrays_come_back(path):
    x, y = read_npz(path)
    with np.load(path) as arrays:
        np.testing.assert_array_equal(x, arrays["x"])
    assert y.tolist() == list(range(20))


def test_truncated_files(path):
    data = path.read_bytes()
    for share in np.linspace(0, 0.999, 20):
        path.write_bytes(data[: int(share * len(data))])
        refused(path)


def test_flipped_bits_are_an_error_that_names_the_file_or_leave_the_arrays(path):
    data, rng, errors = path.read_bytes(), random.Random(0), 0
    expected = read_npz(path)
    for _ in range(200):
        flipped = bytearray(data)
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        found, error = attempt(path)
        errors += found is None
        assert str(path) in error if found is None else all(map(np.array_equal, found, expected))
    assert errors > 100


def test_other_files(path):
    path.write_text("x,y\n1,2\n")
    refused(path, "not a zip file")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused(path, "not a zip file")
    refused(path.with_name("none.npz"))
    np.savez(path, images=np.zeros(3))
    refused(path, r"images\.npy")
    np.savez(path, x=np.zeros(3), y=np.array([{}]))
    refused(path, "array y holds objects")


def test_a_header_that_declares_more_than_there_is(path):
    for shape, why in (((10**9, 3, 32, 32), "GiB"), ((21,), "has 160 bytes, and its shape")):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": shape})
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", header.getvalue() + bytes(160))
            archive.writestr("y.npy", header.getvalue() + bytes(160))
        refused(path, why)


def test_a_second_member_that_was_not_checked_is_not_read(path):
    expected = read_npz(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x", b"other bytes")
    assert all(map(np.array_equal, read_npz(path), expected))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("y.npy", b"other bytes")
    refused(path)
