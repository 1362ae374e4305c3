"""How many images a search looks at, so that its cost grows less than the number of labels."""

from __future__ import annotations

from art_aft.checks import check_integer


def images_per_label(images: int, nb_labels: int, least: int) -> int:
    """
    Return how many images each label gets where up to ten labels get `images` each.

    >>> [images_per_label(16, nb_labels, 4) for nb_labels in (2, 10, 20, 200)]
    [16, 16, 8, 4]

    :param images: For up to ten labels.
    :param nb_labels: The number of labels.
    :param least: The fewest images that tell anything.
    :raises ValueError: If a number is below 1.
    """
    for name, value in (("images", images), ("nb_labels", nb_labels), ("least", least)):
        check_integer(name, value, 1)
    return min(images, max(least, 10 * images // nb_labels))
