"""Label maps by hand."""

import numpy as np
import pytest

from art_aft.attacks.labels import AllToAll, AllToOne


def test_all_to_one_is_constant():
    assert AllToOne(3)(np.array([0, 3, 9])).tolist() == [3, 3, 3]


def test_all_to_all_is_the_next_class():
    assert AllToAll(3)(np.array([0, 1, 2, 0])).tolist() == [1, 2, 0, 1]


def test_label_maps_compare_by_value():
    assert AllToOne(3) == AllToOne(3) != AllToOne(4)
    assert AllToAll(3) == AllToAll(3) != AllToAll(4)


@pytest.mark.parametrize(
    ("make", "value", "error", "message"),
    [
        (AllToOne, -1, ValueError, "target: got -1"),
        (AllToOne, 1.0, TypeError, "target: got 1.0"),
        (AllToOne, True, TypeError, "target: got True"),
        (AllToAll, 1, ValueError, "nb_classes: got 1"),
        (AllToAll, "10", TypeError, "nb_classes: got '10'"),
    ],
)
def test_label_maps_refuse_bad_numbers(make, value, error, message):
    with pytest.raises(error, match=f"^{message}"):
        make(value)
