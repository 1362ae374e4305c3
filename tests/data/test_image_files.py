"""Folders and zips of image files from strangers: every kind is read right or refused by name."""

import io
import random
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile
from written_images import both, encoded, few_files, place

from art_aft.data import image_files
from art_aft.data.datasets import labelled_images

RNG = np.random.default_rng(0)


def attempt(read, path):
    """Return what comes back and no error, or None and the text of the ValueError."""
    try:
        return read(path), ""
    except ValueError as error:
        return None, str(error)


class TestListing:
    @both
    def test_what_systems_leave_behind_is_no_class_and_no_image(self, tmp_path, packed):
        files = {"a/x.png": encoded(), "b/x.png": encoded()}
        left = ["__MACOSX/._a", "__MACOSX/x.png", "__MACOSX/a/._x.png", "a/._x.png", ".DS_Store", "a/.DS_Store"]
        left += ["a/Thumbs.db", "b/desktop.ini", ".ipynb_checkpoints/x.png", "a/.ipynb_checkpoints/x.png", ".git/y.png"]
        path = place(tmp_path / "data", files | dict.fromkeys(left, b"no image"), packed)
        x, y, classes = labelled_images(path)
        assert classes == ["a", "b"]
        assert y.tolist() == [0, 1]
        for image, data in zip(x, files.values(), strict=True):
            np.testing.assert_array_equal(np.moveaxis(image, 0, -1), np.asarray(Image.open(io.BytesIO(data))))

    @both
    def test_one_warning_counts_files_that_are_not_read(self, tmp_path, packed):
        files = {"a/x.png": encoded(), "a/boxes.csv": b"1", "README": b"2", "a/deep/x.png": encoded()}
        path = place(tmp_path / "data", files, packed)
        with pytest.warns(UserWarning, match=r"data.*: 3 other file\(s\), such as 'README', not read") as found:
            x, _, _ = labelled_images(path)
        assert len(found) == 1
        assert len(x) == 1

    @both
    def test_without_images_the_error_names_what_is_there(self, tmp_path, packed):
        path = place(tmp_path / "data", {"train/a/x.heic": b""}, packed)
        with pytest.raises(ValueError, match=r"got no image in .*data.* and 1 other file\(s\), such as 'train/a"):
            labelled_images(path)
        with pytest.raises(ValueError, match="nowhere, expected a folder or a zip"):
            labelled_images(tmp_path / "nowhere")

    def test_names_cannot_steer_the_terminal(self, tmp_path):
        path = place(tmp_path / "data", {"a/\x1b[2J.png": b"none"}, packed=True)
        with pytest.raises(ValueError, match=r"got 'a/\\x1b\[2J\.png' in"):
            labelled_images(path)


