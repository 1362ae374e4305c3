"""Checks of what a classifier is made from, such as the mean and the deviation by which it normalises its pixels."""

from __future__ import annotations

from typing import Any

from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch

from art_aft.checks import (
    check_array,
    check_choice,
    check_clip_values,
    check_flag,
    check_integer,
    check_seed,
    check_shape,
    within,
)


def check_construction(
    input_shape: Any, nb_classes: Any, clip_values: Any, device_type: Any, seed: Any, channels_first: Any
) -> None:
    """
    Check arguments of `build_classifier`, which describes them.

    :param input_shape: The shape of one image.
    :param nb_classes: The number of classes.
    :param clip_values: The pixel range.
    :param device_type: "gpu" or "cpu".
    :param seed: The seed of the weights.
    :param channels_first: Whether the channels come before height and width.
    """
    check_shape("input_shape", input_shape)
    check_integer("nb_classes", nb_classes, 2)
    check_clip_values("clip_values", clip_values)
    check_choice("device_type", device_type, ("gpu", "cpu"))
    check_seed("seed", seed)
    check_flag("channels_first", channels_first)


def check_preprocessing(mean: Any, std: Any, channels: int) -> None:
    """
    Check a mean and a deviation by channel.

    :param mean: The mean: one number, or one a channel.
    :param std: The deviation, likewise, above 0.
    :param channels: The number of channels.
    :raises ValueError: If they have another number of entries, or are not finite, or a deviation is not above 0.
    """
    for name, value in (("mean", mean), ("std", std)):
        values = check_array(name, value)
        if values.ndim < 2 and values.size not in (1, channels):
            raise ValueError(f"{name}: got {values.size} numbers, expected one for each of {channels} channels")
        if name == "std" and (values <= 0).any():
            raise ValueError(f"{name}: got {values.ravel().tolist()[:5]}, expected numbers > 0")


def check_standardisation(name: str, classifier: Any) -> None:
    """
    Check by what a classifier normalises its pixels.

    :param name: The argument's name.
    :param classifier: ART's `PyTorchClassifier`, of images.
    :raises ValueError: If a mean or a deviation is not finite, or a deviation is not above 0.
    """
    channels = classifier.input_shape[0 if classifier.channels_first else -1]
    for operation in classifier.preprocessing_operations:
        if isinstance(operation, StandardisationMeanStdPyTorch):
            with within(name):
                check_preprocessing(operation.mean, operation.std, channels)
