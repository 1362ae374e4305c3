"""What images can tell about a classifier, by counts done by hand."""

import numpy as np
import pytest

from art_aft.classifiers.bar import judge

FOUR = np.arange(40) % 4


def test_enough_images_of_all_classes_have_no_note():
    judged = judge(FOUR, 0.5, 20, nb_classes=4)
    assert judged.notes == ()
    assert judged.trusted


def test_fewer_than_five_images_a_class_are_few_which_only_warns():
    judged = judge(FOUR[:19], 1.0, 19, nb_classes=4)
    assert judged.notes == ("only 19 images for 4 classes, 20 or more are needed",)
    assert judged.trusted


@pytest.mark.parametrize(
    ("present", "absent"),
    [
        ([0, 2, 3], "1"),
        ([1, 3], "0, 2"),
    ],
)
def test_missing_classes_are_named(present, absent):
    judged = judge(np.repeat(present, 10), 1.0, 20, nb_classes=4)
    assert judged.notes == (f"images of only {len(present)} of 4 classes, none of {absent}",)
    assert not judged.trusted


def test_a_handful_of_missing_classes_is_named_and_the_others_counted():
    notes = [judge(np.arange(2), 1.0, 500, nb_classes=count).missing for count in (7, 8, 100)]
    assert notes == [
        "images of only 2 of 7 classes, none of 2, 3, 4, 5, 6",
        "images of only 2 of 8 classes, none of 2, 3, 4, 5, 6 and 1 other",
        "images of only 2 of 100 classes, none of 2, 3, 4, 5, 6 and 93 others",
    ]


@pytest.mark.parametrize(("accuracy", "trusted"), [(0.49, False), (0.5, True), (0.0, False)])
def test_below_half_of_the_images_right_nothing_is_trusted(accuracy, trusted):
    judged = judge(FOUR[:19], accuracy, 19, nb_classes=4)
    assert judged.trusted is trusted
    assert bool(judged.inaccurate) is not trusted
    assert not judged.hopeless  # none right of 19 may be chance


def test_none_right_of_twenty_is_hopeless_and_says_what_to_check():
    judged = judge(FOUR, 0.0, 20, nb_classes=4)
    assert "20 images of which the classifier gets none right" in judged.hopeless
    for word in ("order of the labels", "mean and std", "pixel range"):
        assert word in judged.hopeless
    assert judged.notes == (judged.hopeless,)
    assert not judge(FOUR, 1 / 20, 20, nb_classes=4).hopeless


def test_one_class_alone_is_hopeless_however_accurate():
    judged = judge(np.full(30, 2), 1.0, 30, nb_classes=4)
    assert judged.hopeless == "images of class 2 alone, expected images of all 4 classes"
    assert not judged.trusted
