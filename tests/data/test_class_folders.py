"""The order of class folders, and the digest that tells data folders apart."""

import os
import random

import numpy as np
import pytest
from written_images import both, encoded, few_files, place

from art_aft.data.class_names import class_labels, class_order, read_class_names
from art_aft.data.datasets import image_folders, labelled_images
from art_aft.data.image_files import contents


class TestClassOrder:
    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            ([str(n) for n in range(11)], [str(n) for n in range(11)]),
            ([f"{n:05}" for n in range(43)], [f"{n:05}" for n in range(43)]),
            (["0", "90", "180", "270"], ["0", "90", "180", "270"]),
            (["n10", "n9", "2"], ["2", "n10", "n9"]),
            (["10", "9", "²"], ["10", "9", "²"]),
            ([], []),
        ],
    )
    def test_numbers_are_sorted_as_numbers_and_others_as_text(self, names, expected):
        shuffled = random.Random(1).sample([*names, *names], 2 * len(names))
        assert class_order(shuffled) == expected

    def test_two_names_of_one_number_are_refused(self):
        with pytest.raises(ValueError, match="'01' and '1'"):
            class_order(["1", "01", "2"])

    @both
    def test_both_readers_have_it(self, tmp_path, packed):
        names = [str(n) for n in range(11)]
        colours = {f"{name}/x.png": encoded(np.full((4, 4, 3), int(name), np.uint8)) for name in names}
        root = tmp_path / "data"
        root.mkdir()
        paths = [place(root / part, colours, packed) for part in ("train", "test")]
        data = image_folders(root)
        assert data.x_train[:, 0, 0, 0].tolist() == data.y_train.tolist() == data.y_test.tolist()
        x, y, classes = labelled_images(paths[0])
        assert classes == names
        assert x[:, 0, 0, 0].tolist() == y.tolist()

    @pytest.mark.parametrize(
        ("names", "nb_classes", "expected"),
        [
            (["0", "180", "270", "90"], 4, [0, 2, 3, 1]),
            (["0", "1", "10"], 11, [0, 1, 10]),
            (["1", "2", "3"], 3, [0, 1, 2]),
            (["cat", "bird"], 2, [1, 0]),
        ],
    )
    def test_labels_for_a_classifier(self, names, nb_classes, expected):
        labels = class_labels(names, nb_classes)
        assert labels.dtype == np.int64
        assert labels.tolist() == expected

    @pytest.mark.parametrize(("names", "nb_classes"), [(["cat", "bird"], 3), (["0", "90"], 4), (["0", "1", "2"], 2)])
    def test_labels_that_cannot_be_known_are_refused(self, names, nb_classes):
        with pytest.raises(ValueError, match=rf"got {len(names)} class folders, expected {nb_classes}, or fewer"):
            class_labels(names, nb_classes)


class TestListOfNames:
    @pytest.mark.parametrize("ending", ["", "\n", "\r\n", "\n\n"])
    @pytest.mark.parametrize("mark", ["", "\ufeff"])
    def test_the_line_is_the_label(self, tmp_path, ending, mark):
        (tmp_path / "names.txt").write_text(mark + "truck\ngrüner Frosch\r\n1" + ending, encoding="utf-8", newline="")
        order = read_class_names(tmp_path / "names.txt")
        assert order == ["truck", "grüner Frosch", "1"]
        assert class_labels(["1", "truck", "grüner Frosch"], 3, order).tolist() == [2, 0, 1]
        assert class_labels(["1"], 3, order).tolist() == [2]  # the others have no image

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a\n\nb", "got nothing in line 2 of .*names.txt"),
            (b"a\nb\na\n", "got 'a' again in line 3 of .*names.txt"),
            (b"a\n\xff\n", "got .*names.txt, expected a text file in UTF-8"),
        ],
    )
    def test_what_is_no_such_list_is_refused(self, tmp_path, content, message):
        (tmp_path / "names.txt").write_bytes(content)
        with pytest.raises(ValueError, match=f"^path: {message}"):
            read_class_names(tmp_path / "names.txt")

    @pytest.mark.parametrize(
        ("order", "message"),
        [
            (["a", "b"], "got 2 names, expected one for each of the model's 3 classes"),
            (["a", "b", "c", "d"], "got 4 names, expected one for each of the model's 3 classes"),
            ([], "got 0 names"),
            (["a", "x", "y"], r"got no line for 2 class folder\(s\), such as 'b', expected all"),
        ],
    )
    def test_a_list_of_other_classes_is_refused(self, order, message):
        with pytest.raises(ValueError, match=f"^order: {message}"):
            class_labels(["a", "b", "c"], 3, order)


class TestContents:
    FILES = few_files()

    def root(self, tmp_path, name, files, packed):
        (tmp_path / name).mkdir(parents=True)
        for part in ("train", "test"):
            place(tmp_path / name / part, files, packed)
        return tmp_path / name

    @both
    def test_it_tells_data_apart_but_not_where_they_lie(self, tmp_path, packed):
        one = contents(self.root(tmp_path, "here/data", self.FILES, packed))
        others = [
            {**self.FILES, "c/0.png": encoded()},
            {**self.FILES, "a/0.png": encoded() + b"longer"},
            {**self.FILES, "a/0.png": bytes(len(self.FILES["a/0.png"]))},  # of the same size
            {name.replace("b/", "c/"): data for name, data in self.FILES.items()},
            dict(list(self.FILES.items())[1:]),
        ]
        digests = [contents(self.root(tmp_path, f"{n}/data", files, packed)) for n, files in enumerate(others)]
        assert len({one, *digests}) == 6
        same = {**self.FILES, "a/.DS_Store": b"", "__MACOSX/a/._0.png": b""}
        assert contents(self.root(tmp_path, "there/data", same, packed)) == one

    @both
    def test_a_change_is_seen_by_a_running_process(self, tmp_path, packed):
        root = self.root(tmp_path, "data", self.FILES, packed)
        before = contents(root)
        place(root / "train", {**self.FILES, "a/9.png": encoded()}, packed)
        # As if it were later: two changes may come within one tick of the file system's clock.
        os.utime(root / "train.zip" if packed else root / "train" / "a", ns=(1, 1))
        assert contents(root) != before

    def test_there_is_none_without_a_folder_and_a_broken_zip_is_named(self, tmp_path):
        assert contents(tmp_path / "cifar10") == contents("digits") == ""
        (tmp_path / "train.zip").write_bytes(b"PK")
        with pytest.raises(ValueError, match=r"train\.zip, expected a folder or a zip that is whole"):
            contents(tmp_path)
