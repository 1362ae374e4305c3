"""The paper's own numbers (Mu et al., arXiv 2202.06312), in percent, for comparison with those measured here."""

from __future__ import annotations

Score = tuple[float, float]
Table = dict[str, dict[str, Score]]

ATTACKS = ("badnets", "blend", "sig", "input_aware", "wanet")


def _by_attack(*scores: Score) -> dict[str, Score]:
    return dict(zip(ATTACKS, scores, strict=False))


# (ACC, ASR) by defence and attack. "none" is the infected model. A variant of a defence follows its name after a comma.

#: CIFAR-10, all-to-one, poisoning ratio 10 %, 5 % clean data.
TABLE_2: Table = {
    "none": _by_attack((85.55, 100.00), (85.07, 99.04), (84.02, 98.78), (94.65, 99.24), (94.15, 99.50)),
    "fine_tuning": _by_attack((81.13, 14.17), (81.03, 26.54), (80.98, 10.21), (94.00, 8.77), (93.42, 12.80)),
    "fine_pruning": _by_attack((80.32, 80.37), (80.97, 71.31), (80.33, 72.10), (89.91, 98.97), (89.86, 99.36)),
    "neural_cleanse": _by_attack((82.22, 2.43), (82.32, 2.63), (81.78, 2.79), (94.65, 99.24), (94.15, 99.50)),
    "nad": _by_attack((81.30, 4.36), (82.90, 4.84), (82.00, 2.25), (94.23, 4.59), (94.02, 8.37)),
    "aft": _by_attack((81.79, 2.37), (81.68, 3.88), (82.34, 2.67), (93.25, 1.62), (94.06, 1.46)),
}

#: GTSRB, otherwise as Table II.
TABLE_3: Table = {
    "none": _by_attack((97.68, 100.00), (97.16, 99.21), (97.39, 99.96), (99.27, 99.84), (98.97, 98.78)),
    "fine_tuning": _by_attack((93.39, 14.20), (93.02, 20.31), (93.34, 3.83), (99.10, 16.33), (98.70, 4.20)),
    "fine_pruning": _by_attack((92.30, 79.20), (92.95, 87.81), (92.68, 69.42), (89.15, 97.21), (87.49, 98.79)),
    "neural_cleanse": _by_attack((94.15, 0.08), (93.79, 1.67), (94.03, 0.24), (99.27, 99.84), (98.87, 98.78)),
    "nad": _by_attack((92.22, 0.33), (93.08, 3.43), (92.98, 0.88), (99.17, 3.80), (98.87, 2.20)),
    "aft": _by_attack((92.79, 0.12), (92.91, 2.23), (93.15, 0.13), (96.68, 2.99), (98.58, 0.47)),
}

#: CIFAR-10, all-to-all.
TABLE_4: Table = {
    "none": _by_attack((85.45, 82.81), (84.53, 80.87), (82.94, 76.99), (94.40, 92.72), (94.49, 93.47)),
    "fine_tuning": _by_attack((80.54, 3.36), (80.48, 5.32), (76.27, 5.34), (92.05, 4.46), (93.37, 7.81)),
    "nad": _by_attack((81.07, 3.12), (81.85, 3.67), (80.55, 4.23), (92.71, 1.39), (93.68, 3.69)),
    "aft": _by_attack((82.06, 2.67), (82.75, 2.26), (79.59, 4.35), (93.28, 0.75), (93.08, 0.80)),
}

#: Tiny-ImageNet at 224 pixels.
TABLE_5: Table = {
    "none": _by_attack((68.45, 99.89), (67.83, 97.30), (68.12, 99.74)),
    "aft": _by_attack((63.23, 1.65), (62.37, 4.19), (62.58, 1.19)),
}

#: CIFAR-10, poisoning ratio 1 %; AFT without clean data, the others with 5 %.
TABLE_6: Table = {
    "none": _by_attack((84.31, 97.97), (82.96, 87.53), (81.83, 95.02)),
    "fine_tuning": _by_attack((81.38, 16.44), (80.44, 8.50), (79.22, 6.31)),
    "fine_pruning": _by_attack((81.44, 71.08), (80.03, 68.01), (80.11, 65.78)),
    "nad": _by_attack((80.87, 2.84), (80.88, 2.93), (80.10, 1.96)),
    "aft_no_clean_data": _by_attack((79.47, 4.92), (79.80, 2.52), (78.38, 4.97)),
}

#: GTSRB, otherwise as Table VI.
TABLE_7: Table = {
    "none": _by_attack((98.22, 99.94), (98.02, 92.84), (97.37, 98.96)),
    "fine_tuning": _by_attack((91.82, 10.80), (92.88, 21.10), (92.98, 6.88)),
    "fine_pruning": _by_attack((92.67, 60.53), (92.08, 79.94), (93.01, 67.30)),
    "nad": _by_attack((93.00, 0.76), (93.02, 2.72), (93.17, 2.79)),
    "aft_no_clean_data": _by_attack((91.33, 2.25), (91.29, 1.92), (87.39, 6.87)),
}

#: CIFAR-10, poisoning ratio 10 %, AFT without clean data, stopped early by the ASR, which needs the trigger.
TABLE_8: Table = {"aft_no_clean_data": _by_attack((70.02, 14.11), (70.28, 18.06), (70.04, 28.50))}

#: CIFAR-10, ratio 10 %: AFT after Stage 2, and after Stage 3.
TABLE_9: Table = {
    "aft, Stage 2": _by_attack((78.08, 2.56), (78.76, 2.89), (76.04, 2.58), (92.54, 1.81), (94.03, 0.75)),
    "aft": _by_attack((81.79, 2.37), (81.68, 3.88), (82.34, 2.67), (93.65, 1.62), (94.06, 1.46)),
}

#: CIFAR-10, ratio 1 %, no clean data: AFT without augmentation, and with it.
TABLE_10: Table = {
    "aft_no_clean_data, not augmented": _by_attack((73.08, 12.08)),
    "aft_no_clean_data": _by_attack((79.47, 4.92)),
}

#: Mean feature distance of triggered images to adversarial ones of a benign and of the infected model.
TABLE_1: dict[str, tuple[float, float]] = {
    "badnets": (102.58, 85.11),
    "blend": (124.22, 75.09),
    "sig": (135.91, 78.18),
    "input_aware": (40.42, 28.66),
    "wanet": (48.13, 15.85),
}

#: Fig. 9: Blend at ratio 1 %, ASR before and after AFT without clean data.
FIG_9_BLEND_AT_1 = (90.36, 1.76)