class TestKinds:
    @both
    @pytest.mark.parametrize(
        ("ending", "kind", "more"),
        [
            ("png", "PNG", {}),
            ("bmp", "BMP", {}),
            ("ppm", "PPM", {}),
            ("pnm", "PPM", {}),
            ("tif", "TIFF", {}),
            ("TIFF", "TIFF", {}),
            ("webp", "WEBP", {"lossless": True}),
            ("jpg", "JPEG", {}),
            ("JPEG", "JPEG", {}),
            ("jfif", "JPEG", {}),
            ("gif", "GIF", {}),
        ],
    )
    def test_each_ending_is_read_beside_png(self, tmp_path, ending, kind, more, packed):
        pixels = np.full((6, 5, 3), 200, np.uint8)  # one colour: lossy kinds keep it
        path = place(tmp_path / "data", {"a/0.png": encoded(), f"a/1.{ending}": encoded(pixels, kind, **more)}, packed)
        x, _, _ = labelled_images(path)
        np.testing.assert_array_equal(x[1], 200)

    @pytest.mark.parametrize(("ending", "kind"), [("png", "PNG"), ("pgm", None), ("tif", "TIFF")])
    def test_grey_of_16_bits_keeps_its_levels(self, tmp_path, ending, kind):
        levels = np.arange(256).reshape(16, 16)
        pixels = (257 * levels).astype(np.uint16)
        # Old releases of Pillow read such a PGM file, but do not write it.
        content = encoded(pixels, kind) if kind else b"P5 16 16 65535\n" + pixels.astype(">u2").tobytes()
        path = place(tmp_path / "data", {f"a/x.{ending}": content}, False)
        x, _, _ = labelled_images(path)
        np.testing.assert_array_equal(x[0], np.broadcast_to(levels, (3, 16, 16)))

    def test_other_grey_levels_of_16_bits_are_rounded(self, tmp_path):
        levels = np.array([[0, 128, 129, 385, 386, 32767, 65406, 65407, 65535]], np.uint16)
        x, _, _ = labelled_images(place(tmp_path / "data", {"a/x.png": encoded(levels)}, False))
        assert x[0, 0].tolist() == [[0, 0, 1, 1, 2, 127, 254, 255, 255]]

    def test_pixels_of_unknown_range_are_refused(self, tmp_path):
        path = place(tmp_path / "data", {"a/x.tif": encoded(np.ones((4, 4), np.float32), "TIFF")}, False)
        with pytest.raises(ValueError, match=r"got 'a/x\.tif' in .* 32 bits"):
            labelled_images(path)

    @pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "P with alpha"])
    def test_palette_grey_and_alpha_become_rgb_as_pillow_has_it(self, tmp_path, mode):
        image = Image.fromarray(RNG.integers(0, 256, (6, 5, 4)).astype(np.uint8), "RGBA")
        image = image.quantize(8) if mode == "P with alpha" else image.convert("RGB").convert(mode)
        data = encoded(image, **({"transparency": bytes(range(8))} if mode == "P with alpha" else {}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        x, _, _ = labelled_images(place(tmp_path / "data", {"a/x.png": data}, False))
        np.testing.assert_array_equal(np.moveaxis(x[0], 0, -1), expected)


class TestBroken:
    @both
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
    def test_a_truncated_image_is_named(self, tmp_path, kind, share, packed):
        data = encoded(RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8), kind)
        path = place(tmp_path / "data", {"a/bad.png": data[: int(share * len(data))]}, packed)
        with pytest.raises(ValueError, match=r"path: got 'a/bad\.png' in .*data.*, expected an image that can be read"):
            labelled_images(path)

    def test_an_image_of_a_kind_that_starts_other_programs_is_refused(self, tmp_path):
        path = place(tmp_path / "data", {"a/x.png": encoded(kind="EPS")}, False)
        with pytest.raises(ValueError, match=r"'a/x\.png' .* it is none of BMP"):
            labelled_images(path)

    @both
    def test_a_picture_of_another_size_is_refused_undecoded(self, tmp_path, packed, monkeypatch):
        monkeypatch.setattr(ImageFile.ImageFile, "load", _only_small(ImageFile.ImageFile.load))
        large = encoded(Image.new("1", (8000, 8000)))
        path = place(tmp_path / "data", {"a/0.png": encoded(), "a/1.png": large}, packed)
        with pytest.raises(ValueError, match=r"got \(3, 8000, 8000\) for 'a/1\.png' in"):
            labelled_images(path)

    @both
    @pytest.mark.parametrize("name", ["a/0.png", "b/1.png"])
    @pytest.mark.parametrize("size", [(12_000, 10_000), (20_000, 10_000)])  # Pillow warns of one, and refuses the other
    def test_a_decompression_bomb_is_refused_undecoded(self, tmp_path, size, name, packed, monkeypatch):
        monkeypatch.setattr(ImageFile.ImageFile, "load", _only_small(ImageFile.ImageFile.load))
        files = {"a/0.png": encoded(), "b/1.png": encoded(), name: encoded(Image.new("1", size))}
        path = place(tmp_path / "data", files, packed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as a user may have it
            with pytest.raises(ValueError, match=rf"got '{name}' in .* pixels"):
                labelled_images(path)

    def test_no_more_memory_is_asked_for_than_is_plausible(self, tmp_path, monkeypatch):
        monkeypatch.setattr(image_files, "_MOST_MEMORY", 2 * 90 - 1)
        path = place(tmp_path / "data", {"a/0.png": encoded(), "a/1.png": encoded()}, False)
        with pytest.raises(ValueError, match=r"got 2 images of \(3, 6, 5\) in .*, together 0 GiB, expected at most"):
            labelled_images(path)


def _only_small(load):
    def checked(image):
        assert image.width * image.height < 10_000, "it was decoded"
        return load(image)

    return checked


class TestHostileZips:
    FILES = few_files()

    def refused(self, path, match):
        with pytest.raises(ValueError, match=match) as caught:
            labelled_images(path)
        assert str(path) in str(caught.value)

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_a_truncated_zip(self, tmp_path, share):
        path = place(tmp_path / "data", self.FILES, True)
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        self.refused(path, "expected a folder or a zip that is whole")

    @pytest.mark.parametrize(
        ("offset", "value", "why"),
        [
            (8, 1, "encrypted, password"),  # a flag
            (10, 99, "compression"),
            (10, 8, "invalid"),  # stored bytes that pass for deflated ones
            (16, 0, "CRC"),
            (24, 2**32 - 2, "4 GiB unpacked"),
        ],
    )
    def test_a_member_whose_entry_in_the_directory_is_wrong(self, tmp_path, offset, value, why):
        path = place(tmp_path / "data", self.FILES, True)
        data = bytearray(path.read_bytes())
        entry = data.index(b"PK\x01\x02")
        form = "<H" if offset < 16 else "<I"
        struct.pack_into(form, data, entry + offset, value)
        local = {8: 6, 10: 8}.get(offset)  # the same field in the member's own header
        if local:
            struct.pack_into(form, data, local, value)
        path.write_bytes(data)
        self.refused(path, rf"got 'a/0\.png' in .*{why}")

    def test_a_flipped_bit_that_pillow_does_not_see(self, tmp_path):
        path = place(tmp_path / "data", {"a/0.bmp": encoded(kind="BMP") + bytes(300_000)}, True)
        data = bytearray(path.read_bytes())
        data[data.index(b"BM") + 60] ^= 1  # a pixel
        path.write_bytes(data)
        self.refused(path, r"got 'a/0\.bmp' in .*CRC")

    def test_flipped_bits_are_an_error_that_names_the_file_or_leave_the_pixels(self, tmp_path):
        path = place(tmp_path / "data", self.FILES, True)
        data, rng, errors = path.read_bytes(), random.Random(0), 0
        pixels = {image.tobytes() for image in labelled_images(path)[0]}
        for _ in range(150):
            flipped = bytearray(data)
            flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes(flipped)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a name may have changed
                found, error = attempt(labelled_images, path)
            errors += found is None
            assert str(path) in error if found is None else {image.tobytes() for image in found[0]} <= pixels
        assert errors > 100


@both
def test_images_of_several_sizes_are_resized_on_request(tmp_path, packed):
    """Against Pillow's own bilinear filter; what has the size already is not touched."""
    rng = np.random.default_rng(2)
    large, small = (rng.integers(0, 256, (*side, 3)).astype(np.uint8) for side in ((9, 14), (6, 5)))
    deep = Image.fromarray(np.full((12, 10), 65535, np.uint16))
    files = {"a/0.png": encoded(large), "a/1.png": encoded(small), "b/0.png": encoded(deep)}
    path = place(tmp_path / "data", files, packed)
    x, y, _ = labelled_images(path, size=(6, 5))
    assert x.shape == (3, 3, 6, 5)
    assert y.tolist() == [0, 0, 1]
    expected = np.asarray(Image.fromarray(large).resize((5, 6), Image.BILINEAR))
    np.testing.assert_array_equal(x[0], expected.transpose(2, 0, 1))
    np.testing.assert_array_equal(x[1], small.transpose(2, 0, 1))
    assert (x[2] == 255).all()
    with pytest.raises(ValueError, match=r"got \(3, 6, 5\) for 'a/1.png' in .*--resize H W"):
        labelled_images(path)
