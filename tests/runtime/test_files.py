"""Files appear whole or not at all."""

import json
import os

import pytest

from art_aft.runtime.files import replacing, write_json, write_text


def test_a_file_and_its_folder_appear(tmp_path):
    write_text(tmp_path / "new" / "file.txt", "gr\u00fcn\n")
    assert (tmp_path / "new" / "file.txt").read_bytes() == "gr\u00fcn\n".encode()
    assert os.listdir(tmp_path / "new") == ["file.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    place = tmp_path / "rows.json"
    write_json(place, [1])

    def fail(file):
        file.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replacing(place, fail)
    assert json.loads(place.read_text()) == [1]
    assert os.listdir(tmp_path) == ["rows.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_does_not_know_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "rows.json", {"eps": value})
    assert os.listdir(tmp_path) == []
